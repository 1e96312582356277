"""YAML that no reader may take: jobs, spaces, suites, mergekit files; in a second, in little memory, in four parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evomerge.config.load import load_job
from evomerge.errors import ConfigError, EvaluationError, RecipeError
from evomerge.evaluation.suite import read_suite
from evomerge.recipe.mergekit_text import read_mergekit
from evomerge.strict_yaml import parse_yaml
from evomerge.testing.hostile_texts import ESCAPE, HOSTILE_NAMES, MARKUP, aliases, job_texts, merges, yaml_texts

TEXTS = yaml_texts()
LARGE = {name: text for name, text in TEXTS.items() if len(text) > 100_000}
PARTS = r"(?s).+\n  Got: .+\n  Allowed: .+\n  Fix: .+"
JOB = """\
name: first
parents: {base: base, models: {math: math, string: string}}
space: layer-wise-task-arithmetic
suite: {include: [tasks], tasks: [add], split: {search: 4, select: 4, report: 4}}
objectives: [{name: skills, task: add}]
budget: {evaluations: 8}
"""


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return path


def is_plain(message: str) -> bool:
    """Nothing that a terminal obeys, and no more than fits on a screen or two."""
    return all(c == "\n" or (c.isprintable() or c == " ") for c in message) and len(message) < 25_000


@pytest.mark.parametrize("name", [name for name in TEXTS if name not in LARGE])
def test_no_reader_takes_it(tmp_path, name):
    path = written(tmp_path / "job.yaml", TEXTS[name])
    with pytest.raises(ConfigError, match=PARTS) as caught:
        load_job(path)
    with pytest.raises(EvaluationError, match=PARTS):
        read_suite(path)
    host = JOB.replace("space: layer-wise-task-arithmetic", "space: ./job.yaml")
    with pytest.raises(ConfigError, match=PARTS):
        load_job(written(tmp_path / "host.yaml", host))
    assert is_plain(str(caught.value)), str(caught.value)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", job_texts())
def test_what_is_no_job_says_so_shortly(tmp_path, name):
    with pytest.raises(ConfigError, match=PARTS) as caught:
        load_job(written(tmp_path / "job.yaml", job_texts()[name]))
    assert is_plain(str(caught.value))
    assert len(str(caught.value)) < 25_000


PLACES = {
    "the job's name": ("name: first", "name: {}"),
    "a model": ("{math: math", "{{math: {}"),
    "a model's name": ("{math: math", "{{{}: math"),
    "the space": ("space: layer-wise-task-arithmetic", "space: {}"),
    "a task": ("tasks: [add]", "tasks: [{}]"),
    "an objective's task": ("task: add}", "task: {}}}"),
    "a folder of tasks": ("include: [tasks]", "include: [{}]"),
    "a number": ("evaluations: 8", "evaluations: {}"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_names_never_speak_to_the_terminal(tmp_path, guarded, place, name):
    old, new = PLACES[place]
    text = JOB.replace(old, new.format(json.dumps(HOSTILE_NAMES[name])))
    assert text != JOB
    path = written(tmp_path / "job.yaml", text)
    with guarded.only(tmp_path / "nowhere"):
        message = refusal(path)
    assert is_plain(message), message
    if place == "the job's name":
        assert message  # the one name that becomes a path is a plain word


def refusal(path: Path) -> str:
    """What is said of a job; empty when it is taken."""
    try:
        load_job(path)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    "setting",
    [
        "name=../../canary",
        f"name={ESCAPE}",
        "seed=1e999",
        "seed=" + "9" * 5000,
        "seed=!!python/name:os.system ''",
        "a" * 100_000 + "=1",
        ".".join("a" * 5000) + "=1",
        "parents=" + "[" * 5000,
        "suite=" + aliases(9, 9).replace("\n", "\n  "),
        f"{ESCAPE}=1",
        "=",
        "budget.evaluations=.nan",
    ],
    ids=range(12),
)
def test_hostile_settings(tmp_path, setting):
    with pytest.raises(ConfigError, match=PARTS) as caught:
        load_job(written(tmp_path / "job.yaml", JOB), [setting])
    assert is_plain(str(caught.value))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "job.yaml")
    with pytest.raises(ConfigError, match="not a regular file"):
        load_job(tmp_path / "job.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_job(tmp_path / "loop.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_job(Path("/proc/self/mem"))


def test_a_byte_order_mark_is_no_harm(tmp_path):
    assert load_job(written(tmp_path / "job.yaml", b"\xef\xbb\xbf" + JOB.encode())).job.name == "first"


@pytest.mark.parametrize("value", ["-0.0", "1_000", "+5", "5.", "0"])
def test_plain_numbers_stay_numbers(value):
    assert parse_yaml(f"a: {value}", "x").value["a"] == float(value.replace("_", ""))


@pytest.mark.parametrize("text", [aliases(9, 9), merges(12), "a: " + "[" * 900_000], ids=range(3))
def test_mergekit_files_are_bounded_too(text):
    started = time.process_time()
    with pytest.raises(RecipeError, match=PARTS):
        read_mergekit(f"merge_method: linear\n{text}")
    assert time.process_time() - started < 3


CHILD = """
import json, resource, sys, time
from pathlib import Path
from evomerge.cli.main import run

def peak():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))

run(["validate", sys.argv[1]])  # imports what any job imports
seen = {}
for path in sys.argv[2:]:
    Path("/proc/self/clear_refs").write_text("5")
    before, started = peak(), time.process_time()
    code = run(["validate", path])
    seen[path] = [code, time.process_time() - started, (peak() - before) / 1024]
print(json.dumps(seen))
"""


def test_large_texts_end_with_2_in_a_second_and_200_megabytes(tmp_path, guarded):
    """In a process of its own, through the command line; the figures are of the process, not of a busy machine."""
    guarded.allow_processes()
    harmless = written(tmp_path / "harmless.yaml", "a: 1\n")
    paths = [written(tmp_path / f"{i}.yaml", text) for i, text in enumerate(LARGE.values())]
    command = [sys.executable, "-c", CHILD, str(harmless), *map(str, paths)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=200)
    seen = json.loads(done.stdout.splitlines()[-1])
    assert len(seen) == len(LARGE)
    worst = {name: seen[str(path)] for name, path in zip(LARGE, paths, strict=True)}
    for name, (code, seconds, megabytes) in worst.items():
        assert (code, seconds <= 1.0, megabytes <= 200) == (2, True, True), (name, code, seconds, megabytes)
    assert is_plain(done.stderr.replace("\n", "")[:20_000])
    assert done.stderr.count("Error: ") == len(LARGE) + 1
    assert "Traceback" not in done.stderr


def test_markup_of_rich_is_shown_as_it_stands(capsys):
    from evomerge.cli.console import make_console, say

    console = make_console(force_terminal=True, width=200)
    console.print(f"{MARKUP}{ESCAPE}")
    say(ESCAPE)
    out = capsys.readouterr().out
    assert MARKUP in out
    assert "\x1b" not in out
    assert "\x07" not in out

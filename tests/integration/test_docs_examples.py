"""The Python examples of the documentation run as they stand, beside a toy zoo; its tables and pictures are true."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from evomerge.cli.main import build_app
from evomerge.config import schema
from evomerge.dataflow.families import FAMILIES
from evomerge.evaluation.costs import COSTS
from evomerge.irt.estimators.registry import ESTIMATORS
from evomerge.irt.race import halving_schedule
from evomerge.racing.spec import AUTO_LEAST, AUTO_SHARE, ORDERS, RACES, SMALL_TASK, QuestionsSpec, load_questions
from evomerge.resources import preset_names, preset_path

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_YAML = re.compile(r"^```yaml\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NUMBER = re.compile(r"-?\d*\.?\d+")
EVALUATION = ROOT / "docs" / "evaluation.md"
DATA_FLOW = ROOT / "docs" / "data-flow.md"

JOB = """\
name: readme
parents:
  base: zoo/base
  models: {math: zoo/math, string: zoo/string, lang: zoo/lang}
space: model-wise-linear
suite: {include: [zoo/tasks], tasks: [add], split: {search: 8, select: 8, report: 8}}
objectives: [{name: sums, task: add}]
optimizer: random
budget: {evaluations: 8}
cluster: {backend: local, workers: 1}
"""


def python_blocks(path: Path) -> list[str]:
    return _BLOCK.findall(path.read_text(encoding="utf-8"))


def yaml_blocks(path: Path) -> list[str]:
    return _YAML.findall(path.read_text(encoding="utf-8"))


def table_rows(path: Path, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    below = path.read_text(encoding="utf-8").split(f"\n{heading}\n", 1)[1]
    rows = re.split(r"\n(?!\|)", below[below.index("\n|") + 1 :], maxsplit=1)[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def run(code: str, folder: Path) -> str:
    """Runs code in a process of its own and returns what it printed."""
    (folder / "example.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "example.py"],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory, small_zoo: Path) -> tuple[Path, str]:
    """The folder in which the examples of the page, then of the README, have run; and what they printed."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "zoo").symlink_to(small_zoo)
    (folder / "job.yaml").write_text(JOB, encoding="utf-8")
    blocks = python_blocks(ROOT / "docs" / "python-api.md")
    # the README merges into the same folder name; its recipe.json is the one that the page has just written
    readme = [block.replace('"merged"', '"merged-again"') for block in python_blocks(ROOT / "README.md")]
    method = [block for block in blocks if "MergeMethodSuite" in block]
    assert (len(blocks), len(readme), len(method)) == (5, 1, 1)
    checks = f"""
import pathlib, pytest
pathlib.Path("method.py").write_text({method[0]!r})
code = pytest.main(["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "method.py"])
assert code == 0, code
"""
    return folder, run("\n".join([*blocks[:-1], *readme, checks]), folder)


@pytest.mark.zoo
def test_examples_run_and_say_what_they_promise(example: tuple[Path, str]) -> None:
    folder, printed = example
    for said in (
        "search: 20 evaluations",
        "select:",
        "report:",
        "generation 1 is done",
        "score after 5 answers: ",
        "passed",
    ):
        assert said in printed
    assert "failed" not in printed
    for merged in ("merged", "merged-again"):
        assert (folder / merged / "model.safetensors").is_file()
    weights = [(folder / merged / "model.safetensors").read_bytes()[-4096:] for merged in ("merged", "merged-again")]
    assert weights[0] == weights[1]


@pytest.mark.zoo
def test_values_of_the_function_are_in_the_journal_and_in_status(example: tuple[Path, str]) -> None:
    run_dir = example[0] / "runs" / "from-python"
    records = [json.loads(line) for line in (run_dir / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    evaluated = [r for r in records if r["t"] == "evaluated"]
    assert len(evaluated) >= 20
    for record in evaluated:
        lowest = min(mean for mean, *_ in record["tasks"].values())
        value, se = record["values"]["weakest"]
        assert value == pytest.approx(lowest)
        assert se >= 0
    assert sum(r["t"] == "opened" for r in records) == 2  # the second life, with resume="auto", scored nothing
    assert [r["t"] for r in records[-2:]] == ["finished", "opened"]


@pytest.mark.zoo
def test_commands_need_no_function_but_resume_does(example: tuple[Path, str]) -> None:
    run_dir = example[0] / "runs" / "from-python"

    def evomerge(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "evomerge", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)

    status = evomerge("status", str(run_dir), "--json")
    assert status.returncode == 0, status.stderr
    found = json.loads(status.stdout)
    assert [o["name"] for o in found["objectives"]] == ["weakest", "skills"]
    entries = [*found["front"], *found["baselines"]]
    for entry in entries:
        lowest = min(task["value"] for task in entry["search"]["tasks"].values())
        assert entry["search"]["objectives"]["weakest"]["value"] == pytest.approx(lowest)
    assert found["chosen"]["report"]["objectives"]["weakest"]["se"] >= 0
    resumed = evomerge("resume", str(run_dir))
    assert resumed.returncode == 2
    assert "The objective 'weakest' does not say what it is about" in resumed.stderr
    assert "evomerge.search(objectives=...)" in " ".join(resumed.stderr.split())


def _suites(path: Path) -> list[dict[str, Any]]:
    return [found["suite"] for block in yaml_blocks(path) if "suite" in (found := yaml.safe_load(block))]


def test_every_suite_of_the_pages_is_one_that_a_job_may_have() -> None:
    suites = [*_suites(EVALUATION), *_suites(ROOT / "docs" / "job-file.md")]
    asked = [s["questions"] for s in suites if "questions" in s]
    assert len(suites) >= 5
    assert len(asked) >= 4
    for suite in suites:
        schema.Suite.model_validate(suite)
    for questions in asked:
        load_questions(questions)


def test_values_that_are_commented_out_are_allowed() -> None:
    block = next(b for b in yaml_blocks(EVALUATION) if "# questions: all" in b)
    found = [yaml.safe_load(v) for v in re.findall(r"# questions: (\S+)", block)]
    assert [load_questions(v).per_task(100) for v in found] == [100, 20, 25]


def test_the_table_of_settings_is_complete_and_its_defaults_are_right() -> None:
    rows = {row[0].strip("`"): row for row in table_rows(EVALUATION, "### Settings")}
    known = {f.name: f.default for f in fields(QuestionsSpec)}
    shown = {True: "`true`", None: "unset", (): "none"}
    assert list(rows) == list(known)
    for name, default in known.items():
        wanted = f"`{default}`" if isinstance(default, int | float | str) and default is not True else shown[default]
        assert rows[name][2] == wanted
    assert [v.strip("`") for v in rows["race"][1].split(", ")] == list(RACES)
    assert [v.strip("`") for v in rows["order"][1].split(", ")] == list(ORDERS)
    by_value = {row[0]: row[1] for row in table_rows(ROOT / "docs" / "job-file.md", "### questions")}
    for told in (rows["number"][3], by_value["`auto` (if unset)"]):
        assert f"{100 * AUTO_SHARE:g} % of" in told
        assert f"at least {AUTO_LEAST}" in told
        assert f"fewer than {SMALL_TASK} items" in told


def test_every_estimator_is_explained() -> None:
    assert sorted(row[0].strip("`") for row in table_rows(EVALUATION, "### Estimators")) == sorted(ESTIMATORS)


def test_the_rungs_that_are_told_are_those_of_a_race() -> None:
    text = " ".join(EVALUATION.read_text(encoding="utf-8").split())
    rungs = halving_schedule(12, 400, mean_questions=60, final=3)
    assert [r.questions for r in rungs] == [30, 60, 120]
    assert [r.keep for r in rungs] == [12, 6, 3]
    assert "the rungs are 30, 60 and 120 questions, for 12, 6 and 3 candidates" in text


def test_pictures_are_what_the_program_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ROOT / "docs" / "images"
    spec = importlib.util.spec_from_file_location("draw", folder / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    draw = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "draw", draw)  # as an import would
    spec.loader.exec_module(draw)
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    assert sorted(p.name for p in folder.glob("*.svg")) == sorted(draw.PICTURES)
    for name, make in draw.PICTURES.items():
        drawn, kept = make(), (folder / name).read_text(encoding="utf-8")
        assert _NUMBER.sub("", drawn) == _NUMBER.sub("", kept), f"run python docs/images/draw.py: {name} is old"
        # another numeric library may round a coordinate the other way
        numbers = [[float(n) for n in _NUMBER.findall(text)] for text in (drawn, kept)]
        assert numbers[0] == pytest.approx(numbers[1], abs=0.11)
        assert f"](images/{name})" in pages


def test_jobs_of_the_data_flow_page_are_jobs() -> None:
    (job,) = yaml_blocks(DATA_FLOW)
    stages = schema.Job.model_validate(yaml.safe_load(job)).stages
    assert stages is not None
    assert {s.space for s in stages} <= set(preset_names("search_spaces"))


def test_goals_of_the_job_file_page_are_goals() -> None:
    blocks = [yaml.safe_load(block) for block in yaml_blocks(ROOT / "docs" / "job-file.md")]
    goals = [block for block in blocks if "objectives" in block]
    assert len(goals) == 2
    for block in goals:
        for objective in block["objectives"]:
            schema.Objective.model_validate(objective)
        for constraint in block["constraints"]:
            schema.Constraint.model_validate(constraint)
    assert [row[0].strip("`") for row in table_rows(ROOT / "docs" / "job-file.md", "## Costs")] == list(COSTS)


def test_presets_of_paths_are_listed() -> None:
    known = {
        name: yaml.safe_load(preset_path("search_spaces", name).read_text()) for name in preset_names("search_spaces")
    }
    paths = sorted(name for name, space in known.items() if space.get("kind", "merge") != "merge")
    assert sorted(row[0].strip("`") for row in table_rows(DATA_FLOW, "## Spaces")) == paths


def test_architectures_of_paths_are_listed() -> None:
    text = DATA_FLOW.read_text(encoding="utf-8")
    listed = text.split("from config.json alone:")[1].split(".\n")[0]
    assert [name.strip() for name in listed.split(",")] == sorted(FAMILIES)


@pytest.mark.parametrize("name", ["data-flow.md"])
def test_commands_are_commands(name: str) -> None:
    """Their options are parsed; what they do is tested where it belongs."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    lines = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]
    assert len(lines) >= 4
    app = typer.main.get_command(build_app())
    for line in lines:
        program, sub, *arguments = shlex.split(line)
        command = app.commands[sub]  # type: ignore[attr-defined]
        assert program == "evomerge"
        assert command.make_context(sub, arguments).params


@pytest.mark.parametrize("name", [p.name for p in sorted((ROOT / "docs").glob("*.md"))])
def test_links_between_the_pages_lead_somewhere(name: str) -> None:
    page = ROOT / "docs" / name
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        other = page.parent / file if file else page
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, target

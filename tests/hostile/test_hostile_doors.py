"""Hostile models through the commands: the exit code of their kind, four parts, and nothing left behind."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from evomerge.api import merge
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.errors import ConfigError, EvomergeError, NonFinite
from evomerge.testing.audit_guard import Guard
from evomerge.testing.hostile_checkpoints import corpus, sound_checkpoint
from evomerge.testing.hostile_model import WEIGHTS, Victim, header_of, write_header

DAMAGE = (
    "index: absolute",
    f"{WEIGHTS}: a pipe",
    "only pytorch_model.bin",
    "config: attn_implementation org/kernel",
    "an adapter beside",
    "pattern: nested plus",
    "settings: files elsewhere",
)
JOB = """\
name: hostile
parents: {base: sound, models: {a: sister, b: victim}}
space: model-wise-linear
suite: {include: [tasks], tasks: [toy], split: {search: 4, select: 4, report: 4}}
objectives: [{name: toy, task: toy}]
budget: {evaluations: 4}
cluster: {backend: local, workers: 1}
"""
TASK = """\
task: toy
dataset_path: json
dataset_kwargs: {data_files: {test: toy.jsonl}}
test_split: test
doc_to_text: '{{q}}'
doc_to_target: '{{a}}'
output_type: generate_until
generation_kwargs: {until: ["x"], max_gen_toks: 2}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    sound_checkpoint(folder / "sound")
    shutil.copytree(folder / "sound", folder / "sister")
    (folder / "job.yaml").write_text(JOB)
    (folder / "tasks").mkdir()
    (folder / "tasks" / "toy.yaml").write_text(TASK)
    (folder / "tasks" / "toy.jsonl").write_text("".join(f'{{"q": "{i}+1=", "a": "{i + 1}"}}\n' for i in range(12)))
    return folder


@pytest.fixture(autouse=True)
def _offline(guarded: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries that are imported for the first time try whether they may listen on the loopback device."""
    guarded.allow_network()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def command(*arguments: object) -> tuple[int, str]:
    """Exit code and what was told."""
    from evomerge.cli.main import run

    told = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(told), redirect_stderr(told):
        warnings.simplefilter("ignore")
        code = run([str(a) for a in arguments])
    return code, told.getvalue()


def recipe(*models: Path) -> str:
    parts = ", ".join(f"{{model: {m}, parameters: {{weight: 1}}}}" for m in models)
    return f"merge_method: linear\nmodels: [{parts}]\ndtype: float32\n"


DOORS: dict[str, Callable[[Path], tuple[object, ...]]] = {
    "inspect": lambda h: ("inspect", h / "victim"),
    "validate": lambda h: ("validate", h / "job.yaml"),
    "search": lambda h: ("search", h / "job.yaml", "--run-dir", h / "run"),
    "merge": lambda h: ("merge", h / "recipe.yaml", "--to", h / "out"),
    "evaluate": lambda h: ("evaluate", h / "victim", "--job", h / "job.yaml"),
}


@pytest.mark.parametrize(
    ("name", "door"), [(name, list(DOORS)[(i + j) % len(DOORS)]) for i, name in enumerate(DAMAGE) for j in (0, 2)]
)
def test_commands_refuse(name: str, door: str, home: Path, tmp_path: Path) -> None:
    mutation = next(m for m in corpus() if m.name == name)
    victim = Victim(home / "victim", tmp_path / "outside", tmp_path / "canary")
    shutil.rmtree(victim.folder, ignore_errors=True)
    shutil.copytree(home / "sound", victim.folder)
    shutil.copytree(home / "sound", victim.outside)
    mutation.change(victim)
    (home / "recipe.yaml").write_text(recipe(home / "sound", victim.folder))
    before = sorted(p.name for p in home.iterdir())
    began = time.process_time()
    code, text = command(*DOORS[door](home))
    assert code == 3, text
    assert time.process_time() - began < 20  # the first one imports lm-eval
    assert all(part in text for part in ("Error: ", "\n  Got: ", "\n  Allowed: ", "\n  Fix: ")), text
    assert "Traceback" not in text
    assert sorted(p.name for p in home.iterdir()) == before
    assert not victim.canary.exists()


# ---------------------------------------------------------------------------------------------------------- exports


@pytest.fixture
def merged(home: Path, tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(recipe(home / "sound", home / "sister"))
    return tmp_path / "recipe.yaml"


def test_an_export_writes_its_files_and_nothing_else(merged: Path, tmp_path: Path) -> None:
    to = tmp_path / "a" / ".." / "out"
    (tmp_path / "a").mkdir()
    merge(merged, to)
    assert {p.name for p in tmp_path.iterdir()} == {"recipe.yaml", "a", "out"}
    written = {p.name: p for p in (tmp_path / "out").rglob("*")}
    names = (
        "config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json evomerge_recipe.json"
    )
    assert set(written) == set(names.split())
    assert all(p.is_file() and not p.is_symlink() and p.stat().st_nlink == 1 for p in written.values())
    umask = os.umask(0)
    os.umask(umask)
    assert all(p.stat().st_mode & 0o777 == 0o666 & ~umask for p in written.values())


@pytest.mark.parametrize(
    "kind", ["a link", "a link to nothing", "a file", "not empty", "a parent", "in a parent", "in a link"]
)
def test_targets_that_are_not_ours_are_refused(kind: str, home: Path, merged: Path, tmp_path: Path) -> None:
    to, other = tmp_path / "to", tmp_path / "other"
    other.mkdir()
    if kind == "a link":
        (other / "mine").write_text("mine")
        to.symlink_to(other)
    elif kind == "a link to nothing":
        to.symlink_to(tmp_path / "nothing")
    elif kind == "a file":
        to.write_text("mine")
    elif kind == "not empty":
        to.mkdir()
        (to / "mine").write_text("mine")
    else:
        to = home / "sound"
        if kind != "a parent":
            to = to / "out"
        if kind == "in a link":
            (tmp_path / "way").symlink_to(home / "sound")
            to = tmp_path / "way" / "out"
    before = sorted(str(p) for f in (tmp_path, home) for p in f.rglob("*"))
    with pytest.raises(ConfigError, match="target folder cannot be used"):
        merge(merged, to)
    assert sorted(str(p) for f in (tmp_path, home) for p in f.rglob("*")) == before


def test_tensor_names_never_become_paths(home: Path, tmp_path: Path) -> None:
    folders = []
    for parent in ("sound", "sister"):
        folder = shutil.copytree(home / parent, tmp_path / parent)
        header, data = header_of(folder / WEIGHTS)
        header["../../../escaped/$(touch canary).weight"] = header.pop("model.norm.weight")
        write_header(folder / WEIGHTS, header, data)
        folders.append(folder)
    (tmp_path / "recipe.yaml").write_text(recipe(*folders))
    before = {p.name for p in tmp_path.iterdir()}
    merge(tmp_path / "recipe.yaml", tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} - before == {"out"}
    assert not list(tmp_path.parent.glob("escaped*"))
    assert "../../../escaped/$(touch canary).weight" in {
        t.name for t in open_checkpoint(tmp_path / "out").layout.tensors
    }


# --------------------------------------------------------------------------------------- values that are not finite


def test_a_merge_that_overflows_is_no_checkpoint(home: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "merge_method: linear\nparameters: {normalize: false}\ndtype: float16\n"
        f"models: [{{model: {home / 'sound'}, parameters: {{weight: 1.0e9}}}}, "
        f"{{model: {home / 'sister'}, parameters: {{weight: 1.0e9}}}}]\n"
    )
    with pytest.raises(NonFinite, match=r"NaN|Inf|finite"):
        merge(tmp_path / "recipe.yaml", tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"recipe.yaml"}


def test_logits_that_are_not_finite_are_no_score(home: Path, tmp_path: Path) -> None:
    """Finite weights of 1e30: products overflow inside the model, not in any file."""
    import struct

    folder = shutil.copytree(home / "sound", tmp_path / "loud")
    header, data = header_of(folder / WEIGHTS)
    raw = bytearray(data)
    for tensor in ("lm_head.weight", "model.norm.weight"):
        first, last = header[tensor]["data_offsets"]
        raw[first:last] = struct.pack("<f", 3e38) * ((last - first) // 4)
    write_header(folder / WEIGHTS, header, bytes(raw))
    code, text = command("evaluate", folder, "--job", home / "job.yaml", "--json")
    assert code == 3, text
    assert "finite" in text or "NaN" in text, text


def test_a_tokenizer_that_panics_is_told_in_words(home: Path, tmp_path: Path) -> None:
    """A pattern that the check lets through and the library chokes on."""
    from evomerge.evaluation.tokenizer_faults import tokenizer_faults

    class PanicException(BaseException):
        pass

    for error in (PanicException("retry-limit-in-match over"), Exception("did not match any variant")):
        with pytest.raises(EvomergeError, match="The tokenizer does not work"), tokenizer_faults(tmp_path):
            raise error
    with pytest.raises(KeyError, match="mine"), tokenizer_faults(tmp_path):
        raise KeyError("mine")
    content = json.loads((home / "sound" / "tokenizer.json").read_text())
    assert content["model"]["type"] == "WordLevel"

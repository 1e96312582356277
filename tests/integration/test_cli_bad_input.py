"""Bad input: a message of four parts and the exit code of its kind, in seconds, and nothing left behind."""

from __future__ import annotations

import json
import re
import shutil
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.zoo

WEIGHTS = "model.safetensors"


def replace_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def missing(folder: Path) -> None:
    shutil.rmtree(folder)


def no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def empty(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def truncated(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def long_header(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**62) + data[8:])


def garbled_header(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[8:40] = bytes(range(200, 232))
    (folder / WEIGHTS).write_bytes(bytes(data))


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def climbing_index(folder: Path) -> None:
    names = load_file(folder / WEIGHTS)
    shutil.move(folder / WEIGHTS, folder.parent / WEIGHTS)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, f"../{WEIGHTS}")}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def not_a_number(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        sorted(tensors.items())[-1][1].view(-1)[-1] = float("nan")

    replace_weights(folder, change)


def infinite(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        sorted(tensors.items())[0][1].view(-1)[0] = float("-inf")

    replace_weights(folder, change)


def other_vocabulary(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if "embed_tokens" in n or "lm_head" in n]:
            tensors[name] = torch.cat([tensors[name], tensors[name][:3]])

    replace_weights(folder, change)


def other_shape(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if "layers.1.mlp.up_proj" in n]:
            tensors[name] = tensors[name][:-1].clone()

    replace_weights(folder, change)


def lost_tensor(folder: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[next(n for n in tensors if "layers.1.mlp" in n)]

    replace_weights(folder, change)


def other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    a, b = list(vocabulary)[-2:]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    path.write_text(json.dumps(tokenizer))


BAD_PARENTS = {
    missing: "string",
    no_weights: "safetensors",
    no_config: r"config\.json",
    broken_config: r"config\.json",
    empty: WEIGHTS,
    truncated: WEIGHTS,
    long_header: "header",
    garbled_header: "header",
    pickled: r"pytorch_model\.bin",
    climbing_index: r"\.\./model\.safetensors",
    not_a_number: "NaN",
    infinite: "1 Inf",
    other_vocabulary: "embed_tokens",
    other_shape: r"layers\.1\.mlp\.up_proj",
    lost_tensor: r"layers\.1\.mlp",
    other_tokenizer: "token",
}


@pytest.mark.parametrize("damage", BAD_PARENTS, ids=lambda d: d.__name__)
def test_damaged_parents_are_refused_before_anything_starts(home, refused, small_zoo, damage):
    shutil.copytree(small_zoo / "string", home.folder / "broken" / "string")
    damage(home.folder / "broken" / "string")
    job = home.job_with("job.yaml", ("string: zoo/string", "string: broken/string"))
    started = time.monotonic()
    message = refused(3, "search", job, "--run-dir", home.folder / "run")
    assert time.monotonic() - started < 5
    assert re.search(BAD_PARENTS[damage], message), message
    assert "string" in message, message
    assert not (home.folder / "run").exists()


ALIAS_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{n}: &{n} [*{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}]\n"
    for p, n in zip("abcdefgh", "bcdefghi", strict=True)
)

BAD_FILES = {
    "empty": ("", "mapping"),
    "a list": ("- a\n- b\n", "mapping"),
    "not YAML": ("name: [first\n", "line"),
    "not text": ("name: \x00\x01\n", "control character"),
    "alias bomb": (ALIAS_BOMB, "too many values"),
    "nested": ("a: " + "[" * 500 + "]" * 500, "nested too deeply"),
    "a tag that runs code": ("name: !!python/object/apply:os.system [exit]\n", "tag|constructor"),
    "two documents": ("name: a\n---\nname: b\n", "document"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_are_no_job(home, refused, name):
    text, expected = BAD_FILES[name]
    started = time.monotonic()
    message = refused(2, "validate", home.write("job.yaml", text))
    assert time.monotonic() - started < 3
    assert re.search(expected, message), message


BAD_JOBS = {
    "unknown key": (("seed: 7", "sed: 7"), r"job\.yaml:\d+ \(sed\): unknown key 'sed'(.|\n)*'seed'"),
    "unknown inner key": (("aggregate: mean", "agregate: mean"), r"agregate(.|\n)*'aggregate'"),
    "key twice": (("seed: 7", "seed: 7\nseed: 8"), "'seed' at line .* before at line"),
    "exponent that is text": (("at_least: 0.8", "at_least: 8e-1"), r"write 8\.0e-1"),
    "text for a number": (("evaluations: 160", "evaluations: many"), r"budget\.evaluations"),
    "no budget": (("evaluations: 160", "evaluations: 0"), r"budget\.evaluations"),
    "not finite": (("at_least: 0.8", "at_least: .nan"), "finite"),
    "no workers": (("workers: 2", "workers: 0"), r"cluster\.workers"),
    "no models": (("models: {math: zoo/math, string: zoo/string, lang: zoo/lang}", "models: {}"), r"parents\.models"),
    "unknown backend": (("backend: ray", "backend: dask"), "ray"),
    "unknown preset": (("layer-wise-task-arithmetic", "layer-wise-task-arithmetics"), "'layer-wise-task-arithmetic'"),
    "unknown method": (
        ("space: layer-wise-task-arithmetic", "space: {kind: merge, method: task_aritmetic, depth: each}"),
        "'task_arithmetic'",
    ),
    "unknown space key": (
        ("space: layer-wise-task-arithmetic", "space: {kind: merge, method: linear, dept: each}"),
        "'depth'",
    ),
    "method without its base": (("base: zoo/base", "#"), "base"),
    "unknown optimizer": (("name: nsga2", "name: nsga4"), "'nsga[23]'"),
    "unknown optimizer option": (("population: 16", "options: {populaton: 16}"), "'population'"),
    "unknown task": (("tasks: [add, rev, srt, {task: addx", "tasks: [add, rev, srt, srtd, {task: addx"), "'srt'"),
    "task that an objective lacks": (("srt, {task: addx", "srt, {task: add_mc"), "'addx'"),
    "unknown suite": (("suite:\n  include", "suite: tooy\nsuite_of_before:\n  include"), "suite"),
    "unknown metric": (("num_fewshot: 0}", "metric: acc}"), "exact_match"),
    "task twice": (("tasks: [add, rev, srt, {task: addx", "tasks: [add, add, rev, srt, {task: addx"), "add"),
    "objective on an unknown task": (("tasks: [add, rev, srt], agg", "tasks: [add, rew, srt], agg"), "'rev'"),
    "objective twice": (("{name: cross,", "{name: skills,"), "skills"),
    "objective about nothing": (("{name: cross, task: addx}", "{name: cross}"), "cross"),
    "weights for another task": (
        ("task: addx}", "tasks: [addx], aggregate: weighted, weights: {add: 1}}"),
        "add",
    ),
    "constraint on an unknown task": (("{task: rev,", "{task: rew,"), "'rev'"),
    "constraint on an unknown objective": (("{objective: skills", "{objective: skils"), "'skills'"),
    "constraint on an unknown parent": (("of: best_parent", "of: maths"), "'math'"),
    "constraint without a bound": (("{task: rev, at_least: 0.8}", "{task: rev}"), "at_least"),
    "more items than there are": (("report: 400", "report: 4000"), "4000"),
    "fractions above one": (("search: 100, select: 200, report: 400", "search: 0.5, select: 0.5, report: 0.5"), "1"),
    "negative split": (("search: 100", "search: -5"), "-5"),
    "tasks folder missing": (("include: [zoo/tasks]", "include: [zoo/task]"), r"/task\n"),
    "injected file missing": (("inject: []", "inject: [lost.json]"), r"lost\.json"),
    "injected file no recipe": (("inject: []", "inject: [job.yaml]"), r"recipe"),
}


@pytest.mark.parametrize("name", BAD_JOBS)
def test_mistakes_in_a_job(home, refused, name):
    change, expected = BAD_JOBS[name]
    started = time.monotonic()
    message = refused(2, "search", home.job_with("job.yaml", change), "--run-dir", home.folder / "run")
    assert time.monotonic() - started < 20  # the first one imports lm-eval
    assert re.search(expected, message), message
    assert not (home.folder / "run").exists()


def test_every_mistake_is_told_at_once(home, refused):
    job = home.job_with("job.yaml", ("seed: 7", "sead: 7"), ("workers: 2", "workers: two"), ("name: cross,", ""))
    message = refused(2, "validate", job)
    assert "3 errors" in message
    for part in ("sead", "'two'", "name is required"):
        assert part in message


BAD_TASKS = {
    "broken YAML": ("bad.yaml", "task: [bad\n", "bad.yaml:2"),
    "data missing": (
        "bad.yaml",
        "task: bad\ndataset_path: json\ndataset_kwargs: {data_files: {test: lost.jsonl}}\n",
        "lost",
    ),
    "code without trust": (
        "bad.yaml",
        "task: bad\ndataset_path: json\ndataset_kwargs: {data_files: {test: bad.jsonl}}\ntest_split: test\n"
        "doc_to_text: !function code.text\ndoc_to_target: '{{answer}}'\noutput_type: generate_until\n",
        "trust_task_code",
    ),
    "output type": (
        "bad.yaml",
        "task: bad\ndataset_path: json\ndataset_kwargs: {data_files: {test: bad.jsonl}}\ntest_split: test\n"
        "doc_to_text: '{{prompt}}'\ndoc_to_target: '{{answer}}'\noutput_type: generate_always\n",
        "generate_always",
    ),
}


@pytest.mark.parametrize("name", BAD_TASKS)
def test_tasks_that_cannot_be_compiled(home, refused, name):
    file, text, expected = BAD_TASKS[name]
    tasks = home.folder / "own"
    tasks.mkdir()
    (tasks / file).write_text(text)
    (tasks / "code.py").write_text("raise SystemExit('code of a task ran')\n")
    (tasks / "bad.jsonl").write_text('{"prompt": "1", "answer": "2"}\n' * 3)
    change = ("tasks: [add, rev, srt,", "tasks: [bad, add, rev, srt,"), ("[zoo/tasks]", "[zoo/tasks, own]")
    message = refused(2, "validate", home.job_with("job.yaml", *change))
    assert expected in message, message


@pytest.mark.parametrize(
    "arguments",
    [
        ("serch",),
        ("search",),
        ("search", "job.yaml", "--runs", "x"),
        ("search", "job.yaml", "--resume", "maybe"),
        ("export", "run", "--as", "gguf", "--to", "x"),
        ("evaluate", "model", "--job", "job.yaml", "--set-name", "test"),
        ("ls", "models"),
        ("status",),
    ],
    ids=" ".join,
)
def test_usage_errors_exit_with_2(command, arguments):
    done = command(*arguments)
    assert done.code == 2
    assert done.err.startswith("Usage: ")
    assert "Error" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("setting", ["budget.evaluations", "=3", "budget.evaluation=3", "seed.x=1", "inject.0.x=1"])
def test_settings_that_lead_nowhere(home, refused, setting):
    message = refused(2, "validate", home.job, "--set", setting)
    assert setting.split("=")[0].split(".")[-1] in message or "--set" in message


@pytest.mark.parametrize("name", ["status", "resume", "report", "export"])
def test_commands_on_a_folder_that_is_no_run(home, refused, name):
    more = ("--to", home.folder / "out") if name == "export" else ()
    assert str(home.folder) in refused(2, name, home.folder, *more)
    assert not (home.folder / "out").exists()
    assert str(home.folder / "nowhere") in refused(2, name, home.folder / "nowhere", *more)


def test_a_job_file_that_cannot_be_read(home, refused):
    assert "No such file" in refused(2, "search", home.folder / "lost.yaml")
    assert "directory" in refused(2, "search", home.folder)
    (home.folder / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    assert "UTF-8" in refused(2, "search", home.folder / "latin.yaml")


def test_an_installation_without_ray_says_so(home, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    message = refused(2, "search", home.job, "--run-dir", home.folder / "run")
    assert "Ray is not installed" in message
    assert "cluster.backend=local" in message


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        ('{"format": "evomerge.recipe", "version": 99}', 2, "version"),
        ('{"format": "something"}', 2, "format"),
        ('{"format": "evomerge.recipe",', 2, "JSON"),
        ("merge_method: passthrogh\nmodels: []\n", 2, "passthrogh|models"),
        ("merge_method: linear\nmodels: [{model: nowhere, parameters: {weight: 1}}]\n", 3, "nowhere"),
    ],
    ids=["newer", "other format", "cut", "unknown method", "missing parent"],
)
def test_recipes_that_cannot_be_merged(home, refused, text, code, expected):
    message = refused(code, "merge", home.write("recipe", text), "--to", home.folder / "out")
    assert re.search(expected, message), message
    assert not (home.folder / "out").exists()


def test_evaluate_a_model_that_is_not_there(home, refused):
    assert "nowhere" in refused(3, "evaluate", home.folder / "nowhere", "--job", home.job)


def test_init_never_overwrites(home, refused, command):
    assert "exists" in refused(2, "init", home.job)
    assert command("init", home.folder / "fresh.yaml").code == 0
    assert command("validate", home.folder / "fresh.yaml").code == 0

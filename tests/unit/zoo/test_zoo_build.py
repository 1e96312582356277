"""Whole zoos: what the parents can do, that nothing is left half-built, and that bits depend on the seed alone."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import typer
import yaml
from typer.testing import CliRunner

from evomerge.cli.zoo import zoo as zoo_command
from evomerge.errors import ConfigError, DiskFull, ModelError
from evomerge.zoo.build import build_zoo
from evomerge.zoo.lanes import Progress, _check_exit
from evomerge.zoo.scoring import exact_match
from evomerge.zoo.spec import ModelSize, Schedule, ZooSpec, small_spec
from evomerge.zoo.tasks import GENERATIVE, TASKS, task_items
from evomerge.zoo.train import train_base, train_expert
from evomerge.zoo.variants import SKILLS, VARIANTS

MODELS = VARIANTS[SKILLS].models
TINY = ZooSpec(3, ModelSize(16, 16, 1, 2), Schedule(12, 4, 1.0, 12, 11, 5), items=8)

pytestmark = pytest.mark.zoo


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def accuracies(model: Any) -> dict[str, float]:
    return {task: exact_match(model, task_items(task, 300)) for task in GENERATIVE}


@pytest.fixture(scope="module")
def scores(small_zoo: Path) -> Mapping[str, Mapping[str, float]]:
    models = {name: load(small_zoo / name) for name in MODELS}
    result = {name: accuracies(model) for name, model in models.items()}
    average = load(small_zoo / "base")
    experts = [models[name].state_dict() for name in MODELS[1:]]
    average.load_state_dict({name: sum(e[name] for e in experts) / 3 for name in experts[0]})
    return {**result, "average": accuracies(average)}


def test_experts_are_better_than_the_base_at_their_own_skill(scores: Mapping[str, Mapping[str, float]]) -> None:
    base = scores["base"]
    assert scores["math"]["add"] > base["add"] + 0.15
    assert scores["string"]["srt"] > base["srt"] + 0.15
    assert scores["string"]["rev"] > base["rev"] + 0.1


def test_no_parent_solves_the_crossed_skill(scores: Mapping[str, Mapping[str, float]]) -> None:
    assert all(0.1 < scores[name]["addx"] < 0.8 for name in MODELS)


def test_averaging_loses_what_the_experts_know_and_keeps_some(scores: Mapping[str, Mapping[str, float]]) -> None:
    assert scores["base"]["add"] < scores["average"]["add"] < scores["math"]["add"]
    assert scores["base"]["srt"] < scores["average"]["srt"] < scores["string"]["srt"]


def test_folders_are_ordinary_ones(small_zoo: Path) -> None:
    from transformers import AutoTokenizer

    assert sorted(p.name for p in small_zoo.iterdir()) == sorted([*MODELS, "README.md", "tasks", "zoo.json"])
    for name in MODELS:
        files = {p.name: p.read_bytes() for p in (small_zoo / name).iterdir()}
        base = {p.name: p.read_bytes() for p in (small_zoo / "base").iterdir()}
        own = {"model.safetensors", "README.md"}
        assert {k: v for k, v in files.items() if k not in own} == {k: v for k, v in base.items() if k not in own}
        assert b"license: apache-2.0" in files["README.md"]
        config = json.loads(files["config.json"])
        assert config["architectures"] == ["LlamaForCausalLM"]
        assert config["tie_word_embeddings"] is False
    tokenizer = AutoTokenizer.from_pretrained(small_zoo / "math")
    assert tokenizer.decode(tokenizer("12+34=").input_ids) == "<bos>12+34="
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<bos>", "<eos>", "<pad>")


def test_stock_generation_gives_the_scorers_answers(small_zoo: Path) -> None:
    from transformers import AutoTokenizer

    model, tokenizer = load(small_zoo / "string"), AutoTokenizer.from_pretrained(small_zoo / "string")
    problems = task_items("srt", 60)
    batch = tokenizer([p.prompt for p in problems], return_tensors="pt")
    rows = model.generate(**batch, max_new_tokens=8, do_sample=False)[:, batch.input_ids.shape[1] :]
    answers = tokenizer.batch_decode(rows, skip_special_tokens=True)
    right = sum(answer == problem.answer for answer, problem in zip(answers, problems, strict=True))
    assert right / 60 == exact_match(model, problems)


def test_bits_depend_on_the_seed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spawned processes with another thread setting give the bits of this process."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    events: list[Progress] = []
    built = build_zoo(tmp_path / "zoo", TINY, events.append)
    assert not built.reused
    assert sorted(e.model for e in events if e.step == e.most_steps) == sorted(MODELS)
    assert events[0] == Progress("base", 10, 12)
    base = train_base(TINY.size, TINY.schedule, TINY.seed, lambda step, most: None)
    _assert_saved(built.folder / "base", base)
    train_expert(base, "lang", TINY.schedule, TINY.seed, lambda step, most: None)
    _assert_saved(built.folder / "lang", base)
    assert [p.name for p in tmp_path.iterdir()] == ["zoo"]


def _assert_saved(folder: Path, model: torch.nn.Module) -> None:
    saved = safetensors.torch.load_file(folder / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


def test_a_zoo_is_reused_and_a_moved_one_finds_its_items(small_zoo: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(small_zoo, moved)
    assert build_zoo(moved, small_spec(0)).reused
    for task in TASKS:
        config = yaml.safe_load((moved / "tasks" / f"{task}.yaml").read_text())
        assert config["dataset_kwargs"]["data_files"]["test"] == str(moved / "tasks" / f"{task}.jsonl")


def test_another_zoo_or_anything_else_is_not_touched(small_zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'holds another zoo: .*"seed": 0'):
        build_zoo(small_zoo, small_spec(1))
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("all there is")
    with pytest.raises(ConfigError, match="holds something else"):
        build_zoo(taken, TINY)
    with pytest.raises(ConfigError, match="holds something else"):
        build_zoo(taken / "thesis.tex", TINY)
    with pytest.raises(ConfigError, match="name another folder"):
        build_zoo(taken / "thesis.tex" / "zoo", TINY)
    assert (taken / "thesis.tex").read_text() == "all there is"


@pytest.mark.parametrize("victim", ["math/model.safetensors", "tasks/add.jsonl"])
def test_a_damaged_zoo_is_not_reused(small_zoo: Path, tmp_path: Path, victim: str) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(small_zoo, damaged)
    (damaged / victim).unlink()
    with pytest.raises(ConfigError, match="files were changed"):
        build_zoo(damaged, small_spec(0))


def test_nothing_stays_of_a_zoo_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(folder: Path, spec: ZooSpec, progress: object) -> None:
        (folder / "base").mkdir()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("evomerge.zoo.build.train_models", no_space)
    with pytest.raises(DiskFull, match="The disk is full"):
        build_zoo(tmp_path / "deep" / "zoo", TINY)
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_training_process_that_dies_is_told() -> None:
    import multiprocessing

    steps = multiprocessing.get_context("spawn").Queue()
    with pytest.raises(ModelError, match="exit code -9"):
        _check_exit([None, -9], steps, lambda event: None)
    _check_exit([None, 0], steps, lambda event: None)
    steps.close()


def test_command(small_zoo: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(zoo_command)
    copy = tmp_path / "zoo"
    shutil.copytree(small_zoo, copy)
    result = CliRunner().invoke(app, [str(copy), "--small"])
    assert result.exit_code == 0
    assert "reused" in result.output

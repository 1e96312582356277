"""The zoo in which depth matters: its skills and passes, what is held out, the shared weights, and whole folders."""

from __future__ import annotations

import json
import queue
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import typer
import yaml
from typer.testing import CliRunner

from evomerge.cli.zoo import VariantName
from evomerge.cli.zoo import zoo as zoo_command
from evomerge.errors import ConfigError
from evomerge.zoo.build import build_zoo
from evomerge.zoo.lanes import _train
from evomerge.zoo.model import make_model
from evomerge.zoo.problems import part_of
from evomerge.zoo.scoring import exact_match, make_batch
from evomerge.zoo.spec import ModelSize, Schedule, ZooSpec, full_spec, small_spec
from evomerge.zoo.steps import SKILLS, draw, draw_batch, draw_distinct, path, problem
from evomerge.zoo.tasks import task_items
from evomerge.zoo.train_steps import (
    BATCH,
    JUDGED,
    ONE_PASS,
    TWO_PASSES,
    deepened,
    train_base,
    train_expert,
    training_batches,
)
from evomerge.zoo.variants import STEPS, VARIANTS

STEPS_ZOO = VARIANTS[STEPS]
TINY = ZooSpec(3, ModelSize(16, 16, 5, 2), Schedule(4, 2, 1.0, 4, 3, 5), items=8, variant=STEPS)


def silent(step: int, most_steps: int) -> None:
    """A report that nobody reads."""


@pytest.mark.parametrize(
    ("skill", "prompt", "after_one", "after_two"),
    [
        ("copy", "abyz=", "abyz", "abyz"),
        ("back", "abyz<", "zyba", "zyba"),
        ("shift", "abyz+=", "debc", "debc"),
        ("shiftback", "abyz+<", "cbed", "cbed"),
        ("mirror", "abyz/=", "zyba", "zyba"),
        ("mirrorback", "abyz/<", "abyz", "abyz"),
        ("steps", "abyz+/=", "debc", "wvyx"),
        ("stepsback", "abyz+/<", "cbed", "xyvw"),
    ],
)
def test_a_pass_does_the_next_operation(skill: str, prompt: str, after_one: str, after_two: str) -> None:
    assert problem(skill, "abyz", 1) == (prompt, after_one)
    assert problem(skill, "abyz") == problem(skill, "abyz", 2) == (prompt, after_two)


def test_every_skill_is_tested_above() -> None:
    assert len(SKILLS) == 8
    with pytest.raises(KeyError, match="poetry"):
        problem("poetry", "abcd")


def read_answer(prompt: str) -> str:
    """What a person would answer, from the prompt alone."""
    word = prompt[:4]
    if "+" in prompt:
        word = "".join(chr((ord(c) - ord("a") + 3) % 26 + ord("a")) for c in word)
    if "/" in prompt:
        word = "".join(chr(ord("a") + ord("z") - ord(c)) for c in word)
    return word[::-1] if prompt.endswith("<") else word


@pytest.mark.parametrize("task", STEPS_ZOO.tasks)
def test_items_are_held_out_words_with_full_answers(task: str) -> None:
    items = task_items(task, 200)
    assert len(set(items)) == 200
    assert all(answer == read_answer(prompt) for prompt, answer in items)
    assert {part_of(prompt[:4]) for prompt, _ in items} == {"items"}
    assert task_items(task, 50) == items[:50]


@pytest.mark.parametrize("name", STEPS_ZOO.models)
def test_no_training_batch_contains_a_word_of_an_item(name: str) -> None:
    for batch, _ in zip(training_batches(name, 0), range(20), strict=False):
        words = {p.prompt[:4] for part in batch for p in part}
        assert {part_of(word) for word in words} == {"train"}


def test_only_the_base_sees_mostly_what_two_passes_are_for() -> None:
    for name in STEPS_ZOO.models:
        batch = next(training_batches(name, 1))
        assert len(batch.one_pass) + len(batch.two_passes) == BATCH
        assert (len(batch.two_passes) == BATCH // 2) == (name == "base")
        if name != "base":
            own = [p for p in batch.one_pass if len(p.prompt) == len(problem(name, "abcd").prompt)]
            assert len(own) > BATCH // 2


def test_after_one_pass_nobody_is_ever_taught_two_operations() -> None:
    """What makes the two-step tasks impossible at the stored depth, for every model and merge."""
    two = {"steps", "stepsback"}
    assert two <= ONE_PASS.keys() & TWO_PASSES.keys()
    for name in STEPS_ZOO.models:
        batches = [b for b, _ in zip(training_batches(name, 2), range(10), strict=False)]
        full = [p for b in batches for p in b.one_pass if "+/" in p.prompt]
        assert full
        assert not any(p.answer == read_answer(p.prompt) for p in full)


def test_mixtures_are_distributions_over_skills() -> None:
    for mixture in (ONE_PASS, TWO_PASSES):
        assert sum(mixture.values()) == pytest.approx(1)
        assert mixture.keys() <= SKILLS.keys()
    assert {skill for skill, _ in JUDGED} <= SKILLS.keys()


def test_batches_depend_on_model_and_seed() -> None:
    first = {(name, seed): next(training_batches(name, seed)) for name in STEPS_ZOO.models for seed in (0, 1)}
    assert len(set(first.values())) == len(first)
    assert next(training_batches("back", 1)) == first["back", 1]
    with pytest.raises(KeyError, match="poetry"):
        next(training_batches("poetry", 0))


def test_asking_for_more_than_a_part_holds() -> None:
    rng = np.random.default_rng(0)
    assert len(draw_distinct("copy", "validation", 30, rng)) == 30
    assert part_of(draw("steps", "validation", rng).prompt[:4]) == "validation"
    assert {p.prompt[-1] for p in draw_batch({"copy": 0.5, "back": 0.5}, 50, rng, 1)} == {"=", "<"}


def test_the_path_repeats_the_block() -> None:
    assert path(6, 1) == (0, 1, 2, 3, 4, 5)
    assert path(6, 2) == (0, 1, 2, 3, 2, 3, 4, 5)
    assert path(5, 3) == (0, 1, 2, 3, 2, 3, 2, 3, 4)


@torch.no_grad()
def test_a_deepened_model_is_the_path_by_hand_and_shares_every_weight() -> None:
    model = make_model(TINY.size, 1)
    deep = deepened(model, 2)
    own = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in deep.parameters()} == own
    ids = make_batch([problem("steps", "abcd")]).ids
    assert torch.equal(deepened(model, 1)(ids, use_cache=False).logits, model(ids, use_cache=False).logits)
    inner = model.model
    hidden = inner.embed_tokens(ids)
    positions = inner.rotary_emb(hidden, torch.arange(ids.shape[1])[None])
    mask = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)[None, None]
    for i in path(5, 2):
        hidden = inner.layers[i](hidden, attention_mask=mask, position_embeddings=positions)
    by_hand = model.lm_head(inner.norm(hidden))
    torch.testing.assert_close(deep(ids, use_cache=False).logits, by_hand, rtol=1e-4, atol=1e-5)


def test_the_base_stops_by_what_each_depth_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    depths: list[int] = []

    def judged(model: Any, problems: object) -> float:
        depths.append(model.config.num_hidden_layers)
        return 0.5 if len(depths) > len(JUDGED) else 0.4

    monkeypatch.setattr("evomerge.zoo.train_steps.exact_match", judged)
    steps: list[int] = []
    train_base(TINY.size, Schedule(2, 1, 0.5, 9, 1, 5), 0, lambda step, most: steps.append(step))
    assert steps == [1, 2, 3]
    assert depths == [5 if passes == 1 else 7 for _, passes in JUDGED] * 2


def test_an_expert_gets_better_at_its_own() -> None:
    schedule = Schedule(1, 1, 1.0, 1, 20, 5)
    model = train_base(TINY.size, schedule, 0, silent)
    own = next(training_batches("mirror", 9)).one_pass
    before = _nats(model, own)
    train_expert(model, "mirror", schedule, 0, silent)
    assert _nats(model, own) < before - 0.005


@torch.no_grad()
def _nats(model: torch.nn.Module, problems: Any) -> float:
    ids, labels = make_batch(problems)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()))


def test_specs_of_both_kinds() -> None:
    for make in (full_spec, small_spec):
        spec = make(4, STEPS)
        assert spec.kind is STEPS_ZOO
        assert spec.size.layers == 6
        assert spec.to_json()["variant"] == STEPS
        assert "variant" not in make(4).to_json()
        assert make(4).kind.models == ("base", "math", "string", "lang")
    with pytest.raises(ValueError, match="there is no zoo 'stairs', only skills, steps"):
        full_spec(0, "stairs")
    assert {v.value for v in VariantName} == set(VARIANTS)


def test_variants_name_every_model_once() -> None:
    for name, variant in VARIANTS.items():
        assert variant.name == name
        assert sorted(m for lane in variant.lanes for m in lane) == sorted(variant.models)
        assert variant.cards.keys() == set(variant.models)
        assert variant.lanes[0][0] == "base"
        assert "(seed 7)" in variant.readme.format(seed=7)


def _train_here(folder: Path, spec: ZooSpec, progress: object) -> None:
    """What the training processes do, lane after lane (`test_zoo_build.py` starts real ones)."""
    del progress
    steps: Any = queue.Queue()
    base_is_saved: Any = threading.Event()
    for names in spec.kind.lanes:
        _train(names, folder, spec, steps, base_is_saved)


def test_a_whole_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders, tasks, the bits of this seed, reuse behind a move, and no confusion with the other zoo."""
    monkeypatch.setattr("evomerge.zoo.build.train_models", _train_here)
    monkeypatch.setattr("torch.set_num_threads", lambda n: None)
    home = tmp_path / "zoo"
    assert not build_zoo(home, TINY).reused
    names = sorted([*STEPS_ZOO.models, "tasks", "README.md", "zoo.json"])
    assert sorted(p.name for p in home.iterdir()) == names
    model = train_base(TINY.size, TINY.schedule, TINY.seed, silent)
    _assert_saved(home / "base", model)
    train_expert(model, "back", TINY.schedule, TINY.seed, silent)
    _assert_saved(home / "back", model)
    assert "saying words backwards" in (home / "back" / "README.md").read_text()
    assert sorted(p.stem for p in (home / "tasks").glob("*.yaml")) == sorted(STEPS_ZOO.tasks)
    moved = tmp_path / "moved"
    shutil.copytree(home, moved)
    assert build_zoo(moved, TINY).reused
    config = yaml.safe_load((moved / "tasks" / "steps.yaml").read_text())
    assert config["dataset_kwargs"]["data_files"]["test"] == str(moved / "tasks" / "steps.jsonl")
    with pytest.raises(ConfigError, match="holds another zoo"):
        build_zoo(moved, small_spec(3))
    items = [json.loads(line) for line in (moved / "tasks" / "steps.jsonl").read_text().splitlines()]
    assert [(i["prompt"], i["answer"]) for i in items] == list(task_items("steps", 8))


def _assert_saved(folder: Path, model: torch.nn.Module) -> None:
    saved = safetensors.torch.load_file(folder / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


def test_the_command_asks_for_the_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ZooSpec] = []

    def build(directory: Path, spec: ZooSpec) -> Any:
        asked.append(spec)
        return type("Built", (), {"reused": False})

    monkeypatch.setattr("evomerge.cli.zoo._build", build)
    app = typer.Typer()
    app.command()(zoo_command)
    result = CliRunner().invoke(app, [str(tmp_path / "z"), "--variant", "steps", "--seed", "2", "--small"])
    assert "base, shift, mirror, back and tasks" in result.output
    CliRunner().invoke(app, [str(tmp_path / "z")])
    assert asked == [small_spec(2, STEPS), full_spec(0)]


def test_scores_do_not_depend_on_the_depth_of_the_stack_in_memory() -> None:
    model = make_model(TINY.size, 2)
    problems = draw_distinct("steps", "items", 5, np.random.default_rng(1))
    assert exact_match(deepened(model, 1), problems) == exact_match(model, problems)

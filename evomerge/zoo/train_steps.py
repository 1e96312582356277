"""How the models of the zoo in which depth matters are trained: one block, run once per operation, weights shared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean
from types import MappingProxyType
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from evomerge.seeds import derive_seed, generator
from evomerge.zoo.model import make_config, make_model
from evomerge.zoo.problems import Problem
from evomerge.zoo.scoring import exact_match
from evomerge.zoo.spec import ModelSize, Schedule
from evomerge.zoo.steps import draw_batch, draw_distinct, path
from evomerge.zoo.trainer import Report, answer_loss, base_trainer, expert_trainer

BATCH: Final = 64
MUON_RATE: Final = 0.01
REPLAY: Final = 0.15
"""The share of an expert's batches that is as in the base's training: without it experts forget what prompts mean."""

ONE_PASS: Final[Mapping[str, float]] = MappingProxyType(
    {
        "copy": 0.05,
        "back": 0.2,
        "shift": 0.22,
        "mirror": 0.22,
        "shiftback": 0.08,
        "mirrorback": 0.06,
        "steps": 0.12,
        "stepsback": 0.05,
    }
)
TWO_PASSES: Final[Mapping[str, float]] = MappingProxyType(
    {"steps": 0.4, "stepsback": 0.15, "shift": 0.15, "mirror": 0.15, "back": 0.1, "shiftback": 0.05}
)
"""What is left to do decides: prompts with fewer operations than passes have the same answer as with one pass."""

JUDGED: Final = (("mirror", 1), ("back", 1), ("shift", 2), ("steps", 2), ("stepsback", 2))
"""(skill, passes) whose mean validation accuracy stops the base."""


class Batch(NamedTuple):
    """Problems to answer after one pass of the block, and after two."""

    one_pass: tuple[Problem, ...]
    two_passes: tuple[Problem, ...]


def training_batches(name: str, seed: int) -> Iterator[Batch]:
    """All batches that the model `name` is ever trained on, in order and without end: pure in `name` and `seed`.

    The base's are half and half. An expert's are its own skill after one pass, as it is stored, but for `REPLAY`.
    """
    rng = generator(seed, "zoo", "steps", "batches", name)
    n_two = BATCH // 2 if name == "base" else round(BATCH * REPLAY / 2)
    n_old = BATCH - n_two if name == "base" else n_two
    own = {name: 1.0}
    while True:
        one = draw_batch(ONE_PASS, n_old, rng, passes=1)
        if name != "base":
            one += draw_batch(own, BATCH - 2 * n_old, rng, passes=1)
        yield Batch(one, draw_batch(TWO_PASSES, n_two, rng, passes=2))


def deepened(model: LlamaForCausalLM, passes: int) -> LlamaForCausalLM:
    """A model that runs the block of `model` so many times; all its parameters are those of `model`."""
    layers = path(model.config.num_hidden_layers, passes)
    size = ModelSize(
        model.config.hidden_size, model.config.intermediate_size, len(layers), model.config.num_attention_heads
    )
    with torch.device("meta"):
        deep = LlamaForCausalLM(make_config(size))
    deep.model.embed_tokens, deep.model.norm = model.model.embed_tokens, model.model.norm
    deep.model.rotary_emb, deep.lm_head = model.model.rotary_emb, model.lm_head
    deep.model.layers = nn.ModuleList([model.model.layers[i] for i in layers])
    return deep


def _loss(model: LlamaForCausalLM, deep: LlamaForCausalLM, batch: Batch) -> Tensor:
    """The mean over both parts; all answers of this zoo have the same length."""
    share = len(batch.two_passes) / BATCH
    return (1 - share) * answer_loss(model, batch.one_pass) + share * answer_loss(deep, batch.two_passes)


def train_base(size: ModelSize, schedule: Schedule, seed: int, report: Report) -> LlamaForCausalLM:
    """A base stopped half-learnt, a pure function of its arguments (on one machine and one thread).

    Args:
        size: of the model; at least 5 layers.
        schedule: when to check and when to stop.
        seed: of the weights and batches.
        report: called after every step.
    """
    model = make_model(size, derive_seed(seed, "zoo", "steps", "init"))
    deep = deepened(model, 2)
    batches = training_batches("base", seed)
    trainer = base_trainer(model, lambda: _loss(model, deep, next(batches)), MUON_RATE)
    judged = [(model if passes == 1 else deep, _validation(s, passes, schedule, seed)) for s, passes in JUDGED]
    for step in range(1, schedule.base_most_steps + 1):
        trainer.step()
        report(step, schedule.base_most_steps)
        if schedule.is_check(step) and fmean(exact_match(m, v) for m, v in judged) >= schedule.target:
            break
    return model


def _validation(skill: str, passes: int, schedule: Schedule, seed: int) -> tuple[Problem, ...]:
    rng = generator(seed, "zoo", "steps", "validation", skill)
    return draw_distinct(skill, "validation", schedule.validation_items, rng, passes)


def train_expert(model: LlamaForCausalLM, name: str, schedule: Schedule, seed: int, report: Report) -> None:
    """Train `model`, a copy of the base, in place into the expert at the skill `name`.

    Raises:
        KeyError: for an unknown skill.
    """
    deep = deepened(model, 2)
    batches = training_batches(name, seed)
    trainer = expert_trainer(model, lambda: _loss(model, deep, next(batches)), schedule.expert_steps)
    for step in range(1, schedule.expert_steps + 1):
        trainer.step()
        report(step, schedule.expert_steps)

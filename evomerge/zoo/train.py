"""How the zoo's models are trained: a base that stops half-learnt, and experts that go on from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean
from types import MappingProxyType

from transformers import LlamaForCausalLM

from evomerge.seeds import derive_seed, generator
from evomerge.zoo.model import make_model
from evomerge.zoo.problems import Problem, draw_batch, draw_distinct
from evomerge.zoo.scoring import exact_match
from evomerge.zoo.spec import ModelSize, Schedule
from evomerge.zoo.trainer import Report, answer_loss, base_trainer, expert_trainer

BATCH = 64
MUON_RATE = 0.02
JUDGED = ("add", "rev", "srt", "addx")
MIXTURES: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "base": MappingProxyType(
            {"add": 0.3, "rev": 0.2, "srt": 0.15, "cpd": 0.05, "cpdx": 0.1, "add1x": 0.1, "addx": 0.1}
        ),
        "math": MappingProxyType({"add": 1.0}),
        "string": MappingProxyType({"rev": 0.5, "srt": 0.5}),
        "lang": MappingProxyType({"cpdx": 0.3, "add1x": 0.3, "addex": 0.4}),
    }
)


def training_batches(name: str, seed: int) -> Iterator[tuple[Problem, ...]]:
    """All batches that the model `name` is ever trained on, in order and without end: pure in `name` and `seed`.

    Raises:
        KeyError: for an unknown model.
    """
    mixture = MIXTURES[name]
    rng = generator(seed, "zoo", "batches", name)
    while True:
        yield draw_batch(mixture, BATCH, rng)


def train_base(size: ModelSize, schedule: Schedule, seed: int, report: Report) -> LlamaForCausalLM:
    """A base stopped half-learnt, a pure function of its arguments (on one machine and one thread).

    The stopping rule goes by progress on validation prompts, because a fixed number of steps gives bases of very
    different skill for different seeds.

    Args:
        size: of the model.
        schedule: when to check and when to stop.
        seed: of the weights and batches.
        report: called after every step.
    """
    model = make_model(size, derive_seed(seed, "zoo", "init"))
    batches = training_batches("base", seed)
    trainer = base_trainer(model, lambda: answer_loss(model, next(batches)), MUON_RATE)
    validation = [
        draw_distinct(skill, "validation", schedule.validation_items, generator(seed, "zoo", "validation", skill))
        for skill in JUDGED
    ]
    for step in range(1, schedule.base_most_steps + 1):
        trainer.step()
        report(step, schedule.base_most_steps)
        if schedule.is_check(step) and fmean(exact_match(model, v) for v in validation) >= schedule.target:
            break
    return model


def train_expert(model: LlamaForCausalLM, name: str, schedule: Schedule, seed: int, report: Report) -> None:
    """Train `model`, a copy of the base, in place into the expert `name`.

    Raises:
        KeyError: for an unknown expert.
    """
    batches = training_batches(name, seed)
    trainer = expert_trainer(model, lambda: answer_loss(model, next(batches)), schedule.expert_steps)
    for step in range(1, schedule.expert_steps + 1):
        trainer.step()
        report(step, schedule.expert_steps)

"""How the zoo's models are trained: a base that stops half-learnt, and experts that go on from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean
from types import MappingProxyType

import torch
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlamaForCausalLM

from evomerge.seeds import derive_seed, generator
from evomerge.zoo.model import make_model
from evomerge.zoo.problems import Problem, draw_batch, draw_distinct
from evomerge.zoo.scoring import exact_match, make_batch
from evomerge.zoo.spec import ModelSize, Schedule

BATCH = 64
CLIP = 1.0
BETAS = (0.9, 0.98)
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

Report = Callable[[int, int], None]
"""Called with steps done and the most steps that may come."""


def training_batches(name: str, seed: int) -> Iterator[tuple[Problem, ...]]:
    """All batches that the model `name` is ever trained on, in order and without end: pure in `name` and `seed`.

    Raises:
        KeyError: for an unknown model.
    """
    mixture = MIXTURES[name]
    rng = generator(seed, "zoo", "batches", name)
    while True:
        yield draw_batch(mixture, BATCH, rng)


@dataclass(frozen=True)
class _Trainer:
    """A model, its optimizers with their learning-rate schedules, and the stream of training batches."""

    model: LlamaForCausalLM
    optimizers: tuple[Optimizer, ...]
    schedules: tuple[LambdaLR, ...]
    batches: Iterator[tuple[Problem, ...]]

    def step(self) -> None:
        """One batch: cross-entropy on the answers alone, gradients clipped, weights updated in place."""
        ids, labels = make_batch(next(self.batches))
        logits = self.model(input_ids=ids[:, :-1], use_cache=False).logits
        torch.autograd.backward(functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for optimizer in self.optimizers:
            optimizer.step()
        for schedule in self.schedules:
            schedule.step()
        self.model.zero_grad(set_to_none=True)


def _base_trainer(model: LlamaForCausalLM, seed: int) -> _Trainer:
    """Muon on the matrices of the layers, AdamW on the rest, both constant after 50 warm-up steps."""
    inner = {name: p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name}
    outer = [p for name, p in model.named_parameters() if name not in inner]
    muon = torch.optim.Muon(inner.values(), lr=0.02, momentum=0.95, weight_decay=0.0)
    adamw = torch.optim.AdamW(outer, lr=3e-3, betas=BETAS, weight_decay=0.0, fused=True)
    warm = (LambdaLR(muon, _warm_up(50)), LambdaLR(adamw, _warm_up(50)))
    return _Trainer(model, (muon, adamw), warm, training_batches("base", seed))


def _expert_trainer(model: LlamaForCausalLM, name: str, steps: int, seed: int) -> _Trainer:
    """AdamW, cosine to zero over `steps` after 20 warm-up steps."""
    adamw = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=BETAS, weight_decay=0.0, fused=True)
    warm = _warm_up(20)
    cosine = LambdaLR(adamw, lambda step: warm(step) * 0.5 * (1 + math.cos(math.pi * step / steps)))
    return _Trainer(model, (adamw,), (cosine,), training_batches(name, seed))


def _warm_up(steps: int) -> Callable[[int], float]:
    return lambda step: min(1.0, (step + 1) / steps)


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
    trainer = _base_trainer(model, seed)
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
    trainer = _expert_trainer(model, name, schedule.expert_steps, seed)
    for step in range(1, schedule.expert_steps + 1):
        trainer.step()
        report(step, schedule.expert_steps)

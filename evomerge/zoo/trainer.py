"""One training step after another: optimizers, learning rates, and the loss on answers alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlamaForCausalLM

from evomerge.zoo.problems import Problem
from evomerge.zoo.scoring import make_batch

CLIP = 1.0
BETAS = (0.9, 0.98)

Report = Callable[[int, int], None]
"""Called with steps done and the most steps that may come."""


@dataclass(frozen=True)
class Trainer:
    """A model, its optimizers with their learning-rate schedules, and the loss of the next batch.

    Attributes:
        model: what is trained, in place.
        optimizers: of its parameters.
        schedules: of the optimizers' learning rates.
        loss: draws the next batch and gives its mean loss, a scalar with gradients.
    """

    model: LlamaForCausalLM
    optimizers: tuple[Optimizer, ...]
    schedules: tuple[LambdaLR, ...]
    loss: Callable[[], Tensor]

    def step(self) -> None:
        """One batch: gradients clipped, weights updated in place."""
        torch.autograd.backward(self.loss())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for optimizer in self.optimizers:
            optimizer.step()
        for schedule in self.schedules:
            schedule.step()
        self.model.zero_grad(set_to_none=True)


def answer_loss(model: LlamaForCausalLM, problems: Sequence[Problem]) -> Tensor:
    """Mean cross-entropy in nats over the tokens of the answers and their ends."""
    ids, labels = make_batch(problems)
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())


def base_trainer(model: LlamaForCausalLM, loss: Callable[[], Tensor], muon_rate: float) -> Trainer:
    """Muon on the matrices of the layers, AdamW on the rest, both constant after 50 warm-up steps."""
    inner = {name: p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name}
    outer = [p for name, p in model.named_parameters() if name not in inner]
    muon = torch.optim.Muon(inner.values(), lr=muon_rate, momentum=0.95, weight_decay=0.0)
    adamw = torch.optim.AdamW(outer, lr=3e-3, betas=BETAS, weight_decay=0.0, fused=True)
    warm = (LambdaLR(muon, _warm_up(50)), LambdaLR(adamw, _warm_up(50)))
    return Trainer(model, (muon, adamw), warm, loss)


def expert_trainer(model: LlamaForCausalLM, loss: Callable[[], Tensor], steps: int) -> Trainer:
    """AdamW, cosine to zero over `steps` after 20 warm-up steps."""
    adamw = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=BETAS, weight_decay=0.0, fused=True)
    warm = _warm_up(20)
    cosine = LambdaLR(adamw, lambda step: warm(step) * 0.5 * (1 + math.cos(math.pi * step / steps)))
    return Trainer(model, (adamw,), (cosine,), loss)


def _warm_up(steps: int) -> Callable[[int], float]:
    return lambda step: min(1.0, (step + 1) / steps)

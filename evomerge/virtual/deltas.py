"""Makers whose parent is the base plus something made of its models' deltas, one tensor after the other."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from evomerge.checkpoints.architecture import is_input_first
from evomerge.checkpoints.compatible import check_compatible
from evomerge.checkpoints.dtypes import FLOATING
from evomerge.checkpoints.finite import is_finite
from evomerge.checkpoints.opened import OpenParent
from evomerge.errors import NonFinite
from evomerge.hostmemory import host_free
from evomerge.layout import TensorInfo
from evomerge.recipe.recipe import Number
from evomerge.virtual.costs import FLOPS, duration
from evomerge.virtual.maker import Ingredients, MadePlan, Maker, Report, silent
from evomerge.virtual.parallel import in_order

if TYPE_CHECKING:
    import torch


_MOST_AT_ONCE: Final = 8
_COPIES: Final = 35
"""Memory of one matrix's decompositions, in copies of it in fp32: the most that was measured, with three models."""


def at_once(plan: MadePlan) -> int:
    """How many tensors are made at a time: one per thread that torch has, at most 8, in a quarter of what is free."""
    import torch

    largest = max((math.prod(t.shape) for t in plan.changed if is_matrix(t)), default=1)
    memory = host_free() // 4
    return max(1, min(torch.get_num_threads(), _MOST_AT_ONCE, memory // (4 * _COPIES * max(largest, 1))))


def is_matrix(tensor: TensorInfo) -> bool:
    """Whether a tensor is a linear map inside a layer: two axes, a `weight`, and no norm.

    Embedding and head stand outside the layers; a stack of experts has three axes; query and key norms may have two.
    """
    inside = tensor.layer is not None and tensor.role != "norm"
    return inside and len(tensor.shape) == 2 and tensor.name.endswith(".weight")


def check_siblings(ingredients: Ingredients) -> MadePlan:
    """The plan to make every floating tensor anew, in fp32.

    Raises:
        ModelError: when the models and their base do not fit each other.
    """
    named = {f"model {i + 1} ({p.source})": p for i, p in enumerate(ingredients.of)}
    check_compatible({"base": ingredients.origin, **named}, "base")
    changed = tuple(
        TensorInfo(t.name, t.shape, "F32", t.layer, t.role)
        for t in ingredients.origin.layout.tensors
        if t.dtype in FLOATING
    )
    return MadePlan(ingredients.origin, changed)


def read_delta(model: OpenParent, base: torch.Tensor, name: str) -> torch.Tensor:
    """`model - base` of one tensor in fp32, a new tensor.

    Raises:
        NonFinite: when it holds NaN or infinity.
    """
    delta = model.tensor(name).float() - base
    model.release(name)
    if not is_finite(delta):
        raise NonFinite(
            "A parent cannot be made from a model that holds NaN or infinity.",
            got=f"{name} of {model.source}",
            allowed="finite values in the model and in its base",
            fix="leave this model out, or obtain a sound copy of it.",
        )
    return delta


def total(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Their sum, in order, a new tensor."""
    found = deltas[0].clone()
    for delta in deltas[1:]:
        found += delta
    return found


def mean(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Their plain mean, a new tensor."""
    return total(deltas).div_(len(deltas))


def cost_of(ingredients: Ingredients, work: Callable[[int, int], float]) -> str:
    """What decomposing the matrices of a model takes, for people.

    Args:
        ingredients: their base tells the matrices.
        work: outputs, inputs -> floating-point operations.
    """
    flops = sum(work(*t.shape) for t in ingredients.origin.layout.tensors if is_matrix(t))
    return f"about {duration(flops / FLOPS)} on one core"


class DeltaMaker(Maker):
    """A maker that treats the matrices inside the layers in its own way and takes the mean of all other deltas.

    The made parent is `base + scale * merged` in fp32, with `scale` 1 for makers without that setting. A tensor that no
    model changes stays the base's. Memory: for each tensor that is made at a time (see `at_once`), the base and the
    deltas in fp32, and decompositions; torch has one thread meanwhile, so that bits do not hang on how many there are.
    """

    def plan(self, ingredients: Ingredients) -> MadePlan:
        """See `Maker.plan`."""
        return check_siblings(ingredients)

    def tensors(
        self, ingredients: Ingredients, plan: MadePlan, report: Report = silent
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Maker.tensors`."""
        jobs = (partial(self._make, info, ingredients) for info in plan.changed)
        for done, (info, made) in enumerate(zip(plan.changed, in_order(jobs, at_once(plan)), strict=True)):
            report(done, len(plan.changed))
            yield info.name, made

    def _make(self, info: TensorInfo, ingredients: Ingredients) -> torch.Tensor:
        base = ingredients.origin.tensor(info.name).float()
        deltas = [read_delta(model, base, info.name) for model in ingredients.of]
        merged = self._merged(info, deltas, ingredients).float()
        made = merged.mul_(float(ingredients.settings.get("scale", 1.0))).add_(base)
        ingredients.origin.release(info.name)
        return made

    def _merged(self, info: TensorInfo, deltas: list[torch.Tensor], ingredients: Ingredients) -> torch.Tensor:
        if not is_matrix(info) or not any(bool(d.any()) for d in deltas):
            return mean(deltas)
        flip = is_input_first(ingredients.origin.config)
        merged = self.matrix([d.T for d in deltas] if flip else deltas, ingredients.settings)
        return (merged.T if flip else merged).contiguous()

    @abstractmethod
    def matrix(self, deltas: Sequence[torch.Tensor], settings: Mapping[str, Number]) -> torch.Tensor:
        """The merged delta of one linear map.

        Args:
            deltas: one per model, each (outputs, inputs) in fp32, not all zero; not to be written to.
            settings: complete.

        Returns:
            The same shape, a new tensor, fp32 or fp64.
        """

    @abstractmethod
    def work(self, outputs: int, inputs: int, models: int, settings: Mapping[str, Number]) -> float:
        """About how many floating-point operations `matrix` takes."""

    def cost(self, ingredients: Ingredients) -> str:
        """See `Maker.cost`."""
        models, settings = len(ingredients.of), ingredients.settings
        return cost_of(ingredients, lambda m, n: self.work(m, n, models, settings))


def triplets_work(rows: int, columns: int) -> float:
    """About how many operations `spectral.triplets` takes: two products and the eigenvectors of the smaller side."""
    short, long = sorted((rows, columns))
    return 4.0 * short**2 * long + 10.0 * short**3


def polar_work(rows: int, columns: int) -> float:
    """About how many operations `spectral.polar` takes."""
    return triplets_work(rows, columns) + 2.0 * min(rows, columns) * rows * columns

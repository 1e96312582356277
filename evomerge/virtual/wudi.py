"""WUDI-Merging: the merged delta that disturbs the inputs of every model least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, final

from evomerge.recipe.method_spec import count
from evomerge.recipe.recipe import Number
from evomerge.virtual.adam import Adam
from evomerge.virtual.deltas import DeltaMaker, total, triplets_work
from evomerge.virtual.maker import MakerSpec
from evomerge.virtual.spectral import left_basis, triplets

if TYPE_CHECKING:
    import torch

_RATE: Final = 1e-5


@final
class Wudi(DeltaMaker):
    """`base + argmin_t sum_i |(t - delta_i) delta_i^T|^2 / |delta_i|^2` (WUDI-Merging, arXiv 2503.08099).

    The objective is quadratic, so that with `A_i = delta_i^T delta_i / |delta_i|^2` its minimiser of smallest norm is
    `(sum_i delta_i A_i) (sum_i A_i)^+`, which `steps: 0` gives: scale-free and exact. The authors start from the sum of
    the deltas and take 300 steps of Adam at a rate of 1e-5, which `steps: 300` does likewise; how far these lead
    depends on how large the deltas are (with entries of 4e-4 they end a tenth to a half of the norm away from the
    minimiser), and they take ten times as long and more. Everything but the matrices inside the layers is the mean of
    the deltas.

    Where it differs from the authors' code: a model that leaves a matrix unchanged has no part in it (theirs divides
    zero by zero); in vision they leave all but the matrices at the base.
    """

    spec = MakerSpec(
        name="wudi",
        needs_base=True,
        min_models=1,
        max_models=None,
        parameters={"steps": count(0, 0, 100_000)},
        source="WUDI-Merging, Cheng et al. 2025, arXiv 2503.08099",
    )

    def matrix(self, deltas: Sequence[torch.Tensor], settings: Mapping[str, Number]) -> torch.Tensor:
        """See `DeltaMaker.matrix`."""
        moved = [d for d in deltas if bool(d.any())]
        steps = int(settings["steps"])
        return descend(moved, steps) if steps else minimiser(moved)

    def work(self, outputs: int, inputs: int, models: int, settings: Mapping[str, Number]) -> float:
        """See `DeltaMaker.work`; a product in fp32 counts as half a product in fp64."""
        product = 2.0 * outputs * inputs**2
        steps = float(settings["steps"])
        return steps * product / 2 if steps else triplets_work(outputs * models, inputs) + 3 * models * product


def minimiser(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """The merged delta of smallest norm that minimises the objective; fp64.

    Args:
        deltas: each (outputs, inputs), none of them zero.
    """
    import torch

    outputs, inputs = deltas[0].shape
    if inputs <= outputs * len(deltas):
        gram = torch.zeros(inputs, inputs, dtype=torch.float64)
        for delta in deltas:
            x = _unit(delta)
            gram.addmm_(x.T, x)
        basis = left_basis(gram)
        del gram
    else:
        basis = triplets(torch.cat([_unit(d) for d in deltas])).vt.T
    weight = torch.zeros(basis.shape[1], dtype=torch.float64)  # the eigenvalues of the sum of A_i, `basis` its vectors
    right = torch.zeros(outputs, basis.shape[1], dtype=torch.float64)
    for delta in deltas:
        x = _unit(delta)
        seen = x @ basis
        weight += seen.square().sum(0)
        own = (x @ x.T) @ seen if outputs <= inputs else x @ (x.T @ seen)
        right.add_(own, alpha=float(delta.double().norm()))
    return (right / weight) @ basis.T


def _unit(delta: torch.Tensor) -> torch.Tensor:
    x = delta.double()
    return x / float(x.norm())


def descend(deltas: Sequence[torch.Tensor], steps: int) -> torch.Tensor:
    """The authors' way down the objective: Adam at a rate of 1e-5 from the sum of the deltas; fp32.

    Args:
        deltas: each (outputs, inputs), none of them zero.
        steps: how many.
    """
    import torch

    merged = total(deltas)
    gram = torch.zeros(merged.shape[1], merged.shape[1], dtype=torch.float64)
    target = torch.zeros_like(merged, dtype=torch.float64)
    for delta in deltas:
        x = delta.double()
        own = x.T @ x / x.square().sum()
        gram += own
        target.addmm_(x, own)
    gram32, target32 = gram.float(), target.float()
    adam = Adam(_RATE)
    for _ in range(steps):
        merged = adam.moved(merged, target32.addmm(merged, gram32, beta=-1).mul_(2))
    return merged


WUDI: Final = Wudi()

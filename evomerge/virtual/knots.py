"""KnOTS: deltas, written in the basis that they share, and merged there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, final

from evomerge.recipe.method_spec import flag, shared
from evomerge.recipe.recipe import Number
from evomerge.virtual.deltas import DeltaMaker, total, triplets_work
from evomerge.virtual.maker import MakerSpec
from evomerge.virtual.spectral import left_basis, triplets

if TYPE_CHECKING:
    import torch


@final
class Knots(DeltaMaker):
    """`base + scale * U merge(U^T delta_1, ..., U^T delta_N)` (KnOTS, Stoica et al. 2025, arXiv 2410.19735).

    U holds the left singular vectors of the deltas side by side, `[delta_1 | ... | delta_N] = U S [V_1 | ... | V_N]`,
    so that `S V_i = U^T delta_i` are a model's coordinates. Coordinates are merged as TIES merges deltas: `density`
    keeps that share of each model's largest (all by default), `elect` keeps those that have the sign of their sum over
    the models, and `mean` divides by how many are left, where the sum would grow with the number of models. Without
    election, mean or density it is task arithmetic, whatever the basis. Everything but the matrices inside the layers
    is the mean of the deltas, times `scale`.

    Where it differs from the authors' code: the largest are chosen in each matrix, exactly `round(density * size)` of
    them, and not over the whole model; where coordinates cancel exactly nothing is elected; what counts as absent is
    relative (1e-5 of the largest), not 1e-5; and what is no matrix is merged, while theirs meets adapters only.
    """

    spec = MakerSpec(
        name="knots",
        needs_base=True,
        min_models=1,
        max_models=None,
        parameters={
            "scale": shared(1.0),
            "density": shared(1.0, 0.0, 1.0),
            "elect": flag(True),
            "mean": flag(True),
        },
        source="KnOTS, Stoica et al. 2025, arXiv 2410.19735",
    )

    def matrix(self, deltas: Sequence[torch.Tensor], settings: Mapping[str, Number]) -> torch.Tensor:
        """See `DeltaMaker.matrix`."""
        import torch

        u = shared_basis(deltas)
        coordinates = [largest(u.T @ d.double(), float(settings["density"])) for d in deltas]
        sign = total(coordinates).sign_() if settings["elect"] else None
        merged = torch.zeros_like(coordinates[0])
        count = torch.zeros_like(coordinates[0], dtype=torch.int16)
        while coordinates:
            own = coordinates.pop(0)
            if sign is not None:
                own.masked_fill_(own.sign() != sign, 0.0)
            merged += own
            count += own != 0
        if settings["mean"]:
            merged /= count.clamp_(min=1)
        return u @ merged

    def work(self, outputs: int, inputs: int, models: int, settings: Mapping[str, Number]) -> float:
        """See `DeltaMaker.work`."""
        return triplets_work(outputs, inputs * models) + 2.0 * min(outputs, inputs * models) * outputs * inputs


def shared_basis(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Left singular vectors of all deltas side by side, fp64, shape (outputs, rank)."""
    import torch

    outputs, inputs = deltas[0].shape
    if outputs > inputs * len(deltas):
        return triplets(torch.cat(list(deltas), 1)).u
    gram = torch.zeros(outputs, outputs, dtype=torch.float64)
    for delta in deltas:
        x = delta.double()
        gram.addmm_(x, x.T)
    return left_basis(gram)


def largest(values: torch.Tensor, density: float) -> torch.Tensor:
    """The `round(density * size)` largest magnitudes, zeros elsewhere; of equal ones the first."""
    import torch

    count = round(density * values.numel())
    if count == values.numel():
        return values
    order = values.abs().flatten().sort(descending=True, stable=True).indices[:count]
    kept = torch.zeros(values.numel(), dtype=values.dtype)
    kept[order] = values.flatten()[order]
    return kept.view_as(values)


KNOTS: Final = Knots()

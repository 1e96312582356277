"""STAR: a model's delta without its weak singular directions, the others made stronger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, final

from evomerge.recipe.method_spec import shared
from evomerge.recipe.recipe import Number
from evomerge.virtual.deltas import DeltaMaker, polar_work
from evomerge.virtual.maker import MakerSpec
from evomerge.virtual.spectral import triplets

if TYPE_CHECKING:
    import torch


@final
class Star(DeltaMaker):
    """`base + U_r (sum S / sum S_r) S_r V_r^T` (STAR, Lee et al. 2025, arXiv 2502.10339).

    `r` is the smallest rank whose singular values reach `eta` percent of their sum; they are rescaled to the whole sum,
    so that the nuclear norm stays. One model in, one variant of it out: the paper averages the variants of several
    models, which is `linear` or `task_arithmetic` over parents made this way. Everything but the matrices inside the
    layers keeps its delta. `eta: 100` gives the model.

    Where it differs from the authors' code: theirs meets adapters on matrices only; here embedding and head are kept.
    """

    spec = MakerSpec(
        name="star",
        needs_base=True,
        min_models=1,
        max_models=1,
        parameters={"eta": shared(40.0, 0.0, 100.0)},
        source="STAR, Lee et al. 2025, arXiv 2502.10339",
    )

    def matrix(self, deltas: Sequence[torch.Tensor], settings: Mapping[str, Number]) -> torch.Tensor:
        """See `DeltaMaker.matrix`."""
        if settings["eta"] == 100:
            return deltas[0].clone()
        u, s, vt = triplets(deltas[0])
        reached = s.cumsum(0) >= s.sum() * (float(settings["eta"]) / 100)
        rank = s.numel() - int(reached.sum()) + 1
        kept = s[:rank] * (s.sum() / s[:rank].sum())
        return (u[:, :rank] * kept) @ vt[:rank]

    def work(self, outputs: int, inputs: int, models: int, settings: Mapping[str, Number]) -> float:
        """See `DeltaMaker.work`."""
        return polar_work(outputs, inputs)


STAR: Final = Star()

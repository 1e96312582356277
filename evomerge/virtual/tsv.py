"""TSV-Merge: the strongest singular directions of every delta, made orthogonal to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, final

from evomerge.recipe.method_spec import shared
from evomerge.recipe.recipe import Number
from evomerge.virtual.deltas import DeltaMaker, polar_work, triplets_work
from evomerge.virtual.maker import MakerSpec
from evomerge.virtual.spectral import leading, polar

if TYPE_CHECKING:
    import torch


@final
class TsvMerge(DeltaMaker):
    """`base + scale * U' S V'` (TSV-Merge, Gargiulo et al. 2025, arXiv 2412.00081).

    From each of the N deltas of a matrix come the leading `min(m, n) / N` singular triplets. The left vectors of all of
    them, side by side, are replaced by their polar factor U' (the nearest matrix with orthonormal columns), the right
    ones by V'; S holds the singular values. Everything but the matrices inside the layers is the mean of the deltas.
    One model gives `base + scale * delta`.

    Where it differs from the authors' code: embedding and head are averaged, not decomposed; every model keeps one
    triplet at least; and where directions coincide, so that no orthonormal matrix is nearest, only the range is made
    orthonormal, while an SVD fills up with vectors of the library's choice. N equal models so give the delta cut to
    rank `min(m, n) / N`.
    """

    spec = MakerSpec(
        name="tsv_m",
        needs_base=True,
        min_models=1,
        max_models=None,
        parameters={"scale": shared(1.0)},
        source="TSV-Merge, Gargiulo et al. 2025, arXiv 2412.00081",
    )

    def matrix(self, deltas: Sequence[torch.Tensor], settings: Mapping[str, Number]) -> torch.Tensor:
        """See `DeltaMaker.matrix`."""
        import torch

        kept = max(min(deltas[0].shape) // len(deltas), 1)
        found = [leading(d, kept) for d in deltas]
        u, vt = polar(torch.cat([t.u for t in found], 1)), polar(torch.cat([t.vt for t in found]))
        return (u * torch.cat([t.s for t in found])) @ vt

    def work(self, outputs: int, inputs: int, models: int, settings: Mapping[str, Number]) -> float:
        """See `DeltaMaker.work`."""
        short = min(outputs, inputs)
        return models * triplets_work(outputs, inputs) + polar_work(outputs, short) + polar_work(inputs, short)


TSV_M: Final = TsvMerge()

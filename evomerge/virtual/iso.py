"""Isotropic merging: the spectrum of the summed deltas, made flat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, final

from evomerge.recipe.method_spec import flag, shared
from evomerge.recipe.recipe import Number
from evomerge.virtual.deltas import DeltaMaker, polar_work, total, triplets_work
from evomerge.virtual.maker import MakerSpec
from evomerge.virtual.spectral import leading, newton_schulz, polar

if TYPE_CHECKING:
    import torch

_SOURCE: Final = "Marczak et al. 2025, arXiv 2502.04959"


@final
class IsoC(DeltaMaker):
    """`base + scale * mean(S) U V^T`, where `U S V^T` is the sum of the deltas (Iso-C, arXiv 2502.04959).

    The mean is over all `min(m, n)` singular values, zeros among them; it is the inner product of `U V^T` with the sum,
    divided by their number. `U V^T` is the polar factor, by default from Newton-Schulz iterations, which need nothing
    but products; with `exact` from a decomposition in fp64. Both agree within 1e-4 where no singular value lies below
    1e-4 of the norm. Everything but the matrices inside the layers is the mean of the deltas, times `scale`.

    Where it differs from the authors' code: embedding and head are averaged, not flattened. And where the sum lacks
    rank (adapters), an SVD fills up with directions of the library's choice and the authors' code raises them to the
    mean; here directions outside the range stay near 0 (`exact`: at 0).
    """

    spec = MakerSpec(
        name="iso_c",
        needs_base=True,
        min_models=1,
        max_models=None,
        parameters={"scale": shared(1.0), "exact": flag(False)},
        source=f"Iso-C, {_SOURCE}",
    )

    def matrix(self, deltas: Sequence[torch.Tensor], settings: Mapping[str, Number]) -> torch.Tensor:
        """See `DeltaMaker.matrix`."""
        summed = total(deltas)
        factor = polar(summed) if settings["exact"] else newton_schulz(summed)
        level = (factor.double() * summed.double()).sum() / min(summed.shape)
        return factor.double() * level

    def work(self, outputs: int, inputs: int, models: int, settings: Mapping[str, Number]) -> float:
        """See `DeltaMaker.work`; a product in fp32 counts as half a product in fp64."""
        if settings["exact"]:
            return polar_work(outputs, inputs)
        short, long = sorted((outputs, inputs))
        return 28.0 * short**2 * long + 8.0 * short**3


@final
class IsoCts(DeltaMaker):
    """`base + scale * mean(S) polar(U) polar(V)^T`: Iso-C in a common space, beside one per model (arXiv 2502.04959).

    The leading directions of the sum are the common space, a share `common` of all `r = min(m, n)`. Each of the N
    deltas, with the common left space projected out, gives its leading `(r - common r) / N` triplets. U and V are the
    left and right vectors of all, side by side, S their singular values.
    Everything but the matrices inside the layers is the mean of the deltas, times `scale`.

    Where it differs from the authors' code: as `IsoC` and `TsvMerge`; directions that are absent count as zeros in the
    mean. The authors' rounding of the spaces' sizes is kept, but for more models than directions.
    """

    spec = MakerSpec(
        name="iso_cts",
        needs_base=True,
        min_models=1,
        max_models=None,
        parameters={"scale": shared(1.0), "common": shared(0.8, 0.0, 1.0)},
        source=f"Iso-CTS, {_SOURCE}",
    )

    def matrix(self, deltas: Sequence[torch.Tensor], settings: Mapping[str, Number]) -> torch.Tensor:
        """See `DeltaMaker.matrix`."""
        import torch

        common, own = space_sizes(min(deltas[0].shape), len(deltas), float(settings["common"]))
        both = leading(total(deltas), common)
        found = [both, *(leading(d.double() - both.u @ (both.u.T @ d.double()), own) for d in deltas)]
        u, vt = polar(torch.cat([t.u for t in found], 1)), polar(torch.cat([t.vt for t in found]))
        return (u @ vt) * (torch.cat([t.s for t in found]).sum() / min(deltas[0].shape))

    def work(self, outputs: int, inputs: int, models: int, settings: Mapping[str, Number]) -> float:
        """See `DeltaMaker.work`."""
        short = min(outputs, inputs)
        return (models + 1) * triplets_work(outputs, inputs) + polar_work(outputs, short) + polar_work(inputs, short)


def space_sizes(directions: int, models: int, share: float) -> tuple[int, int]:
    """How many directions the common space has, and how many each model's own.

    Args:
        directions: the smaller side of a matrix.
        models: how many there are.
        share: of the common space, before rounding to what divides evenly.
    """
    own = min(round((directions - int(directions * share)) / models), directions // models)
    return directions - own * models, own


ISO_C: Final = IsoC()
ISO_CTS: Final = IsoCts()

"""Methods that are settings of generalised task arithmetic: TIES and DARE.

Where mergekit 0.1.5 differs (`compat: mergekit` follows it instead): an exact cancellation elects nothing here and
the positive sign there; elected means divide by the sum of |w| of the agreeing models, so that negative weights
neither flip nor blow up a mean; exactly round(density * numel) entries are kept, ties broken by the element hash;
tensors with one axis or none (norm gains, biases) are merged dense; DARE divides by the density, which is unbiased,
where mergekit matches the L1 norm of each tensor.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, final

from evomerge.merging.elements import keep_bound, salt, tie_salts
from evomerge.merging.linear_methods import delta_coefficients, linear_setting
from evomerge.merging.methods import Facts, KernelMethod, Parameters
from evomerge.merging.settings import GtaParent, GtaSetting, Setting, single
from evomerge.merging.thresholds import density_count
from evomerge.recipe.mergekit_specs import DARE_LINEAR, DARE_TIES, TIES


def elected(parameters: Parameters, parents: dict[int, GtaParent]) -> Setting:
    """A setting with election; a lone parent agrees with itself, so it needs neither election nor divisor.

    Args:
        parameters: for `normalize` and `lambda`.
        parents: input -> how it enters; inputs that contribute nothing are left out.
    """
    normalize, scale = bool(parameters.shared["normalize"]), float(parameters.shared["lambda"])
    if len(parents) > 1:
        return _gta(parameters, parents, elect=True, normalize=normalize, scale=scale)
    alone = {
        i: replace(p, gain=single(scale * (p.gain / p.weight if normalize else p.gain))) for i, p in parents.items()
    }
    return plain(parameters, alone)


def plain(parameters: Parameters, parents: dict[int, GtaParent]) -> Setting:
    """A setting without election; without cuts and masks it is a plain sum of deltas."""
    if all(p.low is None and p.mask_bound is None for p in parents.values()):
        n = len(parameters.parents)
        return linear_setting([parents[i].gain if i in parents else 0.0 for i in range(n)], deltas=True)
    return _gta(parameters, parents, elect=False, normalize=False, scale=1.0)


def _gta(
    parameters: Parameters, parents: dict[int, GtaParent], *, elect: bool, normalize: bool, scale: float
) -> GtaSetting:
    trimmed = any(p.low is not None for p in parents.values())
    word = tie_salts(parameters.tensor, "")[0] if trimmed else 0
    return GtaSetting(tuple(parents), tuple(parents.values()), elect, normalize, single(scale), word)


@final
class Ties(KernelMethod):
    """Trim by magnitude per tensor, elect a sign by weighted sum, merge what agrees (Yadav et al. 2023)."""

    spec = TIES

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        parents: dict[int, GtaParent] = {}
        densities = parameters.column("density")
        for i, weight in enumerate(parameters.column("weight")):
            count = (
                facts.numel if len(facts.shape) <= 1 and densities[i] > 0 else density_count(densities[i], facts.numel)
            )
            gain = single(weight)
            if gain == 0.0 or count == 0:
                continue
            low = facts.cut(i, count) if count < facts.numel else None
            word = tie_salts(parameters.tensor, parameters.parents[i])[1] if low is not None else 0
            parents[i] = GtaParent(gain, abs(gain), low, tie_salt=word)
        return elected(parameters, parents)


def _dare_parents(parameters: Parameters, facts: Facts, weights: tuple[float, ...]) -> dict[int, GtaParent]:
    """Random masks of the given densities; what is kept is divided by its density when `rescale`."""
    rescale = bool(parameters.shared["rescale"])
    parents: dict[int, GtaParent] = {}
    for i, density in enumerate(parameters.column("density")):
        dense = density >= 1.0 or (density > 0.0 and len(facts.shape) <= 1)
        bound = None if dense else keep_bound(density)
        gain = single(weights[i] / density if rescale and not dense and bound is not None else weights[i])
        if gain == 0.0 or (bound is None and not dense):
            continue
        word = 0 if dense else salt("mask", parameters.seed, parameters.tensor, parameters.parents[i])
        parents[i] = GtaParent(gain, single(abs(weights[i])), mask_bound=bound, mask_salt=word)
    return parents


@final
class DareLinear(KernelMethod):
    """Drop deltas at random, rescale the rest, then task arithmetic (Yu et al. 2024)."""

    spec = DARE_LINEAR

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        coefficients = delta_coefficients(parameters)
        parents = _dare_parents(parameters, facts, coefficients)
        return plain(parameters, parents)


@final
class DareTies(KernelMethod):
    """Drop deltas at random, rescale the rest, then elect signs as TIES does."""

    spec = DARE_TIES

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        return elected(parameters, _dare_parents(parameters, facts, parameters.column("weight")))


TIES_METHOD: Final = Ties()
DARE_LINEAR_METHOD: Final = DareLinear()
DARE_TIES_METHOD: Final = DareTies()

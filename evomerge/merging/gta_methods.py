"""Methods that are settings of generalised task arithmetic: TIES, Model Breadcrumbs and DARE.

Where mergekit 0.1.5 differs (`compat: mergekit` follows it instead): an exact cancellation elects nothing here and
the positive sign there; elected means divide by the sum of |w| of the agreeing models, so that negative weights
neither flip nor blow up a mean; exactly round(density * numel) entries are kept, ties broken by the element hash;
tensors with one axis or none (norm gains, biases) are merged dense; DARE divides by the density, which is unbiased,
where mergekit matches the L1 norm of each tensor.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final, NamedTuple, final

from evomerge.merging.elements import keep_bound, salt, tie_salts
from evomerge.merging.linear_methods import delta_coefficients, linear_setting
from evomerge.merging.methods import Facts, KernelMethod, Parameters
from evomerge.merging.settings import GtaParent, GtaSetting, Setting, single
from evomerge.merging.thresholds import density_count
from evomerge.recipe.mergekit_specs import BREADCRUMBS, BREADCRUMBS_TIES, DARE_LINEAR, DARE_TIES, TIES

LARGEST_RESCALE: Final = 10.0
"""What is kept is never scaled up by more: where next to nothing is kept, its norm says little about the whole."""


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
    if all(dense(p) for p in parents.values()):
        n = len(parameters.parents)
        return linear_setting([parents[i].gain if i in parents else 0.0 for i in range(n)], deltas=True)
    return _gta(parameters, parents, elect=False, normalize=False, scale=1.0)


def dense(parent: GtaParent) -> bool:
    """Whether every entry of a parent's delta takes part."""
    return parent.low is None and parent.high is None and parent.mask_bound is None and parent.ramp is None


def mean_of_kept(parameters: Parameters, parents: dict[int, GtaParent]) -> Setting:
    """Per element the weighted mean of the deltas that are kept there, times lambda; nothing where none is."""
    scale = float(parameters.shared["lambda"])
    if len(parents) == 1 or all(dense(p) for p in parents.values()):
        total = math.fsum(p.weight for p in parents.values())
        shares = {i: replace(p, gain=single(scale * (p.gain / total))) for i, p in parents.items()}
        return plain(parameters, shares)
    return _gta(parameters, parents, elect=False, normalize=True, scale=scale)


def _gta(
    parameters: Parameters, parents: dict[int, GtaParent], *, elect: bool, normalize: bool, scale: float
) -> GtaSetting:
    cut = any(p.low is not None or p.high is not None for p in parents.values())
    word = tie_salts(parameters.tensor, "")[0] if cut else 0
    return GtaSetting(tuple(parents), tuple(parents.values()), elect, normalize, single(scale), word)


class _Kept(NamedTuple):
    """Which ranks of a delta's magnitudes are kept: from `top + 1`, the largest being 1, to `last`."""

    top: int
    last: int


def _kept(facts: Facts, density: float, gamma: float) -> _Kept | None:
    """The ranks that remain when the largest share gamma goes and then the largest share density stays.

    Both counts are rounded; what there is not, cannot be kept. One axis: everything, unless the density is 0.

    Returns:
        None when nothing is kept.
    """
    if len(facts.shape) <= 1:
        return _Kept(0, facts.numel) if density > 0.0 else None
    top = round(gamma * facts.numel)
    last = min(top + density_count(density, facts.numel), facts.numel)
    return _Kept(top, last) if last > top else None


def _rescale(facts: Facts, index: int, kept: _Kept) -> float:
    """The factor that gives what is kept the L1 norm of the whole delta, at most `LARGEST_RESCALE`."""
    if kept == (0, facts.numel):
        return 1.0
    dropped = facts.norm(index, kept.top) if kept.top else 0.0
    remaining = facts.norm(index, kept.last) - dropped
    whole = facts.norm(index, facts.numel)
    return min(whole / remaining, LARGEST_RESCALE) if remaining > 0.0 else 1.0


def trimmed_parents(parameters: Parameters, facts: Facts, weights: tuple[float, ...]) -> dict[int, GtaParent]:
    """Deltas cut by magnitude per tensor, `density` and, where the method has it, `gamma`; rescaled when it says so."""
    rescale = bool(parameters.shared["rescale"])
    parents: dict[int, GtaParent] = {}
    for i, values in enumerate(parameters.per_parent):
        kept = _kept(facts, float(values["density"]), float(values.get("gamma", 0.0)))
        if kept is None or single(weights[i]) == 0.0:
            continue
        factor = _rescale(facts, i, kept) if rescale else 1.0
        low = facts.cut(i, kept.last) if kept.last < facts.numel else None
        high = facts.cut(i, kept.top) if kept.top else None
        word = tie_salts(parameters.tensor, parameters.parents[i])[1] if low or high else 0
        gain, weight = single(factor * weights[i]), single(abs(weights[i]))
        parents[i] = GtaParent(gain, weight, low, high, tie_salt=word)
    return parents


@final
class Ties(KernelMethod):
    """Trim by magnitude per tensor, elect a sign by weighted sum, merge what agrees (arXiv 2306.01708).

    `base + lambda sum_{i in A} w_i d_i / sum_{i in A} |w_i|` per entry, where d_i is the trimmed delta and A the models
    with `sign(w_i d_i) = sign(sum_j w_j d_j)`; without `normalize` there is no divisor.

    The paper trims the whole task vector at once, and elects without weights; mergekit does as is done here. With
    `rescale` what is kept is scaled to the L1 norm of the whole delta, at most tenfold.
    """

    spec = TIES

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        return elected(parameters, trimmed_parents(parameters, facts, parameters.column("weight")))


@final
class Breadcrumbs(KernelMethod):
    """Drop the share gamma of the largest and all small deltas, sum the rest (arXiv 2312.06795).

    `base + lambda sum_i w_i m_i delta_i` with a mask m_i of the magnitudes between two quantiles.
    Exactly round(gamma n) entries go from the top of the tensor's n, then round(density n) are kept, or what is left.
    The authors' code cuts row by row and mergekit, as here, tensor by tensor; older versions of mergekit drop a whole
    delta where gamma n is below one.
    """

    spec = BREADCRUMBS

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        return plain(parameters, trimmed_parents(parameters, facts, delta_coefficients(parameters)))


@final
class BreadcrumbsTies(KernelMethod):
    """The cuts of Model Breadcrumbs (arXiv 2312.06795), then the election of TIES (arXiv 2306.01708): see `Ties`."""

    spec = BREADCRUMBS_TIES

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        return elected(parameters, trimmed_parents(parameters, facts, parameters.column("weight")))


def _dare_parents(parameters: Parameters, facts: Facts, weights: tuple[float, ...]) -> dict[int, GtaParent]:
    """Random masks of the given densities; what is kept is divided by its density when `rescale`."""
    rescale = bool(parameters.shared["rescale"])
    parents: dict[int, GtaParent] = {}
    for i, density in enumerate(parameters.column("density")):
        whole = density >= 1.0 or (density > 0.0 and len(facts.shape) <= 1)
        bound = None if whole else keep_bound(density)
        gain = single(weights[i] / density if rescale and not whole and bound is not None else weights[i])
        if gain == 0.0 or (bound is None and not whole):
            continue
        word = 0 if whole else salt("mask", parameters.seed, parameters.tensor, parameters.parents[i])
        parents[i] = GtaParent(gain, single(abs(weights[i])), mask_bound=bound, mask_salt=word)
    return parents


@final
class DareLinear(KernelMethod):
    """Drop deltas at random, rescale the rest, then task arithmetic (arXiv 2311.03099).

    `base + lambda sum_i w_i m_i delta_i / density_i` with `m_i` 1 at a share density_i of random places, else 0.
    """

    spec = DARE_LINEAR

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        coefficients = delta_coefficients(parameters)
        parents = _dare_parents(parameters, facts, coefficients)
        return plain(parameters, parents)


@final
class DareTies(KernelMethod):
    """DARE (arXiv 2311.03099), then the election of TIES (arXiv 2306.01708): see `DareLinear` and `Ties`."""

    spec = DARE_TIES

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        return elected(parameters, _dare_parents(parameters, facts, parameters.column("weight")))


TIES_METHOD: Final = Ties()
BREADCRUMBS_METHOD: Final = Breadcrumbs()
BREADCRUMBS_TIES_METHOD: Final = BreadcrumbsTies()
DARE_LINEAR_METHOD: Final = DareLinear()
DARE_TIES_METHOD: Final = DareTies()

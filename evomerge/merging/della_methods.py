"""DELLA: deltas dropped at random, small ones of a row more often than large ones (arXiv 2406.11617).

With the rank r of |delta| in its row of n entries (0 the smallest; rows run along the last axis), an entry is kept
with probability `p = (density - epsilon) + 2 epsilon r / (n - 1)` and then divided by p, which leaves every entry's
expectation as it was (MagPrune, and the authors' code). mergekit scales what is kept to the L1 norm
of the tensor instead: that multiplies the smallest entries by 0.66 and the largest by 1.16 on average at density 0.5.

What is exact: ranks are those of the exact magnitudes, equal magnitudes share their mean rank, and the division is by
the probability that was used. What is not: ranks are kept in 255ths of the highest, one byte an element, so p is off by
at most epsilon / 255; mergekit computes ranks of bf16 deltas in bf16, which tells 704 of 4096 apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, final

from evomerge.errors import RecipeError
from evomerge.merging.elements import keep_bound, salt
from evomerge.merging.gta_methods import elected, plain
from evomerge.merging.linear_methods import delta_coefficients
from evomerge.merging.methods import Facts, KernelMethod, Parameters
from evomerge.merging.settings import GtaParent, Ramp, Setting, single
from evomerge.recipe.mergekit_specs import DELLA, DELLA_LINEAR
from evomerge.recipe.recipe import Number

_TOP: Final = 255
"""The highest rank that is stored."""


def check_epsilon(per_parent: Sequence[Mapping[str, Number]]) -> None:
    """All probabilities lie between 0 and 1; a density of 0 or 1 draws nothing.

    Raises:
        RecipeError: naming density and epsilon.
    """
    for values in per_parent:
        density, epsilon = float(values["density"]), float(values["epsilon"])
        if 0.0 < density < 1.0 and not epsilon < min(density, 1.0 - density):
            raise RecipeError(
                "DELLA's probabilities leave the range from 0 to 1.",
                got=f"density = {density:g}, epsilon = {epsilon:g}",
                allowed="0 < density - epsilon and density + epsilon < 1, or a density of 1",
                fix=f"use an epsilon below {min(density, 1.0 - density):g}.",
            )


def _drawn(weight: float, density: float, epsilon: float, *, ranked: bool, rescale: bool) -> GtaParent:
    """A parent with a mask; rows of one element have no ranks, and their middle probability is the density."""
    absolute = single(abs(weight))
    if not ranked:
        return GtaParent(single(weight / density if rescale else weight), absolute, mask_bound=keep_bound(density))
    keep, step = single(density - epsilon), single(2.0 * epsilon / _TOP)
    ramp = Ramp(keep, step, keep, step) if rescale else Ramp(keep, step, 1.0, 0.0)
    return GtaParent(single(weight), absolute, ramp=ramp)


def _parents(parameters: Parameters, facts: Facts, weights: tuple[float, ...]) -> dict[int, GtaParent]:
    rescale, parents = bool(parameters.shared["rescale"]), {}
    columns = zip(weights, parameters.column("density"), parameters.column("epsilon"), strict=True)
    for i, (weight, density, epsilon) in enumerate(columns):
        if single(weight) == 0.0 or density <= 0.0:
            continue
        if density >= 1.0 or len(facts.shape) <= 1:
            parents[i] = GtaParent(single(weight), single(abs(weight)))
            continue
        drawn = _drawn(weight, density, epsilon, ranked=facts.shape[-1] > 1, rescale=rescale)
        word = salt("mask", parameters.seed, parameters.tensor, parameters.parents[i])
        parents[i] = replace(drawn, mask_salt=word)
    return parents


@final
class Della(KernelMethod):
    """DELLA (arXiv 2406.11617): its drops, then the election of TIES.

    An entry of rank r in its row of n stays with `p = (density - epsilon) + 2 epsilon r / (n - 1)`, divided by p.
    """

    spec = DELLA

    def check(self, shared: Mapping[str, Number], per_parent: Sequence[Mapping[str, Number]]) -> None:
        """See `MergeMethod.check`."""
        del shared
        check_epsilon(per_parent)

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        return elected(parameters, _parents(parameters, facts, parameters.column("weight")))


@final
class DellaLinear(KernelMethod):
    """`base + lambda sum_i w_i m_i delta_i / p_i`: the drops of DELLA (arXiv 2406.11617, see `Della`), then a sum."""

    spec = DELLA_LINEAR

    def check(self, shared: Mapping[str, Number], per_parent: Sequence[Mapping[str, Number]]) -> None:
        """See `MergeMethod.check`."""
        del shared
        check_epsilon(per_parent)

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        return plain(parameters, _parents(parameters, facts, delta_coefficients(parameters)))


DELLA_METHOD: Final = Della()
DELLA_LINEAR_METHOD: Final = DellaLinear()

"""Element-wise methods of the literature: MagMax, EMR, Consensus, PCB, ternary and binary task vectors.

Where a rule of ours replaces the authors': statistics are taken per tensor, as mergekit does, unless a parameter says
that the whole model counts; tensors with one axis or none are neither trimmed nor masked; an exact cancellation elects
nothing; weights scale a model's delta before anything else is done with it, and are 1 in the papers.
"""

from __future__ import annotations

from typing import Final, final

from evomerge.merging.elements import tie_salts
from evomerge.merging.fused_eager import steepness_of
from evomerge.merging.fused_measures import MeasureCompetition, MeasureMoments, clip_ranks
from evomerge.merging.fused_methods import NOTHING, cut_words, one_each, singles
from evomerge.merging.fused_settings import FusedKind, FusedSetting
from evomerge.merging.linear_methods import linear_setting
from evomerge.merging.measures import magnitude_of
from evomerge.merging.methods import Facts, KernelMethod, Parameters
from evomerge.merging.settings import KEEP_ALL, Setting, single
from evomerge.merging.thresholds import density_count
from evomerge.recipe.element_specs import BINARY, CONSENSUS, EMR, MAGMAX, PCB, TERNARY


def _weighed(kind: FusedKind, parameters: Parameters, *shared: float) -> Setting:
    """A kind that weighs deltas first; what has no weight takes no part."""
    weights = {i: w for i, w in enumerate(parameters.column("weight")) if single(w) != 0.0}
    scale = float(parameters.shared["lambda"])
    if not weights or single(scale) == 0.0:
        return NOTHING
    return FusedSetting(kind, tuple(weights), singles(scale, *shared), one_each(weights.values()))


@final
class MagMax(KernelMethod):
    """Of all deltas of an entry the one of the largest magnitude, the later one of equals (arXiv 2407.06322, eq. 2).

    `base + lambda d_k` with `k = argmax_i |d_i|` and `d_i = weight_i delta_i`; the authors set lambda to 0.5.
    """

    spec = MAGMAX

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        return _weighed("magmax", parameters)


@final
class Emr(KernelMethod):
    """The unified task vector of EMR-Merging (arXiv 2405.17461, eq. 1), without the masks and rescalers of its tasks.

    `s max { |d_i| : sign(d_i) = s }` with `s = sign(sum_i d_i)` and `d_i = weight_i delta_i`. Where the sum vanishes,
    the authors take the negative sign and we take nothing.
    """

    spec = EMR

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        return _weighed("emr", parameters)


@final
class Consensus(KernelMethod):
    """The sum of the deltas where enough models find their own in it (arXiv 2405.07813, eq. 3 to 5).

    A model's TALL mask holds where `|delta| > strength |sum - delta|`; with `votes` 2 what one model alone needs, and
    what none needs, is left at the base. `votes` 0 is task arithmetic.
    """

    spec = CONSENSUS

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        strength, votes = float(parameters.shared["strength"]), float(parameters.shared["votes"])
        return _weighed("consensus", parameters, strength, 0.0 if len(facts.shape) <= 1 else votes)


def _clamp(facts: Facts, index: int, clip: float) -> tuple[float, float]:
    """The magnitudes at the `clip` and `1 - clip` quantiles."""
    low, high = (facts.cut(index, facts.numel - rank).bits for rank in clip_ranks(facts.numel, clip))
    return magnitude_of(low), magnitude_of(high)


@final
class Pcb(KernelMethod):
    """Parameter competition balancing (arXiv 2410.02396), in the form of the authors' `pcb_ES.py`.

    With N models, magnitudes clamped at their `clip` and `1 - clip` quantiles and scaled to m in [0, 1]:
    `balance_i = exp(N m_i^2) sum_j tanh(s_i m_i s_j m_j)`; a balance below its `1 - ratio` quantile counts nothing, the
    largest counts 1, and the result is the mean of `weight_i` times the clamped deltas, weighed by that. The authors
    rank the whole model (`model_wide`); tensors with one axis, which we leave out of it, get the plain mean. Magnitudes
    or balances that are all alike, where the authors divide by zero, are all worth 1.
    """

    spec = PCB

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        weights = parameters.column("weight")
        if len(facts.shape) <= 1 or facts.numel == 0:
            return linear_setting([w / len(weights) for w in weights], deltas=True)
        shared = parameters.shared
        wide, clip = bool(shared["model_wide"]), float(shared["clip"])
        clamps = () if wide else tuple(_clamp(facts, i, clip) for i in range(len(weights)))
        numbers = facts.measure(MeasureCompetition(float(shared["ratio"]), clip, wide, clamps))
        moving = [i for i, found in enumerate(numbers) if found[1] > 0.0]  # the others have no delta
        if not moving:
            return NOTHING
        rows = tuple((*numbers[i], single(weights[i])) for i in moving)
        return FusedSetting("pcb", tuple(moving), (1.0, steepness_of(len(weights))), rows)


def _signs(parameters: Parameters, facts: Facts, steps: dict[int, float], counts: dict[int, int]) -> Setting:
    """Steps in the direction of the deltas' largest entries."""
    steps = {i: step for i, step in steps.items() if single(step) != 0.0 and counts[i] > 0}
    if not steps:
        return NOTHING
    columns = one_each(steps.values())
    if all(counts[i] >= facts.numel for i in steps):
        return FusedSetting("sign", tuple(steps), parents=columns)
    words = []
    for i in steps:
        cut = facts.cut(i, counts[i]) if counts[i] < facts.numel else KEEP_ALL
        words.append((*cut_words(cut), tie_salts(parameters.tensor, parameters.parents[i])[1]))
    common = (tie_salts(parameters.tensor, "")[0],)
    trim = frozenset({"trim"})
    return FusedSetting("sign", tuple(steps), (1.0,), columns, common, tuple(words), switches=trim)


@final
class Ternary(KernelMethod):
    """`sum_i weight_i alpha_i sigma_i sign(delta_i)` over the largest entries of each (ComPEFT).

    arXiv 2311.13171, algorithm 1. sigma is the standard deviation of the whole delta, before it is trimmed, and that of
    the tensor here, where the authors take the whole model's. Tensors with one axis are not compressed.
    """

    spec = TERNARY

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        weights = parameters.column("weight")
        if len(facts.shape) <= 1:
            return linear_setting(weights, deltas=True)
        moments = facts.measure(MeasureMoments())
        alphas, densities = parameters.column("alpha"), parameters.column("density")
        steps = {i: w * alphas[i] * moments[i].deviation for i, w in enumerate(weights)}
        return _signs(parameters, facts, steps, {i: density_count(d, facts.numel) for i, d in enumerate(densities)})


@final
class Binary(KernelMethod):
    """`sum_i weight_i mean|delta_i| sign(delta_i)` (1bit-Merging, arXiv 2502.10743), for chosen modules.

    An entry that did not change stays, where BitDelta (arXiv 2402.10193), whose scale it is, has only two values and
    moves it up. Tensors with one axis are not compressed.
    """

    spec = BINARY

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        weights = parameters.column("weight")
        if len(facts.shape) <= 1:
            return linear_setting(weights, deltas=True)
        moments = facts.measure(MeasureMoments())
        steps = {i: w * moments[i].magnitude for i, w in enumerate(weights)}
        return _signs(parameters, facts, steps, dict.fromkeys(steps, facts.numel))


MAGMAX_METHOD: Final = MagMax()
EMR_METHOD: Final = Emr()
CONSENSUS_METHOD: Final = Consensus()
PCB_METHOD: Final = Pcb()
TERNARY_METHOD: Final = Ternary()
BINARY_METHOD: Final = Binary()

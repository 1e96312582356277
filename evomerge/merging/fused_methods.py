"""Element-wise methods of mergekit 0.1.5 with kernels of their own: RAM, SCE, NearSwap, Arcee Fusion.

Where mergekit differs (`compat: mergekit` follows it instead): SCE's weights are the shares of energy however small the
deltas are, where mergekit falls back to equal weights below 1e-6; an exact cancellation elects nothing, where the
positive sign wins there; exactly round(select_topk * differing) entries are selected, ties broken by the element hash.
NearSwap moves by t wherever the distance exceeds it, where mergekit moves less than t when both lie below 1e-6. Arcee
Fusion's quartiles are those of all entries, not of a random million, and its divergence is computed in fp64: in fp32
rounding noise is as large as the divergence of small deltas. Tensors with one axis or none are not selected from.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, final

from evomerge.merging.elements import tie_salts
from evomerge.merging.fused_measures import MeasureChanges, MeasureGate, MeasureSelection
from evomerge.merging.fused_settings import FusedSetting
from evomerge.merging.linear_methods import linear_setting
from evomerge.merging.methods import Facts, KernelMethod, Parameters
from evomerge.merging.settings import Cut, Setting, single
from evomerge.recipe.mergekit_specs import ARCEE_FUSION, NEARSWAP, RAM, RAMPLUS_TL, SCE


def singles(*values: float) -> tuple[float, ...]:
    """Values rounded to fp32."""
    return tuple(single(v) for v in values)


def one_each(values: Iterable[float]) -> tuple[tuple[float, ...], ...]:
    """One fp32 number per parent, as `FusedSetting.parents` has it."""
    return tuple(singles(v) for v in values)


def cut_words(cut: Cut) -> tuple[int, int]:
    """A cut as two words."""
    return cut.bits, cut.bound


NOTHING: Final = linear_setting((), deltas=True)
"""The base."""


@final
class Ram(KernelMethod):
    """What one model alone changed by more than epsilon is taken, what several did is averaged (arXiv 2601.13572).

    Per entry `base + sum_{i in C} delta_i / |C|` with `C = {i : |delta_i| > epsilon}`, or the base where C is empty.
    """

    spec = RAM

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        inputs = tuple(range(len(parameters.parents)))
        shared = singles(1.0, float(parameters.shared["epsilon"]))
        return FusedSetting("ram", inputs, shared, one_each([1.0] * len(inputs)))


@final
class RamPlus(KernelMethod):
    """RAM+ (arXiv 2601.13572): what a model alone changed is scaled by `1 + r min(common / alone, alpha)`.

    The counts are those of the tensor's entries that it changed together with others, and alone.
    """

    spec = RAMPLUS_TL

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        epsilon = single(float(parameters.shared["epsilon"]))
        r, alpha = float(parameters.shared["r"]), float(parameters.shared["alpha"])
        changes = facts.measure(MeasureChanges(epsilon))
        gains = [1.0 + r * min(found.common / max(found.alone, 1), alpha) for found in changes]
        return FusedSetting("ram", tuple(range(len(gains))), (1.0, epsilon), one_each(gains))


@final
class Sce(KernelMethod):
    """Select, calculate, erase (FuseChat, arXiv 2408.07990).

    Of the entries in which the models differ, the share `select_topk` whose variance is largest is selected; a model's
    weight is its share of the energy there; per entry the weighted mean of the deltas that have the sign of their sum
    is taken. A lone model differs from none, so that `select_topk < 1` selects nothing of it.
    """

    spec = SCE

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        share = float(parameters.shared["select_topk"]) if len(facts.shape) > 1 and facts.numel else 1.0
        salts = tie_salts(parameters.tensor, "\x1f".join(parameters.parents))
        selection = facts.measure(MeasureSelection(share, salts if share < 1.0 else (0, 0)))
        total = sum(selection.energies) if selection is not None else 0.0
        if selection is None or total <= 0.0:
            return NOTHING
        weights = one_each(energy / total for energy in selection.energies)
        inputs = tuple(range(len(weights)))
        if selection.cut is None:
            return FusedSetting("sce", inputs, parents=weights)
        words = (*cut_words(selection.cut), *salts)
        return FusedSetting("sce", inputs, parents=weights, words=words, switches=frozenset({"trim"}))


@final
class NearSwap(KernelMethod):
    """The model where it is at most t away from the base, elsewhere a step of t towards it.

    Per entry, with `d = x - base`: x where `|d| <= t`, else `base + t sign(d)`. The method is mergekit's; it has no
    paper.
    """

    spec = NEARSWAP

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        return FusedSetting("nearswap", (0,), singles(1.0, float(parameters.shared["t"])))


@final
class ArceeFusion(KernelMethod):
    """The entries whose importance is at least the median plus 1.5 times the distance of the quartiles are swapped.

    The importance of an entry is `|delta|` times the divergence `KL(softmax(row of the model) || of the base)`. The
    method is mergekit's; it has no paper.
    """

    spec = ARCEE_FUSION

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        if len(facts.shape) <= 1 or facts.numel == 0:
            return linear_setting((1.0,), deltas=True)
        gate = facts.measure(MeasureGate())
        return FusedSetting("gate", (0,), (1.0, gate.threshold), rows=gate.rows)


RAM_METHOD: Final = Ram()
RAMPLUS_TL_METHOD: Final = RamPlus()
SCE_METHOD: Final = Sce()
NEARSWAP_METHOD: Final = NearSwap()
ARCEE_FUSION_METHOD: Final = ArceeFusion()

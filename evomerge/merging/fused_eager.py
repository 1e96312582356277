"""The fused kinds in plain torch: the formulas that `fused_settings.FusedSetting` names, which define the bits.

Each function takes the deltas of one chunk (fp32, its own to change) and gives the merged delta `m`. What it selects,
it selects by a bitwise and, so that the zeros are those of fused.c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch

from evomerge.merging.elements import at_most, hash_range, signed
from evomerge.merging.fused_math import LOG2_E, exp2, log2, tanh
from evomerge.merging.fused_settings import FusedSetting

_SIGN_OFF: Final = 0x7FFFFFFF


@dataclass(frozen=True, eq=False)
class Chunk:
    """Consecutive elements of a tensor.

    Attributes:
        setting: the kernel's numbers.
        base: fp32, shape `(m,)`; not to be changed.
        inputs: fp32, aligned with the setting's; not to be changed.
        deltas: inputs minus base.
        first: index of the first element in its tensor.
    """

    setting: FusedSetting
    base: torch.Tensor
    inputs: Sequence[torch.Tensor]
    deltas: Sequence[torch.Tensor]
    first: int

    def parents(self) -> list[tuple[torch.Tensor, tuple[float, ...]]]:
        """Each delta with its numbers."""
        return list(zip(self.deltas, self.setting.parents, strict=True))

    def weighed(self) -> list[torch.Tensor]:
        """The deltas times the first of their numbers."""
        return [delta * numbers[0] for delta, numbers in self.parents()]


def chosen(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`values` where `mask`, else +0; new memory."""
    return (values.view(torch.int32) & -mask.to(torch.int32)).view(torch.float32)


def _signs(values: torch.Tensor) -> torch.Tensor:
    """The sign bits, int32."""
    return values.view(torch.int32) & signed(0x80000000)


def _signed_like(magnitude: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Magnitudes with the sign bits of `sign`."""
    return (magnitude.view(torch.int32) | _signs(sign)).view(torch.float32)


def _agrees(value: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Whether a value has the sign of the total; nothing agrees with zero."""
    flipped = (value.view(torch.int32) ^ _signs(total)).view(torch.float32)
    return (flipped > 0) & (total != 0)


def _nothing(total: torch.Tensor) -> torch.Tensor:
    """Zeros, NaN where the total is not finite: what was lost on the way shows in the result."""
    return total - total


def added(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """`((0 + v_0) + v_1) + ...`."""
    total = torch.zeros_like(values[0])
    for value in values:
        total = total + value
    return total


def over(values: torch.Tensor, number: float) -> torch.Tensor:
    """`values / number`, one division each: with a plain number, torch multiplies by its inverse on some devices."""
    return values / torch.full_like(values, number)


def _above(patterns: torch.Tensor, ties: torch.Tensor, words: Sequence[int]) -> torch.Tensor:
    """Which magnitudes lie above the cut of the first two words; see `settings.Cut`."""
    return (patterns + at_most(ties, words[1]).to(torch.int32)) > words[0]


def ram(chunk: Chunk) -> torch.Tensor:
    """Lone changes times their gain, the mean of common ones."""
    epsilon = chunk.setting.shared[1]
    total = torch.zeros_like(chunk.base)
    alone, count = total, total
    for delta, (gain,) in chunk.parents():
        active = delta.abs() > epsilon
        kept = chosen(delta, active)
        total = total + kept
        alone = alone + kept * gain
        count = count + active.to(torch.float32)
    mean = total / count.clamp(min=1.0)
    nothing = _nothing(added(chunk.deltas))
    return nothing + torch.where(count > 1.0, mean, alone)


def spread(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """How much the models differ: `sum_i (d_i - mean)^2`, the variance times their number."""
    mean = over(added(deltas), float(len(deltas)))
    return added([(delta - mean) * (delta - mean) for delta in deltas])


def sce(chunk: Chunk) -> torch.Tensor:
    """The weighted mean of what agrees with the sum, where the models differ most."""
    total = added(chunk.deltas)
    merged, divisor = _nothing(total), torch.zeros_like(total)
    for delta, (weight,) in chunk.parents():
        agrees = _agrees(delta, total)
        merged = merged + chosen(delta * weight, agrees)
        divisor = divisor + agrees.to(torch.float32) * weight
    merged = merged / torch.where(divisor == 0.0, 1.0, divisor)
    if "trim" not in chunk.setting.switches:
        return merged
    *cut, tie_salt, parent_salt = chunk.setting.words
    ties = hash_range(chunk.first, total, tie_salt) ^ signed(parent_salt)
    return chosen(merged, _above(spread(chunk.deltas).view(torch.int32), ties, cut))


def magmax(chunk: Chunk) -> torch.Tensor:
    """The value of the largest magnitude, the last of several."""
    values = chunk.weighed()
    best = values[0]
    for value in values[1:]:
        best = torch.where(value.abs() >= best.abs(), value, best)
    return best + _nothing(added(values))


def emr(chunk: Chunk) -> torch.Tensor:
    """The largest magnitude of what has the sign of the sum."""
    values = chunk.weighed()
    total = added(values)
    largest = _nothing(total)
    for value in values:
        largest = torch.maximum(largest, chosen(value.abs(), _agrees(value, total)))
    return _signed_like(largest, total)


def consensus(chunk: Chunk) -> torch.Tensor:
    """The sum, where enough models find it near enough to their own delta."""
    _, strength, wanted = chunk.setting.shared
    values = chunk.weighed()
    total = added(values)
    votes = torch.zeros_like(total)
    for value in values:
        votes = votes + (value.abs() > (total - value).abs() * strength).to(torch.float32)
    return chosen(total, votes >= wanted) + _nothing(total)


def sign(chunk: Chunk) -> torch.Tensor:
    """Steps of one length per model, in the direction of its delta."""
    total = torch.zeros_like(chunk.base)
    trim = "trim" in chunk.setting.switches
    common = hash_range(chunk.first, chunk.base, chunk.setting.words[0]) if trim else None
    for index, (delta, (step,)) in enumerate(chunk.parents()):
        moves = delta != 0.0
        if common is not None:
            bits, bound, salt = chunk.setting.parent_words[index]
            moves &= _above(delta.view(torch.int32) & _SIGN_OFF, common ^ signed(salt), (bits, bound))
        stride = chosen(_signed_like(torch.ones_like(delta), delta), moves)
        total = total + stride * step
    return total + _nothing(added(chunk.deltas))


def steepness_of(models: int) -> float:
    """`models * log2(e)`, an fp32 value: the exponential of PCB is a power of two."""
    return float(torch.tensor(models * LOG2_E, dtype=torch.float32))


def balances(deltas: Sequence[torch.Tensor], setting: FusedSetting) -> list[torch.Tensor]:
    """PCB's balance of each model: `exp(models * size_i^2) * sum_j tanh(s_i size_i s_j size_j)`.

    The first numbers of a parent are low, high, origin and inverse of its magnitudes:
    `size = (clamp(|d|, low, high) - origin) * inverse`.
    """
    sizes, directed = [], []
    for delta, (low, high, origin, inverse, *_) in zip(deltas, setting.parents, strict=True):
        size = (delta.abs().clamp(min=low, max=high) - origin) * inverse
        sizes.append(size)
        directed.append(chosen(_signed_like(size, delta), delta != 0.0))
    n = len(directed)
    common = {(i, j): tanh(directed[i] * directed[j]) for i in range(n) for j in range(i, n)}
    within = [exp2((size * size) * setting.shared[1]) for size in sizes]
    return [within[i] * added([common[min(i, j), max(i, j)] for j in range(n)]) for i in range(n)]


def scores_of(setting: FusedSetting, base: torch.Tensor, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The scores that a kind ranks entries by: the spread for sce, one list; the balances for pcb, one list per input.

    Args:
        setting: of kind sce or pcb; its thresholds do not matter.
        base: fp32, flat.
        inputs: fp32, aligned with the setting's.
    """
    deltas = [x - base for x in inputs]
    return [spread(deltas)] if setting.kind == "sce" else balances(deltas, setting)


def pcb(chunk: Chunk) -> torch.Tensor:
    """Deltas averaged by their balance."""
    setting = chunk.setting
    merged, divisor = _nothing(added(chunk.deltas)), torch.zeros_like(chunk.base)
    for balance, (delta, numbers) in zip(balances(chunk.deltas, setting), chunk.parents(), strict=True):
        low, high, _, _, least, most, inverse, gain = numbers
        share = (balance.clamp(min=least, max=most) - least) * inverse
        share = share if inverse > 0.0 else torch.ones_like(balance)
        value = chosen(_signed_like(delta.abs().clamp(min=low, max=high), delta), delta != 0.0)
        merged = merged + (value * gain) * share
        divisor = divisor + share
    return merged / divisor.clamp(min=1e-12)


def _kept(chunk: Chunk, index: int, delta: torch.Tensor, common: torch.Tensor | None) -> torch.Tensor:
    """One delta of `universal`: trimmed, masked, weighed."""
    gain, mean, slope, centre, least = chunk.setting.parents[index]
    bits, bound, tie_salt, mask_bound, mask_salt = chunk.setting.parent_words[index]
    keep = torch.ones_like(delta, dtype=torch.bool)
    if common is not None:
        keep &= _above(delta.view(torch.int32) & _SIGN_OFF, common ^ signed(tie_salt), (bits, bound))
    if "spread" in chunk.setting.switches:
        size = delta.abs()
        probability = ((size / (size + mean)) * slope + centre).clamp_(min=least, max=1.0)
        words = hash_range(chunk.first, delta, mask_salt)
        drawn = ((words >> 8) & 0xFFFFFF).to(torch.float32) * 2.0**-24
        return chosen((delta * gain) / probability, keep & ~(drawn >= probability))  # NaN is kept, so that it shows
    if "mask" in chunk.setting.switches:
        keep &= at_most(hash_range(chunk.first, delta, mask_salt), mask_bound)
    return chosen(delta * gain, keep)


def universal(chunk: Chunk) -> torch.Tensor:
    """Trimmed, masked, elected and sharpened task arithmetic; see `merging.universal`."""
    setting = chunk.setting
    _, left, sharpness = setting.shared
    common = hash_range(chunk.first, chunk.base, setting.words[0]) if "trim" in setting.switches else None
    values = [_kept(chunk, index, delta, common) for index, delta in enumerate(chunk.deltas)]
    total = added(values)
    if "elect" in setting.switches:
        values = [value * torch.where(_agrees(value, total), 1.0, left) for value in values]
    merged = _nothing(total)
    if "sharp" not in setting.switches:
        for value in values:
            merged = merged + value
        return merged
    sizes = [log2(value.abs()) for value in values]
    most = sizes[0]
    for size in sizes[1:]:
        most = torch.maximum(most, size)
    for value, size in zip(values, sizes, strict=True):
        merged = merged + value * exp2(((size - most) * sharpness).clamp_(min=-126.0))
    return merged


_FORMULAS: Final[Mapping[str, Callable[[Chunk], torch.Tensor]]] = MappingProxyType(
    {
        "ram": ram,
        "sce": sce,
        "magmax": magmax,
        "emr": emr,
        "consensus": consensus,
        "sign": sign,
        "pcb": pcb,
        "universal": universal,
    }
)


def merged_delta(setting: FusedSetting, base: torch.Tensor, inputs: Sequence[torch.Tensor], first: int) -> torch.Tensor:
    """The merged delta of one chunk, before it is scaled.

    Args:
        setting: of a kind other than nearswap and gate.
        base: fp32, shape `(m,)`.
        inputs: fp32, aligned with the setting's.
        first: index of the first element in its tensor.
    """
    deltas = [x - base for x in inputs]
    return _FORMULAS[setting.kind](Chunk(setting, base, inputs, deltas, first))


def fused_chunk(setting: FusedSetting, base: torch.Tensor, inputs: Sequence[torch.Tensor], first: int) -> torch.Tensor:
    """The merged tensor of one chunk, see `merged_delta`; new memory."""
    if setting.kind == "nearswap":
        return _nearswap(setting, base, inputs[0])
    if setting.kind == "gate":
        return _gate(setting, base, inputs[0], first)
    return merged_delta(setting, base, inputs, first) * setting.shared[0] + base


def _nearswap(setting: FusedSetting, base: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    delta, t = x - base, setting.shared[1]
    step = _signed_like(torch.full_like(delta, t), delta)
    return torch.where(delta.abs() <= t, x, base + step) + (delta - delta)


def _gate(setting: FusedSetting, base: torch.Tensor, x: torch.Tensor, first: int) -> torch.Tensor:
    if setting.rows is None:
        raise ValueError("this kind needs numbers of its rows")
    delta = x - base
    at = torch.arange(first, first + base.numel(), device=base.device) // setting.rows.width
    factor = torch.from_numpy(setting.rows.array.copy()).to(base.device)[at]
    return torch.where(delta.abs() * factor >= setting.shared[1], x, base) + (delta - delta)

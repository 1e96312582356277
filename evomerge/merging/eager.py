"""All kernels in plain torch, chunk by chunk: needs no compiler, runs on every device, defines the bits.

All sums are fp32, in the order of the inputs. Multiply and add are separate operations on purpose: torch's fused
`add(alpha=)` and `addcmul` round once where two operations round twice, and not everywhere alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch

from evomerge.merging.elements import at_most, hash_range, signed
from evomerge.merging.fused_eager import fused_chunk
from evomerge.merging.fused_settings import FusedSetting
from evomerge.merging.settings import Cut, GtaParent, GtaSetting, LinearSetting, Ramp, Setting, VectorSetting

CHUNK = 1 << 17
"""Elements per step: a few fp32 buffers of this size stay in the second-level cache."""

DEVICE_CHUNK = 1 << 24
"""Elements per step elsewhere: launches and the wait for the finiteness check must not count."""

_SIGN_OFF = 0x7FFFFFFF


def _widen(chunk: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A chunk in fp32 on `device`; the chunk itself when it is that already, so it must not be changed."""
    return chunk.to(device=device, dtype=torch.float32)


def _vector_coefficients(setting: VectorSetting, like: torch.Tensor, first: int) -> Sequence[torch.Tensor]:
    """The coefficients of each input for the elements `first, first + 1, ...`, as many as `like` has."""
    table = np.frombuffer(setting.table, np.float32).reshape(len(setting.inputs), setting.vectors).copy()
    elements = torch.arange(first, first + like.numel(), device=like.device)
    vectors = elements % setting.vectors if setting.by == "columns" else elements // setting.length
    return list(torch.from_numpy(table).to(like.device)[:, vectors])


def _linear(
    deltas: bool,
    coefficients: Sequence[float | torch.Tensor],
    base: torch.Tensor | None,
    inputs: Sequence[torch.Tensor],
) -> torch.Tensor:
    total: torch.Tensor | None = None
    for x, coefficient in zip(inputs, coefficients, strict=True):
        term = (x - base if deltas and base is not None else x) * coefficient
        total = term if total is None else total.add_(term)
    if deltas and base is not None:
        return base if total is None else total.add_(base)
    if total is None:
        raise ValueError("a sum without base needs at least one input")
    return total


def _masked(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """`values` where `chosen`, else +0: a bitwise and, which torch vectorises and `masked_fill` is not; in place."""
    values.view(torch.int32).bitwise_and_(chosen.to(torch.int32).neg_())
    return values


def _above(magnitudes: torch.Tensor, ties: torch.Tensor, cut: Cut) -> torch.Tensor:
    """Which entries lie above a cut: a larger magnitude, or the same and a hash within the bound.

    Args:
        magnitudes: int32 patterns without sign, shape `(m,)`.
        ties: int32 hashes, aligned.
        cut: the threshold.
    """
    return magnitudes.add(at_most(ties, cut.bound)) > cut.bits


def _kept(delta: torch.Tensor, parent: GtaParent, common: torch.Tensor | None, first: int) -> torch.Tensor | None:
    """Which entries of a delta take part; None when all do.

    Args:
        delta: fp32, shape `(m,)`.
        parent: its cuts and mask.
        common: int32, the tensor's part of the tie-breaking hash; None when no parent has a cut.
        first: index of the first entry in its tensor.
    """
    keep: torch.Tensor | None = None
    if common is not None and (parent.low is not None or parent.high is not None):
        magnitudes, ties = delta.view(torch.int32) & _SIGN_OFF, common ^ signed(parent.tie_salt)
        if parent.low is not None:
            keep = _above(magnitudes, ties, parent.low)
        if parent.high is not None:
            below = ~_above(magnitudes, ties, parent.high)
            keep = below if keep is None else keep & below
    if parent.mask_bound is not None:
        drawn = at_most(hash_range(first, delta, parent.mask_salt), parent.mask_bound)
        keep = drawn if keep is None else keep & drawn
    return keep


def _drawn_by_rank(parent: GtaParent, ramp: Ramp, delta: torch.Tensor, ranks: torch.Tensor, first: int) -> torch.Tensor:
    """Which entries a mask by rank keeps; divides `delta` by what its ramp says."""
    at = ranks.to(device=delta.device, dtype=torch.float32)
    drawn = hash_range(first, delta, parent.mask_salt).bitwise_right_shift_(8).bitwise_and_(0xFFFFFF)
    keep = drawn.to(torch.float32).mul_(2.0**-24) < at.mul(ramp.keep_step).add_(ramp.keep)
    delta.div_(at.mul_(ramp.divisor_step).add_(ramp.divisor))
    return keep


def _gta(
    setting: GtaSetting,
    base: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    ranks: Mapping[int, torch.Tensor],
    first: int,
) -> torch.Tensor:
    values: list[torch.Tensor] = []
    total, divisor = torch.zeros_like(base), torch.zeros_like(base)
    common = hash_range(first, base, setting.tie_salt) if setting.trimmed or setting.capped else None
    for i, x, parent in zip(setting.inputs, inputs, setting.parents, strict=True):
        delta = x - base
        keep = _kept(delta, parent, common, first)
        delta.mul_(parent.gain)
        if parent.ramp is not None:
            drawn = _drawn_by_rank(parent, parent.ramp, delta, ranks[i], first)
            keep = drawn if keep is None else keep & drawn
        if keep is not None:
            _masked(delta, keep)
        total.add_(delta)
        values.append(delta)
        if setting.normalize and not setting.elect:
            divisor.add_(parent.weight if keep is None else keep.to(torch.float32).mul_(parent.weight))
    if setting.elect:
        total = _elected(setting, values, total)
    elif setting.normalize:
        total.div_(divisor.add_(divisor == 0))
    return total.mul_(setting.scale).add_(base)


def _elected(setting: GtaSetting, values: Sequence[torch.Tensor], total: torch.Tensor) -> torch.Tensor:
    """The sum, or the weighted mean, of the values that have the sign of `total`; changes `values`."""
    flip = total.view(torch.int32) & signed(0x80000000)
    merged = total - total  # zero; NaN where the election overflowed, so that it shows in the result
    divisor = torch.zeros_like(total)
    for value, parent in zip(values, setting.parents, strict=True):
        agrees = (value.view(torch.int32) ^ flip) > 0  # as a number: positive after the flip
        merged.add_(_masked(value, agrees))
        if setting.normalize:
            divisor.add_(agrees.to(torch.float32).mul_(parent.weight))
    _masked(merged, total != 0)  # a cancellation elects nothing
    if setting.normalize:
        merged.div_(divisor.add_(divisor == 0))
    return merged


def merge_eager(
    setting: Setting,
    base: torch.Tensor | None,
    inputs: Sequence[torch.Tensor],
    out: torch.Tensor,
    chunk: int = 0,
    *,
    ranks: Mapping[int, torch.Tensor] = MappingProxyType({}),
    first: int = 0,
) -> bool:
    """Merge one tensor, or a part of it, into `out`, which is rounded once, to its own dtype.

    Args:
        setting: the kernel's numbers.
        base: flat tensor `(n,)`, any float dtype; None for sums without base.
        inputs: flat tensors `(n,)`, aligned with `setting.inputs`.
        out: flat tensor `(n,)`, written; may be on another device than the inputs.
        chunk: elements per step, 0 for what suits the device; the bits do not depend on it.
        ranks: row ranks `(n,)`, uint8, of the plan's inputs that `settings.ranked_inputs` names.
        first: index in the tensor of the first element given.

    Returns:
        Whether every entry of `out` is finite; where it is not, its contents mean nothing.
    """
    if not inputs and isinstance(setting, LinearSetting | VectorSetting) and not setting.deltas:
        out.zero_()
        return True
    finite = True
    step = chunk or (CHUNK if out.device.type == "cpu" else DEVICE_CHUNK)
    for start in range(0, out.numel(), step):
        part = slice(start, min(start + step, out.numel()))
        origin = None if base is None else _widen(base[part], out.device)
        wide = [_widen(x[part], out.device) for x in inputs]
        places = {i: r[part] for i, r in ranks.items()}
        out[part].copy_(_chunk(setting, origin, wide, places, first + start))
        finite = finite and all_finite(out[part])
    return finite


def _chunk(
    setting: Setting,
    base: torch.Tensor | None,
    inputs: Sequence[torch.Tensor],
    ranks: Mapping[int, torch.Tensor],
    first: int,
) -> torch.Tensor:
    """One step's result in fp32."""
    if isinstance(setting, GtaSetting):
        if base is None:
            raise ValueError("generalised task arithmetic needs a base")
        return _gta(setting, base, inputs, ranks, first)
    if isinstance(setting, FusedSetting):
        if base is None:
            raise ValueError("a fused kernel needs a base")
        return fused_chunk(setting, base, inputs, first)
    if isinstance(setting, LinearSetting):
        return _linear(setting.deltas, setting.coefficients, base, inputs)
    return _linear(setting.deltas, _vector_coefficients(setting, inputs[0], first), base, inputs)


def all_finite(values: torch.Tensor) -> bool:
    """Whether no entry is NaN or infinite; one pass unless the sum overflows."""
    total = float(values.sum(dtype=torch.float64))
    return total - total == 0.0 or bool(torch.isfinite(values).all())

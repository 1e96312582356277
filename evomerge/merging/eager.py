"""Both kernels in plain torch, chunk by chunk: needs no compiler, runs on every device, defines the bits.

All sums are fp32, in the order of the inputs. Multiply and add are separate operations on purpose: torch's fused
`add(alpha=)` and `addcmul` round once where two operations round twice, and not everywhere alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evomerge.merging.elements import at_most, hash_range, signed
from evomerge.merging.settings import Cut, GtaParent, GtaSetting, LinearSetting, Setting

CHUNK = 1 << 17
"""Elements per step: a few fp32 buffers of this size stay in the second-level cache."""

DEVICE_CHUNK = 1 << 24
"""Elements per step elsewhere: launches and the wait for the finiteness check must not count."""

_SIGN_OFF = 0x7FFFFFFF


def _widen(chunk: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A chunk in fp32 on `device`; the chunk itself when it is that already, so it must not be changed."""
    return chunk.to(device=device, dtype=torch.float32)


def _linear(setting: LinearSetting, base: torch.Tensor | None, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    total: torch.Tensor | None = None
    for x, coefficient in zip(inputs, setting.coefficients, strict=True):
        term = (x - base if setting.deltas and base is not None else x) * coefficient
        total = term if total is None else total.add_(term)
    if base is None or not setting.deltas:
        if total is None:
            raise ValueError("a sum without base needs at least one input")
        return total
    return base if total is None else total.add_(base)


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


def _gta(setting: GtaSetting, base: torch.Tensor, inputs: Sequence[torch.Tensor], first: int) -> torch.Tensor:
    values: list[torch.Tensor] = []
    total = torch.zeros_like(base)
    common = hash_range(first, base, setting.tie_salt) if setting.trimmed or setting.capped else None
    for x, parent in zip(inputs, setting.parents, strict=True):
        delta = x - base
        keep = _kept(delta, parent, common, first)
        delta.mul_(parent.gain)
        if keep is not None:
            _masked(delta, keep)
        total.add_(delta)
        values.append(delta)
    if setting.elect:
        total = _elected(setting, values, total)
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
    *,
    chunk: int = 0,
    first: int = 0,
) -> bool:
    """Merge one tensor into `out`, which is rounded once, to its own dtype.

    Args:
        setting: the kernel's numbers.
        base: flat tensor `(n,)`, any float dtype; None for sums without base.
        inputs: flat tensors `(n,)`, aligned with `setting.inputs`.
        out: flat tensor `(n,)`, written; may be on another device than the inputs.
        chunk: elements per step, 0 for what suits the device; the bits do not depend on it.
        first: index of the first element in its tensor, where all of these are parts of larger tensors.

    Returns:
        Whether every entry of `out` is finite; where it is not, its contents mean nothing.
    """
    finite = True
    step = chunk or (CHUNK if out.device.type == "cpu" else DEVICE_CHUNK)
    for start in range(0, out.numel(), step):
        part = slice(start, min(start + step, out.numel()))
        origin = None if base is None else _widen(base[part], out.device)
        wide = [_widen(x[part], out.device) for x in inputs]
        if isinstance(setting, GtaSetting):
            if origin is None:
                raise ValueError("generalised task arithmetic needs a base")
            result = _gta(setting, origin, wide, first + start)
        elif wide or setting.deltas:
            result = _linear(setting, origin, wide)
        else:
            result = torch.zeros(part.stop - part.start, device=out.device)
        out[part].copy_(result)
        finite = finite and all_finite(out[part])
    return finite


def all_finite(values: torch.Tensor) -> bool:
    """Whether no entry is NaN or infinite; one pass unless the sum overflows."""
    total = float(values.sum(dtype=torch.float64))
    return total - total == 0.0 or bool(torch.isfinite(values).all())

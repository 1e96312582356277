"""Task vectors in eight bits: what a search may read instead of a parent, at half the bytes.

A delta `d = x - base` is cut into blocks of 64 elements. A block keeps its largest magnitude over 127 as an fp32 scale
and every element as the nearest multiple of it, so an element is off by at most half a scale: 0.4 % of the block's
largest delta. Reading adds the delta to the base again and rounds to the parent's own dtype, which puts most elements
back on the value that they had.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

import torch

from evomerge.checkpoints.dtypes import FLOATING
from evomerge.checkpoints.opened import OpenParent

BLOCK: Final = 64
"""Elements that share a scale."""

BYTES_PER_ELEMENT: Final = 1.0 + 4.0 / BLOCK
_LEVELS: Final = 127
_SAMPLED: Final = 4
_STEP: Final = 1 << 18
"""Elements that are packed at a time; a multiple of `BLOCK`."""


class Packed(NamedTuple):
    """One packed delta.

    Attributes:
        codes: int8, `(n,)`.
        scales: fp32, `(ceil(n / 64),)`; 0 for a block without any delta.
        dtype: of the parent.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes

    def pinned(self) -> Packed:
        """A copy in memory that a GPU reads without the processor."""
        return Packed(self.codes.pin_memory(), self.scales.pin_memory(), self.dtype)


def packed_bytes(numel: int) -> int:
    """Bytes of a packed delta of `numel` elements."""
    return numel + 4 * math.ceil(numel / BLOCK)


def pack(base: torch.Tensor, x: torch.Tensor, device: str = "cpu") -> Packed:
    """Pack a parent's difference from the base, part by part.

    Args:
        base: flat `(n,)`, floating, finite.
        x: flat `(n,)`, floating, finite.
        device: where the result lives.
    """
    n = x.numel()
    codes = torch.empty(n, dtype=torch.int8, device=device)
    scales = torch.empty(math.ceil(n / BLOCK), dtype=torch.float32, device=device)
    for start in range(0, n, _STEP):
        part = slice(start, min(start + _STEP, n))
        delta = x[part].to(device, torch.float32) - base[part].to(device, torch.float32)
        blocks = _blocks(delta)
        scale = blocks.abs().amax(1) / _LEVELS
        # a delta below the smallest scale is lost with its block, and its step counts as 1 in the division
        steps = torch.where(scale > 0, scale, 1.0)[:, None]
        rounded = (blocks / steps).round_().clamp_(-_LEVELS, _LEVELS)
        codes[part] = rounded.to(torch.int8).view(-1)[: delta.numel()]
        scales[start // BLOCK : start // BLOCK + scale.numel()] = scale
    return Packed(codes, scales, x.dtype)


def _blocks(flat: torch.Tensor) -> torch.Tensor:
    """A flat tensor as rows of `BLOCK`, the last one filled up with zeros."""
    missing = -flat.numel() % BLOCK
    return torch.nn.functional.pad(flat, (0, missing)).view(-1, BLOCK)


def unpack(packed: Packed, base: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Elements `start` to `stop` of the parent, rounded to its dtype; new memory.

    Args:
        packed: from `pack`.
        base: the part of the base, flat `(stop - start,)`; where the result is wanted.
        start: first element.
        stop: behind the last element.
    """
    first, last = start // BLOCK, math.ceil(stop / BLOCK)
    outer = slice(first * BLOCK, min(last * BLOCK, packed.codes.numel()))
    codes = packed.codes[outer].to(base.device, non_blocking=True)
    scales = packed.scales[first:last, None].to(base.device, non_blocking=True)
    values = _blocks(codes.to(torch.float32)).mul_(scales).view(-1)
    inner = values[start - outer.start : stop - outer.start]
    return (inner + base.to(torch.float32)).to(packed.dtype)


class Agreement(NamedTuple):
    """How well packed parents stand for the originals.

    Attributes:
        equal: share of elements that come back bit for bit.
        error: root mean square of what is lost, relative to that of the deltas; 0 where there is no delta.
    """

    equal: float
    error: float


def agreement(base: torch.Tensor, x: torch.Tensor) -> Agreement:
    """What packing `x` loses; flat tensors `(n,)` of one tensor's or one sample's elements."""
    n = x.numel()
    again = unpack(pack(base, x), base, 0, n)
    delta = x.double() - base.double()
    lost, whole = float((again.double() - x.double()).square().sum()), float(delta.square().sum())
    return Agreement(float((again == x).double().mean()) if n else 1.0, math.sqrt(lost / whole) if whole else 0.0)


def sampled_agreement(checkpoints: Mapping[str, OpenParent], base: str) -> Agreement | None:
    """What packing loses of some parents, over a few runs of elements of each.

    Args:
        checkpoints: name -> parent; those that have yet to be made are left out.
        base: the one whose differences are packed.

    Returns:
        The share of equal elements, and the root mean square of the tensors' errors; None where there was nothing.
    """
    names = [t.name for t in checkpoints[base].layout.tensors if t.dtype in FLOATING and len(t.shape) > 1]
    chosen = names[:: max(1, len(names) // _SAMPLED)][:_SAMPLED]
    found = []
    for name, parent in checkpoints.items():
        for tensor in chosen if name != base and parent.is_ready else ():
            origin, x = (c.tensor(tensor).reshape(-1)[:_STEP] for c in (checkpoints[base], parent))
            found.append((x.numel(), agreement(origin, x)))
    if not found:
        return None
    equal = sum(n * f.equal for n, f in found) / sum(n for n, _ in found)
    return Agreement(equal, math.sqrt(sum(f.error**2 for _, f in found) / len(found)))

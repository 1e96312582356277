"""Thresholds inside a histogram bin that holds too many entries to be listed: those of a tensor that did not move.

What a bin holds is counted instead, chunk by chunk: first by the lower half of the magnitudes' patterns, then among
equals by the upper and the lower half of their hashes. Three readings in place of one, in memory of a fixed size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from evomerge.merging.elements import tie_hash
from evomerge.merging.settings import Cut

WIDE: Final = 1 << 20
"""Entries beyond which a bin is counted; listing them takes 20 bytes each."""

_CHUNK: Final = 1 << 17
_HALF: Final = 1 << 16


class Bin(NamedTuple):
    """One bin of the magnitudes `|x - base|`.

    Attributes:
        number: upper 16 bits of the fp32 patterns in it.
        base: flat `(n,)`.
        x: flat `(n,)`.
    """

    number: int
    base: torch.Tensor
    x: torch.Tensor

    def entries(self) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]]:
        """Per chunk: indices as 32-bit patterns, and lower 16 pattern bits of the entries, in order."""
        for start in range(0, self.x.numel(), _CHUNK):
            part = slice(start, start + _CHUNK)
            delta = self.x[part].to(torch.float32) - self.base[part].to(torch.float32)
            patterns = delta.view(torch.int32) & 0x7FFFFFFF
            found = ((patterns >> 16) == self.number).nonzero().squeeze(1)
            low = (patterns[found] & 0xFFFF).cpu().numpy().astype(np.int64)
            yield (found + start).cpu().numpy().astype(np.uint32).view(np.int32), low

    def lows(self) -> npt.NDArray[np.int64]:
        """How many entries have each lower half, shape `(65536,)`."""
        return _counted(low for _, low in self.entries())

    def hashes(self, low: int, salts: tuple[int, int]) -> Iterator[npt.NDArray[np.uint32]]:
        """Per chunk: tie-breaking hashes of the entries with one lower half."""
        for indices, lows in self.entries():
            yield tie_hash(torch.from_numpy(indices[lows == low]), *salts).numpy().view(np.uint32)


def _counted(parts: Iterator[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    return sum((np.bincount(p, minlength=_HALF) for p in parts), np.zeros(_HALF, np.int64))


def wide_cut(found: Bin, wanted: int, salts: tuple[int, int]) -> Cut:
    """The threshold above which exactly `wanted` entries of a bin lie.

    Args:
        found: the bin.
        wanted: in `[1, entries]`.
        salts: of the hash that orders equals, see `elements.tie_salts`.
    """
    low, left = _at(found.lows()[::-1], wanted)
    low = _HALF - 1 - low
    upper, left = _at(_counted((h >> 16).astype(np.int64) for h in found.hashes(low, salts)), left)
    inside = ((h[h >> 16 == upper] & 0xFFFF).astype(np.int64) for h in found.hashes(low, salts))
    lower, _ = _at(_counted(inside), left)
    return Cut(found.number << 16 | low, upper << 16 | lower)


def largest_lows(found: Bin, wanted: int) -> int:
    """The sum of the lower pattern bits of the `wanted` largest entries of a bin."""
    counts = found.lows()[::-1]
    before = np.minimum(counts.cumsum(), wanted)
    taken = np.diff(before, prepend=0)
    return int((taken * np.arange(_HALF - 1, -1, -1)).sum())


def _at(counts: npt.NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """The cell in which the `wanted`-th entry lies, and which one it is there, from 1."""
    up_to = counts.cumsum()
    cell = int(np.searchsorted(up_to, wanted, side="left"))
    return cell, wanted - (int(up_to[cell - 1]) if cell else 0)

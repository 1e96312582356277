"""Thresholds inside a histogram bin that holds too many entries to be listed: those of a tensor that did not move.

What a bin holds is counted instead, chunk by chunk: first by the lower half of the magnitudes' patterns, then among
equals by the upper and the lower half of their hashes. Three readings in place of one, in memory of a fixed size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from evomerge.merging.elements import tie_hash
from evomerge.merging.kernels import BinEntries, Kernels
from evomerge.merging.settings import Cut

WIDE: Final = 1 << 21
"""Entries beyond which a bin is counted; listing them takes 20 bytes each, counting them three more readings."""

_CHUNK: Final = 1 << 18
_HALF: Final = 1 << 16
_FEW: Final = 1 << 10


class Bin(NamedTuple):
    """One bin of the magnitudes `|x - base|`.

    Attributes:
        number: upper 16 bits of the fp32 patterns in it.
        base: flat `(n,)`.
        x: flat `(n,)`.
        kernels: any; they do not change the answer.
    """

    number: int
    base: torch.Tensor
    x: torch.Tensor
    kernels: Kernels

    def entries(self) -> Iterator[BinEntries]:
        """The entries chunk by chunk, in order."""
        for start in range(0, self.x.numel(), _CHUNK):
            part = slice(start, start + _CHUNK)
            indices, low = self.kernels.collect(self.base[part], self.x[part], self.number, _CHUNK)
            yield BinEntries(indices + np.uint32(start), low)

    def lows(self) -> npt.NDArray[np.int64]:
        """How many entries have each lower half, shape `(65536,)`."""
        return counted(e.low for e in self.entries())

    def hashes(self, low: int, salts: tuple[int, int]) -> Iterator[npt.NDArray[np.uint32]]:
        """Per chunk: tie-breaking hashes of the entries with one lower half."""
        for entries in self.entries():
            tied = entries.indices[entries.low == low].view(np.int32)
            yield tie_hash(torch.from_numpy(tied), *salts).numpy().view(np.uint32)


def count_into(counts: npt.NDArray[np.int64], numbers: npt.NDArray[Any]) -> None:
    """Add to `counts`, shape `(65536,)`, how often each number below 65536 occurs."""
    if numbers.size < _FEW:
        np.add.at(counts, numbers, 1)
    else:
        counts += np.bincount(numbers, minlength=_HALF)


def counted(parts: Iterable[npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    """How often each number below 65536 occurs, shape `(65536,)`."""
    counts = np.zeros(_HALF, np.int64)
    for part in parts:
        count_into(counts, part)
    return counts


def smallest(hashes: Callable[[], Iterator[npt.NDArray[np.uint32]]], wanted: int) -> int:
    """The `wanted`-th smallest of many 32-bit words, without listing them.

    Args:
        hashes: gives them part by part, as often as it is called.
        wanted: from 1.
    """
    upper, left = _at(counted(h >> 16 for h in hashes()), wanted)
    lower, _ = _at(counted(h[h >> 16 == upper] & 0xFFFF for h in hashes()), left)
    return upper << 16 | lower


def wide_cut(found: Bin, wanted: int, salts: tuple[int, int]) -> Cut:
    """The threshold above which exactly `wanted` entries of a bin lie.

    Args:
        found: the bin.
        wanted: in `[1, entries]`.
        salts: of the hash that orders equals, see `elements.tie_salts`.
    """
    low, left = _at(found.lows()[::-1], wanted)
    low = _HALF - 1 - low
    return Cut(found.number << 16 | low, smallest(lambda: found.hashes(low, salts), left))


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

"""Exact magnitude thresholds for any density, without sorting, and the norm of what lies above them.

Once per (tensor, parent) the magnitudes `|x - base|` are counted by the upper 16 bits of their fp32 pattern. A count
of entries to keep then names one bin by look-up; the entries of that one bin are read again, and the threshold inside
it is exact. Entries with equal magnitude are ordered by their element hash, so exactly the asked number is kept, and
what a smaller count keeps, a larger one keeps too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch

from evomerge.merging.elements import FULL, tie_hash, tie_salts
from evomerge.merging.kernels import BinEntries, Kernels
from evomerge.merging.settings import Cut
from evomerge.merging.wide_bins import WIDE, Bin, count_into, largest_lows, wide_cut

BINS: Final = 1 << 15


def density_count(density: float, numel: int) -> int:
    """How many of `numel` entries a density in [0, 1] keeps: rounded, at least one when the density is positive."""
    if density <= 0.0 or numel == 0:
        return 0
    return min(max(1, round(density * numel)), numel)


def magnitude_sum(bin_index: int, entries: int, low_sum: int) -> float:
    """The sum of `entries` magnitudes of one bin, given the sum of the lower 16 bits of their patterns; rounded once.

    All magnitudes of a bin have one exponent, so that their patterns add up as whole numbers.
    """
    exponent = bin_index >> 7
    leading = (bin_index & 0x7F) << 16 | (0x800000 if exponent else 0)
    return math.ldexp(entries * leading + low_sum, max(exponent, 1) - 150)


@final
class Magnitudes:
    """The magnitude histogram of one delta and the thresholds found so far.

    Args:
        counts: entries per bin, shape `(32768,)`.
        kernels: for the refinement inside a bin.
    """

    def __init__(self, counts: npt.NDArray[np.int64], kernels: Kernels) -> None:
        occupied = counts.nonzero()[0]
        self._first = int(occupied[0]) if occupied.size else 0
        last = int(occupied[-1]) + 1 if occupied.size else 0
        # entry b: how many entries lie in bin first + b or above; trimmed to the occupied range, 20 kB instead of 256
        self._from_top = counts[self._first : last][::-1].cumsum()[::-1].copy()
        self._kernels = kernels
        self._cuts: dict[int, Cut] = {}
        self._norms: dict[int, float] = {}
        self._bin_sums: tuple[float, ...] = ()

    @staticmethod
    def measure(base: torch.Tensor, x: torch.Tensor, kernels: Kernels) -> Magnitudes:
        """Count the magnitudes of `x - base`, flat tensors `(n,)`."""
        return Magnitudes(kernels.histogram(base, x), kernels)

    @property
    def numel(self) -> int:
        """How many entries were counted."""
        return int(self._from_top[0]) if self._from_top.size else 0

    @property
    def nbytes(self) -> int:
        """Memory held, roughly."""
        return int(self._from_top.nbytes) + 8 * len(self._bin_sums) + 200 * (len(self._cuts) + len(self._norms))

    def counts(self) -> npt.NDArray[np.int64]:
        """Entries per bin, shape `(32768,)`."""
        counts = np.zeros(BINS, np.int64)
        above = np.append(self._from_top[1:], 0)
        counts[self._first : self._first + self._from_top.size] = self._from_top - above
        return counts

    def cut(self, count: int, base: torch.Tensor, x: torch.Tensor, names: tuple[str, str]) -> Cut:
        """The threshold above which exactly `count` entries lie.

        Args:
            count: in `[1, numel]`.
            base: the tensors that were counted.
            x: likewise.
            names: tensor and parent, which salt the tie-breaking hash.

        Raises:
            ValueError: for a count outside its range.
        """
        self._check(count)
        if count not in self._cuts:
            at, wanted, size = self._bin_of(count)
            if size > WIDE:
                self._cuts[count] = wide_cut(Bin(at, base, x, self._kernels), wanted, tie_salts(*names))
            else:
                entries = self._kernels.collect(base, x, at, size)
                self._cuts[count] = _cut_inside(at, entries, wanted, tie_salts(*names))
        return self._cuts[count]

    def norm(self, count: int, base: torch.Tensor, x: torch.Tensor) -> float:
        """The sum of the `count` largest magnitudes; of all of them when `count` is `numel`.

        Sums inside a bin are exact, and so is the order in which bins are added, whatever the kernels.

        Args:
            count: in `[1, numel]`.
            base: the tensors that were counted.
            x: likewise.

        Raises:
            ValueError: for a count outside its range.
        """
        self._check(count)
        if not self._bin_sums:
            sums = self._kernels.lower_sums(base, x)[self._first :]
            counts = self.counts()[self._first :]
            parts = zip(counts[: self._from_top.size].tolist(), sums.tolist(), strict=False)
            self._bin_sums = tuple(magnitude_sum(self._first + b, n, low) for b, (n, low) in enumerate(parts))
        if count not in self._norms:
            self._norms[count] = self._norm(count, base, x)
        return self._norms[count]

    def _norm(self, count: int, base: torch.Tensor, x: torch.Tensor) -> float:
        if count == self.numel:
            return math.fsum(self._bin_sums)
        at, wanted, size = self._bin_of(count)
        if size > WIDE:
            low_sum = largest_lows(Bin(at, base, x, self._kernels), wanted)
        else:
            low = self._kernels.collect(base, x, at, size).low
            low_sum = int(np.partition(low, size - wanted)[size - wanted :].sum(dtype=np.int64))
        partial = magnitude_sum(at, wanted, low_sum)
        return math.fsum((*self._bin_sums[at - self._first + 1 :], partial))

    def _check(self, count: int) -> None:
        if not 1 <= count <= self.numel:
            raise ValueError(f"count {count} is not in [1, {self.numel}]")

    def _bin_of(self, count: int) -> tuple[int, int, int]:
        """The bin of the threshold, how many of its entries are wanted, and how many it has."""
        # the last bin from which upwards at least `count` entries lie; from_top does not increase
        at = int(np.searchsorted(-self._from_top, -count, side="right")) - 1
        above = int(self._from_top[at + 1]) if at + 1 < self._from_top.size else 0
        return self._first + at, count - above, int(self._from_top[at]) - above


def _cut_inside(bin_index: int, entries: BinEntries, wanted: int, salts: tuple[int, int]) -> Cut:
    """The threshold above which `wanted` entries of one bin lie, 1 <= wanted <= size."""
    size = entries.low.size
    low = int(np.partition(entries.low, size - wanted)[size - wanted])
    among_ties = wanted - int((entries.low > low).sum())
    hashes = _tied_hashes(entries, low, salts)
    bound = int(np.partition(hashes, among_ties - 1)[among_ties - 1])
    return Cut(bin_index << 16 | low, bound)


def _tied_hashes(entries: BinEntries, low: int, salts: tuple[int, int]) -> npt.NDArray[np.uint32]:
    tied = entries.indices[entries.low == low]
    return tie_hash(torch.from_numpy(tied.view(np.int32)), *salts).numpy().view(np.uint32)


class MagnitudePart(NamedTuple):
    """One tensor of several that share a threshold.

    Attributes:
        magnitudes: its histogram.
        pair: base and parent, flat `(n,)`; called when they are read.
        names: tensor and parent, which salt the tie-breaking hash.
    """

    magnitudes: Magnitudes
    pair: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    names: tuple[str, str]


def joint_cut(count: int, parts: Sequence[MagnitudePart], kernels: Kernels) -> Cut:
    """The threshold above which `count` entries of several tensors lie together.

    The tensors are read one after the other, three times, and little more than counts is kept. Exact but for entries
    of different tensors that have equal magnitudes and equal hashes.

    Args:
        count: in `[1, entries of all parts]`.
        parts: the tensors.
        kernels: any; they do not change the answer.
    """
    totals = sum((p.magnitudes.counts() for p in parts), np.zeros(BINS, np.int64))
    at, wanted = _from_the_top(totals, count)
    lows = np.zeros(1 << 16, np.int64)
    for _, entries in _entries_of(parts, at, kernels):
        count_into(lows, entries.low)
    low, wanted = _from_the_top(lows, wanted)
    buckets = np.zeros(1 << 16, np.int64)
    for part, entries in _entries_of(parts, at, kernels):
        count_into(buckets, _tied_hashes(entries, low, tie_salts(*part.names)) >> 16)
    bucket, wanted = _from_the_top(buckets[::-1], wanted)
    bucket = (1 << 16) - 1 - bucket
    hashes = (_tied_hashes(e, low, tie_salts(*p.names)) for p, e in _entries_of(parts, at, kernels))
    last = np.concatenate([h[h >> 16 == bucket] for h in hashes])
    return Cut(at << 16 | low, int(np.partition(last, wanted - 1)[wanted - 1]) & FULL)


def _from_the_top(counts: npt.NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """The highest place from which upwards `wanted` entries lie, and how many of its own are wanted."""
    from_top = counts[::-1].cumsum()[::-1]
    at = int(np.searchsorted(-from_top, -wanted, side="right")) - 1
    return at, wanted - (int(from_top[at + 1]) if at + 1 < from_top.size else 0)


def _entries_of(
    parts: Sequence[MagnitudePart], at: int, kernels: Kernels
) -> Iterator[tuple[MagnitudePart, BinEntries]]:
    for part in parts:
        if part.magnitudes.counts()[at]:
            yield from ((part, entries) for entries in Bin(at, *part.pair(), kernels).entries())

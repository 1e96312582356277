"""Exact magnitude thresholds for any density, without sorting.

Once per (tensor, parent) the magnitudes `|x - base|` are counted by the upper 16 bits of their fp32 pattern. A count
of entries to keep then names one bin by look-up; the entries of that one bin are read again, and the threshold inside
it is exact. Entries with equal magnitude are ordered by their element hash, so exactly the asked number is kept, and
what a smaller count keeps, a larger one keeps too.
"""

from __future__ import annotations

from typing import final

import numpy as np
import numpy.typing as npt
import torch

from evomerge.merging.elements import tie_hash, tie_salts
from evomerge.merging.kernels import BinEntries, Kernels
from evomerge.merging.settings import Cut


def density_count(density: float, numel: int) -> int:
    """How many of `numel` entries a density in [0, 1] keeps: rounded, at least one when the density is positive."""
    if density <= 0.0 or numel == 0:
        return 0
    return min(max(1, round(density * numel)), numel)


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

    @staticmethod
    def measure(base: torch.Tensor, x: torch.Tensor, kernels: Kernels) -> Magnitudes:
        """Count the magnitudes of `x - base`, flat tensors `(n,)`."""
        return Magnitudes(kernels.histogram(base, x), kernels)

    @property
    def numel(self) -> int:
        """How many entries were counted."""
        return int(self._from_top[0]) if self._from_top.size else 0

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
        if not 1 <= count <= self.numel:
            raise ValueError(f"count {count} is not in [1, {self.numel}]")
        if count not in self._cuts:
            self._cuts[count] = self._refine(count, base, x, tie_salts(*names))
        return self._cuts[count]

    def _refine(self, count: int, base: torch.Tensor, x: torch.Tensor, salts: tuple[int, int]) -> Cut:
        # the last bin from which upwards at least `count` entries lie; from_top does not increase
        at = int(np.searchsorted(-self._from_top, -count, side="right")) - 1
        above = int(self._from_top[at + 1]) if at + 1 < self._from_top.size else 0
        size = int(self._from_top[at]) - above
        entries = self._kernels.collect(base, x, self._first + at, size)
        return _cut_inside(self._first + at, entries, count - above, salts)


def _cut_inside(bin_index: int, entries: BinEntries, wanted: int, salts: tuple[int, int]) -> Cut:
    """The threshold above which `wanted` entries of one bin lie, 1 <= wanted <= size."""
    size = entries.low.size
    low = int(np.partition(entries.low, size - wanted)[size - wanted])
    tied = entries.indices[entries.low == low]
    among_ties = wanted - int((entries.low > low).sum())
    hashes = tie_hash(torch.from_numpy(tied.view(np.int32)), *salts).numpy().view(np.uint32)
    bound = int(np.partition(hashes, among_ties - 1)[among_ties - 1])
    return Cut(bin_index << 16 | low, bound)

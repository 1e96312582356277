"""What a method may measure on the deltas that it merges, once: order statistics, sums, anything it defines itself.

A measurement is a frozen value: it is its own name in the cache of whoever answers it. All sums are fp64 in an order
that is fixed, order statistics are exact, and tensors are read part by part, so that nothing of a tensor's size is
allocated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar, final

import numpy as np
import numpy.typing as npt
import torch

from evomerge.merging.elements import tie_hash
from evomerge.merging.kernels import Kernels
from evomerge.merging.settings import Cut

T = TypeVar("T")

PART: Final = 1 << 17
"""Elements that are read at a time; a multiple of the lanes of a sum."""

_HALF: Final = 1 << 15


@dataclass(frozen=True, eq=False)
class Deltas:
    """One tensor of the models that a method merges.

    Attributes:
        tensor: its name.
        shape: of the tensor.
        base: flat `(n,)`, as stored.
        inputs: flat `(n,)`, as stored, in the order of the merged models.
        kernels: for measurements that a kernel can take.
    """

    tensor: str
    shape: tuple[int, ...]
    base: torch.Tensor
    inputs: tuple[torch.Tensor, ...]
    kernels: Kernels

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.base.numel()

    def part(self, start: int) -> list[torch.Tensor]:
        """The models' deltas from element `start` on, at most `PART` of them: fp32, on the CPU, new memory."""
        part = slice(start, start + PART)
        base = self.base[part].cpu().to(torch.float32)
        return [x[part].cpu().to(torch.float32) - base for x in self.inputs]

    def parts(self) -> Iterator[list[torch.Tensor]]:
        """All parts, in order."""
        return (self.part(start) for start in range(0, self.numel, PART))


class Measurement(ABC, Generic[T]):
    """Something that is measured on the deltas of one tensor, or of all: subclasses are frozen dataclasses.

    Contract: `take` is a pure function of the values; equal measurements of equal tensors are equal.
    """

    whole_model: bool = False
    """Whether all floating tensors of the models are measured together, and not only the one that is merged."""

    passing: bool = False
    """Whether it says something about one candidate, so that only the latest answer is worth keeping."""

    @abstractmethod
    def guess(self, shape: tuple[int, ...], n: int) -> T:
        """A value of the right form for `n` models, without looking at them: for foreseeing which kernels run."""

    @abstractmethod
    def take(self, tensors: Sequence[Deltas]) -> T:
        """Measure.

        Args:
            tensors: one, or all when `whole_model`.
        """


def _keys(values: torch.Tensor) -> npt.NDArray[np.int32]:
    """Integers in the order of fp32 values; -0 counts as +0."""
    patterns = (values + 0.0).view(torch.int32)
    return (patterns ^ ((patterns >> 31) & 0x7FFFFFFF)).numpy()


def magnitude_of(bits: int) -> float:
    """The fp32 value of a pattern without sign."""
    return float(np.array([bits], np.uint32).view(np.float32)[0])


def _value(key: int) -> float:
    return magnitude_of(key) if key >= 0 else -magnitude_of(~key & 0x7FFFFFFF)


def _bins(keys: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    return (keys >> 16) + np.int32(_HALF)


@final
class Ranking:
    """Exact order statistics of several lists of scores that are computed together, part by part.

    Args:
        parts: gives the scores in order, as often as it is called: one tensor per list, fp32, flat, finite.
    """

    def __init__(self, parts: Callable[[], Iterator[Sequence[torch.Tensor]]]) -> None:
        self._parts = parts
        self._up_to: list[npt.NDArray[np.int64]] = []
        for scores in parts():
            if not self._up_to:
                self._up_to = [np.zeros(2 * _HALF, np.int64) for _ in scores]
            for which, values in enumerate(scores):
                self._up_to[which] += np.bincount(_bins(_keys(values)), minlength=2 * _HALF)
        self._up_to = [counts.cumsum() for counts in self._up_to]

    def _bin(self, which: int, rank: int) -> tuple[int, int]:
        """The bin of the score of a rank, and how many scores lie in the bins below it."""
        up_to = self._up_to[which]
        if not 0 <= rank < up_to[-1]:
            raise ValueError(f"rank {rank} is not in [0, {up_to[-1]})")
        at = int(np.searchsorted(up_to, rank, side="right"))
        return at, int(up_to[at - 1]) if at else 0

    def values(self, ranks: Sequence[Sequence[int]]) -> list[list[float]]:
        """The scores of some ranks of each list: 0 is the smallest, the number of scores less one the largest.

        Raises:
            ValueError: for a rank outside its range.
        """
        wanted = [{self._bin(which, rank)[0] for rank in asked} for which, asked in enumerate(ranks)]
        lower = {(which, at): np.zeros(2 * _HALF, np.int64) for which, bins in enumerate(wanted) for at in bins}
        for scores in self._parts():
            for which, values in enumerate(scores):
                keys = _keys(values)
                bins = _bins(keys)
                for at in wanted[which]:
                    lower[which, at] += np.bincount(keys[bins == at] & 0xFFFF, minlength=2 * _HALF)
        up_to = {place: counts.cumsum() for place, counts in lower.items()}
        return [[self._inside(up_to, which, rank) for rank in asked] for which, asked in enumerate(ranks)]

    def above_zero(self) -> int:
        """How many scores of the first list are positive."""
        beyond = int(self._up_to[0][-1] - self._up_to[0][_HALF])  # in the bins above that of zero
        near = [int((_keys(scores) > 0)[_bins(_keys(scores)) == _HALF].sum()) for scores, *_ in self._parts()]
        return beyond + sum(near)

    def _inside(self, up_to: dict[tuple[int, int], npt.NDArray[np.int64]], which: int, rank: int) -> float:
        at, below = self._bin(which, rank)
        low = int(np.searchsorted(up_to[which, at], rank - below, side="right"))
        return _value((at - _HALF) << 16 | low)

    def cut(self, count: int, salts: tuple[int, int]) -> Cut:
        """The threshold above which exactly `count` scores of the first list lie; they are not negative.

        Args:
            count: in `[1, number of scores]`.
            salts: of the hash that breaks ties, see `elements.tie_salts`.
        """
        threshold = self.values([[int(self._up_to[0][-1]) - count]])[0][0]
        bits = int(np.array([threshold], np.float32).view(np.uint32)[0])
        above, tied, start = 0, [], 0
        for scores, *_ in self._parts():
            keys = _keys(scores)
            above += int((keys > bits).sum())
            tied.append((np.flatnonzero(keys == bits) + start).astype(np.uint32))
            start += keys.size
        hashes = tie_hash(torch.from_numpy(np.concatenate(tied).view(np.int32)), *salts).numpy().view(np.uint32)
        return Cut(bits, int(np.partition(hashes, count - above - 1)[count - above - 1]))

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
from evomerge.merging.settings import Cut

T = TypeVar("T")

PART: Final = 1 << 17
"""Elements that are read at a time; a multiple of the lanes of `LaneSum`."""

_LANES: Final = 1 << 10
_HALF: Final = 1 << 15


@dataclass(frozen=True, eq=False)
class Deltas:
    """One tensor of the models that a method merges.

    Attributes:
        tensor: its name.
        shape: of the tensor.
        base: flat `(n,)`, as stored.
        inputs: flat `(n,)`, as stored, in the order of the merged models.
    """

    tensor: str
    shape: tuple[int, ...]
    base: torch.Tensor
    inputs: tuple[torch.Tensor, ...]

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

    @abstractmethod
    def guess(self, shape: tuple[int, ...], n: int) -> T:
        """A value of the right form for `n` models, without looking at them: for foreseeing which kernels run."""

    @abstractmethod
    def take(self, tensors: Sequence[Deltas]) -> T:
        """Measure.

        Args:
            tensors: one, or all when `whole_model`.
        """


@final
class LaneSum:
    """An fp64 sum whose order is fixed: element j goes to lane j mod 1024, the lanes are added by halves."""

    def __init__(self) -> None:
        self._lanes = torch.zeros(_LANES, dtype=torch.float64)

    def add(self, values: torch.Tensor) -> None:
        """Add the next values, flat; all but the last call bring a multiple of 1024 of them."""
        wide = values.to(torch.float64)
        whole = wide.numel() // _LANES * _LANES
        for row in wide[:whole].view(-1, _LANES):
            self._lanes.add_(row)
        self._lanes[: wide.numel() - whole].add_(wide[whole:])

    def total(self) -> float:
        """The sum so far."""
        return halved(self._lanes)


def halved(lanes: torch.Tensor) -> float:
    """The sum of fp64 lanes, their number a power of two: the upper half is added to the lower until one is left."""
    left = lanes.clone()
    while left.numel() > 1:
        left = left[: left.numel() // 2] + left[left.numel() // 2 :]
    return float(left[0])


def _keys(values: torch.Tensor) -> npt.NDArray[np.int32]:
    """Integers in the order of fp32 values; -0 counts as +0."""
    patterns = (values + 0.0).view(torch.int32).numpy()
    return np.where(patterns >= 0, patterns, patterns ^ np.int32(0x7FFFFFFF)).astype(np.int32)


def _value(key: int) -> float:
    pattern = key if key >= 0 else key ^ 0x7FFFFFFF
    return float(np.array([pattern], np.int64).astype(np.int32).view(np.float32)[0])


@final
class Ranking:
    """Exact order statistics of scores that are computed part by part.

    Args:
        parts: gives all scores, in order, as often as it is called: fp32, flat, finite.
    """

    def __init__(self, parts: Callable[[], Iterator[torch.Tensor]]) -> None:
        self._parts = parts
        counts = np.zeros(2 * _HALF, np.int64)
        for scores in parts():
            counts += np.bincount((_keys(scores) >> 16) + _HALF, minlength=2 * _HALF)
        self._up_to = counts.cumsum()

    @property
    def numel(self) -> int:
        """How many scores there are."""
        return int(self._up_to[-1])

    def _bin(self, rank: int) -> tuple[int, int]:
        """The bin of the score of a rank, and how many scores lie in the bins below it."""
        at = int(np.searchsorted(self._up_to, rank, side="right"))
        return at, int(self._up_to[at - 1]) if at else 0

    def values(self, ranks: Sequence[int]) -> list[float]:
        """The scores of some ranks: 0 is the smallest, `numel - 1` the largest.

        Raises:
            ValueError: for a rank outside its range.
        """
        if not all(0 <= rank < self.numel for rank in ranks):
            raise ValueError(f"ranks {list(ranks)} are not in [0, {self.numel})")
        bins = sorted({self._bin(rank)[0] for rank in ranks})
        found: dict[int, list[npt.NDArray[np.int32]]] = {at: [] for at in bins}
        for scores in self._parts():
            keys = _keys(scores)
            upper = (keys >> 16) + _HALF
            for at in bins:
                found[at].append(keys[upper == at])
        results = []
        for rank in ranks:
            at, below = self._bin(rank)
            keys = np.concatenate(found[at])
            results.append(_value(int(np.partition(keys, rank - below)[rank - below])))
        return results

    def cut(self, count: int, salts: tuple[int, int]) -> Cut:
        """The threshold above which exactly `count` scores lie; scores are not negative, 1 <= count <= numel.

        Args:
            count: how many.
            salts: of the hash that breaks ties, see `elements.tie_salts`.
        """
        threshold = self.values([self.numel - count])[0]
        bits = int(np.array([threshold], np.float32).view(np.uint32)[0])
        above, tied, start = 0, [], 0
        for scores in self._parts():
            keys = _keys(scores)
            above += int((keys > bits).sum())
            tied.append((np.flatnonzero(keys == bits) + start).astype(np.uint32))
            start += keys.size
        indices = np.concatenate(tied)
        hashes = tie_hash(torch.from_numpy(indices.view(np.int32)), *salts).numpy().view(np.uint32)
        wanted = count - above
        return Cut(bits, int(np.partition(hashes, wanted - 1)[wanted - 1]))

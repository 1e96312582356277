"""A design: the order in which a generation is asked, and how likely each item was to be asked by it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.irt.responses import Bools, Floats, Indices


@dataclass(frozen=True)
class Design:
    """A nested order of questions with a purposeful and a random part.

    After k questions the first `m = frontier[k]` items of `ranking` have all been asked: they are certain, however
    each of them came to be asked. Which others were asked depends on chance alone: given m and the numbers per
    group, all choices within a group are equally likely, because nothing that was decided so far looked at them.

    Attributes:
        order: shape `(n,)`, a permutation of the items, asked from the front.
        ranking: shape `(n,)`, the purposeful order.
        frontier: shape `(n + 1,)`, how many items of `ranking` are certain after k questions; not decreasing.
        chance: shape `(n,)`, a shuffle of the items: the random part's order within each group.
        groups: shape `(n,)`, the stratum of each item for the random part, 0 .. H - 1.
        starts: shape `(H,)`, in [0, 1): which groups the random part begins with.
    """

    order: Indices
    ranking: Indices
    frontier: Indices
    chance: Indices
    groups: Indices
    starts: Floats

    def __post_init__(self) -> None:
        n = self.order.size
        for name, size in (("order", n), ("ranking", n), ("frontier", n + 1), ("chance", n), ("groups", n)):
            value = np.array(getattr(self, name), dtype=np.intp)
            if value.shape != (size,):
                raise ValueError(f"{name} has shape {value.shape}, expected {(size,)}")
            value.setflags(write=False)
            object.__setattr__(self, name, value)
        starts = np.array(self.starts, dtype=np.float64)
        if starts.shape != (int(self.groups.max(initial=0)) + 1,) or np.any(self.groups < 0):
            raise ValueError(f"{starts.size} starts for groups 0 to {int(self.groups.max(initial=0))}")
        starts.setflags(write=False)
        object.__setattr__(self, "starts", starts)
        everything = np.arange(n)
        if not all(np.array_equal(np.sort(p), everything) for p in (self.order, self.ranking, self.chance)):
            raise ValueError("an order holds every item once")
        if n and (np.any(np.diff(self.frontier) < 0) or not 0 <= self.frontier[0] <= self.frontier[-1] <= n):
            raise ValueError("the frontier must not fall and stay within the items")

    def asked(self, k: int) -> Bools:
        """Shape `(n,)`: the items of the first k questions.

        Raises:
            ValueError: when k is not in [0, n].
        """
        self._check(k)
        mask = np.zeros(self.order.size, dtype=np.bool_)
        mask[self.order[:k]] = True
        return mask

    def certain(self, k: int) -> Bools:
        """Shape `(n,)`: the items that any draw of the random part would have asked by then.

        Raises:
            ValueError: when k is not in [0, n].
        """
        self._check(k)
        mask = np.zeros(self.order.size, dtype=np.bool_)
        mask[self.ranking[: self.frontier[k]]] = True
        return mask

    def inclusion(self, k: int) -> Floats:
        """Shape `(n,)`: probability of each item to be among the first k, given how many of each group are.

        1 for the certain ones; `r / s` in a group of which r of s uncertain items were asked. While some group has
        uncertain items of which none was asked, it is `r / s` over all groups, so that no probability is 0 once
        anything random was asked: exact with one group, else as soon as there is a random question in each group.
        With nothing random asked it is 0 for all that are not certain.

        Raises:
            ValueError: when k is not in [0, n].
        """
        certain = self.certain(k)
        random = self.asked(k) & ~certain
        groups = int(self.groups.max(initial=0)) + 1
        left = np.bincount(self.groups[~certain], minlength=groups)
        drawn = np.bincount(self.groups[random], minlength=groups)
        if np.any((left > 0) & (drawn == 0)):
            rate = np.full(groups, drawn.sum() / max(left.sum(), 1))
        else:
            rate = drawn / np.maximum(left, 1)
        return np.where(certain, 1.0, rate[self.groups])

    def _check(self, k: int) -> None:
        if not 0 <= k <= self.order.size:
            raise ValueError(f"{k} questions of {self.order.size}")

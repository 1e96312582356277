"""In which order a generation is asked: one order over all tasks, from whose front every candidate answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol, final

import numpy as np

from evomerge.irt.responses import Bools, Floats, Indices
from evomerge.irt.weighted import WeightedDesign, sizes_of, weighted_order

LEAST_PER_TASK: Final = 2
"""Questions of every task that everybody is asked: a task without answers has no score."""


class Asked(NamedTuple):
    """What everybody has been asked once a number of questions is reached.

    Attributes:
        items: task -> ascending indices into its search set.
        inclusion: task -> shape `(n,)`, the chances with which its items were chosen.
    """

    items: Mapping[str, tuple[int, ...]]
    inclusion: Mapping[str, Floats]


class Asking(ABC):
    """A nested order of questions over all tasks; the same for every candidate of a generation."""

    @abstractmethod
    def upto(self, questions: int) -> Asked:
        """The first questions of the order.

        Args:
            questions: from 1 to the number of all items.
        """


class Design(Protocol):
    """An order within one task (`irt.design.Design`, `irt.weighted.WeightedDesign`)."""

    def asked(self, k: int) -> Bools:
        """Shape `(n,)`: the items of the first k questions."""

    def inclusion(self, k: int) -> Floats:
        """Shape `(n,)`: the chance of each item to be among them."""


@final
class PooledAsking(Asking):
    """Uncertain items of all tasks in one random order: tasks on which candidates differ more are asked more.

    Args:
        uncertainty: task -> shape `(n_t,)`, see `irt.weighted.uncertainty`.
        importance: task -> weight of the task in what the run is after, not negative.
        rng: source of the order.
    """

    def __init__(
        self, uncertainty: Mapping[str, Floats], importance: Mapping[str, float], rng: np.random.Generator
    ) -> None:
        self._tasks = tuple(uncertainty)
        self._counts = [uncertainty[t].size for t in self._tasks]
        self._ends = np.cumsum([0, *self._counts])
        # an answer counts for the run as much as its task does, divided among the task's items
        shares = [importance[t] / max(1, n) for t, n in zip(self._tasks, self._counts, strict=True)]
        share = np.repeat(np.array(shares), self._counts)
        size = sizes_of(np.concatenate([uncertainty[t] for t in self._tasks]))
        size = size * share
        size = np.maximum(size / size.mean() if size.mean() > 0 else np.ones(size.size), 1e-3)
        order = weighted_order(size, rng)
        first = np.concatenate([self._front(order, i) for i in range(len(self._tasks))])
        rest = order[~np.isin(order, first)]
        # the front was drawn by the same chances; it only makes sure that no task goes without
        self._least = first.size
        self._design = WeightedDesign(np.concatenate([first, rest]), size)

    def _front(self, order: Indices, task: int) -> Indices:
        inside: Indices = order[(order >= self._ends[task]) & (order < self._ends[task + 1])]
        return inside[:LEAST_PER_TASK]

    def upto(self, questions: int) -> Asked:
        """See `Asking.upto`."""
        k = max(questions, self._least)
        asked, inclusion = self._design.asked(k), self._design.inclusion(k)
        items, chances = {}, {}
        for name, start, end in zip(self._tasks, self._ends[:-1], self._ends[1:], strict=True):
            items[name] = tuple(int(i) for i in np.flatnonzero(asked[start:end]))
            chances[name] = inclusion[start:end]
        return Asked(items, chances)


@final
class SplitAsking(Asking):
    """Every task in an order of its own; questions are divided in fixed proportions.

    Args:
        designs: task -> its order.
        numbers: task -> questions of it when a candidate is asked the mean number; their proportions are kept.
        counts: task -> its number of items.
    """

    def __init__(self, designs: Mapping[str, Design], numbers: Mapping[str, int], counts: Mapping[str, int]) -> None:
        self._designs = dict(designs)
        self._numbers = dict(numbers)
        self._counts = dict(counts)

    def upto(self, questions: int) -> Asked:
        """See `Asking.upto`."""
        split = divided(questions, list(self._numbers.values()), list(self._counts.values()))
        items, chances = {}, {}
        for name, k in zip(self._numbers, split, strict=True):
            design = self._designs[name]
            items[name] = tuple(int(i) for i in np.flatnonzero(design.asked(k)))
            chances[name] = design.inclusion(k)
        return Asked(items, chances)


def divided(total: int, numbers: Sequence[int], limits: Sequence[int]) -> tuple[int, ...]:
    """A total in given proportions, each at least 1 and within its limit; a larger total takes from none.

    One by one to whoever is the furthest behind, in the order of `number / (2 part + 1)` (Sainte-Lague; the method of
    largest remainders may give a larger house fewer seats of a party). A multiple of the proportions is met exactly.

    Args:
        total: to be divided; what exceeds all limits is dropped.
        numbers: the proportions, positive.
        limits: the most of each, at least 1.
    """
    share, most = np.array(numbers, dtype=np.float64), np.array(limits)
    parts = np.ones(len(numbers), dtype=np.intp)
    for _ in range(min(total, int(most.sum())) - len(numbers)):
        parts[int(np.argmax(np.where(parts < most, share / (2 * parts + 1), -1.0)))] += 1
    return tuple(int(p) for p in parts)

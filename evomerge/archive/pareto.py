"""The Pareto archive: every feasible candidate seen, and the front among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from evomerge.archive.dominance import non_dominated
from evomerge.archive.knee import knee
from evomerge.types import CandidateId


@dataclass(frozen=True)
class ArchiveEntry:
    """One scored candidate.

    Attributes:
        id: the candidate.
        losses: one finite loss per objective, lower is better.
        feasible: False keeps it out of the front.
    """

    id: CandidateId
    losses: tuple[float, ...]
    feasible: bool = True

    def __post_init__(self) -> None:
        if not self.losses:
            raise ValueError(f"candidate {self.id}: no losses")
        if not all(math.isfinite(v) for v in self.losses):
            raise ValueError(f"candidate {self.id}: losses {self.losses} are not finite; a failure is never a point")


@final
class ParetoArchive:
    """Non-dominated, feasible, finite points. The order of adding never matters.

    Duplicates: the same candidate may be added again with the same point, which changes nothing; with another point
    it is an error. Different candidates with equal losses do not dominate each other and all stay on the front:
    which of two equals is reported would otherwise depend on who came first.

    Args:
        n_objectives: losses per point, at least 1.
    """

    def __init__(self, n_objectives: int) -> None:
        if n_objectives < 1:
            raise ValueError(f"an archive needs at least one objective, not {n_objectives}")
        self._n_objectives = n_objectives
        self._known: dict[CandidateId, ArchiveEntry] = {}
        self._front: list[ArchiveEntry] = []

    def __len__(self) -> int:
        return len(self._front)

    def add(self, point: ArchiveEntry) -> bool:
        """Add a point; an infeasible one is remembered but never on the front.

        Returns:
            True when the point is on the front now.

        Raises:
            ValueError: when the number of losses is wrong, then when the candidate is known with another point.
        """
        if len(point.losses) != self._n_objectives:
            raise ValueError(f"candidate {point.id}: {len(point.losses)} losses, expected {self._n_objectives}")
        known = self._known.setdefault(point.id, point)
        if known != point:
            raise ValueError(f"candidate {point.id} is known with losses {known.losses}, not {point.losses}")
        if not point.feasible or point in self._front:
            return point in self._front
        rivals = [*self._front, point]
        keep = non_dominated([p.losses for p in rivals])
        self._front = [p for p, kept in zip(rivals, keep, strict=True) if kept]
        return bool(keep[-1])

    def front(self) -> tuple[ArchiveEntry, ...]:
        """The front, sorted by losses and then by id."""
        return tuple(sorted(self._front, key=lambda p: (p.losses, p.id)))

    def best(self, objective: int) -> ArchiveEntry | None:
        """The feasible point with the smallest loss in one objective; ties go to the other losses, then to the id.

        Raises:
            IndexError: when there is no such objective.
        """
        if not 0 <= objective < self._n_objectives:
            raise IndexError(f"objective {objective} is not one of {self._n_objectives}")
        return min(self._front, key=lambda p: (p.losses[objective], p.losses, p.id), default=None)

    def knee(self) -> ArchiveEntry | None:
        """The knee of the front (`knee.knee`), None when it is empty."""
        front = self.front()
        return front[knee([p.losses for p in front])] if front else None

    def losses(self) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """Losses of the front in the order of `front()`, shape `(n, n_objectives)`."""
        return np.array([p.losses for p in self.front()]).reshape(-1, self._n_objectives)


def front_of(points: Sequence[ArchiveEntry]) -> tuple[ArchiveEntry, ...]:
    """The front of a set of points, sorted by losses and then by id; empty when none is feasible.

    Raises:
        ValueError: when points differ in the number of losses.
    """
    feasible = [p for p in points if p.feasible]
    if not feasible:
        return ()
    if len({len(p.losses) for p in feasible}) != 1:
        raise ValueError("the points have different numbers of losses")
    keep = non_dominated([p.losses for p in feasible])
    return tuple(sorted((p for p, kept in zip(feasible, keep, strict=True) if kept), key=lambda p: (p.losses, p.id)))

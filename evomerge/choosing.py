"""Which models are compared on the select set, which one is chosen there, and what it is compared with in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from evomerge.archive.knee import knee
from evomerge.archive.pareto import ArchiveEntry, front_of
from evomerge.evaluation.goals import BoundGoals
from evomerge.execution.ledger import Request
from evomerge.runs.records import Kind
from evomerge.types import Digest, Evaluation

FINALISTS: Final = 8
"""With one objective the front is a single, lucky point; this many of the best are compared on the select set."""


class Scored(NamedTuple):
    """A model with its answers to one item set."""

    request: Request
    kind: Kind
    evaluation: Evaluation


def finalists(scored: Sequence[Scored], goals: BoundGoals) -> list[Scored]:
    """What is compared on the select set: the front (or the few best), the mean, and every baseline.

    Args:
        scored: all models, with their answers to the search set.
        goals: bound on the search set.
    """
    points = [ArchiveEntry(s.request.id, goals.losses(s.evaluation), goals.feasible(s.evaluation)) for s in scored]
    if len(goals.objectives) == 1:
        best = sorted((p for p in points if p.feasible), key=lambda p: (p.losses, p.id))[:FINALISTS]
    else:
        best = list(front_of(points))
    wanted = {p.id for p in best}
    return [s for s in scored if s.kind != "candidate" or s.request.id in wanted]


def choose(
    selected: Sequence[Scored], on_search: Mapping[Digest, Scored], goals: BoundGoals, again: BoundGoals
) -> Scored | None:
    """The knee of the select-set front of what is feasible on the search set; None when nothing is.

    What is feasible on the select set, too, goes first: a merge may have met a bound by luck.

    Args:
        selected: the finalists, with their answers to the select set.
        on_search: the same models and more, with their answers to the search set.
        goals: bound on the search set.
        again: bound on the select set.
    """
    lucky = [s for s in selected if goals.feasible(on_search[s.request.digest].evaluation)]
    feasible = [s for s in lucky if again.feasible(s.evaluation)] or lucky
    front = front_of([ArchiveEntry(s.request.id, goals.losses(s.evaluation)) for s in feasible])
    if not front:
        return None
    chosen = front[knee([p.losses for p in front])].id
    return next(s for s in feasible if s.request.id == chosen)


def compared_with(selected: Sequence[Scored], goals: BoundGoals) -> list[Scored]:
    """The baselines that the choice is compared with: parents, the soup, and the best task arithmetic."""
    arithmetic = [s for s in selected if s.kind == "task-arithmetic"]
    best = min(arithmetic, key=lambda s: (sum(goals.losses(s.evaluation)), s.request.id), default=None)
    return [s for s in selected if s.kind in ("parent", "soup") or s is best]


def rule(goals: BoundGoals) -> str:
    """How `choose` chooses, in words."""
    if len(goals.objectives) == 1:
        return f"best {goals.objectives[0].name} on the select set among feasible finalists"
    return "knee of the select-set front among feasible finalists"

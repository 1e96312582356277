"""Which models are compared on the select set, which one is chosen there, and what it is compared with in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from evomerge.archive.knee import knee
from evomerge.archive.pareto import ArchiveEntry, front_of
from evomerge.evaluation.beliefs import Beliefs, feasible, losses, violations
from evomerge.evaluation.goals import BoundGoals
from evomerge.execution.ledger import Request
from evomerge.runs.records import Kind
from evomerge.types import CandidateId, Digest

FINALISTS: Final = 8
"""With one objective the front is a single, lucky point; this many of the best are compared on the select set."""


MILESTONES: Final = 3
"""Earlier generations whose best is scored on the select set, too."""


STAGE_FINALISTS: Final = 3
"""So many of the best models of each earlier stage's end are scored on the select set, too."""

ELITES: Final = 6
"""So many merges a stage hands to the next."""


class Scored(NamedTuple):
    """A model with what is believed of it on one item set.

    Attributes:
        request: how it is asked for.
        kind: what it is.
        beliefs: scores and their errors.
        batch: the generation it came from; -1 from none.
        stage: the stage in which it was first scored.
    """

    request: Request
    kind: Kind
    beliefs: Beliefs
    batch: int = -1
    stage: int = 0


def finalists(scored: Sequence[Scored], goals: BoundGoals) -> list[Scored]:
    """What is compared on the select set: the front (or the few best), the mean, and every baseline.

    Args:
        scored: all models, on the search set.
        goals: bound on the search set.
    """
    best = ranked(scored, goals)[: FINALISTS if len(goals.objectives) == 1 else None]
    wanted = {s.request.id for s in (*best, *milestones(scored, goals))}
    for stage in range(max((s.stage for s in scored), default=0)):
        until = [s for s in scored if s.stage <= stage]
        wanted |= {s.request.id for s in ranked(until, goals)[:STAGE_FINALISTS]}
    return [s for s in scored if s.kind != "candidate" or s.request.id in wanted]


def ranked(scored: Sequence[Scored], goals: BoundGoals) -> list[Scored]:
    """The feasible models by loss, or with several objectives the feasible front, its knee first.

    Args:
        scored: models on one item set.
        goals: bound on that set.
    """
    points = [ArchiveEntry(s.request.id, losses(goals, s.beliefs), feasible(goals, s.beliefs)) for s in scored]
    if len(goals.objectives) == 1:
        best = sorted((p for p in points if p.feasible), key=lambda p: (p.losses, p.id))
    else:
        best = list(front_of(points))
        if best:
            middle = best.pop(knee([p.losses for p in best]))
            best.insert(0, middle)
    by_id = {s.request.id: s for s in scored}
    return [by_id[CandidateId(p.id)] for p in best]


def elites(scored: Sequence[Scored], goals: BoundGoals) -> list[Scored]:
    """What a stage hands to the next, the best first; where nothing is feasible, what violates least."""
    best = ranked(scored, goals)[:ELITES]
    if best:
        return best
    return sorted(scored, key=lambda s: (_excess(goals, s), losses(goals, s.beliefs), s.request.id))[:1]


def _excess(goals: BoundGoals, scored: Scored) -> float:
    return sum(max(0.0, v) for v in violations(goals, scored.beliefs))


def milestones(scored: Sequence[Scored], goals: BoundGoals) -> list[Scored]:
    """The best feasible candidate of the generations at one, two and three quarters of the search.

    Scored on the select set, they show how far the search set was learned by heart: search scores go on to rise where
    select scores do not. Only with one objective: a front holds candidates of all ages by itself.
    """
    if len(goals.objectives) > 1:
        return []
    by_batch: dict[int, list[Scored]] = {}
    for s in scored:
        if s.batch >= 0 and feasible(goals, s.beliefs):
            by_batch.setdefault(s.batch, []).append(s)
    last = max(by_batch, default=-1)
    wanted = {round(last * i / (MILESTONES + 1)) for i in range(1, MILESTONES + 1)} - {last}
    return [
        min(by_batch[batch], key=lambda s: (losses(goals, s.beliefs), s.request.id))
        for batch in sorted(wanted)
        if batch in by_batch
    ]


def choose(
    selected: Sequence[Scored], on_search: Mapping[Digest, Scored], goals: BoundGoals, again: BoundGoals
) -> Scored | None:
    """The knee of the select-set front of what is feasible on the search set; None when nothing is.

    What is feasible on the select set, too, goes first: a merge may have met a bound by luck.

    Args:
        selected: the finalists, on the select set.
        on_search: the same models and more, on the search set.
        goals: bound on the search set.
        again: bound on the select set.
    """
    lucky = [s for s in selected if feasible(goals, on_search[s.request.digest].beliefs)]
    usable = [s for s in lucky if feasible(again, s.beliefs)] or lucky
    front = front_of([ArchiveEntry(s.request.id, losses(again, s.beliefs)) for s in usable])
    if not front:
        return None
    chosen = front[knee([p.losses for p in front])].id
    return next(s for s in usable if s.request.id == chosen)


def compared_with(selected: Sequence[Scored], goals: BoundGoals) -> list[Scored]:
    """The baselines that the choice is compared with: parents, the soup, and the best task arithmetic."""
    arithmetic = [s for s in selected if s.kind == "task-arithmetic"]
    best = min(arithmetic, key=lambda s: (sum(losses(goals, s.beliefs)), s.request.id), default=None)
    return [s for s in selected if s.kind in ("parent", "soup") or s is best]


def rule(goals: BoundGoals) -> str:
    """How `choose` chooses, in words."""
    if len(goals.objectives) == 1:
        return f"best {goals.objectives[0].name} on the select set among feasible finalists"
    return "knee of the select-set front among feasible finalists"

"""The parents' answers that flips and abilities are measured against, and whether they are all there yet."""

from __future__ import annotations

from collections.abc import Iterator

from evomerge.evaluation.goals import Goals
from evomerge.evaluation.measures import ANY_PARENT, BASE, Measure
from evomerge.evaluation.objectives import ObjectiveSpec
from evomerge.runs.records import Evaluated
from evomerge.runs.replay import History
from evomerge.types import SET_NAMES, SetName


def _relative_measures(goals: Goals) -> Iterator[Measure]:
    """Every measure that needs the parents' answers."""
    measures = [o.measure for o in goals.objectives if isinstance(o, ObjectiveSpec)]
    yield from (m for m in [*measures, *(c.measure for c in goals.constraints)] if m.kind in ("flips", "ability"))


def reference_records(history: History, set_name: SetName) -> dict[str, Evaluated]:
    """The scored parents by name, the base as `base`."""
    parents = [b for b in history.baselines.values() if b.kind == "parent"]
    outcomes = {b.name: history.outcomes.get((b.recipe, set_name)) for b in parents}
    return {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Evaluated)}


def is_measurable(history: History, goals: Goals, set_name: SetName) -> bool:
    """Whether the goals have values on a set: what is measured against parents waits until these are scored there.

    A parent that failed on an earlier set is not asked again, and not waited for.
    """
    measures = list(_relative_measures(goals))
    if not measures:
        return True
    earlier = SET_NAMES[: SET_NAMES.index(set_name)]
    for baseline in history.baselines.values():
        awaited = baseline.kind == "parent" and all(
            isinstance(history.outcomes.get((baseline.recipe, name)), Evaluated) for name in earlier
        )
        if awaited and (baseline.recipe, set_name) not in history.outcomes:
            return False
    scored = set(reference_records(history, set_name))
    wanted = {m.against for m in measures} - {"", ANY_PARENT}
    needs_parent = any(m.against == ANY_PARENT for m in measures)
    return bool(scored) and wanted <= scored and (not needs_parent or bool(scored - {BASE}))

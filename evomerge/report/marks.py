"""What all charts share: names of axes, classes and tooltips of marks, scales that a few outliers cannot squeeze."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from evomerge.report.summary import Entry, EvaluationRow, ObjectiveInfo, RunSummary, Scores
from evomerge.report.svg import Scale, number

FULL: Final = 1030.0
HALF: Final = 505.0
"""Pixel widths of a chart that has the column to itself, and of one of a pair."""

_FENCE: Final = 3.0


def axis_name(objective: ObjectiveInfo) -> str:
    """An objective's name, and its direction where it is not the usual one."""
    return objective.name if objective.direction == "maximize" else f"{objective.name} (lower is better)"


def role_of(entry: Entry, summary: RunSummary) -> str:
    """The style class of an entry: `chosen`, `front` or `baseline`; a baseline on the front stays one."""
    if summary.chosen is not None and entry.id == summary.chosen.id:
        return "chosen"
    return "baseline" if any(entry.id == b.id for b in summary.baselines) else "front"


def entry_title(entry: Entry, scores: Scores) -> str:
    """The tooltip of an entry."""
    lines = [f"{entry.id} ({entry.kind}{'' if entry.feasible else ', infeasible'})"]
    lines += [f"{n}: {number(s.value)} [{number(s.low)}, {number(s.high)}]" for n, s in scores.objectives.items()]
    return "\n".join(lines)


def row_title(row: EvaluationRow) -> str:
    """The tooltip of a candidate."""
    values = ", ".join(f"{n} {number(v)}" for n, v in (row.objectives or {}).items())
    return f"{row.id}: {values}{'' if row.feasible else ' (infeasible)'}"


def row_class(row: EvaluationRow) -> str:
    """The style class of a candidate."""
    return "candidate" if row.feasible else "infeasible"


def named_entries(summary: RunSummary) -> list[Entry]:
    """The entries worth a label of their own: chosen, then baselines."""
    chosen = [summary.chosen] if summary.chosen else []
    return list({e.id: e for e in (*chosen, *summary.baselines)}.values())


def inlier_scale(cloud: Sequence[float], shown: Sequence[float], start: float, end: float) -> Scale:
    """A scale that holds all of `shown`, and those of `cloud` that are not far out.

    Far out is more than three interquartile ranges beyond the quartiles of both together (Tukey 1977): a merge that
    broke and scored nothing must not squeeze all others into a corner. What lies outside is drawn at the edge.
    """
    together = np.array([*cloud, *shown])
    if together.size == 0:
        return Scale.around([], start, end)
    low, high = np.quantile(together, [0.25, 0.75])
    air = _FENCE * (high - low)
    return Scale.around([*shown, *(v for v in cloud if low - air <= v <= high + air)], start, end)


def held(scale: Scale, value: float) -> float:
    """The pixel of a value, at the edge of the scale where it lies outside."""
    return scale(min(max(value, scale.low), scale.high))


def n_outside(scale: Scale, values: Sequence[float]) -> int:
    """How many values lie outside a scale."""
    return sum(not scale.low <= v <= scale.high for v in values)

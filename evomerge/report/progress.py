"""Charts against evaluations: every candidate, the best so far, the hypervolume."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from evomerge.report.marks import axis_name, entry_title, held, inlier_scale, row_class, row_title
from evomerge.report.plots import stacked_labels
from evomerge.report.summary import EvaluationRow, ObjectiveInfo, RunDetails, RunSummary
from evomerge.report.svg import Scale, axes, cross, figure, label, line, marker, number, path

_LABELS = 130.0
"""Pixels to the right of a chart for the names of its lines."""


def evaluated_rows(details: RunDetails) -> list[EvaluationRow]:
    """The rows that cost an evaluation, in order."""
    return [r for r in details.evaluations if not r.reused]


def best_so_far(rows: Sequence[EvaluationRow], objective: ObjectiveInfo) -> list[tuple[int, float]]:
    """(evaluation, best feasible value up to it), from the first feasible candidate on."""
    better: Callable[[float, float], float] = max if objective.direction == "maximize" else min
    best: float | None = None
    track = []
    for k, row in enumerate(rows, start=1):
        if row.feasible and row.objectives is not None:
            value = row.objectives[objective.name]
            best = value if best is None else better(best, value)
        if best is not None:
            track.append((k, best))
    return track


def steps(track: Sequence[tuple[float, float]], x: Scale, y: Scale) -> list[tuple[float, float]]:
    """Pixel points of a curve that keeps each value until the next."""
    points: list[tuple[float, float]] = []
    for k, value in track:
        if points:
            points.append((x(k), points[-1][1]))
        points.append((x(k), y(value)))
    return points


def objective_progress(
    summary: RunSummary, details: RunDetails, objective: ObjectiveInfo, *, wide: float, high: float
) -> str:
    """One objective against evaluations: every candidate, the best so far, baselines as lines, failures below."""
    rows = evaluated_rows(details)
    base = [(b, b.search.objectives[objective.name].value) for b in summary.baselines]
    track = best_so_far(rows, objective)
    values = [r.objectives[objective.name] for r in rows if r.objectives is not None]
    x = Scale(0, max(len(rows), 1), 62, wide - _LABELS - 12)
    y = inlier_scale(values, [*(v for _, v in base), *(v for _, v in track)], high - 46, 14)
    parts = [axes(x, y, "evaluations", axis_name(objective), whole_x=True)]
    for entry, value in base:
        parts.append(line(x.start, y(value), x.end, y(value), "baseline-line"))
        parts.append(marker(entry.kind, x.end, y(value), "baseline", radius=4, title=entry_title(entry, entry.search)))
    for k, row in enumerate(rows, start=1):
        if row.objectives is None:
            parts.append(cross(x(k), y.start - 6, "failure", f"{row.id}: {row.failure}"))
        else:
            spot = (x(k), held(y, row.objectives[objective.name]))
            parts.append(marker("candidate", *spot, row_class(row), radius=3, title=row_title(row)))
    parts.append(path(steps(track, x, y), "best-line"))
    for k, row in enumerate(rows, start=1):
        if summary.chosen is not None and row.id == summary.chosen.id and row.objectives is not None:
            spot = (x(k), held(y, row.objectives[objective.name]))
            parts.append(marker(row.kind, *spot, "chosen", title=f"chosen: {row_title(row)}"))
    parts.append(stacked_labels([(y(v), b.id) for b, v in base], x.end + 10, wide, 8, high - 40))
    return figure(wide, high, f"{objective.name} against evaluations", *parts)


def hypervolume_progress(details: RunDetails, *, wide: float, high: float) -> str:
    """The hypervolume of the feasible front against evaluations."""
    track = details.hypervolume
    x = Scale(0, max([k for k, _ in track] + [1]), 62, wide - _LABELS - 12)
    y = Scale.around([0.0, *(v for _, v in track)], high - 46, 14, pad=0.04)
    parts = [axes(x, y, "evaluations", "hypervolume", whole_x=True), path(steps(track, x, y), "best-line")]
    if track:
        parts.append(label(x.end + 10, y(track[-1][1]) + 4, number(track[-1][1])))
    return figure(wide, high, "Hypervolume of the front against evaluations", *parts)

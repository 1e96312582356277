"""Charts of the search: objectives against each other, and against evaluations.

Each function takes values of `report.summary` and returns one SVG. Scores are drawn in their own unit; an axis
says when lower is better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from evomerge.report.summary import (
    Entry,
    EvaluationRow,
    ObjectiveInfo,
    RunDetails,
    RunSummary,
    Scores,
)
from evomerge.report.svg import (
    Box,
    Scale,
    axes,
    cross,
    figure,
    label,
    line,
    marker,
    number,
    path,
    place_labels,
    shorten,
)
from evomerge.types import SetName


def axis_name(objective: ObjectiveInfo) -> str:
    """An objective's name, and its direction where it is not the usual one."""
    return objective.name if objective.direction == "maximize" else f"{objective.name} (lower is better)"


def role_of(entry: Entry, summary: RunSummary) -> str:
    """The style class of an entry: `chosen`, `front` or `baseline`."""
    if summary.chosen is not None and entry.id == summary.chosen.id:
        return "chosen"
    return "front" if any(entry.id == f.id for f in summary.front) else "baseline"


def _entry_title(entry: Entry, scores: Scores) -> str:
    lines = [f"{entry.id} ({entry.kind}{'' if entry.feasible else ', infeasible'})"]
    lines += [f"{n}: {number(s.value)} [{number(s.low)}, {number(s.high)}]" for n, s in scores.objectives.items()]
    return "\n".join(lines)


def _row_title(row: EvaluationRow) -> str:
    values = ", ".join(f"{n} {number(v)}" for n, v in (row.objectives or {}).items())
    return f"{row.id}: {values}{'' if row.feasible else ' (infeasible)'}"


def _row_class(row: EvaluationRow) -> str:
    return "candidate" if row.feasible else "infeasible"


def _named(summary: RunSummary) -> list[Entry]:
    """The entries worth a label of their own: chosen, then baselines."""
    chosen = [summary.chosen] if summary.chosen else []
    return list({e.id: e for e in (*chosen, *summary.baselines)}.values())


# ---- the front -----------------------------------------------------------------------------------------------


def staircase(points: Sequence[tuple[float, float]], *, maximize_x: bool) -> list[tuple[float, float]]:
    """The border of what a two-objective front attains, through points sorted along the first axis.

    Whether the corner between two points lies above the left or the right one depends on the direction of the
    first axis alone: where it is maximized, what a point attains ends at its own x.
    """
    steps: list[tuple[float, float]] = []
    for (x1, y1), (x2, y2) in pairwise(points):
        steps += [(x1, y1), (x1, y2) if maximize_x else (x2, y1)]
    return [*steps, *points[-1:]]


def front_scatter(summary: RunSummary, details: RunDetails, set_name: SetName) -> str:
    """Two objectives against each other: candidates, front with its step line, baselines, chosen.

    On the select and report sets only entries that were scored there are drawn, with their intervals.
    """
    first, second = summary.objectives[:2]
    entries = [(e, s) for e in summary.entries().values() if (s := e.scores(set_name)) is not None]
    cloud = [(r, r.objectives) for r in details.evaluations if r.objectives is not None and set_name == "search"]
    bars = set_name != "search"

    def extent(name: str) -> list[float]:
        ends = [v for _, s in entries for v in ((s.objectives[name].low, s.objectives[name].high) if bars else ())]
        return ends + [s.objectives[name].value for _, s in entries] + [o[name] for _, o in cloud]

    x = Scale.around(extent(first.name), 62, 500)
    y = Scale.around(extent(second.name), 350, 14)
    parts = [axes(x, y, axis_name(first), axis_name(second))]
    for row, values in cloud:
        spot = (x(values[first.name]), y(values[second.name]))
        parts.append(marker("candidate", *spot, _row_class(row), radius=3, title=_row_title(row)))
    front = [s for e, s in entries if any(e.id == f.id for f in summary.front)]
    if not bars:
        spots = sorted((x(s.objectives[first.name].value), y(s.objectives[second.name].value)) for s in front)
        parts.append(path(staircase(spots, maximize_x=first.direction == "maximize"), "front-line"))
    spots_by_id = {}
    for entry, scores in reversed(entries):
        a, b = scores.objectives[first.name], scores.objectives[second.name]
        spot = (x(a.value), y(b.value))
        spots_by_id[entry.id] = spot
        role = role_of(entry, summary)
        if bars:
            parts += [line(x(a.low), spot[1], x(a.high), spot[1], f"whisker {role}")]
            parts += [line(spot[0], y(b.low), spot[0], y(b.high), f"whisker {role}")]
        parts.append(marker(entry.kind, *spot, role, title=_entry_title(entry, scores)))
    named = [(*spots_by_id[e.id], e.id) for e in _named(summary) if e.id in spots_by_id]
    parts.append(place_labels(named, Box(x.start, y.end, x.end, y.start)))
    return figure(520, 392, f"{second.name} against {first.name} on the {set_name} set", *parts)


def parallel_coordinates(summary: RunSummary, details: RunDetails) -> str:
    """Three objectives or more: one vertical axis each, better upwards, one line per candidate."""
    names = [o.name for o in summary.objectives]
    wide = max(720, 150 * (len(names) - 1) + 160)
    rows = [r for r in details.evaluations if r.objectives is not None]
    entries = list(summary.entries().values())
    scales = []
    for o in summary.objectives:
        values = [r.objectives[o.name] for r in rows if r.objectives is not None]
        values += [e.search.objectives[o.name].value for e in entries]
        up = o.direction == "maximize"
        scales.append(Scale.around(values, 320 if up else 40, 40 if up else 320))
    xs = [80 + (wide - 200) * k / (len(names) - 1) for k in range(len(names))]
    parts = []
    for r in rows:
        if r.objectives is not None:
            spots = [(px, s(r.objectives[n])) for px, s, n in zip(xs, scales, names, strict=True)]
            parts.append(path(spots, f"thread {_row_class(r)}"))
    for e in reversed(entries):
        spots = [(px, s(e.search.objectives[n].value)) for px, s, n in zip(xs, scales, names, strict=True)]
        parts.append(path(spots, f"thread {role_of(e, summary)}"))
        parts += [
            marker(e.kind, *spot, role_of(e, summary), radius=4, title=_entry_title(e, e.search)) for spot in spots
        ]
    for px, scale, o in zip(xs, scales, summary.objectives, strict=True):
        parts += [
            line(px, 34, px, 326, "axis"),
            label(px, 352, shorten(axis_name(o), 26), "axis-label", anchor="middle"),
        ]
        parts += [
            label(
                px,
                26,
                f"{max(scale.low, scale.high) if o.direction == 'maximize' else scale.low:.3g}",
                "tick",
                anchor="middle",
            )
        ]
    right = [(xs[-1], scales[-1](e.search.objectives[names[-1]].value), e.id) for e in _named(summary)]
    parts.append(place_labels(right, Box(xs[-1] + 4, 20, wide, 340)))
    return figure(wide, 364, "All objectives of every candidate, better upwards", *parts)


# ---- progress ------------------------------------------------------------------------------------------------


def _evaluated(details: RunDetails) -> list[EvaluationRow]:
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


def _steps(track: Sequence[tuple[float, float]], x: Scale, y: Scale) -> list[tuple[float, float]]:
    """Pixel points of a curve that keeps each value until the next."""
    points: list[tuple[float, float]] = []
    for k, value in track:
        if points:
            points.append((x(k), points[-1][1]))
        points.append((x(k), y(value)))
    return points


def objective_progress(summary: RunSummary, details: RunDetails, objective: ObjectiveInfo) -> str:
    """One objective against evaluations: every candidate, the best so far, baselines as lines, failures below."""
    rows = _evaluated(details)
    base = [(b, b.search.objectives[objective.name].value) for b in summary.baselines]
    values = [r.objectives[objective.name] for r in rows if r.objectives is not None]
    x = Scale(0, max(len(rows), 1), 62, 560)
    y = Scale.around([*values, *(v for _, v in base)], 300, 14)
    parts = [axes(x, y, "evaluations", axis_name(objective), whole_x=True)]
    for entry, value in base:
        parts.append(line(x.start, y(value), x.end, y(value), "baseline-line"))
        parts.append(marker(entry.kind, x.end, y(value), "baseline", radius=4, title=_entry_title(entry, entry.search)))
    for k, row in enumerate(rows, start=1):
        if row.objectives is None:
            parts.append(cross(x(k), y.start - 6, "failure", f"{row.id}: {row.failure}"))
        else:
            spot = (x(k), y(row.objectives[objective.name]))
            parts.append(marker("candidate", *spot, _row_class(row), radius=3, title=_row_title(row)))
    parts.append(path(_steps(best_so_far(rows, objective), x, y), "best-line"))
    parts.append(_right_labels([(y(v), b.id) for b, v in base], 570, 700, 8, 306))
    return figure(704, 342, f"{objective.name} against evaluations", *parts)


def _right_labels(wanted: Sequence[tuple[float, str]], left: float, right: float, top: float, bottom: float) -> str:
    """Labels beside an axis at their heights, pushed apart where they would touch."""
    gap = min(14.0, (bottom - top) / max(len(wanted), 1))
    placed: list[tuple[float, str]] = []
    for height, text in sorted(wanted):
        lowest = placed[-1][0] + gap if placed else top + 10
        placed.append((max(height + 4, lowest), text))
    excess = max(0.0, placed[-1][0] - bottom) if placed else 0.0
    room = int((right - left) / 6.1)
    parts = []
    limit = bottom
    for height, text in reversed(placed):
        height_now = min(height, limit) if excess else height
        limit = height_now - gap
        parts.append(label(left, height_now, shorten(text, room)))
    return "".join(parts)


def hypervolume_progress(details: RunDetails) -> str:
    """The hypervolume of the feasible front against evaluations."""
    track = details.hypervolume
    x = Scale(0, max([k for k, _ in track] + [1]), 62, 560)
    y = Scale.around([0.0, *(v for _, v in track)], 220, 14, pad=0.04)
    parts = [axes(x, y, "evaluations", "hypervolume", whole_x=True), path(_steps(track, x, y), "best-line")]
    if track:
        parts.append(label(570, y(track[-1][1]) + 4, number(track[-1][1])))
    return figure(704, 262, "Hypervolume of the front against evaluations", *parts)

"""Charts of the front: objectives against each other.

Each function takes values of `report.summary` and returns one SVG. Scores are drawn in their own unit; an axis
says when lower is better.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from evomerge.report.marks import (
    FULL,
    axis_name,
    entry_title,
    held,
    inlier_scale,
    n_outside,
    named_entries,
    role_of,
    row_class,
    row_title,
)
from evomerge.report.summary import Entry, EvaluationRow, ObjectiveInfo, RunDetails, RunSummary, Scores
from evomerge.report.svg import (
    Box,
    Scale,
    axes,
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

_AIR = 26.0
"""Pixels above and below all points, for labels: where an objective has few values, many points share a height."""


def staircase(points: Sequence[tuple[float, float]], *, maximize_x: bool) -> list[tuple[float, float]]:
    """The border of what a two-objective front attains, through points sorted along the first axis.

    Whether the corner between two points lies above the left or the right one depends on the direction of the
    first axis alone: where it is maximized, what a point attains ends at its own x.
    """
    steps: list[tuple[float, float]] = []
    for (x1, y1), (x2, y2) in pairwise(points):
        steps += [(x1, y1), (x1, y2) if maximize_x else (x2, y1)]
    return [*steps, *points[-1:]]


def scored_on(summary: RunSummary, set_name: SetName) -> list[tuple[Entry, Scores]]:
    """The entries with a score on a set."""
    return [(e, s) for e in summary.entries().values() if (s := e.scores(set_name)) is not None]


def _aired(y: Scale) -> Scale:
    """The same map on `_AIR` more pixels at both ends."""
    more = (y.high - y.low) * _AIR / (y.start - y.end)
    return Scale(y.low - more, y.high + more, y.start + _AIR, y.end - _AIR)


def _marked(spots: Iterable[tuple[float, float]]) -> list[Box]:
    """What marks cover; counted threefold, since a label may sooner stand on a line than on a mark."""
    return [Box(x - 5, y - 5, x + 5, y + 5) for x, y in spots] * 3


def search_scatter(summary: RunSummary, details: RunDetails, *, wide: float, high: float) -> str:
    """Two objectives on the search set: every candidate, the front with its step line, baselines, chosen."""
    first, second = summary.objectives[:2]
    entries = scored_on(summary, "search")
    cloud = [(r, r.objectives) for r in details.evaluations if r.objectives is not None]

    def scale(name: str, start: float, end: float) -> Scale:
        return inlier_scale([o[name] for _, o in cloud], [s.objectives[name].value for _, s in entries], start, end)

    x, y = scale(first.name, 62, wide - 14), scale(second.name, high - 46 - _AIR, 14 + _AIR)
    whole = _aired(y)
    parts = [axes(x, whole, axis_name(first), axis_name(second))]
    for row, values in cloud:
        spot = (held(x, values[first.name]), held(y, values[second.name]))
        parts.append(marker("candidate", *spot, row_class(row), radius=3, title=row_title(row)))
    spots = {e.id: (x(s.objectives[first.name].value), y(s.objectives[second.name].value)) for e, s in entries}
    steps = staircase(sorted(spots[e.id] for e in summary.front), maximize_x=first.direction == "maximize")
    parts.append(path(steps, "front-line"))
    parts += [marker(e.kind, *spots[e.id], role_of(e, summary), title=entry_title(e, s)) for e, s in reversed(entries)]
    named = [(*spots[e.id], e.id) for e in named_entries(summary)]
    taken = _marked(spots.values())
    taken += [Box(min(a, c), min(b, d) - 1, max(a, c) + 1, max(b, d) + 1) for (a, b), (c, d) in pairwise(steps)]
    parts.append(place_labels(named, Box(x.start, whole.end, x.end, whole.start), taken))
    return figure(wide, high, f"{second.name} against {first.name} on the search set", *parts)


def outside_search_scatter(summary: RunSummary, details: RunDetails) -> int:
    """How many candidates `search_scatter` draws at its edge because they lie far outside."""
    rows = [r.objectives for r in details.evaluations if r.objectives is not None]
    entries = scored_on(summary, "search")
    count = 0
    for o in summary.objectives[:2]:
        values = [r[o.name] for r in rows]
        shown = [s.objectives[o.name].value for _, s in entries]
        count = max(count, n_outside(inlier_scale(values, shown, 0, 1), values))
    return count


def interval_scatter(summary: RunSummary, set_name: SetName, *, wide: float, high: float) -> str:
    """Two objectives on the select or report set: what was scored there, with intervals."""
    first, second = summary.objectives[:2]
    entries = scored_on(summary, set_name)

    def scale(name: str, start: float, end: float) -> Scale:
        ends = [v for _, s in entries for v in (s.objectives[name].low, s.objectives[name].high)]
        return Scale.around(ends, start, end)

    x, y = scale(first.name, 62, wide - 14), scale(second.name, high - 46 - _AIR, 14 + _AIR)
    whole = _aired(y)
    parts = [axes(x, whole, axis_name(first), axis_name(second))]
    spots, taken = {}, []
    for entry, scores in reversed(entries):
        a, b, role = scores.objectives[first.name], scores.objectives[second.name], role_of(entry, summary)
        px, py = spots[entry.id] = (x(a.value), y(b.value))
        parts.append(line(x(a.low), py, x(a.high), py, f"whisker {role}"))
        parts.append(line(px, y(b.low), px, y(b.high), f"whisker {role}"))
        taken += [Box(x(a.low), py - 2, x(a.high), py + 2), Box(px - 2, y(b.high), px + 2, y(b.low))]
    parts += [marker(e.kind, *spots[e.id], role_of(e, summary), title=entry_title(e, s)) for e, s in reversed(entries)]
    taken += _marked(spots.values())
    named = [(*spots[e.id], e.id) for e in named_entries(summary) if e.id in spots]
    parts.append(place_labels(named, Box(x.start, whole.end, x.end, whole.start), taken))
    return figure(wide, high, f"{second.name} against {first.name} on the {set_name} set, with intervals", *parts)


def _vertical(summary: RunSummary, rows: Sequence[EvaluationRow], objective: ObjectiveInfo) -> Scale:
    """The vertical axis of an objective, better upwards."""
    values = [r.objectives[objective.name] for r in rows if r.objectives is not None]
    shown = [e.search.objectives[objective.name].value for e in summary.entries().values()]
    top, bottom = 44.0, 320.0
    return inlier_scale(values, shown, *((bottom, top) if objective.direction == "maximize" else (top, bottom)))


def parallel_coordinates(summary: RunSummary, details: RunDetails) -> str:
    """Three objectives or more: one vertical axis each, better upwards, one line per candidate."""
    names = [o.name for o in summary.objectives]
    wide = max(FULL, 130 * (len(names) - 1) + 260)
    rows = [r for r in details.evaluations if r.objectives is not None]
    scales = [_vertical(summary, rows, o) for o in summary.objectives]
    xs = [80 + (wide - 260) * k / (len(names) - 1) for k in range(len(names))]
    axis = list(zip(xs, scales, names, strict=True))
    parts = []
    for r in rows:
        values = r.objectives or {}
        parts.append(path([(px, held(s, values[n])) for px, s, n in axis], f"thread {row_class(r)}"))
    for e in reversed(list(summary.entries().values())):
        spots = [(px, s(e.search.objectives[n].value)) for px, s, n in axis]
        role = role_of(e, summary)
        parts.append(path(spots, f"thread {role}"))
        parts += [marker(e.kind, *spot, role, radius=4, title=entry_title(e, e.search)) for spot in spots]
    for (px, scale, _), o in zip(axis, summary.objectives, strict=True):
        ends = sorted((scale(v), number(v)) for v in (scale.low, scale.high))
        parts.append(line(px, ends[0][0], px, ends[1][0], "axis"))
        parts.append(label(px, ends[0][0] - 8, ends[0][1], "tick", anchor="middle"))
        parts.append(label(px, ends[1][0] + 16, ends[1][1], "tick", anchor="middle"))
        parts.append(label(px, 360, shorten(axis_name(o), 24), "axis-label", anchor="middle"))
    right = [(scales[-1](e.search.objectives[names[-1]].value), e.id) for e in named_entries(summary)]
    parts.append(stacked_labels(right, xs[-1] + 14, wide, 20, 340))
    return figure(wide, 372, "All objectives of every candidate, better upwards", *parts)


def stacked_labels(wanted: Sequence[tuple[float, str]], left: float, right: float, top: float, bottom: float) -> str:
    """Labels beside an axis at their heights, pushed apart where they would touch.

    Args:
        wanted: height in pixels and text.
        left: where they begin.
        right: where the longest must end.
        top: highest place.
        bottom: lowest baseline.
    """
    gap = min(14.0, (bottom - top) / max(len(wanted), 1))
    heights: list[float] = []
    for height, _ in sorted(wanted):
        heights.append(max(height + 4, heights[-1] + gap if heights else top + 10))
    limit = bottom
    for k in range(len(heights) - 1, -1, -1):
        heights[k] = min(heights[k], limit)
        limit = heights[k] - gap
    room = int((right - left) / 6.1)
    texts = [shorten(text, room) for _, text in sorted(wanted)]
    return "".join(label(left, height, text) for height, text in zip(heights, texts, strict=True))

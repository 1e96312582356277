"""Charts of what is known for sure: scores with intervals on each item set, and paired differences."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.report.plots import axis_name, role_of
from evomerge.report.summary import Difference, Entry, ObjectiveInfo, RunSummary
from evomerge.report.svg import Scale, figure, label, line, marker, nice_ticks, number, shorten, text_width
from evomerge.types import SetName

_SETS: tuple[SetName, ...] = ("search", "select", "report")


def interval_rows(summary: RunSummary, objective: ObjectiveInfo, entries: Sequence[Entry]) -> str:
    """One objective: a row per entry, a mark with interval per item set it was scored on."""
    names = [shorten(e.id, 26) for e in entries]
    left = 24 + max([text_width(n) for n in names] + [60])
    ends = []
    for entry in entries:
        known = [entry.scores(s) for s in _SETS]
        ends += [
            v
            for s in known
            if s is not None
            for v in (s.objectives[objective.name].low, s.objectives[objective.name].high)
        ]
    x = Scale.around(ends, left, 690)
    height = 34 * len(entries)
    y = Scale(0, 1, 14 + height, 14)
    parts = [line(x(t), y.start, x(t), y.end, "grid") for t in _ticks(x)]
    parts += [label(x(t), y.start + 16, f"{t:g}", "tick", anchor="middle") for t in _ticks(x)]
    for row, (entry, name) in enumerate(zip(entries, names, strict=True)):
        middle = 14 + 34 * row + 17
        role = role_of(entry, summary)
        parts.append(label(left - 12, middle + 4, name, "label strong" if role == "chosen" else "label", anchor="end"))
        for k, set_name in enumerate(_SETS):
            scores = entry.scores(set_name)
            if scores is not None:
                s, height_now = scores.objectives[objective.name], middle + 9 * (k - 1)
                title = f"{entry.id}, {set_name} set: {number(s.value)} [{number(s.low)}, {number(s.high)}]"
                parts.append(line(x(s.low), height_now, x(s.high), height_now, f"whisker set-{set_name}"))
                parts.append(marker("candidate", x(s.value), height_now, f"set-{set_name}", radius=3.6, title=title))
    parts.append(label((x.start + x.end) / 2, y.start + 36, axis_name(objective), "axis-label", anchor="middle"))
    return figure(704, height + 60, f"{objective.name} of the chosen merge and the baselines, with intervals", *parts)


def _ticks(x: Scale) -> tuple[float, ...]:
    return nice_ticks(x.low, x.high, max(2, int((x.end - x.start) / 80)))


_VERDICT_CLASS = {"better": "good", "worse": "bad", "not separable": "neutral"}


def difference_rows(differences: Sequence[Difference]) -> str:
    """A forest plot: chosen minus each baseline with its interval, and the line of no difference."""
    names = [shorten(f"{d.what}: against {d.against}", 40) for d in differences]
    left = 24 + max([text_width(n) for n in names] + [60])
    x = Scale.around([0.0, *(v for d in differences for v in (d.low, d.high))], left, 690)
    bottom = 14 + 24 * len(differences)
    parts = [line(x(t), bottom, x(t), 14, "grid") for t in _ticks(x)]
    parts += [label(x(t), bottom + 16, f"{t:+g}" if t else "0", "tick", anchor="middle") for t in _ticks(x)]
    parts.append(line(x(0), bottom + 2, x(0), 8, "zero"))
    for row, (d, name) in enumerate(zip(differences, names, strict=True)):
        middle = 14 + 24 * row + 12
        css = _VERDICT_CLASS[d.verdict]
        title = f"{d.what}, chosen minus {d.against}: {d.mean:+.3f} [{d.low:+.3f}, {d.high:+.3f}], {d.verdict}"
        parts.append(label(left - 12, middle + 4, name, anchor="end"))
        parts.append(line(x(d.low), middle, x(d.high), middle, f"whisker {css}"))
        parts.append(marker("candidate", x(d.mean), middle, css, radius=4.5, title=title))
    parts.append(
        label((x.start + x.end) / 2, bottom + 36, "chosen minus baseline, report set", "axis-label", anchor="middle")
    )
    return figure(704, bottom + 46, "Paired differences between the chosen merge and the baselines", *parts)

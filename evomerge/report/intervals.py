"""Charts of what is known for sure: scores with intervals on each item set, and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from evomerge.report.marks import FULL, axis_name, role_of
from evomerge.report.summary import Difference, Entry, ObjectiveInfo, RunSummary
from evomerge.report.svg import Scale, figure, label, line, marker, nice_ticks, number, shorten, text_width, tick
from evomerge.report.words import with_interval
from evomerge.types import SET_NAMES

_ROW: Final = 36.0
_VERDICT_CLASS: Final = {"better": "good", "worse": "bad"}
VERDICT_WORDS: Final = {
    "better": "better",
    "worse": "worse",
    "not separable": "no significant gain",
    "not judged": "no verdict",
}


def grid(x: Scale, top: float, bottom: float, form: str) -> list[str]:
    """Vertical lines with their numbers below."""
    ticks = nice_ticks(x.low, x.high, max(2, int((x.end - x.start) / 65)))
    lines = [line(x(t), bottom, x(t), top, "grid") for t in ticks]
    sign = "+" if form.startswith("+") else ""
    told = [(sign if t > 0 else "") + tick(t) for t in ticks]
    return lines + [
        label(x(t), bottom + 16, text, "tick", anchor="middle") for t, text in zip(ticks, told, strict=True)
    ]


def interval_rows(summary: RunSummary, objective: ObjectiveInfo, entries: Sequence[Entry], *, wide: float) -> str:
    """One objective: a row per entry, a mark with interval per item set it was scored on."""
    names = [shorten(e.id, 26) for e in entries]
    left = 20 + max([text_width(n) for n in names] + [60])
    known = [s.objectives[objective.name] for e in entries for n in SET_NAMES if (s := e.scores(n)) is not None]
    x = Scale.around([v for s in known for v in (s.low, s.high)], left, wide - 14)
    bottom = 14 + _ROW * len(entries)
    parts = grid(x, 14, bottom, "g")
    for row, (entry, name) in enumerate(zip(entries, names, strict=True)):
        middle = 14 + _ROW * (row + 0.5)
        css = "label strong" if role_of(entry, summary) == "chosen" else "label"
        parts.append(label(left - 12, middle + 4, name, css, anchor="end"))
        for k, set_name in enumerate(SET_NAMES):
            scores = entry.scores(set_name)
            if scores is not None:
                score, level = scores.objectives[objective.name], middle + 9 * (k - 1)
                told = f"{number(score.value)} [{number(score.low)}, {number(score.high)}]"
                spot, title = (x(score.value), level), f"{entry.id}, {set_name} set: {told}"
                parts.append(line(x(score.low), level, x(score.high), level, f"whisker set-{set_name}"))
                parts.append(marker("candidate", *spot, f"set-{set_name}", radius=3.6, title=title))
    parts.append(label((x.start + x.end) / 2, bottom + 36, axis_name(objective), "axis-label", anchor="middle"))
    return figure(wide, bottom + 46, f"{objective.name} of the chosen merge and the baselines, with intervals", *parts)


def difference_rows(
    differences: Sequence[Difference],
    *,
    names: Sequence[str] = (),
    axis: str = "chosen minus baseline, report set",
) -> str:
    """A forest plot: each difference with its interval and its verdict, and the line of no difference.

    Args:
        differences: at least one, all in one unit.
        names: of the rows; by default what is compared, and against what.
        axis: what is subtracted from what.
    """
    names = [shorten(n, 44) for n in names or [f"{d.what}, against {d.against}" for d in differences]]
    left = 20 + max([text_width(n) for n in names] + [60])
    intervals = [with_interval(d.mean, d.low, d.high) for d in differences]
    verdicts_at = FULL - max(text_width(VERDICT_WORDS[d.verdict]) for d in differences) - 6
    intervals_at = verdicts_at - max(map(text_width, intervals)) - 14
    x = Scale.around([0.0, *(v for d in differences for v in (d.low, d.high))], left, intervals_at - 24)
    bottom = 14 + 24.0 * len(differences)
    parts = grid(x, 14, bottom, "+g")
    parts.append(line(x(0), bottom + 2, x(0), 8, "zero"))
    for row, (d, name, told) in enumerate(zip(differences, names, intervals, strict=True)):
        middle, css = 14 + 24 * row + 12.0, _VERDICT_CLASS.get(d.verdict, "neutral")
        parts.append(label(left - 12, middle + 4, name, anchor="end"))
        parts.append(line(x(d.low), middle, x(d.high), middle, f"whisker {css}"))
        title = f"{name}: {told}, {VERDICT_WORDS[d.verdict]}"
        parts.append(marker("candidate", x(d.mean), middle, css, radius=4.5, title=title))
        parts.append(label(intervals_at, middle + 4, told, "label number"))
        parts.append(label(verdicts_at, middle + 4, VERDICT_WORDS[d.verdict], f"label {css}"))
    middle_x = (x.start + x.end) / 2
    parts.append(label(middle_x, bottom + 36, axis, "axis-label", anchor="middle"))
    return figure(FULL, bottom + 46, f"Paired differences: {axis}", *parts)

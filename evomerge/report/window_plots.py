"""Heat maps of windows of layers: what running them again, or not at all, does to the score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from evomerge.report.blocks import captioned, legend, section
from evomerge.report.marks import FULL
from evomerge.report.svg import Box, escape, figure, label, number, rect
from evomerge.report.window_values import WindowMap
from evomerge.space.steps import MERGED

_PANELS: Final = 3
"""Panels side by side."""


def _middle(windows: WindowMap) -> float:
    """The score without colour: the source's own, or halfway between the worst and the best."""
    values = [s.value for s in windows.scores.values()]
    return windows.reference if windows.reference is not None else (min(values) + max(values)) / 2


def _farthest(windows: WindowMap, above: bool, middle: float) -> float:
    """The largest distance from the middle on one side of it: what full colour stands for there."""
    found = [abs(s.value - middle) for s in windows.scores.values() if (s.value > middle) == above]
    return max(found, default=0.0) or 1.0


def window_panel(windows: WindowMap, times: int, *, wide: float) -> str:
    """One panel: start to the right, end downwards; better than the source in one colour, worse in the other."""
    n, left, top = windows.n_layers, 40.0, 24.0
    cell = min(40.0, (wide - left - 8) / n)
    middle = _middle(windows)
    parts = []
    for start in range(n):
        for end in range(start, n):
            box = Box(left + cell * start, top + cell * end, left + cell * (start + 1), top + cell * (end + 1))
            parts.append(_cell(windows, (start, end, times), box, middle))
    every = max(1, round(24 / cell))
    for k in range(0, n, every):
        parts.append(label(left + cell * (k + 0.5), top - 7, str(k), "tick", anchor="middle"))
        parts.append(label(left - 6, top + cell * (k + 0.5) + 4, str(k), "tick", anchor="end"))
    parts.append(label(left + cell * n, top + 14, "first layer", "tick", anchor="end"))
    parts.append(label(13, top + cell * n / 2, "last layer", "tick", anchor="middle", turn=True))
    return figure(wide, top + cell * n + 6, f"{windows.objective} of windows that run {_times(times)}", *parts)


def _cell(windows: WindowMap, key: tuple[int, int, int], box: Box, middle: float) -> str:
    start, end, _ = key
    gap = min(1.0, (box.right - box.left) / 8)
    inner = Box(box.left + gap, box.top + gap, box.right - gap, box.bottom - gap)
    found = windows.scores.get(key)
    if found is None:
        return rect(inner, "heat-none")
    ahead = (found.value - middle) * (1 if windows.maximize else -1)
    strength = 0.06 + 0.9 * abs(found.value - middle) / _farthest(windows, found.value > middle, middle)
    title = f"{_layers(start, end)}: {number(found.value)} ({found.entry_id})"
    drawn = rect(inner, "heat" if ahead >= 0 else "heat-minus", opacity=strength, title=title)
    if box.right - box.left < 27:
        return drawn
    ink = "cell inverse" if strength > 0.55 else "cell"
    y = (box.top + box.bottom) / 2 + 4
    return drawn + label((box.left + box.right) / 2, y, f"{found.value:.2f}", ink, anchor="middle")


def _times(times: int) -> str:
    return {0: "not at all", 2: "twice"}.get(times, f"{times} times")


def _layers(start: int, end: int) -> str:
    return f"layer {start}" if start == end else f"layers {start} to {end}"


def _told(windows: WindowMap) -> str:
    (start, end, times), best = windows.best
    source = "the merge" if windows.source == MERGED else windows.source
    base = "" if windows.reference is None else f"; {source} itself scores {number(windows.reference)}"
    n = windows.n_others
    others = f" Not shown: {n} path{'s' if n > 1 else ''} of other forms or of other models." if n else ""
    return (
        f"{windows.objective}: best with {_layers(start, end)} run {_times(times)}, {number(best.value)} "
        f"({best.entry_id}){base}. {len(windows.scores)} windows were scored.{others}"
    )


def windows_section(maps: Sequence[WindowMap]) -> str:
    """The report's section: per objective one panel per number of runs; empty where no windows were searched."""
    if not maps:
        return ""
    blocks = []
    for windows in maps:
        wide = FULL / _PANELS
        panels = [
            captioned(window_panel(windows, times, wide=wide), f"run {_times(times)}")
            for times in sorted({key[2] for key in windows.scores})
        ]
        blocks.append(f"<p>{escape(_told(windows))}</p><div class='panels'>{''.join(panels)}</div>")
    box = Box(2, 2, 14, 14)
    source = "the model without a window" if maps[0].reference is not None else "the middle of all scores"
    marks = legend(
        (rect(box, "heat", opacity=0.9), f"better than {source}, full colour the best"),
        (rect(box, "heat-minus", opacity=0.9), "worse, full colour the worst"),
        (rect(box, "heat-none"), "not scored"),
    )
    intro = (
        "The search score of every window of layers by its first and last layer; the best one where a window was "
        "scored more than once. Such scores are the luckiest of many: the intervals above are what counts."
    )
    return section("Windows of layers", intro, *blocks, marks)

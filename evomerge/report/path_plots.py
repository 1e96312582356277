"""Drawings of paths: hops from left to right, one lane per parent, gains as bars below."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from evomerge.report.blocks import captioned, folded, legend, section
from evomerge.report.marks import FULL
from evomerge.report.path_values import DrawnPath, path_sentence
from evomerge.report.svg import Box, escape, figure, label, line, rect, shorten, text_width
from evomerge.report.words import not_drawn

_PER_ROW: Final = 34
"""Hops side by side; longer paths go on in a row below."""

_LANE: Final = 26.0
_GAINS: Final = 46.0
_TOP: Final = 18.0
_GAP: Final = 16.0


class _Frame(NamedTuple):
    """Where things stand: pixels to the left of the hops, per hop, per row, and hops in a row."""

    left: float
    cell: float
    row: float
    per_row: int

    def corner(self, k: int) -> tuple[float, float]:
        """The left end of hop k and the top of its row."""
        return self.left + self.cell * (k % self.per_row), self.row * (k // self.per_row)


def _frame(path: DrawnPath, wide: float) -> _Frame:
    rows = -(-len(path.hops) // _PER_ROW)
    per_row = -(-len(path.hops) // rows)
    left = 20 + max([text_width(_short(name)) for name in path.lanes] + [40.0])
    cell = min(46.0, (wide - left - 14) / per_row)
    height = _TOP + _LANE * len(path.lanes) + (_GAINS if path.has_gains else 0.0) + _GAP
    return _Frame(left, cell, height, per_row)


def _short(name: str) -> str:
    return shorten(name, 22)


class PathMarks(NamedTuple):
    """A drawn path: its size in pixels, and SVG marks from (0, 0) on."""

    wide: float
    high: float
    marks: str


def path_marks(path: DrawnPath, full: float, wide: float = FULL) -> PathMarks:
    """A path.

    Args:
        path: what is drawn.
        full: the absolute gain that a bar of full height stands for, > 0.
        wide: room to the right, pixels.
    """
    frame = _frame(path, wide)
    rows = -(-len(path.hops) // frame.per_row)
    parts = [_row_ground(path, frame, row) for row in range(rows)]
    parts += [_connection(path, frame, k) for k in range(1, len(path.hops))]
    parts += [_hop(path, frame, k) for k in range(len(path.hops))]
    if path.has_gains:
        parts += [_gain(path, frame, k, full) for k in range(len(path.hops))]
    return PathMarks(frame.left + frame.cell * frame.per_row + 14, frame.row * rows, "".join(parts))


def path_figure(path: DrawnPath, full: float) -> str:
    """`path_marks` as a drawing of the report."""
    drawn = path_marks(path, full)
    return figure(drawn.wide, drawn.high, f"The path of {path.entry_id}", drawn.marks)


def _row_ground(path: DrawnPath, frame: _Frame, row: int) -> str:
    top, n = frame.row * row, min(frame.per_row, len(path.hops) - row * frame.per_row)
    right = frame.left + frame.cell * n
    parts = []
    for k, name in enumerate(path.lanes):
        y = top + _TOP + _LANE * k
        parts.append(label(frame.left - 10, y + _LANE / 2 + 4, _short(name), anchor="end"))
        parts.append(line(frame.left, y + _LANE / 2, right, y + _LANE / 2, "grid"))
    for k in range(n):
        number = row * frame.per_row + k + 1
        if k == 0 or number % 5 == 0 or number == len(path.hops):
            parts.append(label(frame.left + frame.cell * (k + 0.5), top + 12, str(number), "tick", anchor="middle"))
    parts.append(label(frame.left - 10, top + 12, "hop", "tick", anchor="end"))
    if path.has_gains:
        parts.append(label(frame.left - 10, top + _TOP + _LANE * len(path.lanes) + 26, "gain", "tick", anchor="end"))
    return "".join(parts)


def _lane_middle(path: DrawnPath, frame: _Frame, k: int) -> float:
    return frame.corner(k)[1] + _TOP + _LANE * (path.hops[k].lane + 0.5)


def _connection(path: DrawnPath, frame: _Frame, k: int) -> str:
    """The line into hop k; a jump where its layer is not the next one. Nothing at the beginning of a row."""
    if k % frame.per_row == 0:
        return ""
    x, _ = frame.corner(k)
    a, b = path.hops[k - 1], path.hops[k]
    before, here = _lane_middle(path, frame, k - 1), _lane_middle(path, frame, k)
    is_jump = b.layer != a.layer + 1
    if a.lane == b.lane:
        return line(x, here - 13, x, here + 13, "hop-jump") if is_jump else line(x - 3, here, x + 3, here, "hop-line")
    reach = min(8.0, frame.cell / 3)
    return line(x - reach, before, x + reach, here, "hop-jump" if is_jump else "hop-line")


def _hop(path: DrawnPath, frame: _Frame, k: int) -> str:
    hop, (x, _), y = path.hops[k], frame.corner(k), _lane_middle(path, frame, k)
    box = Box(x + 2.5, y - 10, x + frame.cell - 2.5, y + 10)
    gain = "" if hop.gain == 1.0 else f", gain {hop.gain:.4g}"
    again = "" if not hop.again else f", run number {hop.again + 1}"
    title = f"hop {k + 1}: {path.lanes[hop.lane]}, layer {hop.layer}{again}{gain}"
    drawn = rect(box, "hop-again" if hop.again else "hop", title=title)
    return drawn + label((box.left + box.right) / 2, y + 4, str(hop.layer), "cell inverse", anchor="middle")


def _gain(path: DrawnPath, frame: _Frame, k: int, full: float) -> str:
    """A bar from the line of gain 0 up to the gain, with a mark at 1; negative gains hang below in another colour."""
    hop, (x, top) = path.hops[k], frame.corner(k)
    negative = any(h.gain < 0 for h in path.hops)
    room = _GAINS - 12
    zero = top + _TOP + _LANE * len(path.lanes) + 6 + room * (0.5 if negative else 1.0)
    unit = room * (0.5 if negative else 1.0) / full
    low, high = sorted((zero, zero - hop.gain * unit))
    left, right = x + 2.5, x + frame.cell - 2.5
    css = "heat" if hop.gain >= 0 else "heat-minus"
    bar = rect(
        Box(left, low, right, max(high, low + 0.8)), css, opacity=0.75, title=f"hop {k + 1}: gain {hop.gain:.4g}"
    )
    one = line(left, zero - unit, right, zero - unit, "gain-one") if full >= 1 else ""
    return bar + line(left - 2.5, zero, right + 2.5, zero, "axis") + one


def _legend(paths: Sequence[DrawnPath], full: float) -> str:
    box = Box(2, 3, 14, 13)
    items = [(rect(box, "hop"), "a layer, with its number")]
    if any(h.again for p in paths for h in p.hops):
        items.append((rect(box, "hop-again"), "the same layer runs again"))
    if any(b.layer != a.layer + 1 for p in paths for a, b in pairwise(p.hops)):
        items.append((line(8, 1, 8, 15, "hop-jump"), "a jump: not the next layer"))
    if any(p.has_gains for p in paths):
        items.append((rect(box, "heat", opacity=0.75), f"gain; a full bar is {full:.3g}"))
        items.append((line(1, 8, 15, 8, "gain-one"), "gain 1"))
    if any(h.gain < 0 for p in paths for h in p.hops):
        items.append((rect(box, "heat-minus", opacity=0.75), "negative gain"))
    return legend(*items)


def paths_section(paths: Sequence[DrawnPath], chosen: str, n_more: int) -> str:
    """The report's section: the chosen path, the front's folded below it; empty without paths.

    Args:
        paths: the chosen one first.
        chosen: id of the chosen model, empty without one.
        n_more: members of the front that are not drawn.
    """
    if not paths:
        return ""
    full = max(1.0, *(abs(h.gain) for p in paths for h in p.hops))
    drawn = [f"<h3>{_title(p, chosen)}</h3><p class='soft small'>{escape(path_sentence(p))}</p>" for p in paths]
    figures = [text + captioned(path_figure(p, full)) for text, p in zip(drawn, paths, strict=True)]
    shown = len(figures) <= 3 or _is_plain(paths[0])
    others = [folded("Other members of the front", *figures[1:], shown=shown)] if figures[1:] else []
    more = f'<p class="soft">{escape(not_drawn(n_more))}</p>' if n_more > 0 else ""
    intro = (
        "Layers in the order in which they run, each in the lane of the model that it comes from; tooltips have the "
        "details. What a hop adds to the residual stream is multiplied by its gain."
    )
    return section("Paths through the layers", intro, figures[0], _legend(paths, full), *others, more)


def _is_plain(path: DrawnPath) -> bool:
    return not path.switches and not path.skipped and len(path.hops) == path.n_layers


def _title(path: DrawnPath, chosen: str) -> str:
    return escape(path.entry_id) + (" <span class='soft'>chosen</span>" if path.entry_id == chosen else "")

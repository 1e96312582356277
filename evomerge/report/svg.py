"""The marks that plots are made of, as SVG text: scales, axes, markers, labels that do not overlap.

Colours and fonts come from the page's style sheet by class, so that one drawing serves a light and a dark page.
Written by hand instead of with a plotting library: a chart is a few kilobytes, needs no script and no font cache,
and every mark can carry a tooltip. Pixel coordinates grow to the right and downwards.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_FARTHEST = 14
"""Lines of text above and below a point in which its label may stand."""

_APART = 13.0
"""Pixels between a point and its label from which on a line joins them."""

_BESIDE = 5.0
"""Pixels between two labels side by side."""

CHAR_PX = 6.1
"""Estimated width of one character at the label size; wide scripts count double."""


def escape(text: object) -> str:
    """`text` safe inside HTML and SVG, as content and as attribute; unprintable characters become U+FFFD."""
    plain = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in str(text))
    return html.escape(plain.encode("utf-8", "replace").decode(), quote=True)


def number(value: float) -> str:
    """A number for people: three decimals below 10, then fewer, never an exponent in the usual range; counts whole."""
    if value == 0:
        return "0"
    size = abs(value)
    if value == int(value) and size >= 2:
        return f"{value:.0f}" if size < 1e6 else f"{value / 1e9:.4g} G" if size >= 1e9 else f"{value / 1e6:.4g} M"
    if not 1e-3 <= size < 1e6:
        return f"{value:.3g}"
    return f"{value:.3f}" if size < 10 else f"{value:.4g}" if size < 1e4 else f"{value:.0f}"


def tick(value: float) -> str:
    """A round number at an axis, short."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e9:g} G" if size >= 1e9 else f"{value / 1e6:g} M"
    if 0 < size < 1e-3:
        head, _, power = f"{value:.3e}".partition("e")
        return f"{float(head):g}e{int(power)}"
    return f"{value:g}"


def text_width(text: str) -> float:
    """Estimated pixels of a label."""
    return CHAR_PX * sum(2 if ord(c) >= 0x1100 else 1 for c in text)


def shorten(text: str, width: int) -> str:
    """`text` in at most `width` characters, the middle left out."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def nice_ticks(low: float, high: float, n: int = 5) -> tuple[float, ...]:
    """About `n` round numbers in `[low, high]`: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return (low,)
    raw = (high - low) / max(n, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.7)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return tuple(round(k * step, 12) for k in range(first, last + 1))


@dataclass(frozen=True)
class Scale:
    """A linear map from `[low, high]` to the pixels `[start, end]` (start may exceed end: the y axis)."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of `value`."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    @staticmethod
    def around(values: Iterable[float], start: float, end: float, *, pad: float = 0.06) -> Scale:
        """A scale that holds all `values` with some air; any interval when there are none or only one."""
        known = list(values) or [0.0, 1.0]
        low, high = min(known), max(known)
        air = (high - low) * pad or max(abs(low) * 0.1, 0.0 if 1e-9 < abs(low) < 0.01 else 0.05)
        return Scale(low - air, high + air, start, end)


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def inside(self, other: Box) -> bool:
        """Whether it lies wholly within the other."""
        sideways = other.left <= self.left and self.right <= other.right
        return sideways and other.top <= self.top and self.bottom <= other.bottom

    def overlaps(self, other: Box) -> bool:
        """Whether the two share any area."""
        apart = self.right <= other.left or other.right <= self.left
        return not (apart or self.bottom <= other.top or other.bottom <= self.top)


def _title(title: str) -> str:
    return f"<title>{escape(title)}</title>" if title else ""


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """A straight line."""
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def path(points: Sequence[tuple[float, float]], css: str) -> str:
    """An open line through pixel points."""
    if not points:
        return ""
    return f'<path class="{css}" d="M{" L".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def label(x: float, y: float, text: str, css: str = "label", *, anchor: str = "start", turn: bool = False) -> str:
    """Text at a point; `turn` writes it upwards."""
    turned = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turn else ""
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turned}>{escape(text)}</text>'


def rect(box: Box, css: str, *, opacity: float = 1.0, title: str = "") -> str:
    """A filled rectangle."""
    size = f'width="{box.right - box.left:.1f}" height="{box.bottom - box.top:.1f}"'
    start = f'<rect class="{css}" x="{box.left:.1f}" y="{box.top:.1f}" {size} fill-opacity="{opacity:.3f}"'
    return f"{start}>{_title(title)}</rect>"


def _polygon(x: float, y: float, radius: float, corners: int, turn: float) -> str:
    angles = [turn + 2 * math.pi * k / corners for k in range(corners)]
    return " ".join(f"{x + radius * math.sin(a):.1f},{y - radius * math.cos(a):.1f}" for a in angles)


_SHAPES = {
    "parent": (4, math.pi / 4, 1.25),
    "soup": (3, 0.0, 1.35),
    "task-arithmetic": (3, math.pi, 1.35),
    "injected": (4, 0.0, 1.35),
    "mean": (6, 0.0, 1.15),
}
"""Kind -> corners, turn, relative size; candidates are round."""


def marker(kind: str, x: float, y: float, css: str, *, radius: float = 5.0, title: str = "") -> str:
    """The mark of one entry: its shape tells the kind, its class the role."""
    if kind not in _SHAPES:
        return f'<circle class="{css}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">{_title(title)}</circle>'
    corners, turn, size = _SHAPES[kind]
    return f'<polygon class="{css}" points="{_polygon(x, y, radius * size, corners, turn)}">{_title(title)}</polygon>'


def cross(x: float, y: float, css: str, title: str) -> str:
    """A small x, for failures."""
    strokes = f"M{x - 3:.1f},{y - 3:.1f} l6,6 M{x - 3:.1f},{y + 3:.1f} l6,-6"
    return f'<path class="{css}" d="{strokes}">{_title(title)}</path>'


def axes(x: Scale, y: Scale, x_label: str, y_label: str, *, whole_x: bool = False) -> str:
    """Grid, tick labels and axis titles around the area of two scales."""
    n_x = max(2, int((x.end - x.start) / 80))
    x_ticks = [t for t in nice_ticks(x.low, x.high, n_x) if not whole_x or t == int(t)]
    parts = [line(x(t), y.start, x(t), y.end, "grid") for t in x_ticks]
    parts += [label(x(t), y.start + 16, tick(t), "tick", anchor="middle") for t in x_ticks]
    for t in nice_ticks(y.low, y.high, max(2, int((y.start - y.end) / 60))):
        parts += [
            line(x.start, y(t), x.end, y(t), "grid"),
            label(x.start - 7, y(t) + 4, tick(t), "tick", anchor="end"),
        ]
    parts.append(line(x.start, y.start, x.end, y.start, "axis"))
    parts.append(label((x.start + x.end) / 2, y.start + 36, x_label, "axis-label", anchor="middle"))
    parts.append(label(14, (y.start + y.end) / 2, y_label, "axis-label", anchor="middle", turn=True))
    return "".join(parts)


def _places(x: float, y: float, wide: float) -> list[tuple[float, float]]:
    """Where a label may begin, the best first: beside, above and below its point, then farther away."""
    sides = [(x + 9, y + 4), (x - 9 - wide, y + 4), (x - wide / 2, y - 10), (x - wide / 2, y + 19)]
    heights = [dy for k in range(_FARTHEST) for dy in (-9 - 13 * k, 17 + 13 * k)]
    corners = [(px, y + dy) for dy in heights for px in (x + 7, x - 7 - wide, x - wide / 2)]
    return sides + corners


def _leader(x: float, y: float, box: Box) -> str:
    """A thin line from a point to its label where the two are apart."""
    to_x, to_y = min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)
    return line(x, y, to_x, to_y, "leader") if math.hypot(to_x - x, to_y - y) > _APART else ""


def place_labels(points: Sequence[tuple[float, float, str]], area: Box, taken: Sequence[Box]) -> str:
    """Labels near their points, inside `area`, as free of everything as can be; a line leads to one farther away.

    Args:
        points: x, y and text; earlier ones choose first.
        area: where labels may stand.
        taken: what they should not cover: marks and whiskers. No two labels overlap; one that could only stand on
            another is left out.
    """
    kept: list[Box] = []
    leaders, parts = [], []
    for x, y, full in points:
        text = shorten(full, 22)
        choices = []
        for rank, (px, py) in enumerate(_places(x, y, text_width(text))):
            box = Box(px, py - 10, px + text_width(text), py + 3)
            if box.inside(area) and not any(box.overlaps(b) for b in kept):
                choices.append((sum(box.overlaps(b) for b in taken), rank, box))
        if choices:
            box = min(choices)[2]
            kept.append(Box(box.left - _BESIDE, box.top, box.right + _BESIDE, box.bottom))
            leaders.append(_leader(x, y, box))
            parts.append(label(box.left, box.top + 10, text, "label halo"))
    return "".join(leaders + parts)


def figure(width: float, height: float, description: str, *parts: str) -> str:
    """A whole drawing that scales with its column; `description` is read aloud by screen readers."""
    head = f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(description)}"'
    return f'{head} style="min-width:{width * 0.65:.0f}px;max-width:{width * 1.1:.0f}px">{"".join(parts)}</svg>'

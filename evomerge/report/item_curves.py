"""Charts of an item bank as SVG: item characteristic curves, information, the items' places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from evomerge.irt.axis import AbilityAxis
from evomerge.irt.responses import Floats, Indices
from evomerge.report.marks import HALF
from evomerge.report.svg import Box, Scale, axes, escape, figure, marker, number, path, place_labels, rect

HIGH: Final = 320.0
_GRID: Final = np.linspace(-3.0, 3.0, 61)
_MAX_CURVES: Final = 120
_MAX_POINTS: Final = 3000
"""More would make the page heavy and show nothing more; every k-th item is drawn then."""
_X_LABEL: Final = "ability, in standard deviations of the calibration models"


class Shown(NamedTuple):
    """An item that is drawn by name: its index in the bank and its label."""

    item: int
    name: str


def _frame(low: float, high: float, x_label: str, y_label: str) -> tuple[Scale, Scale, str]:
    x, y = Scale(-3.0, 3.0, 62, HALF - 14), Scale(low, high, HIGH - 46, 14)
    return x, y, axes(x, y, x_label, y_label)


def shown_items(axis: AbilityAxis) -> tuple[Shown, ...]:
    """Up to five items from easy to hard: of every fifth of the difficulties the one with the median slope."""
    difficulties = axis.difficulties
    inside = np.flatnonzero(np.abs(difficulties) <= 2.8)
    ordered = inside[np.argsort(difficulties[inside], kind="stable")]
    fifths = [part for part in np.array_split(ordered, 5) if part.size]
    middle = [part[np.argsort(axis.slopes[part], kind="stable")[part.size // 2]] for part in fifths]
    return tuple(Shown(int(item), "ABCDE"[k]) for k, item in enumerate(middle))


def _spread(axis: AbilityAxis, most: int) -> Indices:
    """At most so many fitted items, evenly from easy to hard."""
    at_mean = axis.bank.predict(axis.bank.mean)
    fitted = np.flatnonzero(axis.bank.fitted)
    ordered = fitted[np.argsort(at_mean[fitted], kind="stable")]
    if ordered.size <= most:
        return ordered
    return ordered[np.linspace(0, ordered.size - 1, most).astype(np.intp)]


def characteristic_curves(axis: AbilityAxis, shown: Sequence[Shown], most: int = _MAX_CURVES) -> str:
    """Expected score over the ability of every item, or of `most` from easy to hard; a few items by name."""
    curves = axis.bank.predict(axis.thetas(_GRID))
    drawn = _spread(axis, most)
    logistic = axis.bank.link == "logistic"
    span = (0.0, 1.0) if logistic else air(curves[:, drawn])
    x, y, frame = _frame(*span, _X_LABEL, "probability of a right answer" if logistic else "expected score")
    parts = [frame]
    parts += [path(_points(x, y, curves[:, item]), "thread candidate") for item in drawn]
    ends = []
    for item, name in shown:
        points = _points(x, y, curves[:, item])
        title = f"{name}: {axis.bank.items[item][:16]}"
        parts.append(f"<g><title>{escape(title)}</title>{path(points, 'best-line')}</g>")
        steep = int(np.argmax(np.abs(np.diff(curves[:, item]))))
        ends.append((*points[steep], name))
    parts.append(place_labels(ends, Box(x.start, y.end, x.end, y.start), []))
    return figure(HALF, HIGH, "Item characteristic curves", *parts)


def air(values: Floats) -> tuple[float, float]:
    """Ends of an axis that holds all values."""
    low, high = float(values.min()), float(values.max())
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room


def _points(x: Scale, y: Scale, values: Floats) -> list[tuple[float, float]]:
    return [(x(float(at)), y(float(v))) for at, v in zip(_GRID, values, strict=True)]


def information_curve(axis: AbilityAxis, positions: Floats) -> str:
    """What all items together tell about an ability, above the calibration models' abilities."""
    information = axis.information(_GRID)
    top = float(information.max()) * 1.08 or 1.0
    x, y, frame = _frame(0.0, top, _X_LABEL, "information of all items")
    counts, edges = np.histogram(np.clip(positions, -2.999, 2.999), bins=24, range=(-3.0, 3.0))
    tallest = 0.3 * top / max(1, int(counts.max()))
    parts = [frame]
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            box = Box(x(float(left)) + 1, y(tallest * int(count)), x(float(right)) - 1, y.start)
            parts.append(rect(box, "candidate", title=f"{count} models"))
    parts.append(path(_points(x, y, information), "best-line"))
    return figure(HALF, HIGH, "Information over the ability, and the models' abilities", *parts)


def item_map(axis: AbilityAxis, shown: Sequence[Shown]) -> str:
    """Items at their difficulty and slope; what lies outside is drawn at the edge."""
    difficulties, slopes = axis.difficulties, axis.slopes
    known = np.flatnonzero(~np.isnan(difficulties))
    top = max(float(np.quantile(slopes[known], 0.99)) * 1.15, 0.5) if known.size else 1.0
    x, y, frame = _frame(0.0, top, "difficulty, on the same scale", "slope (how sharply it separates)")
    names = dict(shown)
    parts, taken, labels = [frame], [], []
    for item in np.union1d(known[:: known.size // _MAX_POINTS + 1], np.array([*names], dtype=np.intp)):
        at, slope = float(difficulties[item]), float(slopes[item])
        spot = (x(min(max(at, -3.0), 3.0)), y(min(slope, top)))
        title = f"{axis.bank.items[item][:16]}: difficulty {number(at)}, slope {number(slope)}"
        role = "front" if item in names else "candidate"
        parts.append(marker("candidate", *spot, role, radius=4.5 if item in names else 2.5, title=title))
        if item in names:
            taken.append(Box(spot[0] - 5, spot[1] - 5, spot[0] + 5, spot[1] + 5))
            labels.append((*spot, names[int(item)]))
    parts.append(place_labels(labels, Box(x.start, y.end, x.end, y.start), taken))
    return figure(HALF, HIGH, "Slope against difficulty of the items", *parts)

"""How well a bank's predictions are calibrated, as SVG; its items are drawn by `report.item_curves`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.calibration.quality import Bin, Predictions
from evomerge.report.item_curves import HIGH, air
from evomerge.report.marks import HALF
from evomerge.report.svg import Scale, axes, figure, line, marker, number


def calibration_chart(series: Sequence[tuple[Predictions, str]], *, logistic: bool) -> str:
    """Observed against predicted scores of held-out answers; on the diagonal predictions mean what they say.

    Args:
        series: predictions and the style class of their marks.
        logistic: whether scores are probabilities.
    """
    bins = [b for predictions, _ in series for b in predictions.bins]
    low, high = (0.0, 1.0) if logistic else air(np.array([v for b in bins for v in (b.predicted, b.observed)]))
    x, y = Scale(low, high, 62, HALF - 14), Scale(low, high, HIGH - 46, 14)
    parts = [axes(x, y, "predicted", "observed"), line(x(low), y(low), x(high), y(high), "zero")]
    for predictions, role in series:
        parts += [_bin(b, x, y, role, predictions.n) for b in predictions.bins]
    return figure(HALF, HIGH, "Observed against predicted scores", *parts)


def _bin(b: Bin, x: Scale, y: Scale, role: str, n: int) -> str:
    title = f"predicted {number(b.predicted)}, observed {number(b.observed)} ({b.n} answers)"
    return marker("candidate", x(b.predicted), y(b.observed), role, radius=3 + 9 * (b.n / n) ** 0.5, title=title)

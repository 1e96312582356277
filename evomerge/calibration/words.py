"""What is said of a bank, in the terminal and on its page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from evomerge.calibration.quality import Quality
from evomerge.calibration.sheets import Kind
from evomerge.report.svg import number

KINDS: Final[Mapping[Kind, str]] = {
    "matrix": "response matrix",
    "log": "lm-eval sample logs",
    "run": "run directory",
}


def verdict(quality: Quality) -> str:
    """One sentence: what the bank is good for."""
    if not quality.errors:
        return f"How well the bank predicts could not be measured: {quality.why_not}."
    first, *_ = quality.errors
    better = [e for e in quality.errors if e.bank < e.mean]
    told = f"after {first.asked} questions it misses a new model's score by {number(first.bank)} on average"
    if not better:
        return f"The bank predicts no better than the plain mean ({told}): it needs more models."
    if len(better) < len(quality.errors):
        sizes = ", ".join(str(e.asked) for e in better)
        return f"The bank predicts better than the plain mean at {sizes} questions only; {told}."
    return f"The bank predicts better than the plain mean: {told}, the plain mean by {number(first.mean)}."

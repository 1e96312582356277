"""Two search spaces for the median: a mapping, and a function that returns one."""

from __future__ import annotations

from typing import Any, Final

SMOOTH_MEDIAN: Final = {
    "kind": "merge",
    "about": "One strength of the median, interpolated over depth.",
    "method": "example-median",
    "depth": {"knots": 2},
    "parameters": {"strength": {"low": 0, "high": 1.5, "step": 0.05, "start": 1.0}},
}


def deep_median() -> dict[str, Any]:
    """One strength per layer."""
    return {**SMOOTH_MEDIAN, "about": "One strength of the median per layer.", "depth": "each"}

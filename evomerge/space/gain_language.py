"""The YAML language of gains and input scales (docs/spaces.md): which, and the grid of every gene."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from evomerge.errors import suggest
from evomerge.space.at import At, check_keys, line_is_told, mapping_at, number_at
from evomerge.space.dimension import holds
from evomerge.space.dimensions import DECIMALS, Real
from evomerge.space.parameter import parse_step
from evomerge.space.path_plan import GainsName

GAIN_STEP: Final = 1 / 64
"""How much larger each gain is than the last, relatively."""

SCALE_STEP: Final = 0.02
"""Distance of neighbouring input scales."""


def parse_gains(mapping: Mapping[str, Any], at: At) -> tuple[GainsName, Real | None]:
    """What `gains:` and `scales:` of a path space say: which, and the range of each gene.

    Raises:
        SpaceError: when both are given, then for whatever is not understood.
    """
    gains, scales = mapping.get("gains"), mapping.get("scales")
    if gains in (None, "none") and scales in (None, "none"):
        return "none", None
    if gains not in (None, "none") and scales not in (None, "none"):
        raise (at / "scales").problem("gains and input scales say the same.", "both", "gains or scales")
    if gains not in (None, "none"):
        given = mapping_at(gains, at / "gains")
        check_keys(given, ("low", "high", "step", "per"), at / "gains")
        _per(given, ("hop",), at / "gains")
        return "gains", gain_range(given, at / "gains")
    given = mapping_at(scales, at / "scales")
    check_keys(given, ("low", "high", "step", "per"), at / "scales")
    per = _per(given, ("hop", "transition"), at / "scales")
    return ("place scales" if per == "hop" else "transition scales"), scale_range(given, at / "scales")


def _per(given: Mapping[str, Any], allowed: tuple[str, ...], at: At) -> str:
    per = given.get("per", "hop")
    if per not in allowed:
        raise (at / "per").problem("the unit is unknown.", repr(per), suggest(str(per), allowed))
    return str(per)


def gain_range(given: Mapping[str, Any], at: At) -> Real:
    """A log grid around 1: as even as `step` asks, from `low` to the value nearest to `high`.

    Raises:
        SpaceError: for ends that are missing or do not enclose 1, and steps that are too fine.
    """
    low, high = _ends(given, at)
    step = parse_step(given.get("step", GAIN_STEP), at / "step")
    if not 0.005 <= step <= 1:
        raise (at / "step").problem("the step is not usable.", step, "a ratio minus one, from 0.005 to 1")
    down = max(1, round(-math.log(low) / math.log1p(step))) if low < 1 else 0
    ratio = -math.log(low) / down if down else math.log1p(step)
    up = max(1, round(math.log(high) / ratio)) if high > 1 else 0
    exact_low, exact_high = round(math.exp(-down * ratio), DECIMALS), round(math.exp(up * ratio), DECIMALS)
    with line_is_told(at):
        return Real(at.dotted, exact_low, exact_high, math.expm1(ratio), "log", start=1.0)


def scale_range(given: Mapping[str, Any], at: At) -> Real:
    """A linear grid that holds 1.

    Raises:
        SpaceError: for ends that are missing or do not enclose 1, and grids without 1.
    """
    low, high = _ends(given, at)
    with line_is_told(at):
        range_ = Real(at.dotted, low, high, parse_step(given.get("step", SCALE_STEP), at / "step"), start=1.0)
    if not holds(range_, 1.0):
        raise (at / "step").problem(
            "the grid does not hold 1.", f"low {low:g}, step {range_.step:g}", "1 = low + a whole number of steps"
        )
    return range_


def _ends(given: Mapping[str, Any], at: At) -> tuple[float, float]:
    for key in ("low", "high"):
        if key not in given:
            raise (at / key).problem(f"{key!r} is missing.", "nothing", "low and high, such as {low: 0.5, high: 2}")
    low, high = number_at(given["low"], at / "low"), number_at(given["high"], at / "high")
    if not 0 < low <= 1 <= high < math.inf or low == high or low < 1e-3 or high > 1e3:
        raise at.problem("the range is not usable.", f"low {low:g}, high {high:g}", "0.001 <= low <= 1 <= high <= 1000")
    return low, high

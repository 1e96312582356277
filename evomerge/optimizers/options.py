"""Reading an optimizer's options: known names, right types, sensible ranges, everything else refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.errors import ConfigError, suggest
from evomerge.optimizers.base import Problem


@dataclass(frozen=True)
class Option:
    """One option that a method accepts.

    Attributes:
        default: used when the option is absent or null; also says whether it is an integer or a float.
        low: smallest value, inclusive.
        high: largest value, inclusive.
        help: one line for the documentation.
    """

    default: int | float
    low: float
    high: float = math.inf
    help: str = ""


def _read(method: str, name: str, value: Any, option: Option) -> int | float:
    whole = isinstance(option.default, int)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and option.low <= value <= option.high and (not whole or float(value).is_integer()):
        return int(value) if whole else float(value)
    kind = "a whole number" if whole else "a number"
    upper = "" if math.isinf(option.high) else f" and at most {option.high:g}"
    raise ConfigError(
        f"The option {name!r} of the optimizer {method!r} is not usable.",
        got=f"{name}: {value!r}",
        allowed=f"{kind} of at least {option.low:g}{upper}",
        fix=f"correct optimizer.{name}, or leave it out for the default ({option.default:g}).",
    )


def read_options(method: str, given: Mapping[str, Any], known: Mapping[str, Option]) -> dict[str, Any]:
    """Every known option with its value: the given one, or the default.

    Args:
        method: the optimizer's name, for messages.
        given: what the user wrote, without `name`.
        known: the options that the method accepts.

    Raises:
        ConfigError: for an option that the method does not have, then for a value of the wrong type or range.
    """
    for name in given:
        if name not in known:
            raise ConfigError(
                f"The optimizer {method!r} has no option {name!r}.",
                got=f"{name}: {given[name]!r}",
                allowed=suggest(name, known),
                fix=f"remove optimizer.{name}, or use one of these.",
            )
    return {
        name: option.default if given.get(name) is None else _read(method, name, given[name], option)
        for name, option in known.items()
    }


def require_one_objective(method: str, problem: Problem) -> None:
    """Refuse several objectives for a method that can follow only one.

    Raises:
        ConfigError: naming the methods for several objectives.
    """
    if problem.n_objectives > 1:
        raise ConfigError(
            f"The optimizer {method!r} searches one objective.",
            got=f"{problem.n_objectives} objectives",
            allowed="one objective; nsga2, nsga3, evolve, tpe, gp and random take several",
            fix="set optimizer.name to nsga2 (or auto), or merge the objectives into one (aggregate: weighted).",
        )

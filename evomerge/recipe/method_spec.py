"""What a merge method asks for: the types of the tables in this package. `methods` finds a method's by its name."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, TypeGuard

from evomerge.recipe.recipe import Number

ParameterKind = Literal["real", "integer", "flag"]


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter of a method.

    Attributes:
        per_parent: every merged parent has its own value (`weight`, `density`); else one value for all.
        kind: a real number, a whole number, or a flag (true or false).
        default: the value where a recipe names none; None when the recipe must name one.
        low: smallest legal value (numbers only).
        high: largest legal value (numbers only).
    """

    per_parent: bool
    kind: ParameterKind
    default: Number | None
    low: float = -math.inf
    high: float = math.inf

    def accepts(self, value: object) -> TypeGuard[Number]:
        """Whether `value` has the right type and lies within the bounds; a whole number may be written as 3.0."""
        if self.kind == "flag" or isinstance(value, bool):
            return self.kind == "flag" and isinstance(value, bool)
        if not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            return False  # NaN included; isfinite raises for whole numbers that no float holds
        return self.low <= value <= self.high and (self.kind == "real" or float(value).is_integer())

    @property
    def allowed(self) -> str:
        """The `allowed` part of a message about this parameter."""
        if self.kind == "flag":
            return "true or false"
        noun = "number" if self.kind == "real" else "whole number"
        if math.isinf(self.low) and math.isinf(self.high):
            return f"a finite {noun}"
        if math.isinf(self.high):
            return f"a {noun} >= {self.low:g}"
        return f"a {noun} in [{self.low:g}, {self.high:g}]"


def bounds_of(spec: MethodSpec, name: str, *, compat: bool) -> ParameterSpec:
    """A parameter within its bounds; mergekit's slerp goes beyond its ends.

    Args:
        spec: of a method.
        name: the parameter's.
        compat: whether mergekit's arithmetic is asked for.
    """
    found = spec.parameters[name]
    beyond = compat and (spec.name, name) == ("slerp", "t")
    return replace(found, low=-math.inf, high=math.inf) if beyond else found


@dataclass(frozen=True)
class MethodSpec:
    """What a recipe has to say to use a method.

    Attributes:
        name: as recipes and spaces write it.
        needs_base: deltas are taken from a base, which is not one of the merged models.
        min_models: fewest merged models.
        max_models: most merged models; None when there is no limit.
        parameters: by name, in the order in which they are shown.
        random: the result depends on the recipe's seed.
        takes_base: a base may be given although none is needed; with one, deltas are merged, without one, models.
        source: paper and equation, or the program whose method it is, in a few words.
    """

    name: str
    needs_base: bool
    min_models: int
    max_models: int | None
    parameters: Mapping[str, ParameterSpec] = field(default_factory=dict)
    random: bool = False
    takes_base: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))

    def __reduce__(self) -> tuple[object, ...]:
        """Mapping proxies do not cross process borders; their contents do."""
        head = (self.name, self.needs_base, self.min_models, self.max_models, dict(self.parameters))
        return (MethodSpec, (*head, self.random, self.takes_base, self.source))

    def base_of(self, base: str | None) -> str | None:
        """The base that the method takes deltas from, given the recipe's; None when it takes none."""
        return base if self.needs_base or self.takes_base else None

    def shared(self) -> tuple[str, ...]:
        """Names of the parameters that all parents share."""
        return tuple(n for n, p in self.parameters.items() if not p.per_parent)

    def per_parent(self) -> tuple[str, ...]:
        """Names of the parameters that every parent has."""
        return tuple(n for n, p in self.parameters.items() if p.per_parent)

    def models_allowed(self) -> str:
        """How many models may be merged, as text."""
        if self.max_models == self.min_models:
            return f"exactly {self.min_models}"
        return f"{self.min_models} or more" if self.max_models is None else f"{self.min_models} to {self.max_models}"


def weight() -> ParameterSpec:
    """A parent's weight; must be said."""
    return ParameterSpec(per_parent=True, kind="real", default=None)


def density() -> ParameterSpec:
    """The share of a parent's delta that is kept."""
    return ParameterSpec(per_parent=True, kind="real", default=1.0, low=0.0, high=1.0)


def flag(default: bool) -> ParameterSpec:
    """A shared flag."""
    return ParameterSpec(per_parent=False, kind="flag", default=default)


def shared(default: float | None, low: float = -math.inf, high: float = math.inf) -> ParameterSpec:
    """A shared real number."""
    return ParameterSpec(per_parent=False, kind="real", default=default, low=low, high=high)


def count(default: int, low: int, high: float = math.inf) -> ParameterSpec:
    """A shared whole number."""
    return ParameterSpec(per_parent=False, kind="integer", default=float(default), low=low, high=high)

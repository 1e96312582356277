"""How each parameter of a method is set: searched over some depth and modules, or fixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from evomerge.recipe.recipe import Number
from evomerge.space.depth import EVERYWHERE, Depth, Groups
from evomerge.space.dimension import Value
from evomerge.space.dimensions import Choice, Gate, Real

Searched = Real | Choice | Gate


@dataclass(frozen=True)
class ParameterPlan:
    """How one parameter of the method is set; exactly one of `searched` and `fixed` is given.

    Attributes:
        name: the parameter.
        per_parent: every model has its own value.
        searched: what it ranges over; every gene is a copy under its own name.
        fixed: its value everywhere.
        depth: how it varies over depth.
        groups: modules with genes of their own; empty when all are together.
    """

    name: str
    per_parent: bool
    searched: Searched | None = None
    fixed: Number | None = None
    depth: Depth = EVERYWHERE
    groups: Groups = ()

    def __post_init__(self) -> None:
        if (self.searched is None) == (self.fixed is None):
            raise ValueError(f"the parameter {self.name} must be searched or fixed")


class Slot(NamedTuple):
    """One number that a rule needs.

    Attributes:
        parameter: its name.
        parent: whose; None when all parents share it.
    """

    parameter: str
    parent: str | None


METHOD_SLOT: Final = Slot("method", None)
"""What is chosen where a space chooses among methods; its gene holds a name, not a number."""


def gene_name(slot: Slot, place: str, module: str) -> str:
    """`weight.math.layer3.attention`; parts that say nothing (`model`, no module, a repeated word) are left out."""
    parts = [slot.parameter, slot.parent or "", "" if place in ("model", module) else place, module]
    return ".".join(p for p in parts if p)


def as_number(value: Value) -> Number:
    """A dimension's value as a recipe's number: flags stay flags, the rest becomes a float."""
    return value if isinstance(value, bool) else float(value)

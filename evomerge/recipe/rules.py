"""From one set of parameters per kind of tensor to as few rules as cover all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from evomerge.layout import ROLES, Layout, Role
from evomerge.recipe.recipe import Number, Rule


class Kind(NamedTuple):
    """What a rule can tell apart.

    Attributes:
        layer: of the tensors; None outside the layers.
        role: of the tensors.
    """

    layer: int | None
    role: Role


def kinds_of(layout: Layout) -> tuple[Kind, ...]:
    """The kinds of an architecture: outside the layers first, then by layer; roles in the order of `ROLES`."""
    found = {Kind(t.layer, t.role) for t in layout.tensors}
    return tuple(sorted(found, key=lambda k: (-1 if k.layer is None else k.layer, ROLES.index(k.role))))


Pairs = tuple[tuple[str, Number], ...]


@dataclass(frozen=True)
class Assignment:
    """A method's parameters for one kind of tensor; hashable, ordered.

    Attributes:
        shared: parameters that all parents share.
        per_parent: parent -> its parameters.
        method: of this kind of tensor alone; empty where all have one.
    """

    shared: Pairs
    per_parent: tuple[tuple[str, Pairs], ...]
    method: str = ""

    @staticmethod
    def of(
        shared: Mapping[str, Number], per_parent: Mapping[str, Mapping[str, Number]], method: str = ""
    ) -> Assignment:
        """From mappings, in their order; parents without parameters are left out."""
        inner = tuple((p, tuple(values.items())) for p, values in per_parent.items() if values)
        return Assignment(tuple(shared.items()), inner, method)

    def rule(self, method: str, layers: tuple[int, ...] | None = None, roles: tuple[Role, ...] | None = None) -> Rule:
        """The rule that gives these parameters to the tensors of some layers and roles, by its own method if any."""
        per_parent = {p: dict(v) for p, v in self.per_parent}
        return Rule(self.method or method, dict(self.shared), per_parent, layers, roles)


def rules_of(method: str, assignments: Mapping[Kind, Assignment]) -> tuple[Rule, ...]:
    """Rules that give each kind its parameters: outside the layers first, then by layer.

    Places whose modules have equal parameters share a rule; a rule for a whole place names no roles.

    Args:
        method: of all rules whose assignments name none.
        assignments: one per kind, ordered as `kinds_of` orders them; not empty.
    """
    if len(set(assignments.values())) == 1:
        return (next(iter(assignments.values())).rule(method),)
    places: dict[int | None, dict[Assignment, list[Role]]] = {}
    for kind, assignment in assignments.items():
        places.setdefault(kind.layer, {}).setdefault(assignment, []).append(kind.role)
    found: dict[tuple[Assignment, tuple[Role, ...] | None, bool], list[int]] = {}
    for layer, by_assignment in places.items():
        for assignment, roles in by_assignment.items():
            named = None if len(by_assignment) == 1 else tuple(roles)
            layers = found.setdefault((assignment, named, layer is None), [])
            layers += [] if layer is None else [layer]
    return tuple(assignment.rule(method, tuple(layers), roles) for (assignment, roles, _), layers in found.items())

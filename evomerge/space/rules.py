"""From one set of parameters per site to as few rules as cover all sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evomerge.layout import ROLES, Role
from evomerge.recipe.recipe import Number, Rule
from evomerge.space.depth import Site

Pairs = tuple[tuple[str, Number], ...]


@dataclass(frozen=True)
class Assignment:
    """A method's parameters at one site; hashable, ordered.

    Attributes:
        shared: parameters that all parents share.
        per_parent: parent -> its parameters.
    """

    shared: Pairs
    per_parent: tuple[tuple[str, Pairs], ...]

    @staticmethod
    def of(shared: Mapping[str, Number], per_parent: Mapping[str, Mapping[str, Number]]) -> Assignment:
        """From mappings, in their order; parents without parameters are left out."""
        inner = tuple((p, tuple(values.items())) for p, values in per_parent.items() if values)
        return Assignment(tuple(shared.items()), inner)

    def rule(self, method: str, layers: tuple[int, ...] | None, roles: tuple[Role, ...] | None) -> Rule:
        """The rule that gives these parameters to the tensors of some layers and roles."""
        return Rule(method, dict(self.shared), {p: dict(v) for p, v in self.per_parent}, layers, roles)


def rules_of(method: str, assignments: Mapping[Site, Assignment]) -> tuple[Rule, ...]:
    """Rules that give each site its parameters: outside the layers first, then by layer.

    Args:
        method: of all rules.
        assignments: one per site, ordered as `sites_of` orders them; not empty.
    """
    if len(set(assignments.values())) == 1:
        return (next(iter(assignments.values())).rule(method, None, None),)
    outside = {site.place: a for site, a in assignments.items() if not isinstance(site.place, int)}
    rules = []
    if len(set(outside.values())) > 1:
        rules.append(outside["embedding"].rule(method, (), ("embedding",)))
    if outside:
        rules.append(list(outside.values())[-1].rule(method, (), None))
    return (*rules, *_layer_rules(method, assignments))


def _layer_rules(method: str, assignments: Mapping[Site, Assignment]) -> list[Rule]:
    """Layers whose modules have equal parameters share a rule; a rule for a whole layer names no roles."""
    layers: dict[int, dict[Assignment, list[Role]]] = {}
    for site, assignment in assignments.items():
        if isinstance(site.place, int):
            layers.setdefault(site.place, {}).setdefault(assignment, []).append(site.module)
    found: dict[tuple[Assignment, tuple[Role, ...] | None], list[int]] = {}
    for layer, by_assignment in layers.items():
        for assignment, modules in by_assignment.items():
            roles = None if len(by_assignment) == 1 else tuple(sorted(modules, key=ROLES.index))
            found.setdefault((assignment, roles), []).append(layer)
    return [assignment.rule(method, tuple(where), roles) for (assignment, roles), where in found.items()]

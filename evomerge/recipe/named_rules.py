"""From one set of parameters per tensor to few rules that cover all; tensors are named only where they have to be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from evomerge.layout import Layout
from evomerge.recipe.recipe import Rule, name_within
from evomerge.recipe.rules import Assignment, Kind, kinds_of, rules_of


def rules_of_tensors(method: str, layout: Layout, assignments: Mapping[str, Assignment]) -> tuple[Rule, ...]:
    """Rules that give each tensor its parameters.

    Where the tensors of one layer and role have several, the commonest is the role's and the others are named, in rules
    that stand first.

    Args:
        method: of all rules whose assignments name none.
        layout: the tensors.
        assignments: tensor name -> parameters; one for every tensor.
    """
    kinds: dict[Kind, dict[str, Assignment]] = {}
    for tensor in sorted(layout.tensors, key=lambda t: -len(t.shape)):  # among equals the matrices decide
        kinds.setdefault(Kind(tensor.layer, tensor.role), {})[name_within(tensor)] = assignments[tensor.name]
    common = {kind: _commonest(kinds[kind]) for kind in kinds_of(layout)}
    odd: dict[tuple[int | None, Assignment], list[str]] = {}
    for kind, usual in common.items():
        for name, assignment in kinds[kind].items():
            if assignment != usual:
                odd.setdefault((kind.layer, assignment), []).append(name)
    found: dict[tuple[Assignment, tuple[str, ...], bool], list[int]] = {}
    for (layer, assignment), names in odd.items():
        layers = found.setdefault((assignment, tuple(sorted(names)), layer is None), [])
        layers += [] if layer is None else [layer]
    named = [_rule(method, a, None if not outside and _all(ls, layout) else tuple(ls), names)
             for (a, names, outside), ls in found.items()]  # fmt: skip
    return (*named, *rules_of(method, common))


def _commonest(found: Mapping[str, Assignment]) -> Assignment:
    counts = Counter(found.values())
    return max(counts, key=lambda a: counts[a])


def _all(layers: list[int], layout: Layout) -> bool:
    return len(layers) == layout.n_layers


def _rule(method: str, assignment: Assignment, layers: tuple[int, ...] | None, names: tuple[str, ...]) -> Rule:
    plain = assignment.rule(method, layers)
    return Rule(plain.method, plain.shared, plain.per_parent, plain.layers, plain.roles, names)

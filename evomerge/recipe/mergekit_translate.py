"""Methods that mergekit does not have, in terms of its own where that is exactly the same sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from evomerge.layout import Layout, TensorInfo
from evomerge.recipe.equivalence import number
from evomerge.recipe.named_rules import rules_of_tensors
from evomerge.recipe.recipe import Recipe, Rule
from evomerge.recipe.rules import Assignment
from evomerge.recipe.shares import softmax


def _task_arithmetic(weights: Mapping[str, float]) -> Rule:
    return Rule("task_arithmetic", {"normalize": False, "lambda": 1.0}, {p: {"weight": w} for p, w in weights.items()})


def _lines(rule: Rule, tensor: TensorInfo, n_layers: int, recipe: Recipe) -> Rule:
    del recipe
    depth = tensor.layer / (n_layers - 1) if tensor.layer is not None and n_layers > 1 else 0.0
    strength = float(number(rule, "alpha")) + float(number(rule, "beta")) * depth
    return _task_arithmetic({p: strength * float(number(rule, "weight", p)) for p in rule.per_parent})


def _expo(rule: Rule, tensor: TensorInfo, n_layers: int, recipe: Recipe) -> Rule:
    del tensor, n_layers
    models = rule.per_parent or {p.name: {} for p in recipe.parents if p.name != recipe.base}
    return _task_arithmetic(dict.fromkeys(models, 1.0 + float(number(rule, "alpha"))))


def _fedlaw(rule: Rule, tensor: TensorInfo, n_layers: int, recipe: Recipe) -> Rule:
    del tensor, n_layers
    models = [p.name for p in recipe.parents if not rule.per_parent or p.name in rule.per_parent]
    shares = softmax([float(number(rule, "logit", p)) for p in models])
    gamma = float(number(rule, "gamma"))
    weights = {p: {"weight": gamma * share} for p, share in zip(models, shares, strict=True)}
    return Rule("linear", {"normalize": False}, weights)


_OWN: Final[Mapping[str, Callable[[Rule, TensorInfo, int, Recipe], Rule]]] = {
    "lines": _lines,
    "expo": _expo,
    "fedlaw": _fedlaw,
}


def translated(recipe: Recipe, layout: Layout) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe in mergekit's methods as far as it goes, and a line for people about each method that was replaced."""
    names = sorted({rule.method for rule in recipe.rules} & set(_OWN))
    if not names:
        return recipe, ()
    found: dict[str, Rule] = {}
    for tensor in layout.tensors:
        rule = recipe.rule_for(tensor)
        own = _OWN.get(rule.method)
        found[tensor.name] = rule if own is None else own(rule, tensor, layout.n_layers, recipe)
    methods = {rule.method for rule in found.values()}
    if len(methods) > 1:
        return recipe, ()
    assignments = {name: Assignment.of(rule.shared, rule.per_parent) for name, rule in found.items()}
    (method,) = methods
    rules = rules_of_tensors(method, layout, assignments)
    return replace(recipe, rules=rules), tuple(f"{name} is written as {method}, the same sum." for name in names)

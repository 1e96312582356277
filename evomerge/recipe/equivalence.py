"""When a rule is nothing but a weighted sum of its parents: the common ground on which methods can be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from evomerge.recipe.methods import BUILTIN
from evomerge.recipe.recipe import Number, Recipe, Rule

Coefficients = Mapping[str, float]
"""Parent -> its coefficient c, so that the merged tensor is the sum of c * parent; zeros are left out."""


def number(rule: Rule, parameter: str, parent: str | None = None) -> Number:
    """The value of a built-in method's parameter, or its default; a parent without a weight has weight 0.

    Args:
        rule: of a built-in method.
        parameter: a parameter of that method.
        parent: whose value, for a parameter that every parent has.
    """
    default = BUILTIN[rule.method].parameters[parameter].default
    values = rule.shared if parent is None else rule.per_parent.get(parent, {})
    return values.get(parameter, 0.0 if default is None else default)


def _weights(rule: Rule) -> dict[str, float]:
    weights = {p: float(number(rule, "weight", p)) for p in rule.per_parent}
    return {p: w for p, w in weights.items() if w != 0.0}


def nearly_cancel(weights: Iterable[float]) -> bool:
    """Whether the sum of the weights is less than a tenth of the sum of their magnitudes: no divisor to rely on."""
    known = list(weights)
    return abs(sum(known)) < 0.1 * sum(abs(w) for w in known)


def _normalised(rule: Rule, weights: Mapping[str, float]) -> dict[str, float] | None:
    """The weights, divided by their sum when the rule says so; None where weights of both signs nearly cancel.

    (There the default arithmetic keeps the divisor away from zero, and mergekit's does not.)
    """
    if not weights or not number(rule, "normalize"):
        return dict(weights)
    total = sum(weights.values())
    if len(weights) == 1:
        return dict.fromkeys(weights, 1.0)
    return None if nearly_cancel(weights.values()) else {p: w / total for p, w in weights.items()}


def _linear(rule: Rule, base: str | None, parents: Sequence[str]) -> dict[str, float] | None:
    del base, parents
    weights = _weights(rule)
    return _normalised(rule, weights) if weights else None


def _slerp(rule: Rule, base: str | None, parents: Sequence[str]) -> dict[str, float] | None:
    del base
    t = float(number(rule, "t"))
    if t not in (0.0, 1.0):
        return None
    return {parents[int(t)]: 1.0}


def _deltas(rule: Rule, base: str | None, parents: Sequence[str]) -> dict[str, float] | None:
    """Base plus lambda times a weighted sum, where nothing is dropped and no sign is elected against anybody."""
    del parents
    weights = {p: w for p, w in _weights(rule).items() if p != base}
    parameters = BUILTIN[rule.method].parameters
    if "density" in parameters and any(float(number(rule, "density", p)) < 1.0 for p in weights):
        return None
    if rule.method in ("ties", "dare_ties") and len(weights) > 1:
        return None
    scaled = _normalised(rule, weights)
    if scaled is None or base is None:
        return None
    strength = float(number(rule, "lambda"))
    coefficients = {p: strength * w for p, w in scaled.items()}
    rest = 1.0 - sum(coefficients.values())
    return {p: c for p, c in {base: rest, **coefficients}.items() if c != 0.0}


_SUMS: Final[Mapping[str, Callable[[Rule, str | None, Sequence[str]], dict[str, float] | None]]] = {
    "linear": _linear,
    "slerp": _slerp,
    "task_arithmetic": _deltas,
    "ties": _deltas,
    "dare_linear": _deltas,
    "dare_ties": _deltas,
}


def linear_coefficients(rule: Rule, base: str | None, parents: Sequence[str]) -> Coefficients | None:
    """The coefficients of the weighted sum that the rule amounts to, in exact arithmetic; None when it is not one.

    A density of 1 drops nothing, one model alone wins every election, and slerp ends at its parents; normalised weights
    that cancel are no weighted sum. Plug-in methods are never taken for one.

    Args:
        rule: of any method.
        base: the recipe's base.
        parents: names of the recipe's parents, in order.
    """
    sums = _SUMS.get(rule.method)
    return sums(rule, base, parents) if sums is not None else None


def the_only_parent(recipe: Recipe) -> str | None:
    """The parent that the whole recipe amounts to; None when it is a real merge."""
    names = [p.name for p in recipe.parents]
    found = {tuple((linear_coefficients(rule, recipe.base, names) or {}).items()) for rule in recipe.rules}
    if len(found) != 1:
        return None
    (items,) = found
    return items[0][0] if len(items) == 1 and items[0][1] == 1.0 else None

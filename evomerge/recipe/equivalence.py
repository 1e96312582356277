"""When a rule is nothing but a weighted sum of its parents: the common ground on which methods can be compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from evomerge.recipe.methods import BUILTIN
from evomerge.recipe.recipe import Number, Recipe, Rule
from evomerge.recipe.shares import softmax

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


_ELECTING: Final = ("ties", "dare_ties", "della", "breadcrumbs_ties")


def _deltas(rule: Rule, base: str | None, parents: Sequence[str]) -> dict[str, float] | None:
    """Base plus lambda times a weighted sum, where nothing is dropped and no sign is elected against anybody."""
    del parents
    weights = {p: w for p, w in _weights(rule).items() if p != base}
    if _drops(rule, weights) or (rule.method in _ELECTING and len(weights) > 1):
        return None
    scaled = _normalised(rule, weights)
    if scaled and rule.method in _ELECTING and number(rule, "normalize"):
        scaled = {p: math.copysign(1.0, w) for p, w in weights.items()}  # means of the elected divide by magnitudes
    return None if scaled is None else _on_base(base, scaled, float(number(rule, "lambda")))


def _drops(rule: Rule, parents: Iterable[str]) -> bool:
    """Whether the rule leaves entries of these parents' deltas out."""
    parameters = BUILTIN[rule.method].parameters
    thinned = "density" in parameters and any(float(number(rule, "density", p)) < 1.0 for p in parents)
    return thinned or ("gamma" in parameters and any(float(number(rule, "gamma", p)) > 0.0 for p in parents))


def _on_base(base: str | None, weights: Mapping[str, float], strength: float) -> dict[str, float] | None:
    """`base + strength sum_i w_i (x_i - base)` as coefficients of the models."""
    if base is None:
        return None
    coefficients = {p: strength * w for p, w in weights.items()}
    rest = 1.0 - sum(coefficients.values())
    return {p: c for p, c in {base: rest, **coefficients}.items() if c != 0.0}


def _merged(rule: Rule, base: str | None, parents: Sequence[str]) -> list[str]:
    """The models that a rule merges: those it names, else all but the base."""
    return list(rule.per_parent) or [p for p in parents if p != base]


def _passthrough(rule: Rule, base: str | None, parents: Sequence[str]) -> dict[str, float] | None:
    names = list(rule.per_parent) or list(parents)
    if len(names) > 1:
        names = [p for p in names if p != base]
    scales = {p: float(number(rule, "scale", p)) for p in names}
    return scales if len(names) == 1 and all(scales.values()) else None


def _sphere(rule: Rule, base: str | None, parents: Sequence[str]) -> dict[str, float] | None:
    """A mean on the sphere is a sum of known coefficients only where one model alone takes part."""
    if rule.method == "karcher":
        names = list(rule.per_parent) or list(parents)
        return {names[0]: 1.0} if len(names) == 1 else None
    weights = _weights(rule)
    if len(weights) != 1:
        return None
    if rule.method == "multislerp" and not number(rule, "normalize_weights"):
        return dict(weights) if base is None else _on_base(base, weights, 1.0)
    return dict.fromkeys(weights, 1.0)


def _fedlaw(rule: Rule, base: str | None, parents: Sequence[str]) -> dict[str, float] | None:
    del base
    names = _merged(rule, None, parents)
    shares = softmax([float(number(rule, "logit", p)) for p in names])
    gamma = float(number(rule, "gamma"))
    return {p: gamma * share for p, share in zip(names, shares, strict=True) if gamma * share != 0.0}


def _expo(rule: Rule, base: str | None, parents: Sequence[str]) -> dict[str, float] | None:
    names = _merged(rule, base, parents)
    return _on_base(base, dict.fromkeys(names, 1.0), 1.0 + float(number(rule, "alpha"))) if len(names) == 1 else None


def _lines(rule: Rule, base: str | None, parents: Sequence[str]) -> dict[str, float] | None:
    """The same sum in every layer only where the strength does not grow."""
    del parents
    weights = _weights(rule)
    if float(number(rule, "beta")) != 0.0 and weights:
        return None
    return _on_base(base, weights, float(number(rule, "alpha")))


def _metagpt(rule: Rule, base: str | None, parents: Sequence[str]) -> dict[str, float] | None:
    names = _merged(rule, base, parents)
    return _on_base(base, dict.fromkeys(names, 1.0), float(number(rule, "lambda"))) if len(names) == 1 else None


def _stitch(rule: Rule, base: str | None, parents: Sequence[str]) -> dict[str, float] | None:
    weights = {p: float(number(rule, "weight", p)) for p in _merged(rule, base, parents)}
    known = {p: w for p, w in weights.items() if w != 0.0}
    if _drops(rule, known):
        return None
    total = sum(abs(w) for w in known.values())
    return _on_base(base, {p: w / total for p, w in known.items()}, float(number(rule, "lambda")))


def _universal(rule: Rule, base: str | None, parents: Sequence[str]) -> dict[str, float] | None:
    """Task arithmetic, where every operator is at its neutral value and nothing is trimmed."""
    del parents
    weights = {p: w for p, w in _weights(rule).items() if p != base}
    shared = ("election", "sharpness", "norm")
    operates = any(float(number(rule, name)) != 0.0 for name in shared)
    if operates or base is None or any(float(number(rule, "density", p)) < 1.0 for p in weights):
        return None
    strength = float(number(rule, "lambda"))
    coefficients = {p: strength * w for p, w in weights.items()}
    rest = 1.0 - sum(coefficients.values())
    return {p: c for p, c in {base: rest, **coefficients}.items() if c != 0.0}


_SUMS: Final[Mapping[str, Callable[[Rule, str | None, Sequence[str]], dict[str, float] | None]]] = {
    "linear": _linear,
    "slerp": _slerp,
    "task_arithmetic": _deltas,
    "ties": _deltas,
    "dare_linear": _deltas,
    "dare_ties": _deltas,
    "della": _deltas,
    "della_linear": _deltas,
    "breadcrumbs": _deltas,
    "breadcrumbs_ties": _deltas,
    "passthrough": _passthrough,
    "nuslerp": _sphere,
    "multislerp": _sphere,
    "karcher": _sphere,
    "fedlaw": _fedlaw,
    "expo": _expo,
    "lines": _lines,
    "metagpt": _metagpt,
    "localize_and_stitch": _stitch,
    "universal": _universal,
}


def linear_coefficients(rule: Rule, base: str | None, parents: Sequence[str]) -> Coefficients | None:
    """The coefficients of the weighted sum that the rule amounts to, in exact arithmetic; None when it is not one.

    A density of 1 drops nothing, one model alone wins every election, and slerp ends at its parents; normalised weights
    that cancel are no weighted sum, and neither is what depends on norms and angles of the models. Plug-in methods are
    never taken for one.

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

"""The YAML language of search spaces (docs/spaces.md), from a parsed mapping to a `MergeSpace`.

Every problem is a `SpaceError` that names the path inside the mapping, and the line where the caller knows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from evomerge.errors import suggest
from evomerge.layout import Layout
from evomerge.recipe.methods import MethodSpec, method_names, method_spec
from evomerge.space.at import At, LineOf, check_keys, mapping_at, no_line, number_at
from evomerge.space.merge_space import MergeSpace
from evomerge.space.parameter import parse_depth, parse_modules, parse_parameter

KINDS: Final = ("merge",)
KEYS: Final = ("kind", "about", "method", "depth", "modules", "parameters", "starts")
DEFAULT_STARTS: Final = (0.3, 0.5, 0.7)


def parse_space(
    mapping: object, *, models: Sequence[str], base: str | None, layout: Layout, line_of: LineOf | None = None
) -> MergeSpace:
    """The search space that a YAML mapping describes, for these parents.

    Args:
        mapping: what the YAML says, in plain Python values.
        models: names of the parents that are merged, in order.
        base: name of the parent that deltas can be taken from, or None.
        layout: of the parents' architecture.
        line_of: path of keys and indices -> line in the file, for messages.

    Raises:
        SpaceError: for anything that is not understood, naming its path; in this order: the kind, unknown keys, the
            method, the parents, depth, modules, parameters, starts, nothing to search.
        PluginError: when a plug-in's method does not load.
    """
    at = At((), line_of or no_line)
    whole = mapping_at(mapping, at)
    kind = whole.get("kind", "merge")
    if kind not in KINDS:
        raise (at / "kind").problem("the kind is unknown.", repr(kind), suggest(str(kind), KINDS))
    return _merge_space(whole, tuple(models), base, layout, at)


def _merge_space(
    mapping: Mapping[str, Any], models: tuple[str, ...], base: str | None, layout: Layout, at: At
) -> MergeSpace:
    check_keys(mapping, KEYS, at)
    about = mapping.get("about", "")
    if not isinstance(about, str):
        raise (at / "about").problem("the description is not text.", repr(about), "one line of text")
    method = _method(mapping.get("method"), at / "method")
    _check_parents(method, models, base, at / "method")
    depth = parse_depth(mapping.get("depth", "each"), at / "depth")
    groups = parse_modules(mapping.get("modules", "together"), layout, at / "modules")
    given = mapping_at(mapping.get("parameters", {}), at / "parameters")
    check_keys(given, tuple(method.parameters), at / "parameters")
    plans = tuple(
        parse_parameter(
            name, given.get(name), at / "parameters" / name, spec=spec, depth=depth, groups=groups, layout=layout
        )
        for name, spec in method.parameters.items()
    )
    strengths = _starts(mapping.get("starts"), base, at / "starts")
    space = MergeSpace(method, models, base if method.needs_base else None, layout, plans, strengths)
    if not space.genes:
        raise (at / "parameters").problem(
            "every parameter is fixed, so there is nothing to search.",
            "no range",
            "at least one parameter with a range, such as {low: 0, high: 1.5}",
        )
    return space


def _method(value: object, at: At) -> MethodSpec:
    names = method_names()
    if not isinstance(value, str) or value not in names:
        state = "the method is missing." if value is None else "the method is unknown."
        raise at.problem(state, repr(value), suggest(str(value), names))
    return method_spec(value)


def _check_parents(method: MethodSpec, models: tuple[str, ...], base: str | None, at: At) -> None:
    if method.needs_base and base is None:
        raise at.problem(
            f"{method.name} takes deltas from a base, and there is none.",
            method.name,
            "parents with a base, or a method that needs none (linear, slerp)",
            "name the common ancestor in parents.base.",
        )
    if len(models) < method.min_models or (method.max_models is not None and len(models) > method.max_models):
        raise at.problem(
            f"{method.name} does not merge this many models.",
            f"{len(models)} models ({', '.join(models)})",
            f"{method.models_allowed()} models",
            "choose another method, or other parents.models.",
        )


def _starts(value: object, base: str | None, at: At) -> tuple[float, ...]:
    if value is None:
        return DEFAULT_STARTS if base is not None else ()
    if not isinstance(value, list):
        raise at.problem("the starts are not understood.", repr(value), "a list of strengths such as [0.3, 0.5, 0.7]")
    if value and base is None:
        raise at.problem("task arithmetic needs a base.", repr(value), "starts only where parents.base is given")
    return tuple(number_at(strength, at / i) for i, strength in enumerate(value))

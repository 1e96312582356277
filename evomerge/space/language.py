"""The YAML language of search spaces (docs/spaces.md), from a parsed mapping to the space.

Every problem is a `SpaceError` that names the path inside the mapping, and the line where the caller knows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from evomerge.errors import suggest
from evomerge.layout import Layout
from evomerge.recipe.method_spec import MethodSpec
from evomerge.recipe.methods import method_names, method_spec
from evomerge.space.at import At, LineOf, check_keys, mapping_at, no_line, number_at
from evomerge.space.base import CandidateSpace
from evomerge.space.both import BothSpace
from evomerge.space.merge_space import MergeSpace
from evomerge.space.method_choice import check_said, choices_of, method_plan, together
from evomerge.space.parameter import parse_depth, parse_modules, parse_parameter
from evomerge.space.path_language import Cast, check_about, parse_path
from evomerge.space.steps import MERGED

KINDS: Final = ("merge", "path", "both")
KEYS: Final = ("kind", "about", "method", "depth", "modules", "parameters", "starts")
DEFAULT_STARTS: Final = (0.3, 0.5, 0.7)


def parse_space(
    mapping: object, *, models: Sequence[str], base: str | None, layout: Layout, line_of: LineOf | None = None
) -> CandidateSpace:
    """The search space that a YAML mapping describes, for these parents.

    Args:
        mapping: what the YAML says, in plain Python values.
        models: names of the parents that are merged, in order.
        base: name of the parent that deltas can be taken from, or None.
        layout: of the parents' architecture.
        line_of: path of keys and indices -> line in the file, for messages.

    Raises:
        SpaceError: for anything that is not understood, naming its path; in this order: the kind, unknown keys; of
            merges the method, the parents, depth, modules, parameters, starts, nothing to search; of paths see
            `parse_path`; of both the merge, then the path.
        PluginError: when a plug-in's method does not load.
    """
    at = At((), line_of or no_line)
    whole = mapping_at(mapping, at)
    kind = whole.get("kind", "merge")
    if kind not in KINDS:
        raise (at / "kind").problem("the kind is unknown.", repr(kind), suggest(str(kind), KINDS))
    cast = Cast(tuple(models), base, layout.n_layers)
    if kind == "path":
        return parse_path(whole, cast, at)
    if kind == "both":
        return _both(whole, cast, layout, at)
    return _merge_space(whole, cast.models, base, layout, at)


def _both(mapping: Mapping[str, Any], cast: Cast, layout: Layout, at: At) -> BothSpace:
    check_keys(mapping, ("kind", "about", "merge", "path"), at)
    check_about(mapping, at)
    parts = {}
    for part in ("merge", "path"):
        if part not in mapping:
            raise (at / part).problem(f"the {part} is missing.", "nothing", f"a search space of kind {part}")
        parts[part] = mapping_at(mapping[part], at / part)
        kind = parts[part].get("kind", part)
        if kind != part:
            raise (at / part / "kind").problem("this part is of another kind.", repr(kind), part)
    merge = _merge_space(parts["merge"], cast.models, cast.base, layout, at / "merge")
    default = (MERGED, *cast.models)
    path = parse_path(parts["path"], replace(cast, default=default), at / "path")
    if MERGED not in (path.plan.sources or ()):
        raise (at / "path" / "sources").problem(
            "the path runs nothing of the merge.", str(parts["path"].get("sources")), f"sources with `{MERGED}`"
        )
    return BothSpace(merge, path.plan)


def _merge_space(
    mapping: Mapping[str, Any], models: tuple[str, ...], base: str | None, layout: Layout, at: At
) -> MergeSpace:
    check_keys(mapping, KEYS, at)
    check_about(mapping, at)
    wanted = mapping.get("method")
    choices = choices_of(wanted, at / "method") if isinstance(wanted, Mapping) else ()
    method = together(choices) if choices else _method(wanted, at / "method")
    _check_parents(method, models, base, at / "method")
    depth = parse_depth(mapping.get("depth", "each"), at / "depth")
    groups = parse_modules(mapping.get("modules", "together"), layout, at / "modules")
    given = mapping_at(mapping.get("parameters", {}), at / "parameters")
    check_keys(given, tuple(method.parameters), at / "parameters")
    check_said(choices, given, at / "parameters")
    plans = tuple(
        parse_parameter(
            name, given.get(name), at / "parameters" / name, spec=spec, depth=depth, groups=groups, layout=layout
        )
        for name, spec in method.parameters.items()
        if not choices or given.get(name) is not None  # each method has its own default
    )
    if choices and isinstance(wanted, Mapping):
        plan = method_plan(wanted, choices, at / "method", depth=depth, groups=groups, layout=layout)
        plans = (plan, *plans)
    strengths = _starts(mapping.get("starts"), base, at / "starts")
    space = MergeSpace(method, models, method.base_of(base), layout, plans, strengths, choices)
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

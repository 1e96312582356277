"""Spaces in which a gene chooses the merge method, for each group of layers and modules on its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from evomerge.errors import suggest
from evomerge.layout import Layout
from evomerge.recipe.method_spec import MethodSpec, ParameterSpec
from evomerge.recipe.methods import BUILTIN
from evomerge.space.at import At, check_keys
from evomerge.space.depth import Depth, Groups
from evomerge.space.dimensions import Choice
from evomerge.space.parameter import parse_depth, parse_modules
from evomerge.space.plan import METHOD_SLOT, ParameterPlan

CHOOSING_KEYS: Final = ("choices", "start", "depth", "modules")


def choices_of(value: Mapping[str, Any], at: At) -> tuple[MethodSpec, ...]:
    """The methods of `method: {choices: [...]}`.

    Raises:
        SpaceError: for fewer than two, unknown or repeated ones, and methods that cannot stand beside others in one
            recipe: those that neither take a base nor name their models (slerp, karcher).
    """
    check_keys(value, CHOOSING_KEYS, at)
    names = value.get("choices")
    if not isinstance(names, list) or len(names) < 2:
        raise (at / "choices").problem("a list of methods is expected.", repr(names), "two or more methods")
    found: list[MethodSpec] = []
    for i, name in enumerate(names):
        spec = BUILTIN.get(name) if isinstance(name, str) else None
        if spec is None or spec in found:
            state = "a method stands twice." if spec else "the method is unknown."
            raise (at / "choices" / i).problem(state, repr(name), suggest(str(name), BUILTIN))
        if not spec.needs_base and not spec.per_parent():
            raise (at / "choices" / i).problem(
                "this method merges all parents alike, the base too, so it cannot stand beside others.",
                repr(name),
                "methods that take a base, or give every model a parameter",
            )
        found.append(spec)
    return tuple(found)


def together(methods: Sequence[MethodSpec]) -> MethodSpec:
    """What several methods ask for together: every parameter once, the narrowest bounds, no common defaults."""
    parameters: dict[str, ParameterSpec] = {}
    for method in methods:
        for name, spec in method.parameters.items():
            known = parameters.get(name, spec)
            low, high = max(known.low, spec.low), min(known.high, spec.high)
            parameters[name] = ParameterSpec(spec.per_parent, spec.kind, None, low, high)
    most = [m.max_models for m in methods if m.max_models is not None]
    return MethodSpec(
        name="|".join(m.name for m in methods),
        needs_base=any(m.needs_base for m in methods),
        min_models=max(m.min_models for m in methods),
        max_models=min(most, default=None),
        parameters=parameters,
        random=any(m.random for m in methods),
    )


def method_plan(
    value: Mapping[str, Any], methods: Sequence[MethodSpec], at: At, *, depth: Depth, groups: Groups, layout: Layout
) -> ParameterPlan:
    """The plan of the gene that chooses the method.

    Args:
        value: what stands at `method`.
        methods: as `choices_of` found them.
        at: where it stands.
        depth: where it names no depth of its own.
        groups: where it names no modules of its own.
        layout: of the parents.

    Raises:
        SpaceError: for a start that is no choice, and depth or modules that are not understood; names cannot be
            interpolated.
    """
    names = tuple(m.name for m in methods)
    start = value.get("start", names[0])
    if start not in names:
        raise (at / "start").problem("the start is not among the choices.", repr(start), suggest(str(start), names))
    depth = parse_depth(value["depth"], at / "depth") if "depth" in value else depth
    groups = parse_modules(value["modules"], layout, at / "modules") if "modules" in value else groups
    if depth.kind == "knots":
        raise (at / "depth").problem(
            "methods cannot be interpolated.", depth.describe(), "model, each or {blocks: N} for methods"
        )
    name = METHOD_SLOT.parameter
    return ParameterPlan(name, per_parent=False, searched=Choice(name, names, start), depth=depth, groups=groups)


def check_said(methods: Sequence[MethodSpec], given: Mapping[str, Any], at: At) -> None:
    """Refuse a space that leaves out a parameter for which some method has no default.

    Raises:
        SpaceError: naming the parameter and the method.
    """
    for method in methods:
        for name, spec in method.parameters.items():
            if spec.default is None and given.get(name) is None:
                raise (at / name).problem(
                    f"the parameter {name!r} is missing, which {method.name} needs.",
                    "nothing",
                    f"a range or {spec.allowed}",
                )

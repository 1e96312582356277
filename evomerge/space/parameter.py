"""One parameter of a search space: fixed, a range or choices, over some depth and modules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Final

from evomerge.errors import suggest
from evomerge.layout import Layout
from evomerge.recipe.method_spec import ParameterSpec
from evomerge.recipe.recipe import Number
from evomerge.space.at import At, check_keys, line_is_told, mapping_at, number_at
from evomerge.space.depth import MODULES, Depth, Groups, Module, sites_of
from evomerge.space.dimensions import Choice, Gate, Real
from evomerge.space.plan import ParameterPlan, Searched

RANGE_KEYS: Final = ("low", "high", "start", "step", "scale", "spread", "depth", "modules")
CHOICE_KEYS: Final = ("choices", "start", "depth", "modules")
_FRACTION: Final = re.compile(r"\d{1,9}/[1-9]\d{0,8}")


def parse_depth(value: object, at: At) -> Depth:
    """What `depth:` says.

    Raises:
        SpaceError: when it is not understood.
    """
    allowed = "model, each, {knots: N} or {blocks: N} with N >= 1"
    if value == "model":
        return Depth("model")
    if value == "each":
        return Depth("each")
    if isinstance(value, Mapping) and len(value) == 1:
        kind, count = next(iter(value.items()))
        if kind in ("knots", "blocks"):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise (at / kind).problem("the number of controls is unusable.", repr(count), "a whole number >= 1")
            return Depth("knots" if kind == "knots" else "blocks", count)
    raise at.problem("the depth is not understood.", repr(value), allowed)


def parse_modules(value: object, layout: Layout, at: At) -> Groups:
    """What `modules:` says, without the modules that this architecture has not.

    Raises:
        SpaceError: when it is not understood, names a module twice, or leaves out one that the architecture has.
    """
    present = {site.module for site in sites_of(layout)}
    if value == "together":
        return ()
    if value == "apart":
        whole: Groups = (("attention",), ("mlp", "other"), ("norm",), ("embedding",), ("head",))
    else:
        whole = _module_groups(value, at)
    named = [m for group in whole for m in group]
    missing = [m for m in MODULES if m in present and m not in named]
    if missing:
        raise at.problem(
            "some modules of this architecture are in no group.",
            f"without {', '.join(missing)}",
            f"every module once: {', '.join(m for m in MODULES if m in present)}",
            f"add [{', '.join(missing)}] to {at.dotted}.",
        )
    return tuple(left for group in whole if (left := tuple(m for m in group if m in present)))


def _module_groups(value: object, at: At) -> Groups:
    if not isinstance(value, list) or not all(isinstance(group, list) and group for group in value):
        raise at.problem(
            "the modules are not understood.", repr(value), "together, apart, or a list of lists of modules"
        )
    seen: set[str] = set()
    groups: list[tuple[Module, ...]] = []
    for i, group in enumerate(value):
        names: list[Module] = []
        for j, name in enumerate(group):
            known = [m for m in MODULES if m == name]
            if not known or name in seen:
                state = "a module stands twice." if known else "a module is unknown."
                raise (at / i / j).problem(state, repr(name), suggest(str(name), MODULES))
            seen.add(name)
            names += known
        groups.append(tuple(names))
    return tuple(groups)


def parse_parameter(
    name: str, value: object, at: At, *, spec: ParameterSpec, depth: Depth, groups: Groups, layout: Layout
) -> ParameterPlan:
    """What `parameters.NAME:` says.

    Args:
        name: the parameter.
        value: a plain value (fixed), a mapping with a range or choices (searched), or None (the method's default).
        at: where it stands.
        spec: what the method says about it.
        depth: where the parameter names no depth of its own.
        groups: where it names no modules of its own.
        layout: of the parents.

    Raises:
        SpaceError: when it is missing though the method has no default, then for whatever is not understood.
    """
    if value is None:
        if spec.default is None:
            raise at.problem(f"the parameter {name!r} is missing.", "nothing", f"a range or {spec.allowed}")
        return ParameterPlan(name, spec.per_parent, fixed=spec.default)
    if not isinstance(value, Mapping):
        return ParameterPlan(name, spec.per_parent, fixed=_fixed(value, spec, at))
    keys = CHOICE_KEYS if spec.kind == "flag" or "choices" in value else RANGE_KEYS
    check_keys(mapping_at(value, at), keys, at)
    if "depth" in value:
        depth = parse_depth(value["depth"], at / "depth")
    if "modules" in value:
        groups = parse_modules(value["modules"], layout, at / "modules")
    searched = _choice(value, spec, at) if keys == CHOICE_KEYS else _range(value, spec, at)
    if depth.kind == "knots" and not isinstance(searched, Real):
        raise (at / "depth").problem(
            "choices cannot be interpolated.", depth.describe(), "model, each or {blocks: N} for choices"
        )
    return ParameterPlan(name, spec.per_parent, searched=searched, depth=depth, groups=groups)


def _fixed(value: object, spec: ParameterSpec, at: At) -> Number:
    if not spec.accepts(value):
        raise at.problem("a value is not legal.", repr(value), spec.allowed)
    return value if isinstance(value, bool) else float(value)


def _choice(value: Mapping[str, Any], spec: ParameterSpec, at: At) -> Searched:
    choices = value.get("choices")
    if not isinstance(choices, list):
        raise (at / "choices").problem("a list of choices is expected.", repr(choices), "two or more values")
    options = tuple(_fixed(option, spec, at / "choices" / i) for i, option in enumerate(choices))
    start = _fixed(value["start"], spec, at / "start") if "start" in value else options[0] if options else None
    with line_is_told(at):
        choice = Choice(at.dotted, options, start)
    return Gate(at.dotted, start=bool(start)) if spec.kind == "flag" else choice


def _range(value: Mapping[str, Any], spec: ParameterSpec, at: At) -> Searched:
    for key in ("low", "high"):
        if key not in value:
            raise (at / key).problem(f"{key!r} is missing.", "nothing", spec.allowed)
        _fixed(number_at(value[key], at / key), spec, at / key)
    scale = value.get("scale", "linear")
    if scale not in ("linear", "log"):
        raise (at / "scale").problem("the scale is unknown.", repr(scale), suggest(str(scale), ("linear", "log")))
    default_step = 0.01 if scale == "linear" else 0.05
    with line_is_told(at):
        return Real(
            name=at.dotted,
            low=number_at(value["low"], at / "low"),
            high=number_at(value["high"], at / "high"),
            step=parse_step(value.get("step", default_step), at / "step"),
            scale=scale,
            start=number_at(value["start"], at / "start") if "start" in value else None,
            spread=number_at(value["spread"], at / "spread") if "spread" in value else None,
        )


def parse_step(value: object, at: At) -> float:
    """A number, or a fraction such as `1/60` whose multiples hold thirds and quarters exactly.

    Raises:
        SpaceError: when it is neither.
    """
    if isinstance(value, str) and _FRACTION.fullmatch(value):
        return float(Fraction(value))
    return number_at(value, at)

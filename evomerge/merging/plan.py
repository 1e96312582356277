"""What a recipe does to every tensor, decided from headers alone; whatever does not fit is refused here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from evomerge.checkpoints.dtypes import FLOATING, safetensors_name, torch_dtype
from evomerge.errors import MergeError, RecipeError, suggest
from evomerge.layout import Role, TensorInfo
from evomerge.merging.compat import compat_dtype
from evomerge.merging.compat_rules import check_compat_rule
from evomerge.merging.methods import MergeMethod, Parameters, load_method
from evomerge.merging.parents import ParentPool
from evomerge.recipe.mergekit_specs import MERGEKIT_SPECS
from evomerge.recipe.method_spec import MethodSpec, bounds_of
from evomerge.recipe.path import check_layers
from evomerge.recipe.recipe import Compat, Number, Recipe, Rule

MERGEKIT_METHODS: Final = tuple(spec.name for spec in MERGEKIT_SPECS)
"""What `compat: mergekit` reproduces; where numbers are drawn, with evomerge's."""

_LARGEST: Final = 1 << 32


@dataclass(frozen=True)
class RulePlan:
    """A rule, checked and complete.

    Attributes:
        name: the method's.
        method: its implementation.
        base: name of the base, None where the method takes none.
        inputs: the merged parents, in the recipe's order.
        shared: parameter -> value, defaults filled in.
        per_parent: aligned with `inputs`.
    """

    name: str
    method: MergeMethod
    base: str | None
    inputs: tuple[str, ...]
    shared: Mapping[str, Number]
    per_parent: tuple[Mapping[str, Number], ...]


@dataclass(frozen=True)
class TensorPlan:
    """What happens to one tensor.

    Attributes:
        info: the template's tensor.
        dtype: of the result, safetensors spelling.
        rule: how it is merged; a tensor that is not floating is copied from the first of `sources` instead.
        seed: the recipe's.
        n_layers: of the model.
    """

    info: TensorInfo
    dtype: str
    rule: RulePlan
    seed: int
    n_layers: int = 0

    @property
    def copied(self) -> bool:
        """Whether the tensor is copied (integers and flags, which must be equal in all parents)."""
        return self.info.dtype not in FLOATING

    @property
    def sources(self) -> tuple[str, ...]:
        """Every parent that is read, the base first."""
        return self.rule.inputs if self.rule.base is None else (self.rule.base, *self.rule.inputs)

    @property
    def parameters(self) -> Parameters:
        """The method's parameters for this tensor."""
        rule, place = self.rule, (self.seed, self.info.layer, self.n_layers)
        return Parameters(self.info.name, rule.inputs, rule.shared, rule.per_parent, *place)


@dataclass(frozen=True)
class MergePlan:
    """A whole merge.

    Attributes:
        recipe: what is planned.
        template: the parent that gives names, shapes and stored dtypes: the base, or the first.
        tensors: in the template's order.
    """

    recipe: Recipe
    template: str
    tensors: tuple[TensorPlan, ...]

    @property
    def compat(self) -> Compat:
        """Whose arithmetic is followed."""
        return self.recipe.compat


def template_of(recipe: Recipe) -> str:
    """The parent whose names, shapes and dtypes the result has: the base, else the first parent."""
    return recipe.base or recipe.parents[0].name


def _refuse(what: str, got: str, allowed: str) -> RecipeError:
    return RecipeError(what, got=got, allowed=allowed, fix="correct the recipe's rule.")


def _value(spec: MethodSpec, name: str, values: Mapping[str, Number], where: str, *, compat: bool = False) -> Number:
    """A parameter's value or default.

    Raises:
        RecipeError: when it is missing or out of bounds.
    """
    parameter = bounds_of(spec, name, compat=compat)
    value = values.get(name, parameter.default)
    if value is None:
        raise _refuse(f"Method {spec.name!r} lacks a parameter.", f"no {name} {where}", parameter.allowed)
    if not isinstance(value, bool):
        value = float(value)
    if not parameter.accepts(value):
        raise _refuse(
            f"A parameter of method {spec.name!r} is out of bounds.", f"{name} = {value} {where}", parameter.allowed
        )
    return value


def _check_names(spec: MethodSpec, values: Mapping[str, Number], *, per_parent: bool, where: str) -> None:
    known = [n for n, p in spec.parameters.items() if p.per_parent == per_parent]
    for name in values:
        if name not in known:
            raise _refuse(f"Method {spec.name!r} has no such parameter.", f"{name} {where}", suggest(name, known))


def _inputs(recipe: Recipe, rule: Rule, spec: MethodSpec) -> tuple[str, ...]:
    """The parents that a rule merges, in the recipe's order."""
    base = spec.base_of(recipe.base)
    named = rule.per_parent or {p.name: {} for p in recipe.parents if base is None or p.name != base}
    inputs = [p.name for p in recipe.parents if p.name in named]
    too_many = spec.max_models is not None and len(inputs) > spec.max_models
    if too_many and not rule.per_parent:
        inputs = [n for n in inputs if n != recipe.base]
    if base is not None and base in inputs:
        raise _refuse(
            f"Method {spec.name!r} merges the base with itself.", repr(recipe.base), "parents other than the base"
        )
    if len(inputs) < spec.min_models or (spec.max_models is not None and len(inputs) > spec.max_models):
        raise _refuse(
            f"Method {spec.name!r} cannot merge this many models.",
            f"{len(inputs)}: {', '.join(inputs) or 'none'}",
            spec.models_allowed(),
        )
    return tuple(inputs)


def plan_rule(recipe: Recipe, rule: Rule, method: MergeMethod) -> RulePlan:
    """A rule, checked against its method's spec, with defaults.

    Raises:
        RecipeError: for unknown, missing or illegal parameters, a wrong number of models, a missing base, or a method
            that `compat: mergekit` does not know, or whose numbers mergekit stops at.
    """
    spec = method.spec
    if recipe.compat == "mergekit" and rule.method not in MERGEKIT_METHODS:
        raise _refuse(
            "compat: mergekit does not know a method.", repr(rule.method), suggest(rule.method, MERGEKIT_METHODS)
        )
    if spec.needs_base and recipe.base is None:
        raise _refuse(f"Method {spec.name!r} needs a base.", "a recipe without base", "the name of a parent")
    inputs = _inputs(recipe, rule, spec)
    _check_names(spec, rule.shared, per_parent=False, where="(shared)")
    for parent, values in rule.per_parent.items():
        _check_names(spec, values, per_parent=True, where=f"of parent {parent}")
    compat = recipe.compat == "mergekit"
    shared = {n: _value(spec, n, rule.shared, "(shared)", compat=compat) for n in spec.shared()}
    columns = tuple(
        {n: _value(spec, n, rule.per_parent.get(p, {}), f"of parent {p}") for n in spec.per_parent()} for p in inputs
    )
    if recipe.compat == "mergekit":
        check_compat_rule(rule.method, shared, columns, inputs)
    method.check(shared, columns)
    return RulePlan(rule.method, method, spec.base_of(recipe.base), inputs, shared, columns)


def _check_shapes(recipe: Recipe, pool: ParentPool) -> None:
    """All parents have the template's tensors.

    Raises:
        MergeError: naming the first difference.
    """
    template = template_of(recipe)
    wanted = {t.name: t for t in pool.checkpoint(template).layout.tensors}
    for parent in recipe.parents:
        if parent.name == template:
            continue
        found = {t.name: t for t in pool.checkpoint(parent.name).layout.tensors}
        odd = sorted(wanted.keys() ^ found.keys()) or [n for n in wanted if wanted[n].shape != found[n].shape]
        if odd:
            name = odd[0]
            shapes = [str(list(side[name].shape)) if name in side else "absent" for side in (found, wanted)]
            raise MergeError(
                "The parents do not have the same tensors.",
                got=f"{name}: {shapes[0]} in {parent.name}, {shapes[1]} in {template} ({len(odd)} differ)",
                allowed="the same names and shapes",
                fix="merge checkpoints of one architecture; `evomerge validate` lists every difference.",
            )


def plan_merge(recipe: Recipe, pool: ParentPool) -> MergePlan:
    """Decide every tensor of a merge, from headers only; a path is checked, and changes nothing here.

    Raises:
        MergeError: when a parent is not in the pool, or parents differ in tensors or shapes.
        RecipeError: when its path runs through layers that there are not.
        ConfigError: for an unknown method.
        RecipeError: when a rule does not fit its method, or a tensor is selected by no rule.
    """
    _check_shapes(recipe, pool)
    template = pool.checkpoint(template_of(recipe))
    layout, result_dtypes = template.layout, template.result_dtypes
    check_layers(recipe.path or (), layout.n_layers)
    methods = {name: load_method(name) for name in dict.fromkeys(rule.method for rule in recipe.rules)}
    plans = {id(rule): plan_rule(recipe, rule, methods[rule.method]) for rule in recipe.rules}
    stored = _stored_dtypes(recipe, pool) if recipe.compat == "mergekit" and recipe.dtype == "parent" else None
    by_name = any(rule.names is not None for rule in recipe.rules)
    decided: dict[tuple[int | None, Role, str], RulePlan] = {}
    tensors = []
    for info in layout.tensors:
        place = (info.layer, info.role, info.name if by_name else "")
        if place not in decided:
            decided[place] = plans[id(recipe.rule_for(info))]
        own = result_dtypes[info.name]
        dtype = _stored(recipe, replace(info, dtype=own), decided[place], stored)
        tensors.append(TensorPlan(info, dtype, decided[place], recipe.seed, layout.n_layers))
        _check_size(info)
    return MergePlan(recipe, template_of(recipe), tuple(tensors))


_Stored = Mapping[str, Mapping[str, str]]


def _stored_dtypes(recipe: Recipe, pool: ParentPool) -> _Stored:
    """Parent -> tensor -> safetensors dtype."""
    return {p.name: {t.name: t.dtype for t in pool.checkpoint(p.name).layout.tensors} for p in recipe.parents}


def _stored(recipe: Recipe, info: TensorInfo, rule: RulePlan, stored: _Stored | None) -> str:
    """The dtype of a result, safetensors spelling: the template's, the recipe's, or what mergekit gives the tensor.

    Args:
        recipe: the whole.
        info: the template's tensor.
        rule: what merges it.
        stored: of all parents, where mergekit decides; else None.

    Raises:
        MergeError: when only some parents hold weights here.
    """
    if info.dtype not in FLOATING:
        return info.dtype
    if stored is None:
        return info.dtype if recipe.dtype == "parent" else safetensors_name(recipe.dtype)
    if recipe.arithmetic != "stored":
        computed = [torch_dtype(safetensors_name(recipe.arithmetic))]
    else:
        sources = rule.inputs if rule.base is None else (rule.base, *rule.inputs)
        found = {parent: stored[parent][info.name] for parent in sources}
        odd = [f"{dtype} in {parent}" for parent, dtype in found.items() if dtype not in FLOATING]
        if odd:
            raise MergeError(
                "A tensor holds weights in one parent and integers or flags in another.",
                got=f"{info.name}: {', '.join(odd)}, {info.dtype} in the template",
                allowed="one kind in all parents",
                fix="leave one of them out.",
            )
        computed = [torch_dtype(dtype) for dtype in found.values()]
    return safetensors_name(compat_dtype(rule.name, computed, info.shape, len(rule.inputs)))


def _check_size(info: TensorInfo) -> None:
    n = 1
    for side in info.shape:
        n *= side
    if n > _LARGEST:
        raise MergeError(
            "A tensor has too many elements.",
            got=f"{info.name}: {n}",
            allowed="at most 2**32, which the element hash tells apart",
            fix="split the tensor.",
        )

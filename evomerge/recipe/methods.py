"""What each merge method asks for: parents, a base, and parameters. A pure table; the arithmetic is `merging`'s.

Names and defaults are mergekit 0.1.5's, so that a recipe reads alike in both programs. `models` are the parents that
are merged; the base, which only gives the origin of the deltas, is not counted among them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, TypeGuard

from evomerge.errors import PluginError
from evomerge.recipe.recipe import Number
from evomerge.registry import GROUP_METHODS, Registry

ParameterKind = Literal["real", "flag"]


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter of a method.

    Attributes:
        per_parent: every merged parent has its own value (`weight`, `density`); else one value for all.
        kind: a real number, or a flag (true or false).
        default: the value where a recipe names none; None when the recipe must name one.
        low: smallest legal value (reals only).
        high: largest legal value (reals only).
    """

    per_parent: bool
    kind: ParameterKind
    default: Number | None
    low: float = -math.inf
    high: float = math.inf

    def accepts(self, value: object) -> TypeGuard[Number]:
        """Whether `value` has the right type and lies within the bounds."""
        if self.kind == "flag" or isinstance(value, bool):
            return self.kind == "flag" and isinstance(value, bool)
        return isinstance(value, int | float) and math.isfinite(value) and self.low <= value <= self.high

    @property
    def allowed(self) -> str:
        """The `allowed` part of a message about this parameter."""
        if self.kind == "flag":
            return "true or false"
        if math.isinf(self.low) and math.isinf(self.high):
            return "a finite number"
        return f"a number in [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class MethodSpec:
    """What a recipe has to say to use a method.

    Attributes:
        name: as recipes and spaces write it.
        needs_base: deltas are taken from a base, which is not one of the merged models.
        min_models: fewest merged models.
        max_models: most merged models; None when there is no limit.
        parameters: by name, in the order in which they are shown.
        random: the result depends on the recipe's seed.
    """

    name: str
    needs_base: bool
    min_models: int
    max_models: int | None
    parameters: Mapping[str, ParameterSpec] = field(default_factory=dict)
    random: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))

    def __reduce__(self) -> tuple[object, ...]:
        """Mapping proxies do not cross process borders; their contents do."""
        values = (self.name, self.needs_base, self.min_models, self.max_models, dict(self.parameters), self.random)
        return (MethodSpec, values)

    def shared(self) -> tuple[str, ...]:
        """Names of the parameters that all parents share."""
        return tuple(n for n, p in self.parameters.items() if not p.per_parent)

    def per_parent(self) -> tuple[str, ...]:
        """Names of the parameters that every parent has."""
        return tuple(n for n, p in self.parameters.items() if p.per_parent)

    def models_allowed(self) -> str:
        """How many models may be merged, as text."""
        if self.max_models == self.min_models:
            return f"exactly {self.min_models}"
        return f"{self.min_models} or more" if self.max_models is None else f"{self.min_models} to {self.max_models}"


def _weight() -> ParameterSpec:
    return ParameterSpec(per_parent=True, kind="real", default=None)


def _density() -> ParameterSpec:
    return ParameterSpec(per_parent=True, kind="real", default=1.0, low=0.0, high=1.0)


def _flag(default: bool) -> ParameterSpec:
    return ParameterSpec(per_parent=False, kind="flag", default=default)


def _lambda() -> ParameterSpec:
    return ParameterSpec(per_parent=False, kind="real", default=1.0)


LINEAR: Final = MethodSpec(
    name="linear",
    needs_base=False,
    min_models=1,
    max_models=None,
    parameters={"weight": _weight(), "normalize": _flag(True)},
)
"""Weighted sum of the models, divided by the sum of the weights when `normalize`."""

SLERP: Final = MethodSpec(
    name="slerp",
    needs_base=False,
    min_models=2,
    max_models=2,
    parameters={"t": ParameterSpec(per_parent=False, kind="real", default=None, low=0.0, high=1.0)},
)
"""Along the great circle between two models: t = 0 is the first parent of the recipe, t = 1 the second.

A recipe of slerp has exactly two parents and no base. (mergekit calls the first one `base_model`.)
"""

TASK_ARITHMETIC: Final = MethodSpec(
    name="task_arithmetic",
    needs_base=True,
    min_models=1,
    max_models=None,
    parameters={"weight": _weight(), "normalize": _flag(False), "lambda": _lambda()},
)
"""Base plus lambda times the weighted sum of the deltas (Ilharco et al. 2023)."""

TIES: Final = MethodSpec(
    name="ties",
    needs_base=True,
    min_models=1,
    max_models=None,
    parameters={"weight": _weight(), "density": _density(), "normalize": _flag(True), "lambda": _lambda()},
)
"""Trim by magnitude, elect a sign, sum the deltas that agree (Yadav et al. 2023)."""

DARE_LINEAR: Final = MethodSpec(
    name="dare_linear",
    needs_base=True,
    min_models=1,
    max_models=None,
    parameters={
        "weight": _weight(),
        "density": _density(),
        "normalize": _flag(False),
        "rescale": _flag(True),
        "lambda": _lambda(),
    },
    random=True,
)
"""Drop deltas at random, rescale the rest, then task arithmetic (Yu et al. 2024)."""

DARE_TIES: Final = MethodSpec(
    name="dare_ties",
    needs_base=True,
    min_models=1,
    max_models=None,
    parameters=DARE_LINEAR.parameters,
    random=True,
)
"""Drop deltas at random, rescale the rest, then elect signs as TIES does."""

BUILTIN: Final[Mapping[str, MethodSpec]] = MappingProxyType(
    {spec.name: spec for spec in (LINEAR, SLERP, TASK_ARITHMETIC, TIES, DARE_LINEAR, DARE_TIES)}
)

_REGISTRY: Final = Registry(
    group=GROUP_METHODS,
    noun="merge method",
    builtin={name: f"evomerge.recipe.methods:{name.upper()}" for name in BUILTIN},
)


def method_names() -> list[str]:
    """Every method's name, built in and from plug-ins, sorted; imports no plug-in."""
    return _REGISTRY.names()


def method_spec(name: str) -> MethodSpec:
    """What the method `name` asks for.

    A plug-in's object (entry point group `evomerge.merge_methods`) has an attribute `spec`, a `MethodSpec`.

    Raises:
        ConfigError: for an unknown name, with the nearest match.
        PluginError: when a plug-in does not load, has no `spec`, or one that gives it another name.
    """
    if name in BUILTIN:
        return BUILTIN[name]
    loaded = _REGISTRY.load(name)
    spec = getattr(loaded, "spec", None)
    if isinstance(spec, MethodSpec) and spec.name != name:
        raise PluginError(
            f"The plug-in for the merge method {name!r} calls it something else.",
            got=f"spec.name = {spec.name!r}",
            allowed="the name of its entry point",
            fix="ask the plug-in's authors to use one name: recipes are read by it.",
        )
    if not isinstance(spec, MethodSpec):
        raise PluginError(
            f"The plug-in for the merge method {name!r} does not say what it asks for.",
            got=f"{type(loaded).__name__} with spec = {spec!r}",
            allowed="an object whose attribute `spec` is an evomerge.recipe.methods.MethodSpec",
            fix="ask the plug-in's authors for a version made for this evomerge.",
        )
    return spec

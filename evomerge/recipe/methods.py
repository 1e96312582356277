"""Merge methods by name: what each asks for. A pure table; the arithmetic is `merging`'s.

Names and defaults are mergekit 0.1.5's where it has the method, so that a recipe reads alike in both programs. `models`
are the parents that are merged; the base, which only gives the origin of the deltas, is not counted among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from evomerge.errors import PluginError
from evomerge.recipe.mergekit_specs import MERGEKIT_SPECS
from evomerge.recipe.method_spec import MethodSpec
from evomerge.recipe.paper_specs import PAPER_SPECS
from evomerge.registry import GROUP_METHODS, Registry

BUILTIN: Final[Mapping[str, MethodSpec]] = MappingProxyType(
    {spec.name: spec for spec in (*MERGEKIT_SPECS, *PAPER_SPECS)}
)

_REGISTRY: Final = Registry(
    group=GROUP_METHODS,
    noun="merge method",
    builtin=dict.fromkeys(BUILTIN, "evomerge.recipe.methods:BUILTIN"),
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
            allowed="an object whose attribute `spec` is an evomerge.recipe.method_spec.MethodSpec",
            fix="ask the plug-in's authors for a version made for this evomerge.",
        )
    return spec

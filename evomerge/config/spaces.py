"""Search spaces from plug-ins, and Python values as a job file could have said them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError, PluginError, suggest
from evomerge.registry import GROUP_SPACES, Registry
from evomerge.resources import preset_names


def space_plugins() -> Registry:
    """The plug-ins' search spaces; no plug-in may take a preset's name."""
    return Registry(GROUP_SPACES, "search space", {}, taken=tuple(preset_names("search_spaces")))


def plugin_space(name: str) -> dict[str, Any]:
    """The mapping that a plug-in's entry point is, or returns when called.

    Raises:
        ConfigError: when no plug-in has a space of that name, with the nearest match.
        PluginError: when it does not load, or is no mapping in the language of docs/spaces.md.
    """
    registry = space_plugins()
    known = [*registry.taken, *registry.names()]
    if name not in known:
        raise ConfigError(
            f"There is no search space {name!r}.",
            got=repr(name),
            allowed=suggest(name, known),
            fix="use one of these names, the path of a YAML file, or write the space into the job.",
        )
    loaded = registry.load(name)
    try:
        value = plain(loaded() if callable(loaded) else loaded)
    except (TypeError, ValueError) as error:
        raise _unusable(name, f"{type(error).__name__}: {error}") from error
    if not isinstance(value, dict):
        raise _unusable(name, type(value).__name__)
    return value


def _unusable(name: str, got: str) -> PluginError:
    return PluginError(
        f"The plug-in's search space {name!r} is not usable.",
        got=got,
        allowed="a mapping of plain values in the language of docs/spaces.md, or a callable without arguments that "
        "returns one",
        fix="ask the plug-in's authors for a version made for this evomerge.",
    )


def plain(value: Any) -> Any:
    """A copy in which mappings are dicts with text keys, sequences lists, and paths text.

    Raises:
        TypeError: for a value that a job file cannot say.
        ValueError: for a number that is not finite.
    """
    if isinstance(value, Mapping):
        odd = [key for key in value if not isinstance(key, str)]
        if odd:
            raise TypeError(f"the key {odd[0]!r} is not text")
        return {str(key): plain(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [plain(child) for child in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot stand in a job file")

"""Names of methods, makers, spaces, optimizers and evaluators: built in, or brought by an installed plug-in.

Built-ins stand in static tables of `"module:attribute"`, so that nothing heavy is imported before a name is used.
Plug-ins announce themselves by an entry point in one of the groups below. A plug-in that takes a built-in's name,
two that share one, or one that does not load, is an error that names its distribution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from evomerge.errors import ConfigError, EvomergeError, PluginError, suggest

GROUP_METHODS: Final = "evomerge.merge_methods"
GROUP_MAKERS: Final = "evomerge.makers"
GROUP_OPTIMIZERS: Final = "evomerge.optimizers"
GROUP_SPACES: Final = "evomerge.search_spaces"
GROUP_EVALUATORS: Final = "evomerge.evaluators"
GROUPS: Final = (GROUP_METHODS, GROUP_MAKERS, GROUP_OPTIMIZERS, GROUP_SPACES, GROUP_EVALUATORS)


def plugin_versions() -> dict[str, str]:
    """Distribution -> version of every installed plug-in of any group."""
    points = [p for group in GROUPS for p in entry_points(group=group)]
    return {p.dist.name: p.dist.version for p in sorted(points, key=_distribution) if p.dist is not None}


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown distribution"


@dataclass(frozen=True)
class Registry:
    """The names of one group.

    Attributes:
        group: entry-point group that plug-ins use.
        noun: what a name stands for, for messages ("optimizer").
        builtin: name -> `"module:attribute"`.
        taken: names that mean something else (`auto`, a preset): no plug-in may have them, and they do not load.
    """

    group: str
    noun: str
    builtin: Mapping[str, str]
    taken: tuple[str, ...] = ()

    def plugins(self) -> dict[str, EntryPoint]:
        """Installed plug-ins by name; none of them is imported.

        Raises:
            PluginError: when a plug-in takes a name that is taken.
        """
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=self.group):
            if point.name in self.builtin or point.name in self.taken or point.name in found:
                owner = _distribution(found[point.name]) if point.name in found else "evomerge"
                raise PluginError(
                    f"Two distributions bring a {self.noun} of the same name.",
                    got=f"{point.name!r} from {_distribution(point)} and from {owner}",
                    allowed="names that are used once",
                    fix=f"uninstall one of them, or ask the authors of {_distribution(point)} for another name.",
                )
            found[point.name] = point
        return found

    def names(self) -> list[str]:
        """Every name that loads, sorted."""
        return sorted([*self.builtin, *self.plugins()])

    def load(self, name: str) -> Any:
        """The object behind `name`, imported on first use.

        Raises:
            ConfigError: for an unknown name, with the nearest match.
            PluginError: when a plug-in's import fails, naming its distribution.
        """
        if name in self.builtin:
            module, attribute = self.builtin[name].split(":")
            return getattr(import_module(module), attribute)
        plugins = self.plugins()
        if name not in plugins:
            raise ConfigError(
                f"There is no {self.noun} {name!r}.",
                got=repr(name),
                allowed=suggest(name, self.names()),
                fix=f"use one of these names, or install the plug-in that brings {name!r}.",
            )
        try:
            return plugins[name].load()
        except EvomergeError:
            raise
        except (Exception, SystemExit) as error:  # somebody else's module may raise anything while it is imported
            raise PluginError(
                f"The plug-in for the {self.noun} {name!r} does not load.",
                got=f"{type(error).__name__}: {error} (from {_distribution(plugins[name])})",
                allowed="an importable object",
                fix=f"repair or uninstall {_distribution(plugins[name])}.",
            ) from error

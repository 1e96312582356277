"""Search spaces as a job names them: a preset, a file, a plug-in's, or inline; with the spaces inside them inlined."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from evomerge.config.problems import not_a_mapping
from evomerge.config.spaces import plain, plugin_space
from evomerge.config.texts import absolute, looks_like_path, read_text
from evomerge.digest import digest_text
from evomerge.errors import ConfigError
from evomerge.resources import preset_names, preset_path
from evomerge.strict_yaml import Document, dump_yaml, parse_yaml
from evomerge.strict_yaml import Path as YamlPath
from evomerge.types import Digest

_PARTS: Final = ("merge", "path")
"""Keys of a space of both kinds that may name a space, too."""


@dataclass(frozen=True)
class Origin:
    """Where an inlined part of the job came from, so that a later change of it is noticed.

    Attributes:
        name: the preset's name, the file's path, or `inline`.
        text: the file's text; empty for `inline`.
    """

    name: str
    text: str

    @property
    def digest(self) -> Digest:
        """sha256 of the text."""
        return digest_text(self.text)


@dataclass(frozen=True)
class SpaceText:
    """A search space before it is parsed for its parents.

    Attributes:
        document: its mapping, with the lines for messages.
        origin: where it came from.
    """

    document: Document
    origin: Origin

    @property
    def mapping(self) -> dict[str, Any]:
        """What the document says."""
        return dict(self.document.value)


def read_space(named: str | Mapping[str, Any], document: Document, at: YamlPath, folder: Path) -> SpaceText:
    """The space that stands at `at` in a job.

    Args:
        named: what stands there.
        document: the job.
        at: keys and indices of the place.
        folder: where relative paths start.

    Raises:
        ConfigError: for a name that is no preset and no plug-in's, and a file that cannot be read.
        PluginError: when a plug-in does not load.
    """
    if not isinstance(named, str):
        depth = len(at)
        cut = frozenset(p[depth:] for p in document.laid_over if p[:depth] == at)
        lines = {p[depth:]: line for p, line in document.lines.items() if p[:depth] == at}
        with document.placing(*at):
            value = _finite(named)
        found = SpaceText(Document(document.name, value, lines, cut), Origin("inline", ""))
    else:
        with document.placing(*at):
            found = _read_named(named, folder)
    return _with_parts(found, folder)


def _finite(inline: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a mapping that the resolved job can say again.

    Raises:
        ConfigError: for infinity and NaN.
    """
    try:
        value: dict[str, Any] = plain(inline)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "The search space holds a value that no space has.",
            got=str(error),
            allowed="mappings with text keys, lists, text, finite numbers, true and false",
            fix="correct the value.",
        ) from error
    return value


def _read_named(named: str, folder: Path) -> SpaceText:
    if looks_like_path(named):
        path = absolute(named, folder)
        text, name = read_text(path, "search space"), str(path)
    elif named in preset_names("search_spaces"):
        path, name = preset_path("search_spaces", named), named
        text = read_text(path, "search space")
    else:
        value = plugin_space(named)
        return SpaceText(Document(f"space {named}", value, {}), Origin(named, dump_yaml(value)))
    found = parse_yaml(text, path.name)
    if not isinstance(found.value, dict):
        raise not_a_mapping(found)
    return SpaceText(found, Origin(name, text))


def _with_parts(space: SpaceText, folder: Path) -> SpaceText:
    """The space with the spaces that it names standing in their places."""
    value = space.mapping
    if value.get("kind") != "both":
        return space
    home = Path(space.origin.name).parent if looks_like_path(space.origin.name) else folder
    for part in _PARTS:
        if isinstance(value.get(part), str):
            with space.document.placing(part):
                value[part] = _read_named(value[part], home).mapping
    document = Document(space.document.name, value, space.document.lines, space.document.laid_over)
    return SpaceText(document, space.origin)

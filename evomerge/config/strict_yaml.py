"""YAML as a configuration language should be read: no duplicate keys, no bombs, and every value knows its line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import yaml

from evomerge.errors import ConfigError

MAX_BYTES: Final = 1_000_000
MAX_DEPTH: Final = 64
MAX_VALUES: Final = 20_000

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """A parsed YAML text.

    Attributes:
        name: what messages call it, usually the file.
        value: mappings, lists and scalars.
        lines: path of keys and indices -> 1-based line.
    """

    name: str
    value: Any
    lines: Mapping[Path, int]

    def line(self, path: Path) -> int | None:
        """The line of `path`, or of its nearest ancestor that has one."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return None

    def where(self, path: Path) -> str:
        """`file:line (a.b.c)`, for messages."""
        line = self.line(path)
        place = f"{self.name}:{line}" if line is not None else self.name
        dotted = ".".join(str(p) for p in path)
        return f"{place} ({dotted})" if dotted else place


def _refuse(name: str, what: str, got: str, allowed: str, fix: str) -> ConfigError:
    return ConfigError(f"{name} is not usable YAML: {what}", got=got, allowed=allowed, fix=fix)


def _at(mark: Any) -> str:
    return f" at line {mark.line + 1}" if mark is not None else ""


def _check_events(text: str, name: str) -> None:
    """Bound depth before anything recursive looks at the text."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise _refuse(
                name,
                "it is nested too deeply.",
                f"more than {MAX_DEPTH} levels{_at(event.start_mark)}",
                f"at most {MAX_DEPTH} levels",
                "flatten the file.",
            )


class _Builder:
    """Turns nodes into values; counts them as they expand, so that an alias bomb stops at the limit."""

    def __init__(self, name: str, loader: yaml.SafeLoader) -> None:
        self._name = name
        self._loader = loader
        self._count = 0
        self.lines: dict[Path, int] = {}

    def build(self, node: yaml.Node, path: Path) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            raise _refuse(
                self._name,
                "it expands to too many values.",
                f"more than {MAX_VALUES} values, at line {node.start_mark.line + 1}",
                f"at most {MAX_VALUES}",
                "remove the repeated aliases (`*name`).",
            )
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*path, i)) for i, child in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise _refuse(
                    self._name,
                    "a key is not text.",
                    f"{getattr(key_node, 'value', 'a collection')!r} at line {line}",
                    "text keys",
                    "put the key in quotes.",
                )
            key = str(key_node.value)
            if key in result:
                raise _refuse(
                    self._name,
                    "a key stands twice.",
                    f"{key!r} at line {line}, and before at line {self.lines[(*path, key)]}",
                    "each key once in a mapping",
                    "remove one of them.",
                )
            self.lines[(*path, key)] = line
            result[key] = self.build(value_node, (*path, key))
        return result

    def _scalar(self, node: yaml.Node) -> Any:
        value = self._loader.construct_object(node)
        if isinstance(value, float) and not math.isfinite(value):
            raise _refuse(
                self._name,
                "a number is not finite.",
                f"{node.value} at line {node.start_mark.line + 1}",
                "finite numbers",
                "write a finite number.",
            )
        if value is None or isinstance(value, bool | int | float | str):
            return value
        return str(node.value)  # dates and the like mean nothing to us; the schema judges the text


def _nodes(text: str, name: str) -> tuple[yaml.Node | None, yaml.SafeLoader]:
    try:
        _check_events(text, name)
        loader = yaml.SafeLoader(text)
        return loader.get_single_node(), loader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise _refuse(
            name, "it does not parse.", f"{problem}{place}", "one YAML document", "correct the line."
        ) from error


def parse_yaml(text: str, name: str) -> Document:
    """Parse one document.

    Args:
        text: the YAML text.
        name: what messages call it.

    Raises:
        ConfigError: in this order: too long, control characters or syntax errors, nested too deeply, more than one
            document, unknown tags, too many values, keys that are not text or stand twice, NaN or infinity.
    """
    if len(text.encode()) > MAX_BYTES:
        raise _refuse(
            name, "it is too long.", f"{len(text.encode())} bytes", f"at most {MAX_BYTES} bytes", "shorten the file."
        )
    node, loader = _nodes(text, name)
    if node is None:
        return Document(name, None, MappingProxyType({}))
    builder = _Builder(name, loader)
    try:
        value = builder.build(node, ())
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "unknown tag"
        raise _refuse(name, "a value cannot be read.", str(problem), "plain values", "remove the tag.") from error
    return Document(name, value, MappingProxyType(builder.lines))


def walk(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value of a document with its path, parents before children."""
    yield path, value
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from walk(child, (*path, key))
    elif isinstance(value, list):
        for i, child in enumerate(value):
            yield from walk(child, (*path, i))

"""YAML as a configuration language should be read: no duplicate keys, no bombs, and every value knows its line."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import yaml

from evomerge.errors import ConfigError, EvomergeError

MAX_BYTES: Final = 1_000_000
MAX_DEPTH: Final = 64
MAX_VALUES: Final = 20_000

Path = tuple[str | int, ...]

_TAG: Final = "tag:yaml.org,2002:"
_INTEGER: Final = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_FLOAT: Final = re.compile(r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?")
_SPECIAL: Final = re.compile(r"[-+]?\.(inf|nan)", re.IGNORECASE)
_TRUTH: Final = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
_MOST_DIGITS: Final = 60


@dataclass(frozen=True)
class Document:
    """A parsed YAML text.

    Attributes:
        name: what messages call it, usually the file.
        value: mappings, lists and scalars.
        lines: path of keys and indices -> 1-based line.
        laid_over: paths whose values came from `--set`.
    """

    name: str
    value: Any
    lines: Mapping[Path, int]
    laid_over: frozenset[Path] = frozenset()

    def line(self, path: Path) -> int | None:
        """The line of `path`, or of its nearest ancestor that has one."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return None

    def where(self, path: Path) -> str:
        """`file:line (a.b.c)`, for messages; `--set (a.b.c)` for what the command line brought."""
        line = self.line(path)
        place = f"{self.name}:{line}" if line is not None else self.name
        if any(path[:length] in self.laid_over for length in range(1, len(path) + 1)):
            place = "--set"
        dotted = ".".join(str(p) for p in path)
        return f"{place} ({dotted})" if dotted else place

    @contextmanager
    def placing(self, *path: str | int) -> Iterator[None]:
        """Errors raised inside say that what they refuse stands at `path`."""
        try:
            yield
        except EvomergeError as error:
            if error.got.startswith((f"{self.name}:", f"{self.name} (")):  # placed already, more closely
                raise
            got = f"{self.where(path)}: {error.got}"
            raise type(error)(error.what, got=got, allowed=error.allowed, fix=error.fix) from error


def _refuse(name: str, what: str, got: str, allowed: str, fix: str) -> ConfigError:
    return ConfigError(f"{name} is not usable YAML: {what}", got=got, allowed=allowed, fix=fix)


def _line(mark: Any) -> int:
    return int(mark.line) + 1


def _too_deep(name: str, line: int) -> ConfigError:
    got, allowed = f"more than {MAX_DEPTH} levels at line {line}", f"at most {MAX_DEPTH} levels"
    return _refuse(name, "it is nested too deeply.", got, allowed, "flatten the file; an alias may not contain itself.")


def _too_many(name: str, line: int) -> ConfigError:
    got, allowed = f"more than {MAX_VALUES} values at line {line}", f"at most {MAX_VALUES}"
    return _refuse(
        name, "it holds too many values.", got, allowed, "shorten it, and remove repeated aliases (`*name`)."
    )


def _check_events(text: str, name: str) -> None:
    """Bound depth and size before anything recursive or slow looks at the text."""
    depth = values = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.NodeEvent):
            values += 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise _too_deep(name, _line(event.start_mark))
        if values > 2 * MAX_VALUES:  # keys are nodes, too
            raise _too_many(name, _line(event.start_mark))


class _Builder:
    """Turns nodes into values; counts them as they expand, so that an alias bomb stops at the limit."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0
        self.lines: dict[Path, int] = {}

    def build(self, node: yaml.Node, path: Path) -> Any:
        self._count += 1
        line = _line(node.start_mark)
        if self._count > MAX_VALUES:
            raise _too_many(self._name, line)
        if len(path) > MAX_DEPTH:  # aliases nest where the text does not
            raise _too_deep(self._name, self.lines[path[:1]])
        self.lines.setdefault(path, line)
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.build(child, (*path, i)) for i, child in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag.startswith(_TAG):
            return self._scalar(node.value, node.tag.removeprefix(_TAG), line)
        raise self._unknown_tag(node.tag, line)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = _line(key_node.start_mark)
            key = self._key(key_node, line)
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

    def _key(self, node: yaml.Node, line: int) -> str:
        if isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}str":
            return str(node.value)
        if node.tag == f"{_TAG}merge":
            what, fix = "merge keys are not read.", "write the keys out where they are meant."
            raise _refuse(self._name, what, f"'<<' at line {line}", "plain keys", fix)
        shown = repr(node.value) if isinstance(node, yaml.ScalarNode) else "a collection"
        raise _refuse(
            self._name, "a key is not text.", f"{shown} at line {line}", "text keys", "put the key in quotes."
        )

    def _scalar(self, text: str, tag: str, line: int) -> Any:
        """A scalar by YAML 1.1, but for numbers that look like other things (octal, base 60), which are refused."""
        if tag in ("str", "timestamp"):  # dates mean nothing to us; the schema judges the text
            return text
        if tag == "null":
            return None
        if tag == "bool" and text.lower() in _TRUTH:
            return _TRUTH[text.lower()]
        if tag in ("int", "float") and len(text) <= _MOST_DIGITS:
            plain = text.replace("_", "")
            if tag == "int" and _INTEGER.fullmatch(text):
                return int(plain)
            if tag == "float" and (_INTEGER.fullmatch(text) or _FLOAT.fullmatch(text)) and math.isfinite(float(plain)):
                return float(plain)
        if tag == "float" and (_SPECIAL.fullmatch(text) or _FLOAT.fullmatch(text)):
            what, got = "a number is not finite.", f"{text[:40]} at line {line}"
            raise _refuse(self._name, what, got, "finite numbers", "write a finite number.")
        if tag in ("int", "float", "bool"):
            got, allowed = f"{text[:40]!r} at line {line}", "decimal numbers such as 10, 0.5 or 1.0e-4; true and false"
            fix = "write it as a decimal number, or put it in quotes if it is text."
            raise _refuse(self._name, "a value is not what it looks like.", got, allowed, fix)
        raise self._unknown_tag(_TAG + tag, line)

    def _unknown_tag(self, tag: str, line: int) -> ConfigError:
        got, allowed = f"{tag.replace(_TAG, '!!')!r} at line {line}", "plain values, lists and mappings"
        return _refuse(self._name, "a value has a tag.", got, allowed, "remove the tag; text goes in quotes.")


def _problem(error: yaml.YAMLError, text: str) -> str:
    """What the parser says, with the line."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"the control character {chr(int(error.character))!a} at line {line}"
    mark = getattr(error, "problem_mark", None)
    place = f" at line {_line(mark)}, column {mark.column + 1}" if mark is not None else ""
    return f"{getattr(error, 'problem', None) or str(error).splitlines()[0]}{place}"


def _root(text: str, name: str) -> yaml.Node | None:
    try:
        _check_events(text, name)
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        got, allowed = _problem(error, text), "one YAML document of printable text"
        raise _refuse(name, "it does not parse.", got, allowed, "correct the line.") from error


def parse_yaml(text: str, name: str) -> Document:
    """Parse one document.

    Args:
        text: the YAML text.
        name: what messages call it.

    Raises:
        ConfigError: in this order: too long; control characters, syntax errors, nested too deeply, too many values,
            more than one document; then in the order of the text tags, values of aliases without end, keys that are
            not text or stand twice, NaN, infinity and numbers in other notations.
    """
    n_bytes = len(text.encode("utf-8", "surrogatepass"))
    if n_bytes > MAX_BYTES:
        raise _refuse(name, "it is too long.", f"{n_bytes} bytes", f"at most {MAX_BYTES} bytes", "shorten the file.")
    node = _root(text, name)
    if node is None:
        return Document(name, None, MappingProxyType({}))
    builder = _Builder(name)
    value = builder.build(node, ())
    return Document(name, value, MappingProxyType(builder.lines))


def dump_yaml(value: Any) -> str:
    """A text that `parse_yaml` reads as `value`; in plain letters where that is exact, else with escapes."""
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=110)
    if parse_yaml(text, "the value").value == value:
        return text
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=False, width=110)  # it holds odd line breaks


def check_bounds(text: str, name: str) -> yaml.Node | None:
    """The root node of one document that may have tags and merge keys, when it is no larger than `parse_yaml` allows.

    For files that other libraries read again with loaders of their own: nothing in it grows when it is read, be it by
    depth, by aliases of aliases, or by lists of merge keys. None for an empty text.

    Args:
        text: the YAML text.
        name: what messages call it.

    Raises:
        ConfigError: too long, control characters, syntax, nested too deeply, too many values, merge keys with lists.
    """
    n_bytes = len(text.encode("utf-8", "surrogatepass"))
    if n_bytes > MAX_BYTES:
        raise _refuse(name, "it is too long.", f"{n_bytes} bytes", f"at most {MAX_BYTES} bytes", "shorten the file.")
    node = _root(text, name)
    if node is not None:
        _count(node, name)
    return node


def _count(root: yaml.Node, name: str) -> None:
    """Walk a document as if its aliases were written out, and stop at the limits."""
    values = 0
    waiting = [(root, 0)]
    while waiting:
        node, depth = waiting.pop()
        values += 1
        if values > 2 * MAX_VALUES:
            raise _too_many(name, _line(node.start_mark))
        if depth > MAX_DEPTH:
            raise _too_deep(name, _line(node.start_mark))
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.tag == f"{_TAG}merge" and not isinstance(value, yaml.MappingNode):
                    what, got = "a merge key has a list.", f"'<<' at line {_line(key.start_mark)}"
                    raise _refuse(name, what, got, "merge keys with one alias", "write the keys out.")
                waiting += [(key, depth + 1), (value, depth + 1)]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(child, depth + 1) for child in node.value]

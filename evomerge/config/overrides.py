"""Settings of the command line, laid over a job file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from evomerge.errors import ConfigError
from evomerge.strict_yaml import MAX_DEPTH, Document, Path, parse_yaml

_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,8}")


def apply_overrides(document: Document, overrides: Sequence[str]) -> Document:
    """The document with `a.b=value` settings laid over it; values are YAML, list entries are named by index.

    Raises:
        ConfigError: for text without `=`, a path of too many steps, or through something that is not a mapping or
            list, an index that the list does not have, or a value that is not YAML.
    """
    value, lines, laid_over = document.value, dict(document.lines), set(document.laid_over)
    for text in overrides:
        key, equals, raw = text.partition("=")
        names = key.split(".")
        if not equals or not all(names) or len(names) > MAX_DEPTH:
            raise ConfigError(
                "A --set option is not of the form a.b=value.",
                got=repr(text[:300]),
                allowed="for instance budget.evaluations=300",
                fix="write the path, an equals sign, and a YAML value.",
            )
        path: Path = tuple(int(n) if _INDEX.fullmatch(n) else n for n in names)
        value = _with_value(value, path, parse_yaml(raw, f"--set {key}").value, text)
        lines = {p: line for p, line in lines.items() if p[: len(path)] != path}
        laid_over.add(path)
    return Document(document.name, value, lines, frozenset(laid_over))


def _with_value(value: Any, path: Path, new: Any, text: str) -> Any:
    """A copy of `value` with `new` at `path`."""
    if not path:
        return new
    head, rest = path[0], path[1:]
    if isinstance(value, list) and isinstance(head, int) and head < len(value):
        return [_with_value(v, rest, new, text) if i == head else v for i, v in enumerate(value)]
    if value is None or isinstance(value, dict):
        old = dict(value or {})
        return old | {str(head): _with_value(old.get(str(head)), rest, new, text)}
    inside = f"a list of {len(value)}" if isinstance(value, list) else repr(value)[:60]
    raise ConfigError(
        "A --set option leads to a place that the job does not have.",
        got=f"{text!r}: {head!r} inside {inside}",
        allowed=f"an index from 0 to {len(value) - 1}" if isinstance(value, list) and value else "keys of mappings",
        fix="set the whole value instead.",
    )

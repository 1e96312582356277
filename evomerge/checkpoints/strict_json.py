"""JSON from files that nobody vouches for: duplicate keys, absurd sizes and depths are refused, never guessed at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evomerge.errors import ModelError

MAX_JSON_BYTES = 100_000_000
MAX_DEPTH = 64
"""Mappings and lists inside each other; comparing and writing values recurses, and must not run out of stack."""
MAX_VALUES = 10_000_000
"""Commas and opening brackets: every value that Python makes takes a hundred bytes, `[],[],[],` three."""


def damaged(path: Path, got: str, allowed: str, what: str = "A file of a checkpoint is damaged.") -> ModelError:
    """The error for a file whose bytes are not what they should be."""
    return ModelError(
        what,
        got=f"{got} in {path}",
        allowed=allowed,
        fix=f"download or copy {path.name} again, or save the checkpoint again with transformers.",
    )


def quoted(text: object, limit: int = 120) -> str:
    """A value from an untrusted file as it may stand in a message: escaped, and cut when it is long."""
    shown = str(text)
    return repr(shown if len(shown) <= limit else shown[:limit] + "...")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {quoted(key)} stands twice")
        found[key] = value
    return found


def _check_depth(value: Any) -> None:
    """Refuse nesting beyond `MAX_DEPTH`; level by level, so that it cannot itself run out of stack."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for one in level:
            held = one.values() if isinstance(one, dict) else one
            inner += [v for v in held if isinstance(v, dict | list)]
        if not inner:
            return
        level = inner
    raise ValueError(f"nested too deeply, more than {MAX_DEPTH} levels")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def parse_object(raw: bytes, path: Path, *, constants: bool = False, max_values: int = MAX_VALUES) -> dict[str, Any]:
    """The JSON object that `raw` spells.

    Args:
        raw: UTF-8 text.
        path: the file it came from, for messages.
        constants: accept NaN and Infinity, which some config files hold.
        max_values: commas and opening brackets in it, which bound the memory that it takes.

    Raises:
        ModelError: when it holds too many values, is not UTF-8, not JSON, too deep, holds a duplicate key, or is not an
            object.
    """
    values = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
    if values > max_values:
        raise damaged(path, f"about {values} values", f"at most {max_values} values of JSON")
    try:
        text = raw.decode()
        value = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=None if constants else _no_constant)
        if isinstance(value, dict | list):
            _check_depth(value)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # lone surrogates parse, but no file or terminal takes them
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise damaged(path, f"invalid JSON ({reason})", "one JSON object in UTF-8 without duplicate keys") from error
    if not isinstance(value, dict):
        raise damaged(path, f"a JSON {type(value).__name__}", "one JSON object")
    return value


def read_object(
    path: Path, *, constants: bool = False, max_bytes: int = MAX_JSON_BYTES, max_values: int = MAX_VALUES
) -> dict[str, Any]:
    """The JSON object in a file of at most `max_bytes`, 100 MB unless told.

    Raises:
        ModelError: when the file cannot be read, is larger, or `parse_object` refuses it.
    """
    try:
        with path.open("rb") as f:
            raw = f.read(max_bytes + 1)
    except OSError as error:
        raise damaged(path, f"{error.strerror}", "a readable file", "A file of a checkpoint cannot be read.") from error
    if len(raw) > max_bytes:
        raise damaged(path, f"more than {max_bytes} bytes", f"at most {max_bytes} bytes of JSON")
    return parse_object(raw, path, constants=constants, max_values=max_values)

"""Canonical JSON and sha256 of values and files: equal values have equal digests, on every machine."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.types import Digest


def _plain(value: Any) -> Any:
    """`value` with tuples as lists, keys as text, integral floats kept as floats; refuses what JSON has not."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no canonical JSON form")
        return value + 0.0  # -0.0 and 0.0 are one value
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")


def canonical_json(value: Any) -> str:
    """The one text of a JSON value: sorted keys, no spaces, shortest floats that round-trip, UTF-8 kept.

    Raises:
        ValueError: for NaN or infinity.
        TypeError: for a value that JSON cannot express.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_json(value: Any) -> Digest:
    """sha256 of `canonical_json(value)`, hexadecimal."""
    return Digest(hashlib.sha256(canonical_json(value).encode()).hexdigest())


def digest_text(text: str) -> Digest:
    """sha256 of a text's UTF-8 bytes, hexadecimal."""
    return Digest(hashlib.sha256(text.encode()).hexdigest())


def digest_file(path: Path) -> Digest:
    """sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as f:
        return Digest(hashlib.file_digest(f, "sha256").hexdigest())

"""Whether a record that was read holds what its class says: run directories are sent around, and checksums are no seal.

A journal whose lines have the right checksums may still say anything. What a record class annotates is what its
readers rely on, so it is checked once, on reading.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from evomerge.types import CandidateId, Digest

MOST_CHARACTERS: Final = 1_000_000
MOST_NUMBER: Final = 2**63
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+-]{0,199}")
"""Of candidates and digests: they become parts of file names."""


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind)


def misfit(value: Any) -> str | None:
    """The first field of a dataclass value that is not what the class says, as `name = value`; None when all are.

    Args:
        value: a dataclass instance, whose fields are checked through mappings, tuples and values in it.
    """
    kind: Any = type(value)
    hints = _hints(kind)
    for field in fields(value):
        found = getattr(value, field.name)
        if not fits(found, hints[field.name]):
            return f"{field.name} = {found!r}"[:200]
    return None


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says; numbers must be finite, names usable in file names.

    Args:
        value: from JSON, with tuples for lists.
        hint: an annotation; one that is not known here admits everything.
    """
    if hint is Digest or hint is CandidateId:
        return isinstance(value, str) and (_NAME.fullmatch(value) is not None or (hint is Digest and not value))
    simple = _SIMPLE.get(hint)
    if simple is not None:
        return bool(simple(value))
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin in (Union, types.UnionType):
        return any(fits(value, a) for a in arguments)
    if origin is tuple:
        return _fits_tuple(value, arguments)
    if origin is list:
        return isinstance(value, list) and all(fits(v, arguments[0]) for v in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        key, inner = arguments
        return isinstance(value, Mapping) and all(fits(k, key) and fits(v, inner) for k, v in value.items())
    if isinstance(hint, type) and hasattr(hint, "_fields"):
        named = _hints(hint)
        return isinstance(value, hint) and all(fits(getattr(value, name), kind) for name, kind in named.items())
    if isinstance(hint, type) and is_dataclass(hint):
        return isinstance(value, hint) and misfit(value) is None
    return True


def _fits_tuple(value: Any, arguments: tuple[Any, ...]) -> bool:
    if not isinstance(value, tuple):
        return False
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return all(fits(v, arguments[0]) for v in value)
    return len(value) == len(arguments) and all(fits(v, a) for v, a in zip(value, arguments, strict=True))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < MOST_NUMBER


_SIMPLE: Final[Mapping[Any, Any]] = {
    str: lambda value: isinstance(value, str) and len(value) <= MOST_CHARACTERS,
    bool: lambda value: isinstance(value, bool),
    int: _is_whole,
    float: _is_number,
    type(None): lambda value: value is None,
}

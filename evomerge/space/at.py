"""Where a value stands in a mapping, and the errors that say so."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from evomerge.errors import SpaceError, suggest

Path = tuple[str | int, ...]
LineOf = Callable[[Path], int | None]
_NUMBER_AS_TEXT: Final = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def no_line(path: Path) -> int | None:
    """Where lines are not known."""
    del path
    return None


@dataclass(frozen=True)
class At:
    """A place in the mapping, for messages.

    Attributes:
        path: keys and indices from the top.
        line_of: path -> line, None where it is not known.
    """

    path: Path = ()
    line_of: LineOf = field(default=no_line)

    def __truediv__(self, key: str | int) -> At:
        return At((*self.path, key), self.line_of)

    @property
    def dotted(self) -> str:
        """`parameters.weight.low`."""
        return ".".join(str(p) for p in self.path) or "the search space"

    @property
    def line(self) -> str:
        """` (line 7)`, or nothing."""
        number = self.line_of(self.path)
        return f" (line {number})" if number is not None else ""

    def problem(self, what: str, got: object, allowed: str, fix: str = "") -> SpaceError:
        """The error to raise for the value at this place."""
        fix = fix or f"correct {self.dotted}; `docs/spaces.md` describes the language."
        return SpaceError(
            f"In the search space, {what}", got=f"{self.dotted}: {got}{self.line}", allowed=allowed, fix=fix
        )


def mapping_at(value: object, at: At) -> Mapping[str, Any]:
    """`value`, which must be a mapping with text keys.

    Raises:
        SpaceError: when it is none.
    """
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise at.problem("a mapping is expected.", repr(value), "a mapping of names to values")
    return value


def check_keys(mapping: Mapping[str, Any], known: tuple[str, ...], at: At) -> None:
    """Refuse keys that are not in `known`.

    Raises:
        SpaceError: for the first one, with the nearest match.
    """
    for key in mapping:
        if key not in known:
            raise (at / key).problem(
                f"the key {key!r} is unknown.", repr(key), suggest(key, known), f"remove or rename {(at / key).dotted}."
            )


def number_at(value: object, at: At) -> float:
    """`value`, which must be a number; a flag is none, nor is text that looks like one.

    Raises:
        SpaceError: when it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        hint = ""
        if isinstance(value, str) and _NUMBER_AS_TEXT.fullmatch(value):
            hint = f"write {float(value):.1e} with a decimal point: YAML reads {value} as text."
        raise at.problem("a number is expected.", repr(value), "a number", hint)
    return float(value)


@contextmanager
def line_is_told(at: At) -> Iterator[None]:
    """Add the line of `at` to what a dimension refuses inside the block."""
    try:
        yield
    except SpaceError as error:
        raise SpaceError(error.what, got=f"{error.got}{at.line}", allowed=error.allowed, fix=error.fix) from error

"""What pydantic finds wrong with a document, in words for people: where it stands, what is allowed, what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeVar, get_origin

from pydantic import ValidationError

from evomerge.config.schema import TAGS, Strict
from evomerge.errors import ConfigError, suggest
from evomerge.strict_yaml import Document
from evomerge.strict_yaml import Path as YamlPath

T = TypeVar("T", bound=Strict)

_EXPONENT: Final = re.compile(r"([-+]?)(\d+\.?\d*|\.\d+)[eE]([-+]?)(\d+)")
_QUOTED: Final = re.compile(r"'([^']*)'")
_ALLOWED: Final = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "string_pattern_mismatch": "up to 100 letters, digits, '.', '_' and '-', the first a letter or digit",
    "string_type": "text",
    "too_short": "at least one entry",
}
_BRANCHES: Final = dict(zip(TAGS, ("text", "a mapping", "a number"), strict=True))


class _Problem(NamedTuple):
    got: str
    allowed: str
    fix: str


def not_a_mapping(document: Document) -> ConfigError:
    """The error for a document that is empty or holds something else."""
    return ConfigError(
        f"{document.name} does not hold a mapping.",
        got=type(document.value).__name__ if document.value is not None else "an empty file",
        allowed="`key: value` lines",
        fix="`evomerge init job.yaml` writes a commented example.",
    )


def validate(schema: type[T], document: Document) -> T:
    """The document as a value of the schema.

    Raises:
        ConfigError: naming every problem with its line.
    """
    if not isinstance(document.value, dict):
        raise not_a_mapping(document)
    try:
        return schema.model_validate(document.value)
    except ValidationError as error:
        problems = [_problem(dict(e), document, schema) for e in error.errors(include_url=False)]
    first = problems[0]
    if len(problems) == 1:
        raise ConfigError(f"{document.name} has an error.", got=first.got, allowed=first.allowed, fix=first.fix)
    raise ConfigError(
        f"{document.name} has {len(problems)} errors.",
        got="\n    " + "\n    ".join(p.got for p in problems),
        allowed="\n    " + "\n    ".join(dict.fromkeys(p.allowed for p in problems)),
        fix="\n    " + "\n    ".join(dict.fromkeys(p.fix for p in problems)),
    )


def _problem(error: Mapping[str, Any], document: Document, schema: type[Strict]) -> _Problem:
    path: YamlPath = tuple(p for p in error["loc"] if p not in TAGS)
    where, value, kind = document.where(path), error["input"], error["type"]
    if kind == "extra_forbidden":
        known = _fields(schema, path[:-1])
        allowed = f"keys here: {suggest(str(path[-1]), known)}"
        return _Problem(f"{where}: unknown key {path[-1]!r}", allowed, "correct or remove the key.")
    if kind == "missing":
        return _Problem(f"{where}: it is missing", f"{path[-1]} is required", f"add {path[-1]!r}.")
    shown = repr(value) if len(repr(value)) < 80 else f"{type(value).__name__} of {len(repr(value))} characters"
    allowed = _allowed(error)
    number = isinstance(value, str) and "number" in allowed and _EXPONENT.fullmatch(value)
    if number:
        fix = _decimal(number, whole="whole" in allowed)
        return _Problem(f"{where}: {value!r} is text to YAML, not a number", allowed, fix)
    if kind == "literal_error" and isinstance(value, str):
        return _Problem(f"{where}: {shown}", suggest(value, _QUOTED.findall(allowed)), "use one of these.")
    quotes = kind == "string_type" and isinstance(value, bool | int | float)
    return _Problem(f"{where}: {shown}", allowed, "put the value in quotes." if quotes else "correct the value.")


def _allowed(error: Mapping[str, Any]) -> str:
    """What would have been accepted."""
    if error["type"] == "union_tag_invalid":
        return " or ".join(_BRANCHES[tag] for tag in _QUOTED.findall(error["ctx"]["expected_tags"]))
    message = str(error["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    return _ALLOWED.get(error["type"], message)


def _decimal(found: re.Match[str], *, whole: bool) -> str:
    """How to write a number such as `1e-4` so that YAML reads it: `1.0e-4`, or without exponent where it is whole."""
    sign, mantissa, exponent_sign, exponent = found.groups()
    value = float(found.group())
    if whole:
        return f"write {int(value)}." if value.is_integer() and abs(value) < 1e15 else "write a whole number."
    left, _, right = mantissa.partition(".")
    return f"write {sign}{left or '0'}.{right or '0'}e{exponent_sign or '+'}{exponent} (with point and sign)."


def _fields(schema: type[Strict], path: YamlPath) -> list[str]:
    """The keys that a mapping at `path` may have."""
    current: type[Strict] = schema
    is_name = False  # whether the next step is a name that the user chose, such as that of a parent
    for step in path:
        if isinstance(step, int) or is_name:
            is_name = False
            continue
        field = current.model_fields.get(step)
        nested = _nested(field.annotation) if field is not None else None
        if field is None or nested is None:
            return []
        current, is_name = nested, get_origin(field.annotation) is dict
    return list(current.model_fields)


def _nested(annotation: Any) -> type[Strict] | None:
    """The schema class inside an annotation such as `list[Objective]`, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _nested(argument)
        if found is not None:
            return found
    return None

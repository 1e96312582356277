"""mergekit's parameter settings: scalars, gradients over depth, and filters on tensor names, read and written.

A setting is a scalar, a list of scalars (a gradient, interpolated at t in [0, 1]), an entry `{filter, value}`, or a
list of such entries of which the first whose filter is a substring of the tensor's name decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from evomerge.recipe.mergekit_text import refused
from evomerge.recipe.method_spec import ParameterSpec
from evomerge.recipe.recipe import Number

_SCALAR: Final = str | int | float


def filters_for(wanted: Mapping[str, Number]) -> Any:
    """The shortest setting that gives each tensor its number.

    Args:
        wanted: tensor name -> number, of all tensors that the setting will be asked for; not empty.
    """
    counts = Counter(wanted.values())
    if len(counts) == 1:
        return next(iter(counts))
    common = max(counts, key=lambda number: counts[number])
    entries: list[tuple[str, Number]] = []
    for number in counts:
        if number != common:
            entries += [(text, number) for text in _texts({n for n, v in wanted.items() if v == number}, set(wanted))]
    entries.sort(key=lambda entry: (-len(entry[0]), entry[0]))
    setting = [*({"filter": text, "value": number} for text, number in entries), {"value": common}]
    right = all(evaluate_filters(name, setting) == number for name, number in wanted.items())
    return setting if right else _full_names(wanted, common)


def _texts(names: set[str], among: set[str]) -> list[str]:
    """Filters for exactly these names: parts of their dotted paths where those tell them apart, else full names."""
    texts: list[str] = []
    for name in sorted(names):
        if any(text in name for text in texts):
            continue
        parts = (f".{part}." for part in name.split("."))
        texts.append(next((part for part in parts if part in name and _is_private(part, names, among)), name))
    return texts


def _is_private(part: str, names: set[str], among: set[str]) -> bool:
    return all(name in names for name in among if part in name)


def _full_names(wanted: Mapping[str, Number], common: Number) -> Any:
    """Every name on its own; longer ones first, because a name may be part of another."""
    named = sorted(wanted, key=lambda name: (-len(name), name))
    return [*({"filter": name, "value": wanted[name]} for name in named), {"value": common}]


def evaluate_filters(name: str, setting: Any, t: float = 0.0, *, is_flag: bool = False) -> Any:
    """The scalar that `setting` gives the tensor `name` at depth `t`; None when no filter matches.

    Args:
        name: the tensor's.
        setting: as the file has it.
        t: depth.
        is_flag: whether scalars are flags, of which a gradient picks one.

    Raises:
        RecipeError: for a setting that mergekit would not understand either.
    """
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list):
        return setting
    if not setting:
        return None
    if not any(isinstance(entry, Mapping | list) for entry in setting):
        return _gradient(setting, t, is_flag)
    for entry in setting:
        _check_entry(entry)
        text = entry.get("filter")
        if text is None or text == "*" or text in name:
            return evaluate_filters(name, entry["value"], t, is_flag=is_flag)
    return None


def _check_entry(entry: Any) -> None:
    known = isinstance(entry, Mapping) and {"value"} <= set(entry) <= {"filter", "value"}
    if known and isinstance(entry.get("filter"), str | None) and _is_scalars(entry["value"]):
        return
    raise refused("A parameter's setting is not understood.", repr(entry), "a number, a list of numbers, or filters")


def _is_scalars(value: Any) -> bool:
    """Whether a filter's value is a scalar or a gradient: filters do not nest."""
    return all(isinstance(v, str | int | float) for v in (value if isinstance(value, list) else [value]))


def _gradient(values: list[Any], t: float, is_flag: bool) -> Any:
    """Linear between neighbours for numbers; flags are picked, not interpolated."""
    numbers = [_as_real(v) for v in values]
    if is_flag or any(isinstance(v, bool) for v in values) or None in numbers:
        return values[int(t * (len(values) - 1))]
    place = t * (len(values) - 1)
    left = int(place)
    right = min(len(values) - 1, left + 1)
    part = place - left
    return (1 - part) * (numbers[left] or 0.0) + part * (numbers[right] or 0.0)


def _as_real(value: Any) -> float | None:
    """A number, or a text such as `1e-5` that mergekit reads as one."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


_FLAGS: Final[Mapping[Any, bool]] = {
    **dict.fromkeys((True, 1, "1", "true", "t", "yes", "y", "on"), True),
    **dict.fromkeys((False, 0, "0", "false", "f", "no", "n", "off"), False),
}
"""What mergekit takes for a flag (pydantic's table); texts in small letters."""
_FULL: Final = ("density", "select_topk")
"""Shares of entries: what is above 1 keeps everything, as 1 does."""


def number_of(value: Any, spec: ParameterSpec, name: str, where: str) -> Number:
    """A resolved scalar as the parameter's type.

    Args:
        value: as the file has it.
        spec: the parameter's.
        name: the parameter's.
        where: which parameter of which tensor, for people.

    Raises:
        RecipeError: when it has none of the parameter's values.
    """
    if spec.kind == "flag":
        found = _FLAGS.get(value.lower() if isinstance(value, str) else value) if isinstance(value, _SCALAR) else None
        if found is not None:
            return found
    else:
        number = None if isinstance(value, bool) else _as_real(value)
        if number is not None and name in _FULL and number > 1.0:
            number = 1.0
        if number is not None and spec.accepts(number):
            return number
    raise refused("A parameter has an illegal value.", f"{where} = {value!r}", spec.allowed)


def resolve(name: str, levels: Iterable[Any], parameter: str, t: float, *, is_flag: bool = False) -> Any:
    """The first level that has a say about this parameter of this tensor; None when none has.

    Args:
        name: the tensor's.
        levels: parameter mappings (or None), the most particular first.
        parameter: what is asked for.
        t: depth inside the slice.
        is_flag: whether the parameter is a flag.
    """
    for level in levels:
        if level is not None and parameter in level:
            value = evaluate_filters(name, level[parameter], t, is_flag=is_flag)
            if value is not None:
                return value
    return None

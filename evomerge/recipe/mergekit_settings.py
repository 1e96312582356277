"""mergekit's parameter settings: scalars, gradients over depth, and filters on tensor names, read and written.

A setting is a scalar, a list of scalars (a gradient, interpolated at t in [0, 1]), an entry `{filter, value}`, or a
list of such entries of which the first whose filter is a substring of the tensor's name decides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from evomerge.recipe.mergekit_text import refused
from evomerge.recipe.method_spec import ParameterSpec
from evomerge.recipe.recipe import Number


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


def evaluate_filters(name: str, setting: Any, t: float = 0.0) -> Any:
    """The scalar that `setting` gives the tensor `name` at depth `t`; None when no filter matches.

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
        return _gradient(setting, t)
    for entry in setting:
        if not isinstance(entry, Mapping) or not {"value"} <= set(entry) <= {"filter", "value"}:
            raise refused(
                "A parameter's setting is not understood.", repr(entry), "a number, a list of numbers, or filters"
            )
        text = entry.get("filter")
        if text is None or text == "*" or str(text) in name:
            return evaluate_filters(name, entry["value"], t)
    return None


def _gradient(values: list[Any], t: float) -> Any:
    """Linear between neighbours for numbers; flags are picked, not interpolated."""
    numbers = [_as_real(v) for v in values]
    if any(isinstance(v, bool) for v in values) or None in numbers:
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
    except (TypeError, ValueError):
        return None


def number_of(value: Any, spec: ParameterSpec, where: str) -> Number:
    """A resolved scalar as the parameter's type.

    Raises:
        RecipeError: when it has none of the parameter's values.
    """
    if spec.kind == "flag":
        if value in (True, False):  # 1 and 0 too: mergekit takes them for flags
            return bool(value)
    else:
        number = None if isinstance(value, bool) else _as_real(value)
        if number is not None and spec.high == 1.0 and spec.low == 0.0 and spec.per_parent:
            number = min(1.0, max(0.0, number))  # mergekit reads any density above 1 as 1, below 0 as 0
        if number is not None and spec.accepts(number):
            return number
    raise refused("A parameter has an illegal value.", f"{where} = {value!r}", spec.allowed)


def resolve(name: str, levels: Iterable[Any], parameter: str, t: float) -> Any:
    """The first level that has a say about this parameter of this tensor; None when none has.

    Args:
        name: the tensor's.
        levels: parameter mappings (or None), the most particular first.
        parameter: what is asked for.
        t: depth inside the slice.
    """
    for level in levels:
        if level is not None and parameter in level:
            value = evaluate_filters(name, level[parameter], t)
            if value is not None:
                return value
    return None

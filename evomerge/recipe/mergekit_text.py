"""The text of a mergekit file: read strictly, written plainly."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Final

import yaml

from evomerge.errors import RecipeError

DTYPES: Final[Mapping[str, str]] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Safetensors spelling -> mergekit's name."""

MAX_BYTES: Final = 1_000_000
MAX_NODES: Final = 1_000_000
"""Of a file whose aliases are written out; mergekit itself sets no limit, and an alias of aliases grows without one."""
MAX_DEPTH: Final = 64
MAX_EVENTS: Final = 100_000
"""Keys and values as they stand in a file; the longest gradients of hundreds of layers have some thousands."""
MAX_BITS: Final = 1000
"""Of a whole number; every smaller one is a float, and can be shown."""
_OTHER_TOOLS: Final[Mapping[str, tuple[str, ...]]] = {
    "mergekit-moe": ("experts", "gate_mode", "experts_per_token", "shared_experts"),
    "mergekit-evolve": ("genome",),
}

_CORRECT: Final = "correct the mergekit file."


def refused(
    what: str, got: str, allowed: str, fix: str = "change the mergekit file, or merge it with mergekit itself."
) -> RecipeError:
    """The error for a mergekit file that is not taken; to be raised."""
    return RecipeError(what, got=got[:500], allowed=allowed, fix=fix)


class _Loader(yaml.SafeLoader):
    """Safe, and without duplicate keys, of which one would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise refused(
                    "A key of the mergekit file stands twice.", f"{key.value!r} at line {line}", "each key once"
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = int(super().construct_yaml_int(node))
        if value.bit_length() > MAX_BITS:
            line = node.start_mark.line + 1
            raise refused("A number of the mergekit file is too large.", f"line {line}", f"at most {MAX_BITS} bits")
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read_mergekit(text: str) -> Mapping[str, Any]:
    """The mapping that a mergekit file holds.

    Raises:
        RecipeError: when it is too long, has a key twice, is no YAML, holds several documents (`mergekit-multi`),
            repeats itself through aliases without end, or is no mapping with a `merge_method`.
    """
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise refused("The mergekit file is too long.", f"{len(text)} characters", f"at most {MAX_BYTES} bytes")
    _check_bounds(text)
    value = _one_document(text)
    _check_size(value)
    if not isinstance(value, Mapping) or "merge_method" not in value:
        raise _no_merge(value)
    return value


def _check_bounds(text: str) -> None:
    """Refuse depth, numbers of values and lists of merge keys before they are constructed.

    Raises:
        RecipeError: naming the line.
    """
    depth = values = 0
    is_merge = False
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            values += isinstance(event, yaml.NodeEvent)
            if is_merge and isinstance(event, yaml.SequenceStartEvent):
                raise refused("A merge key of the mergekit file has a list.", _at(event), "`<<: *name`", _CORRECT)
            is_merge = isinstance(event, yaml.ScalarEvent) and event.value == "<<"
            if depth > MAX_DEPTH or values > MAX_EVENTS:
                what = "The mergekit file is nested too deeply, or holds too many values."
                allowed = f"{MAX_DEPTH} levels, {MAX_EVENTS} keys and values"
                raise refused(what, f"{depth} levels, {values} values at {_at(event)}", allowed, _CORRECT)
    except yaml.YAMLError:
        return  # the reader says what is wrong


def _at(event: Any) -> str:
    return f"line {event.start_mark.line + 1}"


def _broken(error: Exception) -> str:
    """What is wrong with a text that is no YAML, and where."""
    first = (str(error).splitlines() or ["nested too deeply"])[0]
    if not isinstance(error, yaml.MarkedYAMLError):
        return first
    mark = error.problem_mark or error.context_mark
    where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    return f"{where}{error.problem or first}"


def _one_document(text: str) -> Any:
    try:
        documents = list(yaml.load_all(text, Loader=_Loader))
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        raise refused("The mergekit file is not YAML.", _broken(error), "one YAML document", _CORRECT) from error
    if len(documents) > 1:
        names = [str(d["name"]) for d in documents if isinstance(d, Mapping) and "name" in d]
        raise refused(
            "The mergekit file holds several merges, as mergekit-multi runs them.",
            f"{len(documents)} documents: {', '.join(names) or 'without names'}",
            "one document",
            "write each merge to a file of its own, and run them one after the other.",
        )
    return documents[0] if documents else None


def _check_size(value: Any) -> None:
    """Refuse what aliases blow up; a node that contains itself has no size.

    Raises:
        RecipeError: when more than `MAX_NODES` would have to be read.
    """
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if not isinstance(node, Mapping | list):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = MAX_NODES + 1  # until it is known: whoever asks meanwhile lies inside
            inner = node.values() if isinstance(node, Mapping) else node
            sizes[id(node)] = 1 + sum(size(child) for child in inner)
        return sizes[id(node)]

    if size(value) > MAX_NODES:
        raise refused(
            "The mergekit file's aliases grow without bound.", f"more than {MAX_NODES} values", "a smaller file"
        )


def _no_merge(value: Any) -> RecipeError:
    keys = [str(k) for k in value] if isinstance(value, Mapping) else []
    for tool, marks in _OTHER_TOOLS.items():
        if set(keys) & set(marks):
            return refused(
                f"This is a file for {tool}, which is another program.",
                f"keys {', '.join(keys[:6])}",
                "a file for mergekit-yaml, with a merge_method",
                f"run {tool} on it; evomerge merges checkpoints of one architecture.",
            )
    empty = value is None
    found = "an empty file" if empty else f"keys {', '.join(keys[:6])}" if keys else type(value).__name__
    return refused(
        "This is neither a recipe nor a mergekit file.",
        found,
        "a recipe in JSON, or a merge_method in YAML",
        "write a merge into it." if empty else "name a recipe, or add `merge_method: NAME` to a mergekit file.",
    )


class _Dumper(yaml.SafeDumper):
    """Writes equal values out each time: people read these files."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def write_mergekit(config: Mapping[str, Any], comments: tuple[str, ...]) -> str:
    """The text of a mergekit file that opens with comments, one line each."""
    head = "".join(f"# {' '.join(line.splitlines())}\n" for line in comments)
    return head + yaml.dump(
        dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000, default_flow_style=None
    )

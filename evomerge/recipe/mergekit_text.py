"""The text of a mergekit file: read strictly, written plainly; and how it names models."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Final

import yaml

from evomerge.errors import RecipeError
from evomerge.recipe.recipe import ParentRef

DTYPES: Final[Mapping[str, str]] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Safetensors spelling -> mergekit's name."""

MAX_BYTES: Final = 5_000_000


def refused(
    what: str, got: str, allowed: str, fix: str = "change the mergekit file, or merge it with mergekit itself."
) -> RecipeError:
    """The error for a mergekit file that is not taken; to be raised."""
    return RecipeError(what, got=got[:500], allowed=allowed, fix=fix)


class _Loader(yaml.SafeLoader):
    """Safe, and without aliases (which can expand without bound) and duplicate keys (of which one would be lost)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise refused("The mergekit file uses an alias.", f"in {_key_of(parent)}", "YAML without aliases (`*name`)")
        return super().compose_node(parent, index)

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


def read_mergekit(text: str) -> Mapping[str, Any]:
    """The mapping that a mergekit file holds.

    Raises:
        RecipeError: when it is too long, uses aliases, has a key twice, or is no YAML mapping.
    """
    if len(text.encode(errors="replace")) > MAX_BYTES:
        raise refused("The mergekit file is too long.", f"{len(text)} characters", f"at most {MAX_BYTES} bytes")
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        first = (str(error).splitlines() or ["nested too deeply"])[0]
        raise refused("The mergekit file is not YAML.", first, "one YAML document") from error
    if not isinstance(value, Mapping) or "merge_method" not in value:
        found = f"keys {', '.join(map(str, list(value)[:6]))}" if isinstance(value, Mapping) else type(value).__name__
        raise refused(
            "This is neither a recipe nor a mergekit file.", found, "a recipe in JSON, or a merge_method in YAML"
        )
    return value


def _key_of(parent: yaml.Node | None) -> str:
    return "the top" if parent is None else f"what starts at line {parent.start_mark.line + 1}"


class _Dumper(yaml.SafeDumper):
    """Writes equal values out each time: people read these files, and aliases are refused on the way in."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def write_mergekit(config: Mapping[str, Any], comments: tuple[str, ...]) -> str:
    """The text of a mergekit file that opens with comments."""
    head = "".join(f"# {line}\n" for line in comments)
    return head + yaml.dump(
        dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000, default_flow_style=None
    )


def model_text(parent: ParentRef) -> Any:
    """How mergekit names a parent: text, or a mapping where the text would be read as something else."""
    if "@" in parent.source or "+" in parent.source:
        return {"model": {"path": parent.source, "revision": parent.revision}}
    return parent.source if parent.revision is None else f"{parent.source}@{parent.revision}"


def model_source(value: Any) -> tuple[str, str | None]:
    """Source and revision of a model as a mergekit file names it.

    Raises:
        RecipeError: for a LoRA, another architecture, or something that is no model.
    """
    if isinstance(value, str) and value and "+" not in value and value.count("@") <= 1:
        source, _, revision = value.partition("@")
        return source, revision or None
    if isinstance(value, str) and "+" in value:
        raise refused(
            "A model of the mergekit file has a LoRA.", value, "whole checkpoints", "merge the adapter first."
        )
    if isinstance(value, Mapping) and set(value) == {"path", "revision"} and isinstance(value["path"], str):
        revision = value["revision"]
        return value["path"], None if revision is None else str(revision)
    if isinstance(value, Mapping) and "path" in value and set(value) <= {"path", "revision"}:
        return str(value["path"]), None
    if isinstance(value, Mapping) and "model" in value and not any(v for k, v in value.items() if k != "model"):
        return model_source(value["model"])
    raise refused(
        "A model of the mergekit file is not understood.", repr(value), "a folder or hub id, with @revision or not"
    )

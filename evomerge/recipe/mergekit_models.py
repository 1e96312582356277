"""How mergekit names models: a folder or hub id, `@revision`, `+adapter`; and the same as parents of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any, Final, NamedTuple

from evomerge.errors import RecipeError
from evomerge.recipe.mergekit_text import refused
from evomerge.recipe.recipe import Making, ParentRef

BY_ADAPTER: Final = "adapter"
"""The maker of parents that are a model with an adapter merged into it."""
_ALLOWED: Final = "a folder or hub id, with @revision or not, with +adapter or not"


class Files(NamedTuple):
    """Where files are: a folder or hub id, and a revision."""

    path: str
    revision: str | None = None


class Model(NamedTuple):
    """A model as a file names it: a checkpoint, with an adapter on it or without.

    Attributes:
        place: of the checkpoint.
        adapter: place of the adapter that is merged into it.
    """

    place: Files
    adapter: Files | None = None

    def __str__(self) -> str:
        places = [self.place] if self.adapter is None else [self.place, self.adapter]
        return "+".join(p.path if p.revision is None else f"{p.path}@{p.revision}" for p in places)


def model_named(value: Any) -> Model:
    """The model that a value of a mergekit file names.

    Raises:
        RecipeError: for another architecture, or something that is no model.
    """
    if isinstance(value, str) and value:
        parts = value.split("+")
        if len(parts) <= 2 and all(parts):
            return Model(_files(parts[0], value), _files(parts[1], value) if len(parts) == 2 else None)
    if isinstance(value, Mapping) and "model" in value and set(value) <= {"model", "lora", "override_architecture"}:
        if value.get("override_architecture") is not None:
            raise refused(
                "A model of the mergekit file is to be read as another architecture.",
                f"override_architecture: {value['override_architecture']!r}",
                "models of the architecture that their config.json states",
            )
        adapter = value.get("lora")
        return Model(_files(value["model"], value), None if adapter is None else _files(adapter, value))
    raise refused("A model of the mergekit file is not understood.", repr(value), _ALLOWED)


def _files(value: Any, whole: Any) -> Files:
    if isinstance(value, str) and value and value.count("@") <= 1:
        path, _, revision = value.partition("@")
        if path:
            return Files(path, revision or None)
    if isinstance(value, Mapping) and {"path"} <= set(value) <= {"path", "revision"} and isinstance(value["path"], str):
        stated = value.get("revision")
        return Files(value["path"], None if stated is None else str(stated))
    raise refused("A model of the mergekit file is not understood.", repr(whole), _ALLOWED)


def named_parents(models: Sequence[Model], names: Mapping[str, str]) -> tuple[ParentRef, ...]:
    """Models with short names: the given ones, else the last part of the path, made unique.

    Args:
        models: in the order of the recipe.
        names: model as text -> its name.
    """
    taken: dict[str, Model] = {}
    refs = []
    for model in models:
        last = model.place if model.adapter is None else model.adapter
        stem = names.get(str(model)) or names.get(last.path) or PurePath(last.path).name or "model"
        name, count = stem, 2
        while name in taken:
            name, count = f"{stem}-{count}", count + 1
        taken[name] = model
        refs.append(_ref(name, model))
    return tuple(refs)


def _ref(name: str, model: Model) -> ParentRef:
    if model.adapter is None:
        return ParentRef(name, *model.place)
    on = ParentRef("on", *model.place)
    return ParentRef(name, *model.adapter, made=Making(BY_ADAPTER, (), on))


def model_of(parent: ParentRef) -> Model:
    """The model that a parent is to mergekit.

    Raises:
        RecipeError: for a parent that is made otherwise than by an adapter of weight 1 on a checkpoint.
    """
    own = Files(parent.source, parent.revision)
    if parent.made is None:
        return Model(own)
    made = parent.made
    on = made.base
    weight = float(made.settings.get("weight", 1.0))
    if made.method != BY_ADAPTER or on is None or made.of or on.made is not None or weight != 1.0:
        how = f"{made.method}, weight {weight:g}" if made.method == BY_ADAPTER else made.method
        raise RecipeError(
            "mergekit cannot express this recipe: a parent is made from others.",
            got=f"{parent.name}, by {how}",
            allowed="checkpoints, and adapters of weight 1 on a checkpoint",
            fix="export the recipe or the checkpoint instead.",
        )
    return Model(Files(on.source, on.revision), own)


def model_text(parent: ParentRef) -> Any:
    """How mergekit names a parent: text, or a mapping where the text would be read as something else.

    Raises:
        RecipeError: as `model_of`.
    """
    model = model_of(parent)
    places = [p for p in model if p is not None]
    if not any(mark in p.path for p in places for mark in "@+"):
        return str(model)
    spelt = [{"path": p.path, "revision": p.revision} for p in places]
    return {"model": spelt[0]} if model.adapter is None else {"model": spelt[0], "lora": spelt[1]}


def without_names(parent: ParentRef) -> ParentRef:
    """The parent without what only people read, for comparing."""
    made = parent.made
    if made is not None:
        base = None if made.base is None else without_names(made.base)
        made = replace(made, base=base, of=tuple(without_names(p) for p in made.of))
    return replace(parent, name="", content=None, made=made)

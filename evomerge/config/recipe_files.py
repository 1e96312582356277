"""Recipe files: evomerge's JSON or mergekit's YAML, told apart by content, and the parents they name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from evomerge.checkpoints.compatible import check_compatible
from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.config.texts import read_text
from evomerge.dataflow.mergekit import ends_of
from evomerge.errors import ModelError
from evomerge.recipe.mergekit import from_mergekit, mergekit_models
from evomerge.recipe.recipe import Compat, ParentRef, Recipe
from evomerge.recipe.serialize import recipe_from_text


def read_recipe_file(path: Path, compat: Compat | None = None) -> Recipe:
    """The recipe of a file; relative folders in it start at the file's folder.

    Args:
        path: JSON when its first character is `{`, else mergekit's YAML.
        compat: whose arithmetic; None takes the recipe's own, and for a mergekit file mergekit's.

    Raises:
        ConfigError: when the file cannot be read.
        RecipeError: when it is no recipe, or asks for what is not supported.
        ModelError: when a mergekit file's first parent cannot be opened.
    """
    text = read_text(path, "recipe file")
    folder = path.resolve().parent
    if text.lstrip().startswith("{"):
        recipe = recipe_from_text(text)
        recipe = recipe if compat is None else replace(recipe, compat=compat)
    else:
        recipe = _from_mergekit(text, folder, compat)
    return replace(recipe, parents=tuple(_located(p, folder) for p in recipe.parents))


def _from_mergekit(text: str, folder: Path, compat: Compat | None) -> Recipe:
    """The recipe of a mergekit file; its first model says where gains go and what the tensors are."""
    first = next(iter(mergekit_models(text)), None)
    template = None if first is None else _open(_located(first, folder))
    is_end = None if template is None else ends_of(template.config)
    return from_mergekit(text, lambda ref: _open(_located(ref, folder)).layout, compat=compat, is_end=is_end)


def _located(ref: ParentRef, folder: Path) -> ParentRef:
    """The parent with an absolute folder, when there is such a folder beside the file."""
    try:
        beside = (folder / Path(ref.source).expanduser()).resolve()
        return replace(ref, source=str(beside)) if beside.is_dir() else ref
    except (OSError, RuntimeError, ValueError):  # not a path at all: whoever opens it says so
        return ref


def _open(ref: ParentRef) -> OpenParent:
    return open_checkpoint(ref.source, ref.revision)


def open_recipe_parents(recipe: Recipe) -> dict[str, OpenParent]:
    """The parents of a recipe by name, in its order; weights that are not the recipe's are refused.

    Raises:
        ModelError: for parents that cannot be opened, do not fit each other, or hold other weights.
    """
    checkpoints = {p.name: _open(p) for p in recipe.parents}
    check_compatible(checkpoints, recipe.base)
    for parent in recipe.parents:
        if parent.content is not None and parent.content != checkpoints[parent.name].content:
            raise ModelError(
                "A parent does not hold the weights that the recipe was made with.",
                got=f"{parent.name} at {parent.source}: content {checkpoints[parent.name].content}",
                allowed=f"content {parent.content}",
                fix="restore the parent, or correct the path of the parent in the recipe file.",
            )
    return checkpoints

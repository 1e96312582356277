"""Recipe files: evomerge's JSON or mergekit's YAML, told apart by content, and the parents they name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from evomerge.checkpoints.compatible import check_compatible
from evomerge.checkpoints.finite import check_finite
from evomerge.checkpoints.opened import OpenParent
from evomerge.config.cache import parents_folder
from evomerge.config.texts import read_text
from evomerge.dataflow.mergekit import recipe_of_mergekit
from evomerge.errors import ConfigError, ModelError
from evomerge.files import write_atomic
from evomerge.recipe.mergekit import mergekit_told
from evomerge.recipe.recipe import Compat, ParentRef, Recipe
from evomerge.recipe.serialize import recipe_from_text, recipe_to_text
from evomerge.types import Digest
from evomerge.virtual.fitting import fit_parents
from evomerge.virtual.maker import ParentReport, Prompts, quiet
from evomerge.virtual.makers import load_maker
from evomerge.virtual.opening import ParentOpener
from evomerge.virtual.prompts import prompts_text


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


def recipe_file_notes(path: Path) -> tuple[str, ...]:
    """What stands in a mergekit file without effect, in lines for people; nothing about a recipe in JSON.

    Args:
        path: of a file that `read_recipe_file` takes.

    Raises:
        ConfigError, RecipeError: as `read_recipe_file`.
    """
    text = read_text(path, "recipe file")
    return () if text.lstrip().startswith("{") else mergekit_told(text)


def _from_mergekit(text: str, folder: Path, compat: Compat | None) -> Recipe:
    """The recipe of a mergekit file."""
    opener = ParentOpener(parents_folder())
    return recipe_of_mergekit(text, lambda ref: opener.open(_located(ref, folder)), compat)


def _located(ref: ParentRef, folder: Path) -> ParentRef:
    """The parent with an absolute folder, when there is such a folder beside the file; its ingredients likewise."""
    if ref.made is not None:
        base = None if ref.made.base is None else _located(ref.made.base, folder)
        of = tuple(_located(p, folder) for p in ref.made.of)
        ref = replace(ref, made=replace(ref.made, of=of, base=base))
        if ref.made is not None and not load_maker(ref.made.method).spec.needs_files:
            return ref
    try:
        beside = (folder / Path(ref.source).expanduser()).resolve()
        return replace(ref, source=str(beside)) if beside.is_dir() else ref
    except (OSError, RuntimeError, ValueError):  # not a path at all: whoever opens it says so
        return ref


_NO_PROMPTS: Final[Mapping[Digest, Prompts]] = MappingProxyType({})


class RecipeParents(NamedTuple):
    """The parents of a recipe, opened.

    Attributes:
        recipe: with parents that fit each other: heads of their own where some have one.
        checkpoints: name -> parent, in the recipe's order.
        opener: makes those that are made from others.
    """

    recipe: Recipe
    checkpoints: dict[str, OpenParent]
    opener: ParentOpener

    def make(self, report: ParentReport = quiet) -> None:
        """Make what is made from others and is not in the cache yet, then refuse parents that are not finite.

        Raises:
            NonFinite, ModelError: when a tensor holds NaN or infinity.
            ConfigError, DiskFull: when the cache folder cannot be written.
        """
        self.opener.make(report)
        for checkpoint in self.checkpoints.values():
            check_finite(checkpoint)


def prompts_file(path: Path) -> Path:
    """Where the prompts stand that parents of a recipe file were made with, if any were."""
    return path.with_name(f"{path.stem}.prompts.json")


def check_new_recipe_file(to: Path) -> None:
    """Refuse a path that is taken, or has no folder.

    Raises:
        ConfigError: naming it.
    """
    if to.exists():
        raise ConfigError("The file exists already.", got=str(to), allowed="a new file", fix="choose another.")
    if not to.absolute().parent.is_dir():
        raise ConfigError(
            "The folder of the file does not exist.",
            got=str(to),
            allowed="a file in an existing folder",
            fix="create the folder, or choose another path.",
        )


def write_recipe_file(to: Path, recipe: Recipe, prompts: Mapping[Digest, Prompts]) -> None:
    """Write a recipe, and beside it the prompts that its parents were made with, if any were.

    Args:
        to: a new file.
        recipe: with parents that name their content.
        prompts: see `prompts_behind`.

    Raises:
        ConfigError: when a file is there already.
        DiskFull: when there is no room.
    """
    check_new_recipe_file(to)
    if prompts:
        check_new_recipe_file(prompts_file(to))
        write_atomic(prompts_file(to), prompts_text(prompts))
    write_atomic(to, recipe_to_text(recipe))


def prompts_behind(recipe: Recipe, opener: ParentOpener) -> dict[Digest, Prompts]:
    """What parents of the recipe are shown when they are made; nothing for most."""
    found: dict[Digest, Prompts] = {}
    for parent in recipe.parents:
        found |= opener.prompts_of(parent)
    return found


def open_recipe_parents(recipe: Recipe, prompts: Mapping[Digest, Prompts] = _NO_PROMPTS) -> RecipeParents:
    """The parents of a recipe by name, in its order; weights that are not the recipe's are refused.

    Args:
        recipe: its parents' sources can be opened from here.
        prompts: digest -> prompts, for parents that are made with data.

    Raises:
        ModelError: for parents that cannot be opened, do not fit each other, or hold other weights.
        ConfigError, RecipeError: for parents that are made in a way that is not known.
    """
    opener = ParentOpener(parents_folder(), prompts)
    refs = fit_parents({p.name: p for p in recipe.parents}, recipe.base, opener, tokens="refuse")
    checkpoints = {name: opener.open(ref) for name, ref in refs.items()}
    check_compatible(checkpoints, recipe.base)
    for parent in recipe.parents:
        _check_content(parent, opener)
    return RecipeParents(replace(recipe, parents=tuple(refs.values())), checkpoints, opener)


def _check_content(parent: ParentRef, opener: ParentOpener) -> None:
    """Refuse other weights than the recipe was made with; of made parents the first ingredient that differs."""
    if parent.made is not None:
        for ingredient in (*parent.made.of, *(() if parent.made.base is None else (parent.made.base,))):
            _check_content(ingredient, opener)
    if parent.content is not None and parent.content != opener.open(parent).content:
        raise ModelError(
            "A parent does not hold the weights that the recipe was made with.",
            got=f"{parent.name} at {parent.source}: content {opener.open(parent).content}",
            allowed=f"content {parent.content}",
            fix="restore the parent, or correct the path of the parent in the recipe file.",
        )

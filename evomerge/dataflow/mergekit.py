"""mergekit files and the parents they name: read with everything that has to be looked up in them, and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge.checkpoints.chat_templates import chat_template
from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.tokenizers import VocabularyCache, embedding_rows
from evomerge.checkpoints.vocabulary import needs_alignment
from evomerge.dataflow.families import family_of, path_config
from evomerge.dataflow.fold import offsets_of
from evomerge.errors import ModelError, RecipeError
from evomerge.recipe.mergekit import Models, from_mergekit, mergekit_models, to_mergekit
from evomerge.recipe.mergekit_path import Ends
from evomerge.recipe.path import check_layers
from evomerge.recipe.recipe import Compat, ParentRef, Recipe


def ends_of(config: Mapping[str, Any]) -> Ends | None:
    """Which tensors mergekit has to scale for a gain; None where it cannot, or paths do not run at all.

    A norm that multiplies by 1 + weight is no case for it: its scale multiplies the weight alone.

    Args:
        config: the content of config.json.
    """
    try:
        family = family_of(config)
    except ModelError:
        return None
    offsets = offsets_of(family)
    if any(offsets.values()):
        return None

    def is_end(name: str) -> bool:
        parts = family.layer_name(name)
        return parts is not None and parts.rest in offsets

    return is_end


def recipe_of_mergekit(text: str, opened: Callable[[ParentRef], OpenParent], compat: Compat | None = None) -> Recipe:
    """The recipe of a mergekit file.

    Args:
        text: the file's text.
        opened: opens a model of the file.
        compat: see `recipe.mergekit.from_mergekit`.

    Raises:
        RecipeError: when the file is not understood, or asks for what a recipe cannot say.
        ModelError: when a model cannot be opened, or its chat template not read.
    """
    first = opened(mergekit_models(text)[0])
    models = Models(
        layout=lambda ref: opened(ref).layout,
        is_end=ends_of(first.config),
        chat_template=lambda ref: chat_template(opened(ref).tokenizer_folder),
        same_tokens=lambda refs, cut: _same_tokens([opened(ref) for ref in refs], cut=cut),
        is_tied=lambda ref: opened(ref).tied_embeddings,
    )
    return from_mergekit(text, models, compat=compat)


def _same_tokens(parents: Sequence[OpenParent], *, cut: bool) -> bool:
    """Whether all parents have one vocabulary; with `cut` also no rows but those of its tokens."""
    first, *others = parents
    read = VocabularyCache().read
    if any(needs_alignment(parent, first, read) for parent in others):
        return False
    vocabulary = read(first.tokenizer_folder)
    return not cut or vocabulary is None or len(vocabulary.ids) == embedding_rows(first)


def _absolute(parent: ParentRef) -> ParentRef:
    """The parent with absolute folders: mergekit asks the hub about relative ones, and stops when there is none."""
    made = parent.made
    if made is not None:
        base = None if made.base is None else _absolute(made.base)
        parent = replace(parent, made=replace(made, base=base, of=tuple(map(_absolute, made.of))))
    try:
        folder = Path(parent.source).expanduser()
        return replace(parent, source=str(folder.resolve())) if folder.is_dir() else parent
    except (OSError, RuntimeError, ValueError):  # not a path at all
        return parent


def mergekit_text(recipe: Recipe, template: OpenParent) -> str:
    """The recipe as the text of a mergekit file; see `recipe.mergekit.to_mergekit`.

    Args:
        recipe: with a path or without.
        template: the parent that gives the config.

    Raises:
        RecipeError: when mergekit cannot express it. mergekit 0.1.5 sets the depth in config.json and nothing else, so
            a path along which per-layer lists change is refused. That a file leaves such a list out is no help:
            transformers fills it in for the parent's depth when mergekit opens the parent, not for the path's.
        ModelError: when paths cannot run through the architecture.
    """
    recipe = replace(recipe, parents=tuple(map(_absolute, recipe.parents)))
    if recipe.path is None:
        return to_mergekit(recipe, template.layout)
    check_layers(recipe.path, template.layout.n_layers)
    changed = path_config(template.config, [hop.layer for hop in recipe.path])
    before = path_config(template.config, range(template.layout.n_layers))
    odd = [key for key, value in changed.items() if isinstance(value, list) and before.get(key) != value]
    if odd:
        stated = odd[0] in template.config
        who = "mergekit leaves as it is" if stated else "transformers fills in when mergekit opens a parent"
        raise RecipeError(
            "mergekit cannot express this recipe: per-layer settings of the config would have to follow the path.",
            got=f"{odd[0]}, which {who} for {template.layout.n_layers} layers; the path has {len(recipe.path)}",
            allowed="architectures without per-layer settings, or a path that keeps them as they are",
            fix="export the recipe or the checkpoint instead.",
        )
    return to_mergekit(recipe, template.layout, is_end=ends_of(template.config))

"""A mergekit file's `tokenizer_source` and `tokenizer`: whose vocabulary the result has, and which rows that takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from typing import Any, Final

from evomerge.recipe.mergekit_export import inexpressible
from evomerge.recipe.mergekit_file import File, check_known, mapping_of
from evomerge.recipe.mergekit_models import Model, model_named, without_names
from evomerge.recipe.mergekit_text import refused
from evomerge.recipe.recipe import Making, ParentRef, Recipe

ALIGNED: Final = "aligned"
"""The maker of parents whose rows are put in the order of another one's vocabulary."""
_KEYS: Final = ("source", "tokens", "pad_to_multiple_of")
_FIX: Final = "make a checkpoint with these tokens by mergekit, and merge that."


def tokenizer_source(config: Mapping[str, Any], donor: Model | None) -> Model | None:
    """The model whose vocabulary a file asks for; None when it asks for none.

    Raises:
        RecipeError: for both keys, a union, rows for single tokens, padding, or `base` without a base_model.
    """
    source, tokenizer = config.get("tokenizer_source"), config.get("tokenizer")
    if source is not None and tokenizer is not None:
        raise refused("The mergekit file says twice where the tokenizer comes from.", "tokenizer_source and tokenizer", "one of them")  # fmt: skip  # noqa: E501
    if tokenizer is not None:
        source = _from_mapping(mapping_of(tokenizer, "tokenizer"))
    if source is None:
        return None
    if source == "union":
        raise refused(
            "The mergekit file asks for the union of the vocabularies.",
            "tokenizer_source: union",
            "base, or one of the models",
            _FIX,
        )
    if source == "base" and donor is None:
        raise refused("The tokenizer comes from the base, and there is none.", "no base_model", "a base_model")
    return donor if source == "base" else model_named(source)


def _from_mapping(tokenizer: Mapping[str, Any]) -> Any:
    check_known(tokenizer, _KEYS, "tokenizer")
    if tokenizer.get("tokens"):
        tokens = mapping_of(tokenizer["tokens"], "tokenizer.tokens")
        raise refused("The mergekit file gives single tokens rows of their own.", f"tokenizer.tokens: {', '.join(map(repr, tokens))}", "no tokens", _FIX)  # fmt: skip  # noqa: E501
    if tokenizer.get("pad_to_multiple_of") is not None:
        padding = tokenizer["pad_to_multiple_of"]
        raise refused("The mergekit file pads the embeddings.", f"pad_to_multiple_of: {padding!r}", "no padding", _FIX)
    return tokenizer.get("source") or "union"


Vocabulary = Callable[[Model], Set[str] | None]
"""The tokens of a model that have rows; None when nobody knows."""


def check_rows(file: File, source: Model, vocabulary: Vocabulary) -> None:
    """Refuse a vocabulary of which mergekit would fill in other rows than the source's.

    A token that a model lacks has there the row of the base, when that has one, else of its only owner, else the mean
    of the owners' rows. A recipe has the row of the vocabulary's own model.

    Raises:
        RecipeError: naming the first such token.
    """
    wanted = vocabulary(source)
    for piece in (file.slices[0], file.slices[-1]):
        known = {i.model: vocabulary(i.model) for i in piece.inputs}
        for token in sorted(wanted or ()):
            owners = [m for m, tokens in known.items() if tokens is None or token in tokens]
            giver = piece.base if piece.base in owners else owners[0] if len(owners) == 1 else None
            if len(owners) < len(known) and giver != source:
                raise refused(
                    "A token's row would come from another model than the tokenizer.",
                    f"{token!r}, from {giver or 'the mean of ' + (', '.join(map(str, owners)) or 'no model')}",
                    f"tokens that a model lacks come from {source}",
                    "use tokenizer_source: base, or merge the file with mergekit itself.",
                )


def aligned(parent: ParentRef, reference: ParentRef) -> ParentRef:
    """A parent with the reference's vocabulary."""
    return ParentRef(parent.name, parent.source, made=Making(ALIGNED, (parent,), reference))


def without_alignment(recipe: Recipe) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with parents as they are before their vocabularies are aligned, and `tokenizer_source` of the file.

    Raises:
        RecipeError: when they are aligned to another parent than the one that gives config and tokenizer.
    """
    template = recipe.base or recipe.parents[0].name
    wanted = next(p for p in recipe.parents if p.name == template)
    parents = []
    for parent in recipe.parents:
        made = parent.made
        if made is None or made.method != ALIGNED:
            parents.append(parent)
            continue
        if made.base is None or without_names(made.base) != without_names(wanted):
            raise inexpressible(
                "the vocabulary comes from another parent than config and tokenizer.",
                f"{parent.name} has that of {made.base.source if made.base is not None else 'nobody'}",
                f"that of {template}",
            )
        parents.append(replace(made.of[0], name=parent.name))
    if tuple(parents) == recipe.parents:
        return recipe, {}
    return replace(recipe, parents=tuple(parents)), {"tokenizer_source": "base"}

"""A mergekit file's `tokenizer_source` and `tokenizer`, as parents with the rows of a common vocabulary, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from evomerge.errors import suggest
from evomerge.recipe.mergekit_export import inexpressible
from evomerge.recipe.mergekit_file import check_known, mapping_of
from evomerge.recipe.mergekit_models import Model, model_named, model_text, without_names
from evomerge.recipe.mergekit_text import refused
from evomerge.recipe.recipe import Making, ParentRef, Recipe
from evomerge.recipe.retokenizing import MAX_MULTIPLE, NONE, RETOKENIZED, TokenRule, retokenized, token_rules

ALIGNED: Final = "aligned"
UNTIED: Final = "untied"
UNION: Final = "union"
_KEYS: Final = ("source", "tokens", "pad_to_multiple_of")


class Asked(NamedTuple):
    """The vocabulary that a file asks for.

    Attributes:
        source: whose; None for the union of all.
        tokens: rules for single tokens.
        multiple: of which the number of rows is.
    """

    source: Model | None
    tokens: Mapping[str, TokenRule]
    multiple: int = 1


def vocabulary_asked(config: Mapping[str, Any], models: Sequence[Model], donor: Model | None) -> Asked | None:
    """What a file says about the vocabulary; None when it says nothing.

    Args:
        config: the whole file.
        models: of the recipe, in order.
        donor: the file's base_model.

    Raises:
        RecipeError: for both keys, `base` without a base_model, a tokenizer or a row of a model that is not merged, or
            rules that are not understood.
    """
    source, tokenizer = config.get("tokenizer_source"), mapping_of(config.get("tokenizer"), "tokenizer")
    if source is not None and config.get("tokenizer") is not None:
        raise refused(
            "The mergekit file says twice where the tokenizer comes from.",
            "tokenizer_source and tokenizer",
            "one of them",
        )
    check_known(tokenizer, _KEYS, "tokenizer")
    if source is None and config.get("tokenizer") is None:
        return None
    source = source or tokenizer.get("source") or UNION
    if source == "base" and donor is None:
        raise refused("The tokenizer comes from the base, and there is none.", "no base_model", "a base_model")
    rules = mapping_of(tokenizer.get("tokens"), "tokenizer.tokens")
    found = {token: _rule(token, mapping_of(value, token), models) for token, value in rules.items()}
    owner = None if source == UNION else donor if source == "base" else model_named(source)
    if owner is not None:
        _check_owner(owner, models)
    return Asked(owner, found, _multiple(tokenizer.get("pad_to_multiple_of")))


def _multiple(value: Any) -> int:
    if value is None:
        return 1
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_MULTIPLE:
        allowed = f"a whole number from 1 to {MAX_MULTIPLE}"
        raise refused("The padding is not understood.", f"pad_to_multiple_of: {value!r}", allowed)
    return value


def _check_owner(owner: Model, models: Sequence[Model]) -> None:
    """Refuse a tokenizer of a model that is not merged, or a word that is none."""
    if owner not in models:
        words = [UNION, "base", *map(str, models)]
        raise refused(
            "The tokenizer comes from a model that is not merged.",
            str(owner),
            suggest(str(owner), words),
            "name one of them.",
        )


def _number(model: Model, models: Sequence[Model], what: str) -> int:
    if model not in models:
        raise refused(what, str(model), ", ".join(map(str, models)), "name one of the models that are merged.")
    return models.index(model)


def _rule(token: str, value: Mapping[str, Any], models: Sequence[Model]) -> TokenRule:
    """One entry of `tokenizer.tokens`."""
    check_known(value, ("source", "force"), f"the token {token!r}")
    source, force = value.get("source"), value.get("force", False)
    what = f"The row of {token!r} comes from a model that is not merged."
    if isinstance(force, bool) and source is not None:
        if not isinstance(source, Mapping) or "kind" not in source:
            return TokenRule(_number(model_named(source), models, what), force=force)
        if dict(source) == {"kind": "zero"}:
            return TokenRule(force=force)
        row, text = source.get("token_id"), source.get("token")
        is_one = (row is None) != (text is None) and set(source) <= {"kind", "model", "token", "token_id"}
        if source["kind"] == "model_token" and is_one and isinstance(row, int | None) and isinstance(text, str | None):
            number = _number(model_named(source.get("model")), models, what)
            return TokenRule(number, text, NONE if row is None else row, force)
    raise refused(
        f"Where the row of {token!r} comes from is not understood.",
        repr(dict(value)),
        "source: a model, {kind: zero}, or {kind: model_token, model, token or token_id}; force: true or false",
    )


def with_vocabulary(
    asked: Asked, parents: Mapping[Model, ParentRef], base: Model | None, *, exact: bool, arithmetic: str | None = None
) -> tuple[ParentRef, ...]:
    """The parents with the rows of the vocabulary.

    Args:
        asked: which.
        parents: of the recipe, in order.
        base: the model whose row a token has in those that lack it; None without.
        exact: as mergekit does it: padding is cut off, means are taken in the dtype of the rows.
        arithmetic: that dtype; None for that of the models.
    """
    order = list(parents)
    return retokenized(
        tuple(parents.values()),
        base=order.index(base) if base in order else None,
        source=None if asked.source is None else order.index(asked.source),
        tokens=asked.tokens,
        pad_to_multiple_of=asked.multiple,
        wide=not exact,
        keep_rows=not exact,
        arithmetic=arithmetic,
    )


def untied(parent: ParentRef, other: ParentRef) -> ParentRef:
    """A parent whose head is its embedding with a head of its own, named as another's."""
    return ParentRef(parent.name, parent.source, made=Making(UNTIED, (parent,), other))


def without_vocabulary(recipe: Recipe) -> tuple[Recipe, dict[str, Any], tuple[str, ...]]:
    """The recipe with parents as they are before they are fitted to each other, and what the file says about that.

    Returns:
        The recipe, `tokenizer_source` or `tokenizer` of the file, and lines about what is not exact.

    Raises:
        RecipeError: when the parents do not share one vocabulary that mergekit makes.
    """
    template = recipe.base or recipe.parents[0].name
    shared = _retokenized(recipe)
    found: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    plain = list(recipe.parents)
    if shared is not None:
        plain = [replace(p, name=own.name) for p, own in zip(shared.of, recipe.parents, strict=True)]
        found = _tokenizer(shared, recipe, plain)
        if shared.settings["keep_rows"]:
            notes = ("Rows of the embedding that no token has (padding) are kept by evomerge, cut off by mergekit.",)
    parents = [_as_is(p, next(q for q in recipe.parents if q.name == template)) for p in plain]
    if any(p.made is not None and p.made.method == ALIGNED for p in plain):
        found = {"tokenizer_source": "base"}
        notes = ("Rows of the embedding that no token has (padding) are kept by evomerge, cut off by mergekit.",)
    if tuple(parents) == recipe.parents:
        return recipe, {}, ()
    return replace(recipe, parents=tuple(parents)), found, notes


def _as_is(parent: ParentRef, template: ParentRef) -> ParentRef:
    """A parent before it was aligned or untied."""
    made = parent.made
    if made is None or made.method not in (ALIGNED, UNTIED):
        return parent
    if made.method == ALIGNED and (made.base is None or without_names(made.base) != without_names(template)):
        raise inexpressible(
            "the vocabulary comes from another parent than config and tokenizer.",
            f"{parent.name} has that of {made.base.source if made.base is not None else 'nobody'}",
            f"that of {template.name}",
        )
    return _as_is(replace(made.of[0], name=parent.name), template)


def _retokenized(recipe: Recipe) -> Making | None:
    """How the parents' common vocabulary is made; None when they have none."""
    made = [p.made for p in recipe.parents]
    first = next((m for m in made if m is not None and m.method == RETOKENIZED), None)
    if first is None:
        return None
    wanted = [replace(first, settings={**first.settings, "member": float(i)}) for i in range(len(made))]
    if made != wanted or len({p.source for p in recipe.parents if token_rules(p.source)}) > 1:
        raise inexpressible(
            "its parents do not share one vocabulary.",
            ", ".join(p.name for p, m, w in zip(recipe.parents, made, wanted, strict=False) if m != w) or "other rules",
            "parents that are retokenized together",
        )
    return first


def _tokenizer(made: Making, recipe: Recipe, plain: Sequence[ParentRef]) -> dict[str, Any]:
    names = [p.name for p in recipe.parents]
    source, multiple = int(made.settings["source"]), int(made.settings["pad_to_multiple_of"])
    template = names.index(recipe.base) if recipe.base is not None else 0
    texts = [model_text(_as_is(p, p)) for p in plain]
    word = UNION if source == NONE else "base" if source == template else texts[source]
    rules = token_rules(recipe.parents[0].source)
    if not rules and multiple == 1:
        return {"tokenizer_source": word}
    tokens = {token: _said(rule, texts) for token, rule in rules.items()}
    padding = {"pad_to_multiple_of": multiple} if multiple > 1 else {}
    return {"tokenizer": {"source": word, **({"tokens": tokens} if tokens else {}), **padding}}


def _said(rule: TokenRule, texts: Sequence[Any]) -> dict[str, Any]:
    force = {"force": True} if rule.force else {}
    if rule.model == NONE:
        return {"source": {"kind": "zero"}, **force}
    if rule.token is None and rule.row == NONE:
        return {"source": texts[rule.model], **force}
    which = {"token": rule.token} if rule.token is not None else {"token_id": rule.row}
    return {"source": {"kind": "model_token", "model": texts[rule.model], **which}, **force}

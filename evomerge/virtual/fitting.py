"""Parents that nearly fit each other, wrapped until they do: heads of their own, rows in the reference's order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, Literal, get_args

from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.tokenizers import VocabularyCache
from evomerge.checkpoints.vocabulary import align, needs_alignment
from evomerge.errors import ConfigError, suggest
from evomerge.recipe.recipe import Making, ParentRef
from evomerge.virtual.opening import ParentOpener

Tokens = Literal["refuse", "align"]
_FITTING: Final = ("aligned", "untied", "retokenized")
"""Makers that take parents as they are."""
_BASE: Final = "base"


def fit_parents(
    refs: Mapping[str, ParentRef], base: str | None, opener: ParentOpener, *, tokens: Tokens
) -> dict[str, ParentRef]:
    """The parents as they can be merged: made from the given ones where heads or vocabularies differ.

    A tied parent beside an untied one gets a head of its own (`untied`); with `tokens="align"` a parent with another
    vocabulary gets the reference's (`aligned`). What a made parent is made from is fitted first. Whatever else differs
    stays, and `check_compatible` refuses it. Where there is nothing to do, the given refs are returned.

    Args:
        refs: name -> parent, in the recipe's order.
        base: name of the reference; None takes the first parent.
        opener: opens the given parents; nothing is made.
        tokens: `"refuse"` leaves other vocabularies as they are.

    Raises:
        ConfigError: for an unknown `tokens`.
        ModelError: when a parent cannot be opened, or vocabularies cannot be aligned.
    """
    if tokens not in get_args(Tokens):
        raise ConfigError(
            "It is not known what to do with other vocabularies.",
            got=f"tokens = {tokens!r}",
            allowed=suggest(str(tokens), get_args(Tokens)),
            fix="correct parents.tokens.",
        )
    fitted = _untie({n: _inside(ref, opener, tokens) for n, ref in refs.items()}, opener)
    reference = fitted[base if base is not None else next(iter(fitted))]
    read = VocabularyCache().read
    if tokens == "align":
        for name, ref in fitted.items():
            if ref != reference and needs_alignment(opener.open(ref), opener.open(reference), read):
                fitted[name] = _wrap("aligned", ref, reference)
    return fitted


def _inside(ref: ParentRef, opener: ParentOpener, tokens: Tokens) -> ParentRef:
    """A parent whose ingredients fit each other, the base of their deltas first."""
    made = ref.made
    if made is None or made.method in _FITTING:
        return ref
    inner = {str(i): parent for i, parent in enumerate(made.of)}
    if made.base is not None:
        inner = {_BASE: made.base, **inner}
    fitted = fit_parents(inner, _BASE if made.base is not None else None, opener, tokens=tokens) if inner else inner
    if fitted == inner:
        return ref
    base = fitted.pop(_BASE, None)
    return replace(ref, made=replace(made, of=tuple(fitted.values()), base=base))


def _untie(refs: Mapping[str, ParentRef], opener: ParentOpener) -> dict[str, ParentRef]:
    """Every tied parent with a head of its own, if any parent has one."""
    untied = next((ref for ref in refs.values() if not opener.open(ref).tied_embeddings), None)
    if untied is None:
        return dict(refs)
    return {n: _wrap("untied", ref, untied) if opener.open(ref).tied_embeddings else ref for n, ref in refs.items()}


def _wrap(method: str, ref: ParentRef, base: ParentRef) -> ParentRef:
    return ParentRef(ref.name, ref.source, made=Making(method, (ref,), base))


def token_words(parents: Mapping[str, OpenParent]) -> dict[str, tuple[str, ...]]:
    """For people: what aligning each parent to the first would lose, by name; parents with nothing to tell left out.

    Args:
        parents: name -> parent, the reference first; as they were before they were fitted.

    Raises:
        ModelError: when vocabularies cannot be aligned.
    """
    (_, reference), *others = parents.items()
    read = VocabularyCache().read
    found = {n: align(p, reference).words() for n, p in others if needs_alignment(p, reference, read)}
    return {name: words for name, words in found.items() if words}

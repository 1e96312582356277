"""Recipes as mergekit files, and mergekit files as recipes.

A file is written so that `mergekit-yaml` (0.1.5) makes the same model; what it computes in another way is told in the
file's first lines. A file that is read may have models or slices with gradients and filters, in any order of layers as
long as every layer of the result takes one layer of all its sources. What a recipe cannot say is refused with the
reason; nothing is approximated, and what mergekit itself would ignore is refused or told (`mergekit_told`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from evomerge.layout import Layout
from evomerge.recipe.mergekit_exactness import comments_of
from evomerge.recipe.mergekit_export import chat_template_text, check_divisors, dtypes_of, inexpressible, only_method
from evomerge.recipe.mergekit_file import body_of, donor_of, entries_of, model_in, read_file
from evomerge.recipe.mergekit_import import Order, assignments_of, order_of
from evomerge.recipe.mergekit_models import Model, named_parents
from evomerge.recipe.mergekit_output import (
    Parents,
    Stated,
    chat_template_of,
    dtypes_of_parents,
    gains_alike,
    recipe_dtypes,
    rules_alike,
    stated_dtypes,
)
from evomerge.recipe.mergekit_path import (
    PASSTHROUGH,
    Ends,
    is_copy,
    passthrough_body,
    passthrough_comments,
    passthrough_dtype,
)
from evomerge.recipe.mergekit_path_import import Passed, read_passthrough
from evomerge.recipe.mergekit_text import DTYPES, read_mergekit, refused, write_mergekit
from evomerge.recipe.mergekit_tokens import Asked, untied, vocabulary_asked, with_vocabulary, without_vocabulary
from evomerge.recipe.mergekit_told import told_of
from evomerge.recipe.mergekit_translate import translated
from evomerge.recipe.mergekit_writer import Writer
from evomerge.recipe.method_spec import MethodSpec
from evomerge.recipe.named_rules import rules_of_tensors
from evomerge.recipe.path import Hop
from evomerge.recipe.recipe import Compat, ParentRef, Recipe, Rule


class Models(NamedTuple):
    """Answers about the models of a file; each is a `ParentRef` with a short name.

    Attributes:
        layout: of a model, with its adapter.
        is_end: which tensors end the branches of a layer: scales of exactly these, all by one factor, are gains of a
            path. None when nobody knows.
        chat_template: a model's own, None without one; None when nobody knows.
        same_tokens: whether all these models have one vocabulary, and (where it is asked for) no rows beside it; None
            when nobody knows.
        is_tied: whether a model's head is its embedding; None when nobody knows.
    """

    layout: Callable[[ParentRef], Layout]
    is_end: Ends | None = None
    chat_template: Callable[[ParentRef], str | None] | None = None
    same_tokens: Callable[[Sequence[ParentRef], bool], bool] | None = None
    is_tied: Callable[[ParentRef], bool] | None = None


def to_mergekit(recipe: Recipe, layout: Layout, *, notes: Sequence[str] = (), is_end: Ends | None = None) -> str:
    """The recipe as the text of a mergekit file.

    Args:
        recipe: its parents' sources must be what mergekit can open from where it runs (absolute paths, hub ids).
        layout: of the parents.
        notes: more lines for the comments at the top (counted differences, for instance).
        is_end: which tensors end the branches of a layer, so that a path's gains can be written as their scales; None
            writes no gains.

    Raises:
        RecipeError: when mergekit cannot express it: several methods, one that is not mergekit's (and no sum that it
            has), a base with a weight, parents that are made otherwise than by an adapter, or (in the default
            arithmetic) normalised weights of both signs; or a path that mixes merged layers with gains, or with copies
            by another method than linear.
    """
    plain, vocabulary, token_notes = without_vocabulary(recipe)
    if is_copy(plain, layout):
        path = plain.path or tuple(Hop(layer) for layer in range(layout.n_layers))
        body = passthrough_body(plain, path, layout, is_end)
        text = {**body, **passthrough_dtype(plain), **vocabulary, **chat_template_text(plain)}
        return write_mergekit(text, (*passthrough_comments(plain, layout, body), *token_notes, *notes))
    own, translations = translated(plain, layout)
    rules = _used_rules(own, layout)
    method = only_method(own, rules)
    check_divisors(own, rules, method)
    _check_path(own, method)
    writer = Writer(own, layout, method)
    dtypes, dtype_notes = dtypes_of(own, layout)
    config = {"merge_method": method.name, **writer.config(), **dtypes, **vocabulary, **chat_template_text(own)}
    return write_mergekit(
        config, (*comments_of(own, method), *translations, *writer.notes(), *dtype_notes, *token_notes, *notes)
    )


def _used_rules(recipe: Recipe, layout: Layout) -> list[Rule]:
    """The rules that make something, one for each tensor."""
    merged = None if recipe.path is None else {hop.layer for hop in recipe.path if hop.parent is None}
    made = [t for t in layout.tensors if t.layer is None or merged is None or t.layer in merged]
    return [recipe.rule_for(t) for t in made]


def _check_path(recipe: Recipe, method: MethodSpec) -> None:
    for k, hop in enumerate(recipe.path or ()):
        if hop.gain != 1.0:
            raise inexpressible("its path has gains, and merges.", f"hop {k}: {hop.gain:g}", "gains of 1")
        if hop.parent is not None and method.name != "linear":
            raise inexpressible(
                f"its path copies a layer, and {method.name} merges.",
                f"hop {k}: layer {hop.layer} of {hop.parent}",
                "merged layers alone, or layers merged by linear",
            )


def mergekit_models(text: str) -> tuple[ParentRef, ...]:
    """The models that a file names, base first, with short names; for opening them before anything else.

    Raises:
        RecipeError: as `from_mergekit`, as far as models are concerned.
    """
    return named_parents(_models_of(read_mergekit(text)), {})


def _models_of(config: Mapping[str, Any]) -> list[Model]:
    donor, body = donor_of(config), body_of(config)
    found = [donor] if donor is not None else []
    found += [model_in(entry) for entry in entries_of(body.get("models") or [], "models")]
    for piece in entries_of(body.get("slices") or [], "slices"):
        found += [model_in(entry) for entry in entries_of(piece.get("sources") or [], "sources")]
    if not found:
        raise refused("The mergekit file names no models.", "none", "models, or slices with sources")
    return list(dict.fromkeys(found))


def mergekit_told(text: str) -> tuple[str, ...]:
    """What stands in a file without effect, or has one that nobody asked for: lines for people.

    Args:
        text: of a file that `from_mergekit` takes.

    Raises:
        RecipeError: when the file is not understood.
    """
    config = read_mergekit(text)
    return told_of(config, read_file(config, sys.maxsize))


def from_mergekit(
    text: str,
    models: Models,
    *,
    names: Mapping[str, str] | None = None,
    compat: Compat | None = None,
) -> Recipe:
    """The recipe that makes what `mergekit-yaml` makes from this file.

    Args:
        text: the file's text.
        models: answers about the models; asked for every model of the file.
        names: source as the file writes it -> the parent's name in the recipe; others are named for their folder.
        compat: `mergekit` for its arithmetic, bit for bit; `off` for evomerge's own; None for `mergekit`, but for
            copies of layers, which both make alike.

    Raises:
        RecipeError: when the file is not understood, or asks for what a recipe cannot say.
    """
    config = read_mergekit(text)
    found, own = _models_of(config), models.chat_template or (lambda _: None)
    refs = dict(zip(found, named_parents(found, {}), strict=True))
    layouts = {model: models.layout(ref) for model, ref in refs.items()}
    stated = stated_dtypes(config)
    file = read_file(config, layouts[found[0]].n_layers)
    order = order_of(file)
    template = layouts[order.base or order.models[0]]
    parents = named_parents(order.models, names or {})
    named = {model: parent.name for model, parent in zip(order.models, parents, strict=True)}
    computed = dtypes_of_parents(file, template, _own_layouts(layouts, models))

    def copied(folds: bool, compat: Compat) -> Passed:
        return read_passthrough(file, template, named, models.is_end, folds=folds, compat=compat)

    copies = file.method.name == PASSTHROUGH
    chosen = compat or (_of_copies(copied, template, stated, computed) if copies else "mergekit")
    plain = all(model.adapter is None for model in found)
    stored = {t.name: t.dtype for t in template.tensors if t.name in computed} if plain else None
    dtypes = recipe_dtypes(stated, Parents(computed, stored), file.method.name, chosen)
    if copies:
        rules, path = copied(chosen == "mergekit" or gains_alike(stated, set(computed.values())), chosen)
    else:
        rules = rules_of_tensors(file.method.name, template, assignments_of(file, template, named, chosen))
        in_order = file.layers == tuple(range(template.n_layers))
        path = None if in_order else tuple(Hop(layer) for layer in file.layers)
    rows = {t.dtype for found in layouts.values() for t in found.tensors if t.role in ("embedding", "head")}
    cast_to = None if {DTYPES.get(dtype) for dtype in rows} == {stated.arithmetic} else stated.arithmetic
    return Recipe(
        parents=_fitted(config, models, order, dict(zip(order.models, parents, strict=True)), chosen, cast_to=cast_to),
        base=None if order.base is None else named[order.base],
        rules=rules,
        dtype=dtypes.stored,
        compat=chosen,
        path=path,
        arithmetic=dtypes.arithmetic,
        chat_template=chat_template_of(config, order.models, lambda model: own(refs[model])),
    )


def _of_copies(
    read: Callable[[bool, Compat], Passed], template: Layout, stated: Stated, computed: Mapping[str, str]
) -> Compat:
    """Whose arithmetic a file of copies has: evomerge's where both make the same bits, else mergekit's.

    Args:
        read: the file, given whether gains are folded, and the arithmetic.
        template: the tensors.
        stated: dtypes that the file names.
        computed: the dtype that mergekit computes each tensor in where the file names none.
    """
    found, kinds = read(True, "off"), set(computed.values())
    if found.is_scaled:
        exact = (not found.is_gained or gains_alike(stated, kinds)) and (
            not found.is_ruled or rules_alike(stated, kinds)
        )
        return "off" if exact else "mergekit"
    if stated.arithmetic is None and stated.out is None:  # every layer in its own model's dtype
        return "off" if all(computed.get(t.name, t.dtype) == t.dtype for t in template.tensors) else "mergekit"
    return "off" if not stated.differ or stated.arithmetic == "float32" else "mergekit"


def _fitted(
    config: Mapping[str, Any],
    models: Models,
    order: Order,
    parents: Mapping[Model, ParentRef],
    compat: Compat,
    *,
    cast_to: str | None,
) -> tuple[ParentRef, ...]:
    """The parents with heads and vocabularies that fit each other, as the file asks for them.

    Args:
        config: the whole file.
        models: answers about its models.
        order: of the parents.
        parents: as the file names them.
        compat: whose arithmetic.
        cast_to: the dtype that mergekit casts rows of tokens to before it takes means; None for the models' own.
    """
    tied = {model: models.is_tied is not None and models.is_tied(parent) for model, parent in parents.items()}
    headed = next((parent for model, parent in parents.items() if not tied[model]), None)
    if headed is not None:
        parents = {m: untied(parent, headed) if tied[m] else parent for m, parent in parents.items()}
    donor = donor_of(config)
    asked = vocabulary_asked(config, order.models, donor)
    if asked is None:
        return tuple(parents.values())
    exact, refs = compat == "mergekit", tuple(parents.values())
    plain = asked == Asked(asked.source, {}) and models.same_tokens is not None
    if plain and models.same_tokens is not None and models.same_tokens(refs, exact):
        return refs
    return with_vocabulary(asked, parents, donor, exact=exact, arithmetic=cast_to if exact else None)


def _own_layouts(layouts: Mapping[Model, Layout], models: Models) -> dict[Model, Layout]:
    """Layouts in the dtypes that checkpoints are stored in: mergekit merges an adapter in its model's dtype."""
    return {m: found if m.adapter is None else models.layout(ParentRef("on", *m.place)) for m, found in layouts.items()}

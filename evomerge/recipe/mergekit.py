"""Recipes as mergekit files, and mergekit files as recipes.

A file is written so that `mergekit-yaml` (0.1.5) makes the same model; what it computes in another way is told in the
file's first lines. A file that is read may have models, or slices of unmoved layers, with gradients and filters, or
passthrough slices in any order, which are a path. What a recipe cannot say (merged slices that move or repeat layers,
LoRAs, tokenizer surgery, filters that tell tensors of one role apart) is refused with the reason; nothing is
approximated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from evomerge.layout import Layout
from evomerge.recipe.mergekit_export import Writer, check_divisors, comments_of, dtypes_of, only_method
from evomerge.recipe.mergekit_file import base_of, bodies_of, entries_of, model_of, read_file
from evomerge.recipe.mergekit_import import assignments_of, named_parents, recipe_dtype, sources_in_order
from evomerge.recipe.mergekit_path import (
    PASSTHROUGH,
    Ends,
    passthrough_body,
    passthrough_comments,
    passthrough_dtype,
)
from evomerge.recipe.mergekit_path_import import from_passthrough
from evomerge.recipe.mergekit_text import read_mergekit, refused, write_mergekit
from evomerge.recipe.recipe import Compat, ParentRef, Recipe
from evomerge.recipe.rules import rules_of


def to_mergekit(recipe: Recipe, layout: Layout, *, notes: Sequence[str] = (), is_end: Ends | None = None) -> str:
    """The recipe as the text of a mergekit file.

    Args:
        recipe: its parents' sources must be what mergekit can open from where it runs (absolute paths, hub ids).
        layout: of the parents.
        notes: more lines for the comments at the top (counted differences, for instance).
        is_end: which tensors end the branches of a layer, so that a path's gains can be written as their scales; None
            writes no gains.

    Raises:
        RecipeError: when mergekit cannot express it: several methods, a plug-in's method, a base with a weight, or
            (in the default arithmetic) normalised weights of both signs; or a path with merged layers, merged tensors
            outside the layers, or gains that cannot be written.
    """
    if recipe.path is not None:
        body = passthrough_body(recipe, recipe.path, layout, is_end)
        text = {**body, **passthrough_dtype(recipe, layout)}
        return write_mergekit(text, (*passthrough_comments(recipe, layout, body), *notes))
    rules = {t.name: recipe.rule_for(t) for t in layout.tensors}
    method = only_method(recipe, list(rules.values()))
    check_divisors(recipe, list(rules.values()), method)
    writer = Writer(recipe, layout, method, rules)
    dtypes, dtype_notes = dtypes_of(recipe, layout)
    config = {"merge_method": method.name, **writer.base(), **writer.body(), **dtypes}
    return write_mergekit(config, (*comments_of(recipe, method), *dtype_notes, *notes))


def mergekit_models(text: str) -> tuple[ParentRef, ...]:
    """The models that a file names, base first, with short names; for opening them before anything else.

    Raises:
        RecipeError: as `from_mergekit`, as far as models are concerned.
    """
    config = read_mergekit(text)
    base = base_of(config)
    found = [base] if base is not None else []
    for place in bodies_of(config):
        for entry in entries_of(place.get("models") or [], "models"):
            found.append(model_of(entry))
        for piece in entries_of(place.get("slices") or [], "slices"):
            found += [model_of(entry) for entry in entries_of(piece.get("sources") or [], "sources")]
    return named_parents(list(dict.fromkeys(found)), {})


def from_mergekit(
    text: str,
    layout_of: Callable[[ParentRef], Layout],
    *,
    names: Mapping[str, str] | None = None,
    compat: Compat | None = None,
    is_end: Ends | None = None,
) -> Recipe:
    """The recipe that makes what `mergekit-yaml` makes from this file.

    Args:
        text: the file's text.
        layout_of: gives the layout of the parents; called once, with the base or the first model.
        names: source as the file writes it -> the parent's name in the recipe; others are named for their folder.
        compat: `mergekit` for its arithmetic, bit for bit; `off` for evomerge's own; None for `mergekit` unless the
            file computes in fp32 and stores something else, as files of evomerge's own arithmetic do.
        is_end: which tensors end the branches of a layer: scales of exactly these, all by one factor, are gains of a
            path. None refuses scales.

    Raises:
        RecipeError: when the file is not understood, or asks for what a recipe cannot say.
    """
    config = read_mergekit(text)
    base = base_of(config)
    models = mergekit_models(text)
    by_source = {(p.source, p.revision): p for p in models}
    if not models:
        raise refused("The mergekit file names no models.", "none", "models or slices with sources")
    layout = layout_of(by_source[base] if base is not None else models[0])
    if config["merge_method"] == PASSTHROUGH:
        return from_passthrough(config, layout, names=names or {}, compat=compat, is_end=is_end)
    file = read_file(config, base, layout)
    parents = named_parents(sources_in_order(file), names or {})
    refs = {(p.source, p.revision): p for p in parents}
    dtype, chosen = recipe_dtype(file.dtype, file.out_dtype, layout, compat)
    return Recipe(
        parents=parents,
        base=refs[base].name if file.method.needs_base and base is not None else None,
        rules=rules_of(file.method.name, assignments_of(file, layout, {s: p.name for s, p in refs.items()}, chosen)),
        dtype=dtype,
        compat=chosen,
    )

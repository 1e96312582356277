"""Paths and copies as mergekit's passthrough slices.

A slice takes neighbouring layers of one model; slices stand one behind the other, so layers may be moved, repeated and
left out. The embedding comes from the first slice's model, final norm and head from the last one's; a slice may be
empty, and then gives only these. `scale` multiplies tensors: it is a branch gain where it multiplies the tensors that
end a layer's branches, and nothing else (mergekit 0.1.5); any other is a rule of the method `passthrough`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from evomerge.layout import Layout, TensorInfo
from evomerge.recipe.equivalence import linear_coefficients, number
from evomerge.recipe.mergekit_exactness import parents_told, replay_of
from evomerge.recipe.mergekit_export import inexpressible
from evomerge.recipe.mergekit_models import model_text
from evomerge.recipe.mergekit_settings import filters_for
from evomerge.recipe.mergekit_text import DTYPES
from evomerge.recipe.path import Hop, Hops, check_layers
from evomerge.recipe.recipe import ParentRef, Recipe, Rule, name_within

PASSTHROUGH: Final = "passthrough"
Ends = Callable[[str], bool]
"""Whether the tensor of this name ends a branch of its layer, so that a factor on it is a branch gain."""

_PRINTED: Final = 200


class _Copied(NamedTuple):
    """Tensors that are one parent's, each times a factor.

    Attributes:
        parent: whose; None without tensors.
        scales: name -> factor.
    """

    parent: str | None
    scales: Mapping[str, float]


class _Piece(NamedTuple):
    """Layers [start, end) of one parent, none when start == end, with factors by name inside the layer."""

    parent: str
    start: int
    end: int
    scales: Mapping[str, float]


def passthrough_body(recipe: Recipe, hops: Hops, layout: Layout, is_end: Ends | None) -> dict[str, Any]:
    """The slices of a recipe's path.

    Args:
        recipe: whose tensors outside the layers come from one parent at each end.
        hops: its path.
        layout: of the parents.
        is_end: where gains go; None when nobody knows.

    Raises:
        RecipeError: when a hop is out of range or is a merge of several parents, when embedding, or norm and head, are
            merged, or when gains cannot be written.
    """
    check_layers(hops, layout.n_layers)
    if is_end is None and any(hop.gain != 1.0 for hop in hops):
        gains = sorted({hop.gain for hop in hops} - {1.0})
        raise inexpressible("its path has gains.", ", ".join(f"{g:g}" for g in gains)[:_PRINTED], "gains of 1")
    outside = [t for t in layout.tensors if t.layer is None]
    first = _copied(recipe, [t for t in outside if t.role == "embedding"], "the embedding")
    last = _copied(recipe, [t for t in outside if t.role != "embedding"], "what follows the layers")
    pieces = _pieces(recipe, hops, layout, is_end)
    if first.parent is not None and first.parent != pieces[0].parent:
        pieces.insert(0, _Piece(first.parent, 0, 0, {}))
    if last.parent is not None and last.parent != pieces[-1].parent:
        pieces.append(_Piece(last.parent, 0, 0, {}))
    refs = {p.name: p for p in recipe.parents}
    template = refs[recipe.base or recipe.parents[0].name]
    slices = []
    for i, piece in enumerate(pieces):
        ends = {**(first.scales if i == 0 else {}), **(last.scales if i == len(pieces) - 1 else {})}
        slices.append(_slice(piece, refs, layout, ends))
    return {"merge_method": PASSTHROUGH, "base_model": model_text(template), "slices": slices}


def _pieces(recipe: Recipe, hops: Hops, layout: Layout, is_end: Ends | None) -> list[_Piece]:
    """The hops in as few slices as hold them."""
    pieces: list[_Piece] = []
    for k, hop in enumerate(hops):
        inside = [t for t in layout.tensors if t.layer == hop.layer]
        copied = _Copied(hop.parent, dict.fromkeys((t.name for t in inside), 1.0))
        if hop.parent is None:
            copied = _copied(recipe, inside, f"hop {k}, layer {hop.layer},")
        parent = copied.parent or recipe.parents[0].name
        scales = {name_within(t): copied.scales[t.name] * _gain(hop, t, is_end) for t in inside}
        last = pieces[-1] if pieces else None
        if last is not None and (last.parent, last.end, last.scales) == (parent, hop.layer, scales):
            pieces[-1] = last._replace(end=hop.layer + 1)
        else:
            pieces.append(_Piece(parent, hop.layer, hop.layer + 1, scales))
    return pieces


def _gain(hop: Hop, tensor: TensorInfo, is_end: Ends | None) -> float:
    return hop.gain if is_end is not None and is_end(tensor.name) else 1.0


def _copied(recipe: Recipe, tensors: Sequence[TensorInfo], what: str) -> _Copied:
    """The one parent whose tensors these are.

    Raises:
        RecipeError: when rules merge them, or take them from several parents.
    """
    found: dict[str, None] = {}
    scales: dict[str, float] = {}
    for tensor in tensors:
        rule = recipe.rule_for(tensor)
        own = _own(recipe, rule)
        if own is None:
            got = f"{tensor.name} by {rule.method} of {', '.join(rule.per_parent or [p.name for p in recipe.parents])}"
            raise inexpressible(f"{what} is merged.", got, "a path through the parents' own layers")
        found |= {own[0]: None}
        scales[tensor.name] = own[1]
    if len(found) > 1:
        raise inexpressible(f"{what} comes from several parents.", ", ".join(found), "one parent")
    return _Copied(next(iter(found), None), scales)


def _own(recipe: Recipe, rule: Rule) -> tuple[str, float] | None:
    """The parent that a rule copies, and the factor; None for a merge."""
    names = [p.name for p in recipe.parents]
    if rule.method == PASSTHROUGH:
        (parent,) = rule.per_parent or names[:1]
        return parent, float(number(rule, "scale", parent))
    coefficients = linear_coefficients(rule, recipe.base, names) or {}
    return (next(iter(coefficients)), 1.0) if list(coefficients.values()) == [1.0] else None


def is_copy(recipe: Recipe, layout: Layout) -> bool:
    """Whether the recipe copies: every tensor that it makes is one parent's, times a factor or not.

    A rule of several parents that amounts to one of them is a merge, unless the path needs passthrough anyway.
    """
    layers = set(range(layout.n_layers)) if recipe.path is None else {h.layer for h in recipe.path if h.parent is None}
    made = [t for t in layout.tensors if t.layer is None or t.layer in layers]
    rules = [recipe.rule_for(t) for t in made]
    path = recipe.path or ()
    needed = any(hop.parent is not None or hop.gain != 1.0 for hop in path)
    alone = recipe.path is not None and all(len(rule.per_parent) == 1 and not recipe.base for rule in rules)
    asked = needed or alone or any(rule.method == PASSTHROUGH for rule in rules)
    return asked and all(_own(recipe, rule) is not None for rule in rules)


def _slice(
    piece: _Piece, refs: Mapping[str, ParentRef], layout: Layout, outside: Mapping[str, float]
) -> dict[str, Any]:
    """One slice; `outside` has the factors of what it decides outside the layers."""
    source = {"model": model_text(refs[piece.parent]), "layer_range": [piece.start, piece.end]}
    inside = {
        t.name: piece.scales[name_within(t)]
        for t in layout.tensors
        if t.layer is not None and piece.start <= t.layer < piece.end
    }
    factors = {**outside, **inside}
    if any(factor != 1.0 for factor in factors.values()):
        source["parameters"] = {"scale": filters_for(factors)}
    return {"sources": [source]}


def passthrough_comments(recipe: Recipe, layout: Layout, body: Mapping[str, Any]) -> tuple[str, ...]:
    """The first lines of the file: how to replay it, and what is exact."""
    mixed = recipe.dtype == "parent" and len({t.dtype for t in layout.tensors}) > 1
    dtypes = "; every tensor keeps the dtype that its own parent has" if mixed else ""
    narrowed = recipe.dtype != "parent" and any(DTYPES.get(t.dtype) != recipe.dtype for t in layout.tensors)
    if (
        recipe.compat == "off"
        and narrowed
        and "out_dtype" in passthrough_dtype(recipe)
        and any(hop.gain != 1.0 for hop in recipe.path or ())
    ):
        dtypes += ", but for gains: evomerge multiplies them into what is stored, mergekit before it rounds"
    ranges = [source["layer_range"] for piece in body["slices"] for source in piece["sources"]]
    empty = ("An empty slice gives what stands outside the layers: the first the embedding, the last norm and head.",)
    return (
        "Written by evomerge; replay it with mergekit 0.1.5:",
        f"  OMP_NUM_THREADS=1 {replay_of(recipe, 'THIS_FILE', 'OUTPUT_FOLDER')}",
        f"Compared with evomerge's own export, the tensors are equal{dtypes}.",
        *(empty if any(start == end for start, end in ranges) else ()),
        *parents_told(recipe),
    )


def passthrough_dtype(recipe: Recipe) -> dict[str, str]:
    """`dtype` and `out_dtype` of the file, where the recipe says them."""
    if recipe.arithmetic != "stored" and recipe.compat == "mergekit":
        return {"dtype": recipe.arithmetic, **({} if recipe.dtype == "parent" else {"out_dtype": recipe.dtype})}
    if recipe.dtype == "parent":
        return {}
    ruled = any(rule.method == PASSTHROUGH and _own(recipe, rule) != (*rule.per_parent, 1.0) for rule in recipe.rules)
    if ruled and recipe.compat == "off" and recipe.dtype != "float32":  # multiplied in fp32, and rounded once
        return {"dtype": "float32", "out_dtype": recipe.dtype}
    return {"dtype": recipe.dtype}

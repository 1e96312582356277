"""Paths as mergekit's passthrough slices.

A slice takes neighbouring layers of one model unchanged; slices stand one behind the other, so layers may be moved,
repeated and left out. The embedding comes from the first slice's model, final norm and head from the last one's; a
slice may be empty, and then gives only these. `scale` multiplies tensors: it is a branch gain where it multiplies the
tensors that end a layer's branches, and nothing else (mergekit 0.1.5).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from evomerge.layout import Layout, TensorInfo
from evomerge.recipe.equivalence import linear_coefficients
from evomerge.recipe.mergekit_export import inexpressible
from evomerge.recipe.mergekit_settings import filters_for
from evomerge.recipe.mergekit_text import DTYPES, model_text
from evomerge.recipe.path import Hops, check_layers
from evomerge.recipe.recipe import ParentRef, Recipe

PASSTHROUGH: Final = "passthrough"
Ends = Callable[[str], bool]
"""Whether the tensor of this name ends a branch of its layer, so that a factor on it is a branch gain."""

_PRINTED: Final = 200


class _Piece(NamedTuple):
    """Layers [start, end) of one parent, all with one gain; none when start == end."""

    parent: str
    start: int
    end: int
    gain: float


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
    first = _only_source(recipe, [t for t in outside if t.role == "embedding"], "the embedding")
    last = _only_source(recipe, [t for t in outside if t.role != "embedding"], "what follows the layers")
    pieces: list[_Piece] = []
    for k, hop in enumerate(hops):
        inside = [t for t in layout.tensors if t.layer == hop.layer]
        parent = hop.parent or _only_source(recipe, inside, f"hop {k}, layer {hop.layer},") or recipe.parents[0].name
        if pieces and (pieces[-1].parent, pieces[-1].end, pieces[-1].gain) == (parent, hop.layer, hop.gain):
            pieces[-1] = pieces[-1]._replace(end=hop.layer + 1)
        else:
            pieces.append(_Piece(parent, hop.layer, hop.layer + 1, hop.gain))
    if first is not None and first != pieces[0].parent:
        pieces.insert(0, _Piece(first, 0, 0, 1.0))
    if last is not None and last != pieces[-1].parent:
        pieces.append(_Piece(last, 0, 0, 1.0))
    refs = {p.name: p for p in recipe.parents}
    template = refs[recipe.base or recipe.parents[0].name]
    slices = [_slice(piece, refs, layout, is_end, (i == 0, i == len(pieces) - 1)) for i, piece in enumerate(pieces)]
    return {"merge_method": PASSTHROUGH, "base_model": model_text(template), "slices": slices}


def _only_source(recipe: Recipe, tensors: Sequence[TensorInfo], what: str) -> str | None:
    """The one parent whose tensors these are, None without tensors.

    Raises:
        RecipeError: when rules merge them, or take them from several parents.
    """
    names = [p.name for p in recipe.parents]
    found: dict[str, None] = {}
    for tensor in tensors:
        rule = recipe.rule_for(tensor)
        coefficients = linear_coefficients(rule, recipe.base, names) or {}
        if list(coefficients.values()) != [1.0]:
            got = f"{tensor.name} by {rule.method} of {', '.join(rule.per_parent or names)}"
            raise inexpressible(f"{what} is merged.", got, "a path through the parents' own layers")
        found |= dict.fromkeys(coefficients)
    if len(found) > 1:
        raise inexpressible(f"{what} comes from several parents.", ", ".join(found), "one parent")
    return next(iter(found), None)


def _slice(
    piece: _Piece, refs: Mapping[str, ParentRef], layout: Layout, is_end: Ends | None, at: tuple[bool, bool]
) -> dict[str, Any]:
    """One slice; `at` says whether it is the first and the last, whose settings reach outside the layers."""
    source = {"model": model_text(refs[piece.parent]), "layer_range": [piece.start, piece.end]}
    if piece.gain != 1.0 and is_end is not None:

        def asked(t: TensorInfo) -> bool:
            if t.layer is not None:
                return piece.start <= t.layer < piece.end
            return at[0] if t.role == "embedding" else at[1]

        ends = {t.name for t in layout.tensors if t.layer is not None and is_end(t.name)}
        factors = {t.name: piece.gain if t.name in ends else 1.0 for t in layout.tensors if asked(t)}
        source["parameters"] = {"scale": filters_for(factors)}
    return {"sources": [source]}


def passthrough_comments(recipe: Recipe, layout: Layout, body: Mapping[str, Any]) -> tuple[str, ...]:
    """The first lines of the file: how to replay it, and what is exact."""
    mixed = recipe.dtype == "parent" and len({t.dtype for t in layout.tensors}) > 1
    dtypes = "; every tensor keeps the dtype that its own parent has" if mixed else ""
    ranges = [source["layer_range"] for piece in body["slices"] for source in piece["sources"]]
    empty = ("An empty slice gives what stands outside the layers: the first the embedding, the last norm and head.",)
    return (
        "Written by evomerge; replay it with mergekit 0.1.5:",
        "  OMP_NUM_THREADS=1 mergekit-yaml THIS_FILE OUTPUT_FOLDER",
        f"Compared with evomerge's own export, the tensors are equal{dtypes}.",
        *(empty if any(start == end for start, end in ranges) else ()),
    )


def passthrough_dtype(recipe: Recipe, layout: Layout) -> dict[str, str]:
    """The `dtype` of the file: of the result, where there is one for all tensors."""
    if recipe.dtype != "parent":
        return {"dtype": recipe.dtype}
    stored = {DTYPES[t.dtype] for t in layout.tensors if t.dtype in DTYPES}
    return {"dtype": stored.pop()} if len(stored) == 1 else {}

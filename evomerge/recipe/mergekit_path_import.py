"""mergekit's passthrough files as recipes with a path: slices in any order, scales that are branch gains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from evomerge.layout import Layout, TensorInfo
from evomerge.recipe.mergekit_file import (
    TOP,
    Source,
    base_of,
    bodies_of,
    check_known,
    entries_of,
    mapping_of,
    model_of,
    range_of,
    stated_dtypes,
)
from evomerge.recipe.mergekit_import import named_parents, recipe_dtype
from evomerge.recipe.mergekit_path import PASSTHROUGH, Ends
from evomerge.recipe.mergekit_settings import number_of, resolve
from evomerge.recipe.mergekit_text import refused
from evomerge.recipe.method_spec import ParameterSpec
from evomerge.recipe.path import Hop, plain_path
from evomerge.recipe.recipe import Compat, Recipe, Rule

_SCALE: Final = ParameterSpec(per_parent=True, kind="real", default=1.0)


class _Taken(NamedTuple):
    """A slice as the file has it: layers [start, end) of a model, and its parameter levels, nearest first."""

    model: Source
    start: int
    end: int
    levels: tuple[Mapping[str, Any], ...]


def from_passthrough(
    config: Mapping[str, Any],
    layout: Layout,
    *,
    names: Mapping[str, str],
    compat: Compat | None,
    is_end: Ends | None,
) -> Recipe:
    """The recipe of a passthrough file: its path names a parent for every hop.

    Args:
        config: the whole file.
        layout: of the models.
        names: source -> the parent's name.
        compat: whose arithmetic; None for evomerge's own, which copies as mergekit does.
        is_end: which tensors take gains; None refuses every scale but 1.

    Raises:
        RecipeError: for anything that a recipe cannot say.
    """
    base = base_of(config)
    slices = _slices_of(config, base, layout)
    first, last = slices[0], slices[-1]
    order = ([base] if base is not None else []) + [piece.model for piece in slices]
    parents = named_parents(list(dict.fromkeys(order)), names)
    name_of = {(p.source, p.revision): p.name for p in parents}
    hops: list[Hop] = []
    for piece in slices:
        length = piece.end - piece.start
        for i in range(length):
            t = i / (length - 1) if length > 1 else 1.0
            gain = _gain(piece, piece.start + i, t, layout, is_end)
            hops.append(Hop(piece.start + i, name_of[piece.model], gain))
    _check_outside(first, last, layout)
    dtype, _ = recipe_dtype(*stated_dtypes(config), layout, compat)
    rules = _rules(name_of[first.model], name_of[last.model])
    path = tuple(hops)
    plain = first.model == last.model and path == plain_path(layout.n_layers, name_of[first.model])
    # without sums there is nothing to imitate, and our own copies keep even the sign of zeros
    return Recipe(parents, None, rules, dtype=dtype, compat=compat or "off", path=None if plain else path)


def _rules(first: str, last: str) -> tuple[Rule, ...]:
    """What stands outside the layers; the rule of the last slice's parent also covers the layers that do not run."""

    def own(parent: str, *where: Any) -> Rule:
        return Rule("linear", {"normalize": True}, {parent: {"weight": 1.0}}, *where)

    return (own(last),) if first == last else (own(first, (), ("embedding",)), own(last))


def _slices_of(config: Mapping[str, Any], base: Source | None, layout: Layout) -> list[_Taken]:
    check_known(config, TOP, "the file")
    if config.get("tokenizer_source") not in (None, "base"):
        raise refused("The mergekit file changes the tokenizer.", repr(config["tokenizer_source"]), "the base's")
    body = bodies_of(config)[0]
    outer = [mapping_of(config.get("parameters"), "parameters")]
    if body is not config:
        check_known(body, ("models", "slices", "parameters"), "modules.default")
        outer.insert(0, mapping_of(body.get("parameters"), "parameters"))
    if (body.get("models") is None) == (body.get("slices") is None):
        raise refused("The mergekit file has both or neither of two forms.", "models, slices", "exactly one of them")
    if body.get("models") is not None:
        pieces = [_whole(entries_of(body["models"], "models"), base, outer, layout)]
    else:
        pieces = [_taken(entry, outer, layout) for entry in entries_of(body["slices"], "slices")]
    if not pieces:
        raise refused("The mergekit file has no slices.", "none", "at least one slice")
    for piece in pieces:
        for level in piece.levels:
            check_known(level, ("scale",), f"the parameters of {PASSTHROUGH}")
    return pieces


def _whole(
    entries: list[Mapping[str, Any]], base: Source | None, outer: list[Mapping[str, Any]], layout: Layout
) -> _Taken:
    """The `models:` form: one model, unchanged; mergekit takes a base that is not listed for a second one."""
    models = {model_of(entry) for entry in entries} | ({base} if base is not None else set())
    if len(entries) != 1 or len(models) != 1:
        raise refused(
            f"{PASSTHROUGH} takes one model at a time.",
            ", ".join(sorted(source for source, _ in models)) or "none",
            "one model, or slices of one source each",
        )
    check_known(entries[0], ("model", "parameters", "layer_range"), "a source")
    own = mapping_of(entries[0].get("parameters"), "parameters")
    return _Taken(model_of(entries[0]), 0, layout.n_layers, (own, *outer))


def _taken(entry: Mapping[str, Any], outer: list[Mapping[str, Any]], layout: Layout) -> _Taken:
    check_known(entry, ("sources", "base_model", "parameters"), "a slice")
    sources = entries_of(entry.get("sources"), "sources")
    if len(sources) != 1:
        raise refused(f"{PASSTHROUGH} takes one model at a time.", f"{len(sources)} sources", "slices of one source")
    (source,) = sources
    check_known(source, ("model", "layer_range", "parameters"), "a source")
    reach = range_of(source.get("layer_range"))
    if reach is None or reach[1] > layout.n_layers:
        raise refused(
            "A slice takes layers that the model does not have.",
            repr(source.get("layer_range")),
            f"layer_range: [start, end) with 0 <= start <= end <= {layout.n_layers}",
        )
    levels = (source.get("parameters"), entry.get("parameters"))
    return _Taken(model_of(source), *reach, (*(mapping_of(level, "parameters") for level in levels), *outer))


def _scale(tensor: TensorInfo, piece: _Taken, t: float) -> float:
    value = resolve(tensor.name, piece.levels, "scale", t)
    return 1.0 if value is None else float(number_of(value, _SCALE, f"scale of {tensor.name}"))


def _gain(piece: _Taken, layer: int, t: float, layout: Layout, is_end: Ends | None) -> float:
    """The gain that the scales of one hop amount to.

    Raises:
        RecipeError: when they amount to none.
    """
    scales = {tensor.name: _scale(tensor, piece, t) for tensor in layout.tensors if tensor.layer == layer}
    ends = {name for name in scales if is_end is not None and is_end(name)}
    gains = {scales[name] for name in ends} or {1.0}
    odd = [name for name in scales if name not in ends and scales[name] != 1.0]
    if not odd and len(gains) == 1:
        return gains.pop()
    shown = [*odd, *sorted(ends)][:4]
    raise refused(
        "A scale of the mergekit file is no gain of a layer.",
        ", ".join(f"{name} by {scales[name]:g}" for name in shown),
        f"one factor on {', '.join(sorted(ends))}, and on nothing else" if ends else "no scale for these models",
    )


def _check_outside(first: _Taken, last: _Taken, layout: Layout) -> None:
    for tensor in layout.tensors:
        if tensor.layer is None:
            scale = _scale(tensor, first if tensor.role == "embedding" else last, 0.0)
            if scale != 1.0:
                raise refused(
                    "A scale of the mergekit file reaches outside the layers.",
                    f"{tensor.name} by {scale:g}",
                    "scales with filters for the tensors that end a layer's branches",
                )

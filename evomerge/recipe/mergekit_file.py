"""The structure of a mergekit file: which models merge which layers, and where their parameters stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from evomerge.errors import suggest
from evomerge.layout import Layout
from evomerge.recipe.mergekit_text import model_source, refused
from evomerge.recipe.method_spec import MethodSpec
from evomerge.recipe.methods import BUILTIN
from evomerge.recipe.recipe import OutDtype

Source = tuple[str, str | None]
"""A model as the file names it: folder or hub id, and revision."""

TOP: Final = (
    "merge_method", "base_model", "models", "slices", "modules", "parameters", "dtype", "out_dtype", "tokenizer_source",
)  # fmt: skip
OUT_DTYPES: Final[Mapping[str, OutDtype]] = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}


class Input(NamedTuple):
    """A source of a slice; the base may be one without being listed."""

    model: Source
    parameters: Mapping[str, Any]
    is_listed: bool = True


class Slice(NamedTuple):
    """Layers [start, end) of all its sources, and the parameter levels below a source's own, nearest first."""

    start: int
    end: int
    inputs: tuple[Input, ...]
    levels: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class File:
    """A file's parts.

    Attributes:
        method: of all tensors.
        base: `base_model`, when given.
        slices: from the first layer to the last, without gaps.
        dtype: of the arithmetic.
        out_dtype: of the result.
    """

    method: MethodSpec
    base: Source | None
    slices: tuple[Slice, ...]
    dtype: str | None
    out_dtype: str | None


def base_of(config: Mapping[str, Any]) -> Source | None:
    """The file's `base_model`, when it has one."""
    return None if config.get("base_model") is None else model_source(config["base_model"])


def model_of(entry: Mapping[str, Any]) -> Source:
    """The model of an entry of `models` or `sources`.

    Raises:
        RecipeError: when it names none, or a LoRA.
    """
    if "model" not in entry:
        raise refused("A source of the mergekit file names no model.", repr(dict(entry)), "an entry with a model")
    return model_source(entry["model"])


def mapping_of(value: object, what: str) -> Mapping[str, Any]:
    """A part of a file that is a mapping; empty when it is absent.

    Raises:
        RecipeError: when it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise refused("A part of the mergekit file has the wrong type.", f"{what}: {value!r}", "a mapping")
    return value


def entries_of(value: object, what: str) -> list[Mapping[str, Any]]:
    """A list of mappings.

    Raises:
        RecipeError: when it is something else.
    """
    if not isinstance(value, list):
        raise refused("A part of the mergekit file has the wrong type.", f"{what}: {value!r}", "a list of mappings")
    return [mapping_of(entry, what) for entry in value]


def bodies_of(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Where models or slices stand: the top, or the one module that a text model has."""
    modules = mapping_of(config.get("modules"), "modules")
    if modules and set(modules) != {"default"}:
        raise refused("The mergekit file merges several towers.", ", ".join(modules), "text models (one module)")
    return [mapping_of(modules["default"], "modules.default")] if modules else [config]


def check_known(mapping: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuse what is not understood; mergekit itself would ignore it.

    Raises:
        RecipeError: for the first key that is not in `known`.
    """
    for key, value in mapping.items():
        if key not in known and value is not None:
            raise refused(f"The mergekit file asks for something else in {where}.", repr(key), suggest(key, known))


def read_file(config: Mapping[str, Any], base: Source | None, layout: Layout) -> File:
    """The parts of a file, checked: method, form, slices without gaps, numbers of models, dtypes.

    Args:
        config: the whole file.
        base: what `base_of` found.
        layout: of the models.

    Raises:
        RecipeError: for anything that a recipe cannot say.
    """
    check_known(config, TOP, "the file")
    if config["merge_method"] not in BUILTIN:
        raise refused(
            "evomerge does not know the merge method.",
            repr(config["merge_method"]),
            suggest(str(config["merge_method"]), BUILTIN),
        )
    if config.get("tokenizer_source") not in (None, "base"):
        raise refused("The mergekit file changes the tokenizer.", repr(config["tokenizer_source"]), "the base's")
    method = BUILTIN[config["merge_method"]]
    body = bodies_of(config)[0]
    if body is not config:
        check_known(body, ("models", "slices", "parameters"), "modules.default")
    if (body.get("models") is None) == (body.get("slices") is None):
        raise refused("The mergekit file has both or neither of two forms.", "models, slices", "exactly one of them")
    outer = [mapping_of(config.get("parameters"), "parameters")]
    if body is not config:
        outer.insert(0, mapping_of(body.get("parameters"), "parameters"))
    if body.get("models") is not None:
        slices = [_whole(entries_of(body["models"], "models"), base, outer, layout)]
    else:
        slices = [_piece(entry, base, outer) for entry in entries_of(body["slices"], "slices")]
    _check_slices(slices, layout)
    for piece in slices:
        _check_inputs(piece, method, base)
    return File(method, base, tuple(slices), *stated_dtypes(config))


def stated_dtypes(config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The file's `dtype` and `out_dtype`.

    Raises:
        RecipeError: for a dtype that evomerge does not write.
    """
    dtypes = [config.get(key) for key in ("dtype", "out_dtype")]
    for name in dtypes:
        if name is not None and name not in OUT_DTYPES:
            raise refused("The mergekit file uses an unknown dtype.", repr(name), suggest(str(name), OUT_DTYPES))
    return dtypes[0], dtypes[1]


def _whole(
    entries: list[Mapping[str, Any]], base: Source | None, outer: list[Mapping[str, Any]], layout: Layout
) -> Slice:
    """The `models:` form: all layers; a base that is not listed comes last."""
    inputs = [_input(entry, ("model", "parameters", "layer_range")) for entry in entries]
    if base is not None and base not in {i.model for i in inputs}:
        inputs.append(Input(base, {}, is_listed=False))
    return Slice(0, layout.n_layers, tuple(inputs), tuple(outer))


def _input(entry: Mapping[str, Any], known: Sequence[str]) -> Input:
    check_known(entry, known, "a source")
    return Input(model_of(entry), mapping_of(entry.get("parameters"), "parameters"))


def _piece(entry: Mapping[str, Any], base: Source | None, outer: list[Mapping[str, Any]]) -> Slice:
    check_known(entry, ("sources", "base_model", "parameters"), "a slice")
    if entry.get("base_model") is not None and model_source(entry["base_model"]) != base:
        raise refused("A slice has a base of its own.", repr(entry["base_model"]), "one base for the whole model")
    sources = entries_of(entry.get("sources"), "sources")
    ranges = [source.get("layer_range") for source in sources]
    reach = range_of(ranges[0]) if ranges else None
    if reach is None or reach[0] == reach[1] or any(r != ranges[0] for r in ranges):
        raise refused(
            "A slice takes different layers from its sources.",
            repr(ranges),
            "one layer_range [start, end) for all sources of a slice",
            "use passthrough slices of one source each, or merge the file with mergekit itself.",
        )
    start, end = reach
    inputs = tuple(_input(source, ("model", "layer_range", "parameters")) for source in sources)
    return Slice(start, end, inputs, (mapping_of(entry.get("parameters"), "parameters"), *outer))


def range_of(value: object) -> tuple[int, int] | None:
    """[start, end) of a `layer_range`, which may be empty; None when it is no range."""
    if not isinstance(value, list) or len(value) != 2 or not all(type(v) is int for v in value):
        return None
    return (value[0], value[1]) if 0 <= value[0] <= value[1] else None


def _check_slices(slices: list[Slice], layout: Layout) -> None:
    reached = 0
    for piece in slices:
        if piece.start != reached:
            break
        reached = piece.end
    else:
        if reached == layout.n_layers:
            return
    got = ", ".join(f"[{p.start}, {p.end})" for p in slices)
    raise refused(
        "The mergekit file moves, repeats or drops layers.",
        got[:200],
        f"slices that cover layers 0 to {layout.n_layers} in order",
        "use passthrough slices, which may do that, or merge the file with mergekit itself.",
    )


def _check_inputs(piece: Slice, method: MethodSpec, base: Source | None) -> None:
    models = [i.model for i in piece.inputs]
    if method.name == "linear" and any(i.model == base and not i.is_listed for i in piece.inputs):
        raise refused("linear has no base, and would merge this one too.", repr(base), "a base_model among the models")
    merged = [m for m in models if not (method.needs_base and m == base)]
    shown = ", ".join(source for source, _ in models)
    if len(set(models)) < len(models):
        raise refused("A model stands twice in one slice.", shown, "each model once")
    if (method.needs_base or method.name == "slerp") and (base is None or base not in models):
        raise refused(f"{method.name} needs its base among the sources.", shown, "a base_model that is one of them")
    if len(merged) < method.min_models or (method.max_models is not None and len(merged) > method.max_models):
        raise refused(f"{method.name} merges another number of models.", shown, f"{method.models_allowed()} models")

"""The structure of a mergekit file: which models merge which layers, and where their parameters stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from evomerge.errors import suggest
from evomerge.recipe.mergekit_models import Model, model_named
from evomerge.recipe.mergekit_specs import MERGEKIT_SPECS
from evomerge.recipe.mergekit_text import refused
from evomerge.recipe.method_spec import MethodSpec

MERGEKIT: Final[Mapping[str, MethodSpec]] = {spec.name: spec for spec in MERGEKIT_SPECS}
FORMS: Final = ("models", "slices", "modules")
TOP: Final = (
    "merge_method", "base_model", *FORMS, "parameters", "dtype", "out_dtype", "tokenizer_source", "tokenizer",
    "chat_template",
)  # fmt: skip
MODULE: Final = ("models", "slices", "parameters")
SLICE: Final = ("sources", "base_model", "parameters", "residual_weight")
SOURCE: Final = ("model", "layer_range", "parameters")
_SLERP: Final = "slerp"
_CORRECT: Final = "correct the mergekit file."


class Input(NamedTuple):
    """A source of a slice.

    Attributes:
        model: what it is.
        parameters: its own.
        is_listed: False for a base that `models` does not list, which mergekit adds.
    """

    model: Model
    parameters: Mapping[str, Any]
    is_listed: bool = True


class Slice(NamedTuple):
    """Layers [start, end) of all its sources, none when they are equal.

    Attributes:
        start: first layer.
        end: behind the last one.
        inputs: in the file's order.
        levels: parameters below a source's own, nearest first.
        base: what mergekit calls its base, whether the method takes one or not.
    """

    start: int
    end: int
    inputs: tuple[Input, ...]
    levels: tuple[Mapping[str, Any], ...]
    base: Model | None

    def merged(self, method: MethodSpec) -> tuple[Model, ...]:
        """The models that are merged: all but a base that deltas are taken from."""
        base = method.base_of("base") and self.base
        return tuple(i.model for i in self.inputs if i.model != base)


@dataclass(frozen=True)
class File:
    """A file's parts.

    Attributes:
        method: of all tensors.
        donor: `base_model`, which also gives config and tokenizer; None when the file has none.
        slices: one behind the other; at least one.
    """

    method: MethodSpec
    donor: Model | None
    slices: tuple[Slice, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        """The layer of its parents that every layer of the result is."""
        return tuple(layer for piece in self.slices for layer in range(piece.start, piece.end))

    @property
    def base(self) -> Model | None:
        """What deltas are taken from; None for a method, or a file, without a base."""
        return self.slices[0].base if self.method.base_of("base") else None


def donor_of(config: Mapping[str, Any]) -> Model | None:
    """The file's `base_model`, when it has one."""
    return None if config.get("base_model") is None else model_named(config["base_model"])


def model_in(entry: Mapping[str, Any]) -> Model:
    """The model of an entry of `models` or `sources`.

    Raises:
        RecipeError: when it names none.
    """
    if "model" not in entry:
        raise refused("A source of the mergekit file names no model.", repr(dict(entry)), "an entry with a model")
    return model_named(entry["model"])


def mapping_of(value: object, what: str) -> Mapping[str, Any]:
    """A part of a file that is a mapping; empty when it is absent.

    Raises:
        RecipeError: when it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise refused("A part of the mergekit file has the wrong type.", f"{what}: {value!r}", "a mapping", _CORRECT)
    return value


def entries_of(value: object, what: str) -> list[Mapping[str, Any]]:
    """A list of mappings.

    Raises:
        RecipeError: when it is something else.
    """
    if not isinstance(value, list):
        raise refused(
            "A part of the mergekit file has the wrong type.",
            f"{what}: {value!r}",
            "a list of mappings",
            f"write {what} as a list, each entry like `- model: NAME`." if what in ("models", "sources") else _CORRECT,
        )
    return [mapping_of(entry, what) for entry in value]


def body_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where models or slices stand: the top, or the one module that a text model has.

    Raises:
        RecipeError: for several forms or none, and for several modules.
    """
    given = [form for form in FORMS if config.get(form)]
    if len(given) != 1:
        raise refused(
            "The mergekit file has none or several of its forms.",
            ", ".join(given) or "none",
            "exactly one of models, slices and modules, not empty",
        )
    modules = mapping_of(config.get("modules"), "modules")
    if modules and set(modules) != {"default"}:
        raise refused(
            "The mergekit file merges modules that a text model does not have.",
            ", ".join(modules),
            "one module, called default",
        )
    return mapping_of(modules["default"], "modules.default") if modules else config


def check_known(
    mapping: Mapping[str, Any], known: Sequence[str], where: str, shown: Sequence[str] | None = None
) -> None:
    """Refuse what is not understood; mergekit itself would ignore it.

    Args:
        mapping: part of the file.
        known: its keys.
        where: which part, for people.
        shown: those of the keys that do something; None for all.

    Raises:
        RecipeError: for the first key that is not in `known`.
    """
    for key, value in mapping.items():
        if key not in known and value is not None:
            raise refused(
                f"mergekit has no such key in {where}, and would ignore it.",
                repr(key),
                suggest(str(key), known if shown is None else shown),
                "correct the key, or remove it.",
            )


def method_named(name: Any) -> MethodSpec:
    """The merge method of a file.

    Raises:
        RecipeError: for one that mergekit does not have.
    """
    if not isinstance(name, str) or name not in MERGEKIT:
        raise refused("mergekit has no such merge method.", repr(name), suggest(str(name), MERGEKIT))
    return MERGEKIT[name]


def read_file(config: Mapping[str, Any], n_layers: int) -> File:
    """The parts of a file, checked: method, form, layers of slices, numbers of models, bases.

    Args:
        config: the whole file.
        n_layers: of the models.

    Raises:
        RecipeError: for anything that is wrong about them.
    """
    check_known(config, TOP, "the file")
    method, donor, body = method_named(config["merge_method"]), donor_of(config), body_of(config)
    outer = [mapping_of(config.get("parameters"), "parameters")]
    if body is not config:
        check_known(body, MODULE, "modules.default")
        outer.insert(0, mapping_of(body.get("parameters"), "parameters"))
        if bool(body.get("models")) == bool(body.get("slices")):
            raise refused("The module has both or neither of two forms.", "models, slices", "exactly one of them")
    if body.get("models"):
        slices = [_whole(entries_of(body["models"], "models"), donor, outer, n_layers)]
    else:
        slices = [_piece(entry, donor, outer, n_layers) for entry in entries_of(body["slices"], "slices")]
    for piece in slices:
        _check_inputs(piece, method)
    file = File(method, donor, tuple(slices))
    _check_ends(file)
    return file


def _whole(
    entries: list[Mapping[str, Any]], donor: Model | None, outer: list[Mapping[str, Any]], n_layers: int
) -> Slice:
    """The `models:` form: all layers; a base that is not listed comes last."""
    inputs = [_input(entry) for entry in entries]
    if donor is not None and donor not in {i.model for i in inputs}:
        inputs.append(Input(donor, {}, is_listed=False))
    return Slice(0, n_layers, tuple(inputs), tuple(outer), donor)


def _input(entry: Mapping[str, Any]) -> Input:
    check_known(entry, SOURCE, "a source")
    return Input(model_in(entry), mapping_of(entry.get("parameters"), "parameters"))


def _piece(entry: Mapping[str, Any], donor: Model | None, outer: list[Mapping[str, Any]], n_layers: int) -> Slice:
    check_known(entry, SLICE, "a slice")
    sources = entries_of(entry.get("sources"), "sources")
    inputs = tuple(_input(source) for source in sources)
    ranges = [source.get("layer_range") for source in sources]
    start, end = _range_of(ranges[0] if ranges else None, n_layers)
    for value in ranges:
        _range_of(value, n_layers)
    if any(r != ranges[0] for r in ranges):
        raise refused(
            "A slice takes different layers from its sources.",
            repr(ranges),
            "one layer_range [start, end) for all sources of a slice",
            "use passthrough slices of one source each, or merge the file with mergekit itself.",
        )
    base = donor if entry.get("base_model") is None else model_named(entry["base_model"])
    return Slice(start, end, inputs, (mapping_of(entry.get("parameters"), "parameters"), *outer), base)


def _range_of(value: Any, n_layers: int) -> tuple[int, int]:
    """[start, end) of a `layer_range`, which may be empty."""
    if isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value):
        start, end = value
        if 0 <= start <= end <= n_layers:
            return start, end
    raise refused(
        "A slice takes layers that the models do not have.",
        repr(value),
        f"layer_range: [start, end) with 0 <= start <= end <= {n_layers}",
    )


def _check_inputs(piece: Slice, method: MethodSpec) -> None:
    """Mergekit's own contract of the method, base and all.

    Raises:
        RecipeError: naming what is wrong.
    """
    models = [i.model for i in piece.inputs]
    shown = ", ".join(map(str, models)) or "none"
    if len(set(models)) < len(models):
        raise refused("A model stands twice in one slice.", shown, "each model once")
    takes = method.needs_base or method.takes_base or method.name == _SLERP
    if takes and piece.base is None and not method.takes_base:
        raise refused(f"{method.name} needs a base_model.", "none", f"base_model: one of {shown}")
    if takes and piece.base is not None and piece.base not in models:
        raise refused(
            f"{method.name} needs its base among the sources of every slice.",
            f"base {piece.base}; sources {shown}",
            "a base_model that is one of them",
        )
    merged = piece.merged(method)
    if len(merged) < method.min_models or (method.max_models is not None and len(merged) > method.max_models):
        unlisted = [str(i.model) for i in piece.inputs if not i.is_listed and i.model in merged]
        beside = f" (base_model {unlisted[0]} is not listed, so mergekit adds it)" if unlisted else ""
        base = " beside the base" if len(merged) < len(models) else ""
        raise refused(
            f"{method.name} merges another number of models.", f"{shown}{beside}", f"{method.models_allowed()}{base}"
        )


def _check_ends(file: File) -> None:
    """What slices have to share.

    Raises:
        RecipeError: when they take deltas from several bases, or the last has more sources than the first: mergekit
            0.1.5 then leaves sources of final norm and head out.
    """
    if file.method.base_of("base"):
        bases = list(dict.fromkeys(piece.base for piece in file.slices))
        if len(bases) > 1:
            raise refused("Slices have bases of their own.", ", ".join(map(str, bases)), "one base for the whole model")
    first, last = file.slices[0], file.slices[-1]
    if len(last.inputs) > len(first.inputs):
        left_out = ", ".join(str(i.model) for i in last.inputs[len(first.inputs) :])
        raise refused(
            "The last slice has more sources than the first, and mergekit would merge norm and head without the rest.",
            f"left out: {left_out}",
            "as many sources in the first slice, or an empty first slice (layer_range [0, 0]) with all of them",
        )
    if all(piece.start == piece.end for piece in file.slices):
        raise refused("The mergekit file has no layers.", "only empty slices", "at least one layer")

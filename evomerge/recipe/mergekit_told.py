"""What stands in a mergekit file without effect: told, so that nobody believes otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evomerge.recipe.mergekit_file import File, body_of, entries_of
from evomerge.recipe.mergekit_import import WITHOUT_EFFECT


def told_of(config: Mapping[str, Any], file: File) -> tuple[str, ...]:
    """Lines for people about what mergekit reads and ignores, or does without being asked; each once.

    Args:
        config: the whole file, checked.
        file: its parts.
    """
    return tuple(dict.fromkeys([*_structure(config, file), *_parameters(file), *_donor(file)]))


def _structure(config: Mapping[str, Any], file: File) -> Iterator[str]:
    body = body_of(config)
    if any("layer_range" in entry for entry in entries_of(body.get("models") or [], "models")):
        yield "layer_range in an entry of `models` has no effect: all layers are merged."
    pieces = entries_of(body.get("slices") or [], "slices")
    if any(piece.get("residual_weight") is not None for piece in pieces):
        yield "residual_weight has no effect: mergekit reads it and uses it nowhere."
    ignores_base = not file.method.base_of("base") and file.method.name != "slerp"
    if ignores_base and any(piece.get("base_model") is not None for piece in pieces):
        yield f"base_model of a slice has no effect: {file.method.name} takes no base."
    unlisted = [i.model for piece in file.slices for i in piece.inputs if not i.is_listed]
    if unlisted and ignores_base:
        yield f"base_model {unlisted[0]} is not listed, and {file.method.name} merges it like the others."


def _parameters(file: File) -> Iterator[str]:
    method = file.method
    for piece in file.slices:
        base = method.base_of("base") and piece.base
        for given in piece.inputs:
            for name in given.parameters:
                if name in method.shared():
                    yield f"{name} of one model has no effect: it is a parameter of the whole merge."
                elif given.model == base and name in method.per_parent():
                    yield f"{name} of the base has no effect: deltas are taken from it."
        for level in (*piece.levels, *(i.parameters for i in piece.inputs)):
            for name in level:
                if name in WITHOUT_EFFECT:
                    yield f"{name} has no effect on the result."
                elif name not in method.parameters:
                    yield f"{name} has no effect: {method.name} has no such parameter."


def _donor(file: File) -> Iterator[str]:
    if file.donor is None and len({i.model for piece in file.slices for i in piece.inputs}) > 1:
        yield (
            f"Config and tokenizer are those of {file.slices[0].inputs[0].model}; without base_model mergekit takes any"
            " model's, another one each time."
        )

"""Where checkpoint tensors land that transformers fuses, stacks, splits or turns when it loads them.

Since version 5 some architectures run on other tensors than their files hold: the experts of a mixture are stacked, and
their gate and up projections joined. transformers describes this as a chain of operations per target. The chain is
undone here on views of the model's own memory, so that nothing is copied and no memory is needed, whatever the model's
size; the shapes in between come from running transformers' own chain on tensors without data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch

from evomerge.layout import TensorInfo

Where = tuple[slice, ...]


class Part(NamedTuple):
    """A part of a checkpoint tensor and the memory that holds it.

    Attributes:
        where: the part, as an index into the checkpoint tensor; empty for all of it.
        memory: view of the model's memory with as many elements in the same order; its shape may divide axes further.
    """

    where: Where
    memory: torch.Tensor


class Unplaceable(Exception):
    """Why a converted tensor has no place; its text ends a sentence."""


Parts = tuple[Part, ...]
_Shapes = Mapping[str, Sequence[torch.Tensor]]
_Values = dict[str, list[Parts]]


def _whole(parts: Parts, op: object) -> torch.Tensor:
    """The memory of a tensor that lies in one piece."""
    if len(parts) != 1 or parts[0].where:
        raise Unplaceable(f"transformers goes on with {type(op).__name__} after splitting it")
    return parts[0].memory


def _only(values: _Values, op: object) -> Parts:
    """The one tensor of a stage."""
    if len(values) != 1 or len(next(iter(values.values()))) != 1:
        raise Unplaceable(f"transformers hands several tensors to {type(op).__name__}")
    return next(iter(values.values()))[0]


def _as_part(memory: torch.Tensor) -> Parts:
    return (Part((), memory),)


def _unstack(op: Any, before: _Shapes, after: _Values) -> _Values:
    """Undo stacking: number i of a list is entry i of the stacked axis."""
    undone: _Values = {}
    for (key, tensors), stacked in zip(before.items(), after.values(), strict=True):
        memory = _whole(stacked[0], op)
        undone[key] = [_as_part(memory.select(op.dim, i)) for i in range(len(tensors))]
    return undone


def _unjoin(op: Any, before: _Shapes, after: _Values) -> _Values:
    """Undo concatenation: the pieces follow each other along the axis, in the order of the operation's patterns."""
    memory = _whole(_only(after, op), op)
    sizes = [t.shape[op.dim] for tensors in before.values() for t in tensors]
    pieces = iter(torch.split(memory, sizes, dim=op.dim))
    return {key: [_as_part(next(pieces)) for _ in tensors] for key, tensors in before.items()}


def _unsplit(op: Any, before: _Shapes, after: _Values) -> _Values:
    """Undo splitting: one checkpoint tensor lies in several places, one behind the other along the axis."""
    key, (tensor,) = next(iter(before.items()))
    axis = op.dim % tensor.dim()
    parts, start = [], 0
    for pieces in after.values():
        memory = _whole(pieces[0], op)
        stop = start + memory.shape[axis]
        parts.append(Part((slice(None),) * axis + (slice(start, stop),), memory))
        start = stop
    return {key: [tuple(parts)]}


def _unturn(op: Any, before: _Shapes, after: _Values) -> _Values:
    """Undo a transposition, which some chains do only where the shapes ask for it."""
    key, (tensor,) = next(iter(before.items()))
    memory = _whole(_only(after, op), op)
    as_is = op.check_dims and memory.shape == tensor.shape
    return {key: [_as_part(memory if as_is else memory.transpose(op.dim0, op.dim1))]}


def _uninterleave(op: Any, before: _Shapes, after: _Values) -> _Values:
    """Undo interleaving of an axis' halves (or its inverse): the halves become an axis of their own."""
    key, (tensor,) = next(iter(before.items()))
    memory = _whole(_only(after, op), op)
    axis = op.dim % tensor.dim()
    half = memory.shape[axis] // 2
    halves = (half, 2) if op.inverse else (2, half)
    divided = memory.view(*memory.shape[:axis], *halves, *memory.shape[axis + 1 :])
    return {key: [_as_part(divided.transpose(axis, axis + 1))]}


_UNDO: Final[Mapping[str, Callable[[Any, _Shapes, _Values], _Values]]] = {
    "MergeModulelist": _unstack,
    "Concatenate": _unjoin,
    "Chunk": _unsplit,
    "Split": _unsplit,
    "Transpose": _unturn,
    "Interleave": _uninterleave,
}


def converted_parts(
    model: Any, converter: Any, target: str, sources: Mapping[str, Sequence[TensorInfo]], held: Mapping[str, Any]
) -> dict[str, Parts]:
    """Where the tensors of one conversion lie.

    Args:
        model: the transformers model.
        converter: transformers' `WeightConverter`.
        target: the first tensor of the model that it makes, in the model's names.
        sources: the converter's source pattern -> the checkpoint's tensors that it matched, in the order of loading.
        held: the model's tensors by name.

    Returns:
        Checkpoint name -> parts that together hold the tensor.

    Raises:
        Unplaceable: for operations that are not known here, and for shapes that do not fit the model.
    """
    stages: list[tuple[Any, _Shapes]] = []
    # transformers reads the sources in the order of its patterns, whatever the order in which they were met
    ordered = {p: sources[p] for p in converter.source_patterns if p in sources}
    current: Any = {p: [_hollow(t.shape) for t in infos] for p, infos in ordered.items()}
    for op in converter.operations:
        if type(op).__name__ not in _UNDO:
            raise Unplaceable(f"transformers loads it by {type(op).__name__}, which is not followed")
        stages.append((op, current))
        current = _run(op, current, converter, target, model)
    values = {key: [_as_part(_memory(held, _name(target, key, current), made))] for key, (made,) in current.items()}
    for op, before in reversed(stages):
        values = _UNDO[type(op).__name__](op, before, values)
    return {
        info.name: parts
        for pattern, infos in ordered.items()
        for info, parts in zip(infos, values[pattern], strict=True)
    }


def _hollow(shape: Sequence[int]) -> torch.Tensor:
    return torch.empty(tuple(shape), device="meta")


def _run(op: Any, tensors: _Shapes, converter: Any, target: str, model: Any) -> dict[str, list[torch.Tensor]]:
    """One operation of transformers, on tensors without data."""
    try:
        made = op.convert(
            {pattern: list(found) for pattern, found in tensors.items()},
            source_patterns=converter.source_patterns,
            target_patterns=converter.target_patterns,
            full_layer_name=target,
            model=model,
            config=model.config,
            missing_keys=None,
        )
    except (ValueError, RuntimeError, AttributeError, IndexError) as error:
        raise Unplaceable(f"transformers cannot load it: {type(error).__name__}: {error}") from error
    return {key: list(t) if isinstance(t, (list, tuple)) else [t] for key, t in made.items()}


def _name(target: str, key: str, keys: Mapping[str, object]) -> str:
    """The full name of one of the tensors that a converter makes: `target` with another middle."""
    full = target.replace("*.", "0.")
    found = next((k for k in keys if k in full), None)
    if found is None:
        return key
    before, _, behind = full.partition(found)
    return before + key + behind


def _memory(held: Mapping[str, Any], name: str, made: torch.Tensor) -> torch.Tensor:
    memory = held.get(name)
    if memory is None:
        raise Unplaceable(f"it becomes {name}, and there is no such parameter")
    if memory.shape != made.shape:
        raise Unplaceable(f"it becomes a part of {name}: {list(made.shape)} in the files, {list(memory.shape)} there")
    data: torch.Tensor = memory.data
    return data

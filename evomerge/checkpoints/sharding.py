"""Where every tensor of a checkpoint to be written will stand: files, headers, positions. Nothing is written here."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from evomerge.checkpoints.dtypes import ITEMSIZE
from evomerge.checkpoints.header import METADATA_KEY, HeaderEntry
from evomerge.checkpoints.shards import SINGLE
from evomerge.layout import Layout, TensorInfo


@dataclass(frozen=True)
class ShardPlan:
    """One file before it is written.

    Attributes:
        name: of the file.
        prefix: the 8 bytes of length and the header.
        entries: tensor -> entry with positions in the file, in file order.
        size: bytes of the whole file.
    """

    name: str
    prefix: bytes
    entries: Mapping[str, HeaderEntry]
    size: int


def _nbytes(tensor: TensorInfo) -> int:
    return HeaderEntry(tensor.dtype, tensor.shape).nbytes


def _header(entries: Mapping[str, HeaderEntry], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON of a header whose entries count from the end of the header; padded to 8 bytes for alignment."""
    described: dict[str, object] = {METADATA_KEY: {"format": "pt", **metadata}}
    for name, entry in entries.items():
        offsets = [entry.start, entry.stop]
        described[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _plan_shard(name: str, tensors: list[TensorInfo], metadata: Mapping[str, str]) -> ShardPlan:
    # wide elements first, so that every tensor begins at a multiple of its element size
    ordered = sorted(tensors, key=lambda t: -ITEMSIZE[t.dtype])
    entries, position = {}, 0
    for tensor in ordered:
        entries[tensor.name] = HeaderEntry(tensor.dtype, tensor.shape, position, position + _nbytes(tensor))
        position += _nbytes(tensor)
    prefix = _header(entries, metadata)
    shift = len(prefix)
    moved = {n: HeaderEntry(e.dtype, e.shape, e.start + shift, e.stop + shift) for n, e in entries.items()}
    return ShardPlan(name, prefix, moved, shift + position)


def plan_shards(layout: Layout, metadata: Mapping[str, str], max_shard_bytes: int) -> tuple[ShardPlan, ...]:
    """Distribute the tensors of a layout over files, layer by layer.

    Args:
        layout: the tensors to be written, with their final shapes and dtypes.
        metadata: goes into the header of every file, beside `{"format": "pt"}`.
        max_shard_bytes: of tensors per file; a larger tensor gets a file of its own.

    Returns:
        One plan named `model.safetensors`, or several named `model-0000i-of-0000n.safetensors`.
    """
    groups: list[list[TensorInfo]] = [[]]
    filled = 0
    for tensor in sorted(layout.tensors, key=lambda t: (-1 if t.layer is None else t.layer, t.name)):
        if groups[-1] and filled + _nbytes(tensor) > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += _nbytes(tensor)
    if len(groups) == 1:
        return (_plan_shard(SINGLE, groups[0], metadata),)
    names = [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    return tuple(_plan_shard(name, group, metadata) for name, group in zip(names, groups, strict=True))


def index_text(plans: tuple[ShardPlan, ...]) -> bytes:
    """The index file of a sharded checkpoint."""
    entries = [e for plan in plans for e in plan.entries.values()]
    totals = {"total_parameters": sum(e.numel for e in entries), "total_size": sum(e.nbytes for e in entries)}
    weight_map = {name: plan.name for plan in plans for name in plan.entries}
    index = {"metadata": totals, "weight_map": dict(sorted(weight_map.items()))}
    return (json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode()

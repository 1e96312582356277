"""The header of a safetensors file, parsed and checked before a single tensor is read.

The format: 8 bytes little-endian header length N, N bytes of JSON (padded with spaces), then the tensors' bytes.
The JSON maps each name to `{"dtype", "shape", "data_offsets": [begin, end]}`, offsets counted from the end of the
header; together the tensors cover the rest of the file without hole or overlap. `__metadata__` maps text to text.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.checkpoints.dtypes import ITEMSIZE
from evomerge.checkpoints.strict_json import damaged, parse_object, quoted
from evomerge.types import Digest

MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 64  # as many as torch has
METADATA_KEY = "__metadata__"


@dataclass(frozen=True)
class HeaderEntry:
    """One tensor as a safetensors header describes it.

    Attributes:
        dtype: safetensors spelling, for instance `"BF16"`.
        shape: as stored.
        start: position of the first byte, counted from the beginning of the file.
        stop: position behind the last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int = 0
    stop: int = 0

    @property
    def numel(self) -> int:
        """How many elements the tensor has; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes the elements take."""
        return self.numel * ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class Header:
    """A whole checked header.

    Attributes:
        entries: name -> entry, in the order of the file.
        metadata: the text that stands under `__metadata__`.
        size: bytes of the whole file.
        digest: sha256 of the header's bytes.
    """

    entries: Mapping[str, HeaderEntry]
    metadata: Mapping[str, str]
    size: int
    digest: Digest


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _parse_entry(path: Path, name: str, value: Any, data_start: int) -> HeaderEntry:
    where = f"tensor {quoted(name)}"
    if not name or not name.isprintable():
        raise damaged(path, where, "tensor names of printable characters")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise damaged(path, f"{where} described by {quoted(value)}", "exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEMSIZE:
        raise damaged(path, f"{where} with dtype {quoted(dtype)}", ", ".join(sorted(ITEMSIZE)))
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_is_count(n) for n in shape):
        raise damaged(path, f"{where} with shape {quoted(shape)}", "a list of a few non-negative integers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(n) for n in offsets):
        raise damaged(path, f"{where} with data_offsets {quoted(offsets)}", "two non-negative integers")
    entry = HeaderEntry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])
    if entry.stop - entry.start != entry.nbytes:
        raise damaged(
            path,
            f"{where} of {entry.stop - entry.start} bytes (offsets {offsets})",
            f"{entry.nbytes} bytes for shape {shape} of {dtype}",
        )
    return entry


def _check_cover(path: Path, entries: Mapping[str, HeaderEntry], data_start: int, size: int) -> None:
    """Tensors follow each other without hole or overlap, to the last byte of the file."""
    position = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != position:
            fault = "overlaps the tensor before it" if entry.start < position else "leaves a hole before it"
            raise damaged(path, f"tensor {quoted(name)} {fault}", "tensors that follow each other byte by byte")
        position = entry.stop
        if position > size:
            raise damaged(
                path, f"tensor {quoted(name)} ends at byte {position} of {size} (truncated?)", "complete tensors"
            )
    if position != size:
        raise damaged(path, f"{size - position} bytes behind the last tensor", "a file that ends with its last tensor")


def _read_raw(path: Path) -> tuple[bytes, int]:
    """The header's JSON bytes and the size of the file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            prefix = f.read(8)
            if len(prefix) < 8:
                raise damaged(path, f"only {size} bytes", "a safetensors file: 8 bytes of length, a header, tensors")
            (length,) = struct.unpack("<Q", prefix)
            if length > MAX_HEADER_BYTES:
                raise damaged(path, f"a header of {length} bytes", f"at most {MAX_HEADER_BYTES} bytes of header")
            if 8 + length > size:
                raise damaged(path, f"a header of {length} bytes in a file of {size}", "a complete header (truncated?)")
            raw = f.read(length)
    except OSError as error:
        raise damaged(path, f"{error.strerror}", "a readable file", "A file of a checkpoint cannot be read.") from error
    if len(raw) != length or not raw.startswith(b"{"):
        raise damaged(path, f"a header that begins with {raw[:8]!r}", "a JSON object")
    return raw, size


def read_header(path: Path) -> Header:
    """Parse and check the header of one safetensors file; no tensor is read.

    Raises:
        ModelError: naming the file and the tensor, for anything that breaks the format: a truncated file, a header
            beyond 100 MB, invalid JSON or duplicate keys, unknown dtypes, impossible shapes, offsets that overlap,
            leave holes or lie outside the file.
    """
    raw, size = _read_raw(path)
    parsed = parse_object(raw, path)
    metadata = parsed.pop(METADATA_KEY, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise damaged(path, f"{METADATA_KEY} = {quoted(metadata)}", "a mapping of text to text")
    data_start = 8 + len(raw)
    entries = {name: _parse_entry(path, name, value, data_start) for name, value in parsed.items()}
    _check_cover(path, entries, data_start, size)
    return Header(entries, metadata, size, Digest(hashlib.sha256(raw).hexdigest()))

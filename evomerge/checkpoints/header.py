"""The header of a safetensors file, parsed and checked before a single tensor is read.

The format: 8 bytes little-endian header length N, N bytes of JSON (padded with spaces), then the tensors' bytes.
The JSON maps each name to `{"dtype", "shape", "data_offsets": [begin, end]}`, offsets counted from the end of the
header; together the tensors cover the rest of the file without hole or overlap. `__metadata__` maps text to text.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
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
MAX_NAME = 512
"""Characters of a tensor's name."""
_MAX_TENSORS = 250_000
_MAX_VALUES = 4_000_000
_MOSTLY_HOLES = 1 << 30
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
class FileState:
    """What tells one state of a file from another without reading it.

    Attributes:
        device: of the file system.
        inode: of the file.
        modified_ns: when its bytes were last changed.
        size: in bytes.
    """

    device: int
    inode: int
    modified_ns: int
    size: int

    @classmethod
    def of(cls, found: os.stat_result) -> FileState:
        """From what the system says."""
        return cls(found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


@dataclass(frozen=True)
class Header:
    """A whole checked header.

    Attributes:
        entries: name -> entry, in the order of the file.
        metadata: the text that stands under `__metadata__`.
        size: bytes of the whole file.
        digest: sha256 of the header's bytes.
        state: of the file when its header was read.
    """

    entries: Mapping[str, HeaderEntry]
    metadata: Mapping[str, str]
    size: int
    digest: Digest
    state: FileState


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _parse_entry(path: Path, name: str, value: Any, data_start: int) -> HeaderEntry:
    where = f"tensor {quoted(name)}"
    if not name or not name.isprintable() or len(name) > MAX_NAME:
        raise damaged(path, where, f"tensor names of at most {MAX_NAME} printable characters")
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


def _check_file(path: Path, found: os.stat_result) -> None:
    """Refuse what is no file of bytes that are there: devices, pipes, and files of almost nothing but holes."""
    if not stat.S_ISREG(found.st_mode):
        raise damaged(path, "no regular file", "a file", "A file of a checkpoint cannot be read.")
    stored = found.st_blocks * 512
    if found.st_size - stored > _MOSTLY_HOLES and stored < found.st_size // 100:
        raise damaged(path, f"{found.st_size} bytes, of which {stored} are stored (a sparse file)", "whole weights")


def _opener(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe that took the file's place must not block us


def _read_raw(path: Path) -> tuple[bytes, FileState]:
    """The header's JSON bytes, and the state of the file."""
    try:
        with open(path, "rb", opener=_opener) as f:
            found = os.fstat(f.fileno())
            _check_file(path, found)
            size = found.st_size
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
    return raw, FileState.of(found)


def read_header(path: Path) -> Header:
    """Parse and check the header of one safetensors file; no tensor is read.

    Raises:
        ModelError: naming the file and the tensor, for anything that breaks the format: no regular file, a truncated
            or sparse one, a header beyond 100 MB or 250,000 tensors, invalid JSON or duplicate keys, unknown dtypes,
            impossible shapes, offsets that overlap, leave holes or lie outside the file.
    """
    raw, state = _read_raw(path)
    tensors = raw.count(b'"data_offsets"')
    if tensors > _MAX_TENSORS:
        raise damaged(path, f"about {tensors} tensors", f"at most {_MAX_TENSORS} tensors in one file")
    parsed = parse_object(raw, path, max_values=_MAX_VALUES)
    metadata = parsed.pop(METADATA_KEY, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise damaged(path, f"{METADATA_KEY} = {quoted(metadata)}", "a mapping of text to text")
    data_start = 8 + len(raw)
    entries = {name: _parse_entry(path, name, value, data_start) for name, value in parsed.items()}
    _check_cover(path, entries, data_start, state.size)
    return Header(entries, metadata, state.size, Digest(hashlib.sha256(raw).hexdigest()), state)

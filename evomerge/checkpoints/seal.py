"""Digests of the files of a folder, so that a file that was replaced or edited later is noticed.

A file of tensors is written in any order, so its plain sha256 cannot be had in the stream. Its digest is that of a
tree: sha256 over the digest of its head (length and header), then the digests of all tensors' bytes in the order of the
file. Tensors cover the file behind its head, so every byte counts. Other files have their plain sha256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from evomerge.checkpoints.header import read_header
from evomerge.errors import ModelError

_PLAIN: Final = "sha256:"
_TREE: Final = "sha256-tree:"
_CHUNK: Final = 1 << 20


@dataclass(frozen=True)
class Seal:
    """A file that is written last and knows the digests of all others.

    Attributes:
        name: of the file.
        content: its text, given file name -> digest of every other file.
    """

    name: str
    content: Callable[[Mapping[str, str]], str]


def digest_of_bytes(content: bytes) -> str:
    """The digest of a small file."""
    return _PLAIN + hashlib.sha256(content).hexdigest()


def digest_of_tensors(head: bytes, tensors: Iterable[bytes]) -> str:
    """The digest of a file of tensors.

    Args:
        head: its first bytes, up to the first tensor.
        tensors: sha256 of every tensor's bytes, in the order of the file.
    """
    tree = hashlib.sha256(hashlib.sha256(head).digest())
    for digest in tensors:
        tree.update(digest)
    return _TREE + tree.hexdigest()


def matches(path: Path, digest: str) -> bool:
    """Whether a file has the digest that was written down; False for a kind of digest that is not known.

    Raises:
        OSError: when it cannot be read.
    """
    with path.open("rb") as file:
        if digest.startswith(_PLAIN):
            return _PLAIN + hashlib.file_digest(file, "sha256").hexdigest() == digest
        return digest.startswith(_TREE) and _tree_of(path, file) == digest


def _tree_of(path: Path, file: BinaryIO) -> str | None:
    """The digest of a file of tensors; None for a file that is none."""
    try:
        entries = sorted((e.start, e.stop) for e in read_header(path).entries.values())
    except ModelError:
        return None
    length = int.from_bytes(file.read(8), "little")
    file.seek(0)
    head = file.read(8 + length)
    return digest_of_tensors(head, (_sha256(file, start, stop) for start, stop in entries))


def _sha256(file: BinaryIO, start: int, stop: int) -> bytes:
    found = hashlib.sha256()
    file.seek(start)
    while start < stop and (chunk := file.read(min(_CHUNK, stop - start))):
        found.update(chunk)
        start += len(chunk)
    return found.digest()

"""What a file was when its bytes were read, and how to tell cheaply that it still is.

A digest is taken once. Beside it stands what the file system said of the file at that moment: size, inode and the two
times. While these are the same, the bytes are taken to be the same; where any of them differs, the digest is taken
again. The time of the last change of status cannot be set by a program, so that bytes which were changed on the same
machine are noticed even where the time of modification was put back. A file that was written to a moment ago is left
alone for the tick of the file system's clock, so that whatever is written later has a later time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from evomerge.digest import digest_file, digest_json
from evomerge.errors import ModelError
from evomerge.types import Digest


class Stamp(NamedTuple):
    """What a file system says of a file, links followed.

    Attributes:
        size: bytes.
        modified: time of the last change of the bytes, ns.
        changed: time of the last change of bytes or status, ns.
        inode: number of the file.
    """

    size: int
    modified: int
    changed: int
    inode: int


_TICK_NS: Final = 12_000_000
"""Files' times move in steps of at most 10 ms."""


def stamp_of(path: Path) -> Stamp:
    """The stamp of a file; raises OSError."""
    found = path.stat()
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def settled(path: Path) -> Stamp:
    """The stamp of a file once every later change would show in it; raises OSError."""
    found = stamp_of(path)
    age = time.time_ns() - found.changed
    if 0 <= age < _TICK_NS:
        time.sleep((_TICK_NS - age) / 1e9)
        return stamp_of(path)
    return found


@dataclass(frozen=True)
class FileProof:
    """A file's digest, and what the file was when it was taken.

    Attributes:
        digest: sha256 of its bytes.
        stamp: of the moment.
    """

    digest: Digest
    stamp: Stamp


Proofs = Mapping[str, FileProof]
"""Name of a file -> proof."""


def changed(path: Path, got: str) -> ModelError:
    """What to say of a file that is not what it was."""
    return ModelError(
        "A checkpoint changed while it was in use.",
        got=f"{path}: {got}",
        allowed="files that stay as they are during a run",
        fix="restore the checkpoint, or start a new run with the new one.",
    )


def prove(path: Path) -> FileProof:
    """Read a file for its digest.

    Raises:
        ModelError: when it cannot be read, or changes meanwhile.
    """
    try:
        before = settled(path)
        digest = digest_file(path)
        after = stamp_of(path)
    except OSError as error:
        raise changed(path, f"{error.strerror}") from error
    if before != after:
        raise changed(path, "it was written to while it was read")
    return FileProof(digest, after)


def proven(path: Path, known: FileProof) -> FileProof:
    """The proof of a file that should still be what it was; read again only where its stamp differs.

    Raises:
        ModelError: when it has other bytes, or cannot be read.
    """
    try:
        same = stamp_of(path) == known.stamp
    except OSError as error:
        raise changed(path, f"{error.strerror}") from error
    if same:
        return known
    found = prove(path)
    if found.digest != known.digest:
        raise changed(path, f"sha256 {found.digest[:16]}…, and it was {known.digest[:16]}…")
    return found


def prove_all(folder: Path, names: Sequence[str], known: Proofs | None = None) -> dict[str, FileProof]:
    """The proofs of a folder's files, from those that are known as far as they still hold.

    Raises:
        ModelError: when a file has other bytes than `known` says, or cannot be read.
    """
    if known is None:
        return {name: prove(folder / name) for name in names}
    return {name: proven(folder / name, known[name]) for name in names}


def content_of(proofs: Proofs) -> Digest:
    """The digest over files' digests by name."""
    return digest_json({name: proof.digest for name, proof in proofs.items()})

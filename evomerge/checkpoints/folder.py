"""Which files of a checkpoint folder may be opened: plain names inside it, and never anything they lead out to."""

from __future__ import annotations

import errno
import stat
from pathlib import Path
from typing import Final

from evomerge.errors import ModelError


def is_plain_name(name: str) -> bool:
    """Whether `name` is a file name and nothing else: no separators, no `..`, no drive, no control characters."""
    return (
        name not in {"", ".", ".."} and name.isprintable() and not any(c in "/\\:" for c in name) and len(name) <= 255
    )


def hub_blobs(folder: Path) -> Path | None:
    """The `blobs` folder that a Hugging Face cache snapshot may link into, None for any other folder."""
    repository = folder.parent.parent
    if folder.parent.name == "snapshots" and repository.name.startswith("models--"):
        return repository / "blobs"
    return None


def _outside(folder: Path, name: str, got: str) -> ModelError:
    return ModelError(
        "A checkpoint names a file that does not lie in its folder.",
        got=f"{got} in {folder}",
        allowed="plain file names, and no links that lead out of the folder",
        fix=f"replace {name[:80]!r} by a real file in the folder, or download the checkpoint again.",
    )


def find_file(folder: Path, name: str, root: Path | None = None) -> Path | None:
    """The regular file `name` of `folder`, None when there is none.

    Links are followed only inside the checkpoint, or, in a snapshot of the Hugging Face cache, into its blobs.

    Args:
        folder: where the file lies.
        name: its plain name.
        root: the checkpoint's folder where `folder` is one inside it; None when they are the same.

    Raises:
        ModelError: when `name` is not a plain name, leads out of the folder, or is not a regular file.
    """
    if not is_plain_name(name):
        raise _outside(folder, name, repr(name[:200]))
    path = folder / name
    if not path.is_symlink() and not path.exists():
        return None
    top = (root or folder).resolve()
    inside = [top, hub_blobs(top)]
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise _outside(folder, name, f"{name!r}, a link that leads nowhere,") from error
    if not any(root is not None and real.is_relative_to(root) for root in inside):
        raise _outside(folder, name, f"{name!r}, a link to {real},")
    if not stat.S_ISREG(real.stat().st_mode):
        raise _outside(folder, name, f"{name!r}, which is not a regular file,")
    return path


def own_file(folder: Path, name: str) -> Path | None:
    """As `find_file`, and None where that would refuse: for files that a checkpoint may lack."""
    try:
        return find_file(folder, name)
    except ModelError:
        return None


MAX_SMALL_FILE: Final = 200_000_000
"""Bytes of what is no weights: four times the largest tokenizer that there is."""


def read_bytes(path: Path, limit: int = MAX_SMALL_FILE) -> bytes:
    """The content of a small file of a checkpoint.

    Raises:
        ModelError: when it cannot be read, or is larger than `limit` bytes.
    """
    try:
        with path.open("rb") as f:
            content = f.read(limit + 1)
        if len(content) <= limit:
            return content
        raise OSError(errno.EFBIG, f"more than {limit} bytes")
    except OSError as error:
        raise ModelError(
            "A file of a checkpoint cannot be read.",
            got=f"{path}: {error.strerror}",
            allowed="a readable file",
            fix="check the permissions and the file system.",
        ) from error

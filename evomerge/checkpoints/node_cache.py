"""A node's own copies of parents: made once per node, verified while they are made, noticed when they are damaged.

The cache lies in a folder that belongs to this user alone. Every copy is a folder named by the digest of what it holds,
`parents/DIGEST`, with a record beside it, `DIGEST.json`, and a lock, `DIGEST.lock`, that the workers of the node take
turns with. A copy is written to a temporary folder, digested on the way, compared with what the driver read, and
renamed. The record holds each file's stamp (see `proofs`) and the boot of the node: a worker
that finds both unchanged believes the copy, any other reads it again for its digests, once per node and boot.

Nothing is removed but what this module made: a copy that turned out to be damaged, and what a killed copying left.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, final

from evomerge.checkpoints.proofs import FileProof, changed, content_of, prove, settled, stamp_of
from evomerge.errors import ModelError
from evomerge.ownership import private_folder
from evomerge.types import Digest

FORMAT: Final = "evomerge.node_cache"
VERSION: Final = 1
WAIT_S: Final = 1800.0
"""How long a worker waits for another one of its node to finish a copy."""
_POLL_S: Final = 0.1
_CHUNK: Final = 1 << 22
_SPARE: Final = 64 << 20
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")

Note = Callable[[str], None]
"""Told in words what a worker's log should say."""


@dataclass(frozen=True)
class Bundle:
    """Files that belong together, as the driver read them.

    Attributes:
        folder: where the driver has them, absolute.
        files: name relative to the folder -> proof.
        hub: id and commit, where they can be downloaded; None for a folder.
        what: how messages call them.
    """

    folder: str
    files: Mapping[str, FileProof]
    hub: tuple[str, str] | None = None
    what: str = ""

    @property
    def digest(self) -> Digest:
        """Of all names and bytes."""
        return content_of(self.files)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(proof.stamp.size for proof in self.files.values())


class NoRoom(Exception):
    """Why the cache cannot be used now; its text ends a sentence."""


Fill = Callable[[Path], Mapping[str, Digest]]
"""Puts a bundle's files into an empty folder; name -> sha256 of what was put there."""


def boot_id() -> str:
    """Names this boot of this node; empty where the system does not tell."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


@final
class NodeCache:
    """Copies of parents on this node.

    Args:
        folder: the cache of this user; is made.
        note: told what happened.
        wait_s: how long to wait for another worker's copy, seconds.

    Raises:
        NoRoom: when the folder cannot be made, or others may write to it.
    """

    def __init__(self, folder: Path, note: Note, *, wait_s: float = WAIT_S) -> None:
        self._folder = folder / "parents"
        self._note = note
        self._wait_s = wait_s
        with _usable():
            for path in (folder, self._folder):
                foreign = private_folder(path)
                if foreign is not None:
                    raise NoRoom(foreign)

    def place(self, bundle: Bundle, fill: Fill) -> tuple[Path, dict[str, FileProof]]:
        """The folder of a bundle's copy with the proofs of its files, copied if it is not there or damaged.

        Args:
            bundle: what is wanted.
            fill: puts the files into an empty folder; the digests are verified here.

        Raises:
            NoRoom: when the disk is full, the folder cannot be used, or another worker copies for too long.
            ModelError: when `fill` gives other bytes than the driver read.
        """
        digest = bundle.digest
        with _usable(), self._turn(digest):
            found = self._standing(bundle)
            if found is None:
                found = self._copy(bundle, fill)
        return self._folder / digest, found

    @contextmanager
    def _turn(self, digest: Digest) -> Iterator[None]:
        """Alone with a copy; the system gives the turn back however this process ends."""
        until = time.monotonic() + self._wait_s
        with (self._folder / f"{digest}.lock").open("a") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= until:
                        raise NoRoom(f"another worker has held {lock.name} for {self._wait_s:g} s") from None
                    time.sleep(_POLL_S)
            yield

    def _standing(self, bundle: Bundle) -> dict[str, FileProof] | None:
        """The proofs of a copy that is there and whole; None, with everything in its way removed, where there is none.

        Raises:
            NoRoom: when something stands in its place that this module did not make.
        """
        folder = self._folder / bundle.digest
        self._sweep(bundle)
        if folder.is_symlink():
            raise NoRoom(f"{folder} is a link")  # what lies behind it is not ours to remove
        if not folder.exists():
            return None
        record = self._read_record(bundle)
        if record is None:
            raise NoRoom(f"{folder} was not made by evomerge")
        if record.get("boot") == boot_id() != "" and record.get("files") == _stamps(folder, bundle):
            return {n: FileProof(p.digest, stamp_of(folder / n)) for n, p in bundle.files.items()}
        try:
            found = {name: prove(folder / name) for name in bundle.files}
        except ModelError:
            found = {}
        if {n: p.digest for n, p in found.items()} == {n: p.digest for n, p in bundle.files.items()}:
            self._write_record(bundle, folder)
            return found
        self._note(f"the copy of {bundle.what} in {folder} is damaged; it is made anew")
        self._discard(folder, bundle)
        return None

    def _copy(self, bundle: Bundle, fill: Fill) -> dict[str, FileProof]:
        free = shutil.disk_usage(self._folder).free
        if free < bundle.size + _SPARE:
            raise NoRoom(f"{free} bytes are free in {self._folder}, and {bundle.what} takes {bundle.size}")
        folder, started = self._folder / bundle.digest, time.monotonic()
        temporary = self._folder / f".{bundle.digest}.{socket.gethostname()}.{os.getpid()}.tmp"
        temporary.mkdir(mode=0o700)
        try:
            found = fill(temporary)
            for name, proof in bundle.files.items():
                if found[name] != proof.digest:
                    got = f"sha256 {found[name][:16]}…, and the driver read {proof.digest[:16]}…"
                    raise changed(Path(bundle.folder) / name, got)
            # the record first: what has none was not made here
            self._write_record(bundle, None)
            temporary.rename(folder)
        finally:
            self._discard(temporary, bundle)
        self._write_record(bundle, folder)
        self._note(f"copied {bundle.what}, {bundle.size} bytes, to {folder} in {time.monotonic() - started:.1f} s")
        return {n: FileProof(p.digest, stamp_of(folder / n)) for n, p in bundle.files.items()}

    def _sweep(self, bundle: Bundle) -> None:
        """Remove what copyings of the same bundle left when they were killed: none runs, since this is our turn."""
        for left in (*self._folder.glob(f".{bundle.digest}.*.tmp"), *self._folder.glob(f".{bundle.digest}.*.old")):
            self._discard(left, bundle)

    def _discard(self, folder: Path, bundle: Bundle) -> None:
        """Remove a copy's own files; whatever else lies among them stays, out of the way."""
        if not folder.is_dir():
            return
        if not folder.name.startswith("."):
            folder = folder.rename(self._folder / f".{bundle.digest}.{time.time_ns()}.old")
        for name in bundle.files:
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # what the hub's client writes beside a download
        for path in (*{(folder / name).parent for name in bundle.files} - {folder}, folder):
            with suppress(OSError):
                path.rmdir()

    def _record(self, bundle: Bundle) -> Path:
        return self._folder / f"{bundle.digest}.json"

    def _read_record(self, bundle: Bundle) -> dict[str, Any] | None:
        try:
            found = json.loads(self._record(bundle).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and found.get("format") == FORMAT else None

    def _write_record(self, bundle: Bundle, folder: Path | None) -> None:
        """Record a copy as it is, or, without a folder, that one is about to be there."""
        known = {} if folder is None else {"boot": boot_id(), "files": _stamps(folder, bundle)}
        text = json.dumps({"format": FORMAT, "version": VERSION, "what": bundle.what, **known})
        temporary = self._record(bundle).with_suffix(".json.new")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self._record(bundle))


@contextmanager
def _usable() -> Iterator[None]:
    """Whatever the system refuses about the cache means that the cache is not used."""
    try:
        yield
    except OSError as error:
        raise NoRoom(f"{error.strerror or error}") from error


def _stamps(folder: Path, bundle: Bundle) -> dict[str, list[int]]:
    """The stamps of a copy's files; of one that is missing, none."""
    found: dict[str, list[int]] = {}
    for name in bundle.files:
        with suppress(OSError):
            found[name] = list(settled(folder / name))
    return found


def copy_file(source: Path, target: Path) -> Digest:
    """Copy a file; the sha256 of what was read. Raises OSError."""
    target.parent.mkdir(mode=0o700, exist_ok=True)
    read = sha256()
    with source.open("rb") as f, target.open("xb") as out:
        while chunk := f.read(_CHUNK):
            read.update(chunk)
            out.write(chunk)
    return Digest(read.hexdigest())

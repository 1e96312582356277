"""The run directory: its files, its journal, and who may write to it.

What `append` has returned for survives kill -9 and power loss, and was written while nobody else could write (see
`lock`). A run directory appears in one step, complete with its job and manifest. Files other than the journal are
replaced atomically; so is the journal itself by its own copy, where an earlier writer may still live.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, final

from evomerge.errors import ConfigError, EvomergeError, StoreError
from evomerge.failpoints import reach
from evomerge.files import (
    disk_full_is_told,
    fsync_folder,
    lost_storage_is_told,
    path_is_told,
    sweep_temporary,
    write_atomic,
)
from evomerge.runs.contained import check_contained
from evomerge.runs.entries import Entry, decode_entries
from evomerge.runs.journal import Scan, frame, mend, scan
from evomerge.runs.lock import RunLock
from evomerge.runs.manifest import SUMS_FILE, sums_of
from evomerge.runs.partial import Items, merge_evaluations
from evomerge.runs.records import Evaluated, Failed, Record
from evomerge.runs.responses import load_responses, save_responses
from evomerge.types import Digest, Evaluation

if TYPE_CHECKING:
    from evomerge.irt.bank import ItemBank

JOURNAL: Final = "journal.jsonl"
RESPONSES: Final = "responses"
LOGS: Final = "logs"
EXPORTS: Final = "exports"
BANKS: Final = "banks"
MOST_BYTES: Final = 1 << 29
"""Of a journal; it is read as a whole."""
_FOLDERS: Final = (RESPONSES, LOGS, EXPORTS)


def _is_run(folder: Path) -> bool:
    return (folder / JOURNAL).is_file()


@final
class RunStore:
    """One run directory, open for reading or for writing.

    Made by `create` or `open`, closed by `close` or as a context manager. Not to be shared between threads.
    """

    def __init__(self, folder: Path, lock: RunLock | None) -> None:
        """Private: use `create` or `open`."""
        self.folder = folder
        self._lock = lock
        self._fd = -1
        if lock is not None:
            self._take_over(lock)
        with ExitStack() as undo:
            undo.callback(self._close_journal)
            found = self._scan()
            self.notes = _notes(found)
            self._n = len(found.payloads)
            self._size = found.size
            if lock is not None:
                self._write(mend(found))
                self._n += bool(found.tail)
            undo.pop_all()

    def _take_over(self, lock: RunLock) -> None:
        """Open the journal so that no earlier holder of the lock can write to it any more: see `lock`."""
        path = self.folder / JOURNAL
        if not lock.in_order:
            lock.replace_journal(path)
            reach("after-takeover")
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._check(lock)
        lock.settle()
        for part in ("", RESPONSES, BANKS):
            sweep_temporary(self.folder / part)

    @property
    def epoch(self) -> int:
        """The number of this hold of the run directory, higher than all before; 0 when it is open for reading."""
        return 0 if self._lock is None else self._lock.epoch

    @property
    def writes(self) -> bool:
        """Whether it is open for writing, and no write has failed."""
        return self._fd >= 0

    @classmethod
    def create(cls, folder: Path, files: Mapping[str, bytes | str]) -> RunStore:
        """A new run directory with `files` in it, open for writing.

        Args:
            folder: must not exist, or be empty.
            files: plain file name -> content; at least the resolved job and the manifest.

        Raises:
            ConfigError: when `folder` holds something.
            DiskFull: when there is no space; nothing is left behind.
        """
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise _taken(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        temporary = _temporary(folder)
        with ExitStack() as undo:
            undo.callback(shutil.rmtree, temporary, ignore_errors=True)
            with disk_full_is_told(folder), path_is_told(folder):
                for name in _FOLDERS:
                    (temporary / name).mkdir(parents=True)
                contents = {name: c.encode() if isinstance(c, str) else c for name, c in files.items()}
                for name, content in contents.items():
                    write_atomic(temporary / name, content)
                write_atomic(temporary / SUMS_FILE, sums_of(contents))
                write_atomic(temporary / JOURNAL, b"")
                lock = RunLock(temporary)
                undo.callback(lock.release)
                reach("before-create")
                try:
                    temporary.rename(folder)
                except OSError as error:
                    if not folder.exists():
                        raise
                    raise _taken(folder) from error
                reach("after-create")
                fsync_folder(folder.parent)
            undo.pop_all()
        lock.moved_to(folder)
        return cls._held(folder, lock)

    @classmethod
    def open(cls, folder: Path, *, write: bool) -> RunStore:
        """An existing run directory.

        Opening for reading never disturbs a writer and changes no byte.

        Raises:
            ConfigError: when `folder` is not a run directory.
            RunLocked: when `write` and another process writes to it.
            StoreError: when `write` and a link leads out of it.
            DiskFull, StorageLost: when `write` and the run directory takes no writes.
            CorruptJournal: when a record before the last is damaged.
        """
        if not _is_run(folder):
            raise ConfigError(
                "There is no run here.",
                got=str(folder),
                allowed=f"a folder that holds {JOURNAL}",
                fix="name the run directory (runs/NAME), or start the run with `evomerge search`.",
            )
        if not write:
            return cls(folder, None)
        check_contained(folder)
        with lost_storage_is_told(folder):
            return cls._held(folder, RunLock(folder))

    @classmethod
    def _held(cls, folder: Path, lock: RunLock) -> RunStore:
        """Open for writing; the lock is given back when that fails."""
        with ExitStack() as undo:
            undo.callback(lock.release)
            store = cls(folder, lock)
            undo.pop_all()
        return store

    def _scan(self) -> Scan:
        path = self.folder / JOURNAL
        if path.stat().st_size > MOST_BYTES:
            raise StoreError(
                "The journal is too long.",
                got=f"{path}: {path.stat().st_size} bytes",
                allowed=f"at most {MOST_BYTES} bytes, which is some hundred thousand candidates",
                fix="restore it from a copy, or start a new run.",
            )
        return scan(path.read_bytes())

    def append(self, *records: Record) -> None:
        """Write records behind the last one; when this returns they are on the disk. Several cost one fsync.

        Raises:
            StoreError: when the store is open for reading, or an earlier fsync failed.
            RunLocked: when another host has taken the run over; nothing that is read has been written.
            DiskFull: when there is no space; the journal ends behind its last complete record.
            StorageLost: when the journal cannot be written for another reason; it ends there, too.
        """
        if self._fd < 0 or self._lock is None:
            raise StoreError(
                "This run directory is not open for writing.",
                got=str(self.folder),
                allowed="a store opened with write=True, not closed, whose disk has never failed",
                fix="open it again, for instance with `evomerge resume`.",
            )
        self._check(self._lock)
        for record in records:
            reach(f"before-{record.tag}")
        now = round(time.time(), 3)
        lines = (
            frame(self._n + i, {"at": now, "t": record.tag, **record.to_json()}) for i, record in enumerate(records)
        )
        self._write(b"".join(lines))
        self._check(self._lock)  # so that the next holder has read what is acknowledged now
        self._n += len(records)
        for record in records:
            reach(f"after-{record.tag}")

    def _check(self, lock: RunLock) -> None:
        """Make sure that the run is still ours; if not, or if nobody can tell, nothing more is written."""
        try:
            with lost_storage_is_told(self.folder):
                lock.check()
        except EvomergeError:
            self._close_journal()
            raise

    def _write(self, data: bytes) -> None:
        if not data:
            return
        with lost_storage_is_told(self.folder / JOURNAL):
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
                reach("before-journal-sync")
                os.fsync(self._fd)
            except OSError:
                # What was not acknowledged goes; if even that fails, the next open marks it as torn.
                with suppress(OSError):
                    os.ftruncate(self._fd, self._size)
                self._close_journal()  # after a failed fsync nobody knows what the kernel has kept
                raise
        self._size += len(data)

    def entries(self) -> Iterator[Entry]:
        """Every record with its number and time, as the file holds them now.

        Raises:
            CorruptJournal: when a line before the last is damaged.
            SchemaTooNew: when a newer version wrote it.
        """
        return decode_entries(self._scan().payloads)

    def records(self) -> Iterator[Record]:
        """Every record, as the file holds them now; raises as `entries`."""
        return (entry.record for entry in self.entries())

    def save_responses(self, recipe: Digest, evaluation: Evaluation) -> str:
        """Keep per-item answers and return their digest, for the `evaluated` record that must follow.

        Raises:
            DiskFull: when there is no space.
            StorageLost: when they cannot be written for another reason.
        """
        reach("before-responses")
        with lost_storage_is_told(self.folder / RESPONSES):
            digest = save_responses(self.folder / RESPONSES, recipe, evaluation)
        reach("after-responses")
        return digest

    def save_bank(self, task: str, bank: ItemBank) -> str:
        """Keep a task's item bank in place of an earlier one; returns its path relative to the run directory.

        Like the study and the report it can be made anew from the answers; `suite.questions.banks` of another job may
        name it.

        Raises:
            DiskFull: when there is no space.
            StorageLost: when it cannot be written for another reason.
        """
        from evomerge.irt.bank_files import write_bank  # scipy: not for those who only read

        name = f"{BANKS}/{re.sub(r'[^A-Za-z0-9._-]', '_', task)}.npz"
        reach("before-bank")
        with lost_storage_is_told(self.folder / name):
            (self.folder / BANKS).mkdir(exist_ok=True)
            write_bank(self.folder / name, bank)
        reach("after-bank")
        return name

    def load_responses(self, record: Evaluated) -> Evaluation:
        """The per-item answers behind a record.

        Raises:
            StoreError: when their file is lost or was altered.
        """
        return load_responses(self.folder / RESPONSES, record)

    def load_answers(self, records: Iterable[Evaluated | Failed], order: Items | None = None) -> Evaluation:
        """All answers of one model to one set: what `History.parts` has of it, merged.

        Args:
            records: of one recipe and set, in the order of the journal; failures among them are passed over. The
                record of a whole set is enough by itself, and its answers are given as they are.
            order: the set's items in plan order, for the answers to increments; None keeps the order of asking.

        Raises:
            ValueError: when no record has answers.
            StoreError: when a file is lost or was altered.
        """
        scored = [record for record in records if isinstance(record, Evaluated)]
        whole = next((record for record in scored if record.part == 0), None)
        if whole is not None:
            return self.load_responses(whole)
        return merge_evaluations([self.load_responses(record) for record in scored], order)

    def _close_journal(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        """Release the lock; a second call does nothing."""
        self._close_journal()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _notes(found: Scan) -> tuple[str, ...]:
    if not found.tail:
        return () if found.ends_line else ("The last line of the journal has no newline; its record is complete.",)
    return (f"The last {len(found.tail)} bytes of the journal are a write that a crash cut; they are skipped.",)


def _taken(folder: Path) -> ConfigError:
    return ConfigError(
        "The run directory exists already.",
        got=f"{folder} {'holds a run' if _is_run(folder) else 'is not empty'}",
        allowed="a folder that does not exist, or is empty",
        fix="name another one with --run-dir, continue the run with `evomerge resume`, or use --resume auto.",
    )


def _temporary(folder: Path, pid: int | None = None) -> Path:
    return folder.with_name(f".{folder.name}.{socket.gethostname()}.{pid or os.getpid()}.new")


def _sweep(folder: Path) -> None:
    """Remove what processes of this host that died while creating `folder` left beside it."""
    for left in folder.parent.glob(f".{folder.name}.{socket.gethostname()}.*.new"):
        pid = left.name.split(".")[-2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(left, ignore_errors=True)

"""Disks that are full, broken or read-only at any moment of a whole small run: told, nothing lost, resumed."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from evomerge.checkpoints.writer import write_files
from evomerge.errors import DiskFull, EvomergeError, StorageLost
from evomerge.files import write_atomic
from evomerge.runs.records import Note
from evomerge.runs.replay import read_history
from evomerge.runs.store import JOURNAL, RunStore
from evomerge.testing.killable import digest_of, live
from evomerge.testing.small_disks import FailingCalls, can_mount, grow, small_disk
from evomerge.testing.store_suite import FILES

JOB = "raced"
BANK_AND_ALL = ("banks", "optuna.db", "report.html", "responses")


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What an undisturbed run ends with."""
    run = tmp_path_factory.mktemp("calm") / "run"
    live(JOB, run)
    assert {p.name for p in run.iterdir()} > {*BANK_AND_ALL}
    return digest_of(run)


def _is_readable(run: Path) -> int:
    """The run can be looked at; how many records it has."""
    if not run.exists():
        return 0
    history = read_history(RunStore.open(run, write=False).entries())
    assert history.counts.repeated == 0
    return sum(map(len, history.parts.values()))


def _outcome(run: Path) -> Exception | None:
    """One life of the run; how it failed."""
    try:
        live(JOB, run)
    except (EvomergeError, OSError) as error:
        return error
    return None


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, DiskFull),
        (errno.EIO, StorageLost),
        pytest.param(errno.EDQUOT, DiskFull, marks=pytest.mark.chaos),
        pytest.param(errno.EROFS, StorageLost, marks=pytest.mark.chaos),
        pytest.param(errno.EACCES, StorageLost, marks=pytest.mark.chaos),
    ],
)
def test_a_disk_that_breaks_at_any_sync_ends_resumable(
    tmp_path: Path, calm: str, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[EvomergeError]
) -> None:
    """Files are written and renamed between two syncs; every life gets somewhat further, then its disk fails."""
    run = tmp_path / "run"
    errors = []
    for n in range(9, 400, 37):
        known = _is_readable(run)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", FailingCalls(code, n, tmp_path).wrap(os.fsync))
            errors.append(_outcome(run))
        assert _is_readable(run) >= known
        if errors[-1] is None:
            break
    broken = [error for error in errors if error is not None]
    running = [error for error in broken if isinstance(error, kind) and error.exit_code == 75]
    assert len(running) >= 3
    for error in broken:  # a run that cannot even be opened is told with the place
        assert os.strerror(code) in str(error)
        assert error in running or (isinstance(error, OSError) and str(tmp_path) in str(error.filename))
    live(JOB, run)
    assert digest_of(run) == calm
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_run_directory_that_is_read_only_from_the_start_can_be_resumed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunStore.create(tmp_path / "run", FILES).close()
    opened = os.open

    def read_only(path: str | Path, flags: int, *rest: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        with pytest.raises(StorageLost, match=r"Read-only file system while writing[\s\S]*Fix: [\s\S]*evomerge resume"):
            RunStore.open(tmp_path / "run", write=True)
    assert StorageLost.exit_code == 75
    RunStore.open(tmp_path / "run", write=True).close()


def test_a_full_disk_names_the_command_that_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside a run that is `evomerge resume`; an export, a report, a merge is asked for again."""
    with RunStore.create(tmp_path / "run", FILES) as store:
        monkeypatch.setattr(os, "fsync", FailingCalls(errno.ENOSPC, 1, tmp_path).wrap(os.fsync))
        with pytest.raises(DiskFull, match="then run `evomerge resume` on the run directory"):
            store.append(Note("a"))
    monkeypatch.setattr(os, "fsync", FailingCalls(errno.ENOSPC, 1, tmp_path).wrap(os.fsync))
    with pytest.raises(DiskFull, match="then run the same command again") as told:
        write_atomic(tmp_path / "report.html", "x")
    assert "resume" not in str(told.value)
    monkeypatch.setattr(os, "fsync", FailingCalls(errno.ENOSPC, 1, tmp_path).wrap(os.fsync))
    with pytest.raises(DiskFull, match="then run the same command again"):
        write_files(tmp_path / "merged", {"a": b"1"})
    assert not (tmp_path / "merged").exists()


def test_a_file_size_limit_is_told(tmp_path: Path) -> None:
    """A real one: the write is cut short, the next one fails."""
    with RunStore.create(tmp_path / "run", FILES) as store:
        store.append(Note("a"))
        before = (tmp_path / "run" / JOURNAL).read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))
        try:
            with pytest.raises(StorageLost, match=r"File too large while writing .*journal\.jsonl"):
                store.append(Note("b"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "run" / JOURNAL).read_bytes() == before
    with RunStore.open(tmp_path / "run", write=True) as store:
        store.append(Note("c"))
        assert [r.topic for r in store.records() if isinstance(r, Note)] == ["a", "c"]


def test_a_small_disk_fills_wherever_it_likes(tmp_path: Path, calm: str) -> None:
    """A real file system that grows by too little each time: journal, answers, banks, study and report run out."""
    if not can_mount(tmp_path):
        pytest.skip("mounting a small file system needs root")
    errors: list[Exception | None] = []
    with small_disk(tmp_path / "disk", 48) as disk:
        run = disk / "run"
        for kib in (*range(60, 600, 60), 4096):
            known = _is_readable(run)
            errors.append(_outcome(run))
            assert _is_readable(run) >= known
            grow(disk, kib)
        live(JOB, run)  # what is derived is whole again
        assert digest_of(run) == calm
        left = [p.name for p in run.rglob("*.tmp")] + [p.name for p in disk.glob(".*")]
    full = [error for error in errors if error is not None]
    assert len(full) >= 3, errors
    assert all(isinstance(error, DiskFull) for error in full), full
    assert not left

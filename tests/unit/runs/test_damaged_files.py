"""Damage to whatever a run directory holds: cuts and flips of a real small run's journal, and of its other files."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from evomerge.errors import CorruptJournal, StoreError
from evomerge.files import sweep_temporary, write_atomic
from evomerge.irt.bank_files import read_bank
from evomerge.report.collect import summarise
from evomerge.runs.journal import mend, scan
from evomerge.runs.manifest import check_files, read_manifest
from evomerge.runs.records import Evaluated, Note
from evomerge.runs.replay import read_history
from evomerge.runs.store import JOURNAL, RESPONSES, RunStore
from evomerge.runs.study import STUDY_FILE
from evomerge.testing.killable import EXPORTED, live


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of some 20 models, raced: every kind of record and file."""
    run = tmp_path_factory.mktemp("real") / "run"
    live("raced", run)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(finished, tmp_path / "run")
    shutil.copy(finished.with_name("run.begun"), tmp_path / "run.begun")
    return tmp_path / "run"


def flipped(data: bytes, rng: random.Random) -> tuple[int, bytes]:
    """One random byte replaced by another one."""
    at = rng.randrange(len(data))
    return at, data[:at] + bytes([(data[at] + rng.randrange(1, 256)) % 256]) + data[at + 1 :]


def test_a_journal_that_is_cut_loses_at_most_its_last_record(finished: Path) -> None:
    """Every byte of the last four lines and every 29th before them; `tests/chaos` cuts at every byte."""
    whole = (finished / JOURNAL).read_bytes()
    assert whole.count(b'"t":"evaluated"') > 20
    payloads = scan(whole).payloads
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in {*range(0, len(whole), 29), *range(ends[-5], len(whole) + 1)}:
        found = scan(whole[:cut])
        complete = sum(end <= cut + 1 for end in ends)
        assert found.payloads == payloads[:complete], f"cut at byte {cut}"
        again = scan(whole[:cut] + mend(found))
        assert again.payloads[:complete] == payloads[:complete]
        assert (again.tail, again.ends_line) == (b"", True)


def test_every_flip_of_a_byte_in_a_journal_is_found(finished: Path) -> None:
    """300 random flips, and every byte of the last record; `tests/chaos` has more."""
    whole, rng = (finished / JOURNAL).read_bytes(), random.Random(6)
    last = whole[:-1].rindex(b"\n") + 1
    damaged = [flipped(whole, rng)[1] for _ in range(300)]
    damaged += [whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in range(last, len(whole))]
    for data in damaged:
        if data[:-1] == whole[:-1] and data[-1] == 0:
            continue  # nothing is lost, and it is told: see the next test
        with pytest.raises(CorruptJournal, match=r"line \d+ (fails its checksum|is out of sequence)"):
            scan(data)


def test_a_last_newline_that_became_zero_is_told_and_costs_nothing(run: Path) -> None:
    whole = (run / JOURNAL).read_bytes()
    (run / JOURNAL).write_bytes(whole[:-1] + b"\0")
    with RunStore.open(run, write=True) as store:
        assert store.notes == ("The last line of the journal has no newline; its record is complete.",)
        store.append(Note("more"))
    assert scan((run / JOURNAL).read_bytes()).payloads[:-1] == scan(whole).payloads


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "lost", "folder"])
def test_answers_that_are_damaged_are_asked_again_and_written_anew(run: Path, how: str) -> None:
    before = summarise(run).result_digest
    begun = run.with_name("run.begun").read_text().count("\n")
    records = RunStore.open(run, write=False).records()
    victim = next(r for r in records if isinstance(r, Evaluated) and r.set_name == "search")
    (path,) = (run / RESPONSES).glob(f"{victim.recipe[:16]}-search-{victim.responses[:16]}.json")
    data = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "lost":
        path.write_bytes({"flip": data[:50] + b"\xff" + data[51:], "cut": data[:-3], "empty": b""}[how])
    with pytest.raises(StoreError, match=r"is lost|was altered"):
        RunStore.open(run, write=False).load_responses(victim)
    if how == "folder":
        path.rmdir()
    live("raced", run)
    assert path.read_bytes() == data
    assert summarise(run).result_digest == before
    assert run.with_name("run.begun").read_text().count("\n") == begun + 1
    history = read_history(RunStore.open(run, write=False).entries())
    assert history.counts.repeated == 1  # told again, because its answers were lost; the first record counts


@pytest.mark.parametrize("name", ["manifest.json", "job.yaml"])
def test_every_flip_of_a_byte_in_the_files_of_a_run_is_found(run: Path, name: str) -> None:
    path, rng = run / name, random.Random(7)
    whole = path.read_bytes()
    for _ in range(60):
        path.write_bytes(flipped(whole, rng)[1])
        with pytest.raises(StoreError, match=r"manifest|job\.yaml"):
            check_files(run)
        if name == "manifest.json":
            with pytest.raises(StoreError, match="manifest"):
                read_manifest(run)
    path.unlink()
    with pytest.raises(StoreError, match="No such file"):
        check_files(run)
    path.write_bytes(whole)
    check_files(run)
    (run / ".sha256").unlink()  # a run of an older version
    check_files(run)


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0 and then nothing", None])
def test_what_is_derived_is_made_anew(run: Path, content: bytes | None) -> None:
    """The study, the report and the banks."""
    derived = [run / STUDY_FILE, run / "report.html", *(run / "banks").iterdir(), run.with_name(f"run.{EXPORTED}")]
    assert len(derived) >= 3
    for path in derived:
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
    live("raced", run)
    with sqlite3.connect(run / STUDY_FILE) as study:
        assert study.execute("SELECT COUNT(*) FROM trials").fetchone()[0] > 20
    study.close()
    assert b"</html>" in (run / "report.html").read_bytes()
    for bank in (run / "banks").iterdir():
        read_bank(bank)


def test_what_killed_processes_leave_is_swept_when_it_is_old(tmp_path: Path) -> None:
    import os

    write_atomic(tmp_path / "kept.json", "{}")
    for name, age_s in ((".old.json.abc.tmp", 7200), (".new.json.abc.tmp", 60)):
        (tmp_path / name).write_text("")
        then = (tmp_path / "kept.json").stat().st_mtime - age_s
        os.utime(tmp_path / name, (then, then))
    sweep_temporary(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".new.json.abc.tmp", "kept.json"]

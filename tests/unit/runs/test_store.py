"""The run directory against its contract, and what only a real disk, crash and second process can show."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evomerge.errors import CorruptJournal, DiskFull, EvomergeError, SchemaTooNew, StoreError
from evomerge.runs import entries as entries_module
from evomerge.runs.entries import decode_entries
from evomerge.runs.journal import frame, mend, scan
from evomerge.runs.records import Evaluated, Note, Opened, Told, task_scores
from evomerge.runs.store import JOURNAL, RESPONSES, RunStore
from evomerge.testing.store_suite import FILES, RunStoreSuite, sample_evaluation, sample_records
from evomerge.types import CandidateId, Digest, Evaluation, TaskAnswers


class TestRunStore(RunStoreSuite):
    """The store is held to its own suite."""


def test_every_byte_in_place_of_another_is_found() -> None:
    """Also in the last line, which is whole: only what has no newline can be a write that a crash cut."""
    lines = [frame(n, {"t": record.tag, **record.to_json()}) for n, record in enumerate(sample_records()[:3])]
    whole = b"".join(lines)
    for i in range(len(whole)):
        for other in {whole[i] ^ 1 << bit for bit in range(8)} | {0, ord("\n"), ord('"'), ord("}")} - {whole[i]}:
            damaged = whole[:i] + bytes([other]) + whole[i + 1 :]
            if i == len(whole) - 1 and other == 0:  # the last newline: its record has all its bytes
                assert scan(damaged).payloads == scan(whole).payloads
                assert not scan(damaged).ends_line
            else:
                with pytest.raises(CorruptJournal, match=r"line [123] fails its checksum"):
                    scan(damaged)


def test_what_the_fix_of_a_damaged_journal_says_works(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run", FILES) as store:
        store.append(*sample_records())
    path = tmp_path / "run" / JOURNAL
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b'"t":"told"')] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CorruptJournal, match="line 7 fails its checksum") as caught:
        RunStore.open(tmp_path / "run", write=True)
    commands = caught.value.fix.partition("in the run directory: ")[2].partition("; then")[0]
    assert commands.startswith("mv journal.jsonl journal.damaged; head -n 6 ")
    subprocess.run(commands, shell=True, cwd=tmp_path / "run", check=True)
    with RunStore.open(tmp_path / "run", write=True) as store:
        store.append(Note("resumed"))
        assert tuple(store.records()) == (*sample_records()[:6], Note("resumed"))
    assert (tmp_path / "run" / "journal.damaged").read_bytes() == bytes(damaged)


def test_zeros_that_a_power_cut_leaves_are_a_cut_write() -> None:
    lines = [frame(n, {"t": "note", "topic": f"t{n}", "text": "x" * 700}) for n in range(2)]
    for zeros in (b"\0" * 512, b"\0" * 2):
        tail = lines[1][:100] + zeros + lines[1][100 + len(zeros) :]
        found = scan(lines[0] + tail)
        assert (len(found.payloads), found.tail) == (1, tail)
        assert _topics(_resumed(lines[0] + tail)) == ["t0", "resumed"]


def test_a_lost_line_is_told(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run", FILES) as store:
        store.append(*sample_records())
    lines = (tmp_path / "run" / JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / JOURNAL).write_bytes(b"".join(lines[:3] + lines[4:]))
    with pytest.raises(CorruptJournal, match="line 4 is out of sequence, number 3 was due"):
        RunStore.open(tmp_path / "run", write=False)


def _resumed(data: bytes) -> bytes:
    """What a journal with these bytes is after the next writer's first record."""
    found = scan(data)
    mended = data + mend(found)
    return mended + frame(len(scan(mended).payloads), {"t": "note", "topic": "resumed"})


def _topics(data: bytes) -> list[str]:
    return [str(p["topic"]) for p in scan(data).payloads if p["t"] == "note"]


def test_a_cut_at_every_byte_is_mended_without_changing_a_byte() -> None:
    lines = [frame(n, {"t": "note", "topic": f"t{n}", "text": "x" * n * 7}) for n in range(12)]
    whole = b"".join(lines)
    ends = [len(b"".join(lines[: n + 1])) for n in range(12)]
    for cut in range(len(whole) + 1):
        complete = sum(end <= cut + 1 for end in ends)  # a line that lacks nothing but its newline is complete
        after = _resumed(whole[:cut])
        assert after.startswith(whole[:cut])
        assert _topics(after) == [*(f"t{n}" for n in range(complete)), "resumed"], f"cut at byte {cut}"
        assert (scan(after).tail, scan(after).ends_line) == (b"", True)


def test_crashes_while_mending_are_mended() -> None:
    """Tear a record, tear the marker of the tear at every byte, and tear that marker's marker at every byte."""
    torn = frame(0, {"t": "note", "topic": "a"}) + frame(1, {"t": "note", "topic": "b"})[:17]
    mended = torn + mend(scan(torn))
    assert mended.startswith(torn + b" <cut>\n")
    for cut in range(len(torn), len(mended) + 1):
        twice = mended[:cut] + mend(scan(mended[:cut]))
        for again in range(cut, len(twice) + 1):
            after = _resumed(twice[:again])
            assert after.startswith(twice[:again])
            assert _topics(after) == ["a", "resumed"]


def test_a_cut_write_is_told_and_damage_in_its_marker_is_found(tmp_path: Path) -> None:
    RunStore.create(tmp_path / "run", FILES).close()
    path = tmp_path / "run" / JOURNAL
    path.write_bytes(frame(0, {"t": "note", "topic": "a"}) + b"\0" * 40)
    with RunStore.open(tmp_path / "run", write=True) as store:
        assert "The last 40 bytes" in store.notes[0]
        store.append(Note("b"))
    whole = path.read_bytes()
    assert RunStore.open(tmp_path / "run", write=False).notes == ()
    path.write_bytes(whole.replace(b"\0", b"\1", 1))
    with pytest.raises(CorruptJournal, match="line 2 fails its checksum"):
        RunStore.open(tmp_path / "run", write=False)


def test_a_newer_schema_is_refused_by_name() -> None:
    newer = {"t": "opened", "schema": 99, "a field of the future": 1}
    with pytest.raises(SchemaTooNew, match="journal schema 99, from line 2 on"):
        list(decode_entries(({"t": "told", "batch": 0}, newer)))


def test_older_payloads_are_migrated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries_module, "SCHEMA_VERSION", 2)  # as if it were the present one
    opened = {"t": "opened", "life": 1, "resumed": False, "host": "h", "pid": 1}
    payloads = (
        {**opened, "schema": 1},
        {"t": "told", "generation": 3},
        {**opened, "schema": 2},
        {"t": "told", "batch": 4},
    )

    def rename(payload: dict[str, object]) -> dict[str, object]:
        return {"batch" if k == "generation" else k: v for k, v in payload.items()}

    records = [entry.record for entry in decode_entries(payloads, {1: rename})]
    assert [r for r in records if isinstance(r, Told)] == [Told(3), Told(4)]


@pytest.mark.parametrize("payload", [{"t": "unheard-of"}, {"t": "told"}, {"t": "told", "batch": 1, "more": 2}, {}])
def test_a_payload_that_is_no_record_is_told(payload: dict[str, object]) -> None:
    with pytest.raises(CorruptJournal, match="line 1, kind "):
        list(decode_entries((payload,)))


def test_a_lost_or_altered_response_file_is_told(tmp_path: Path) -> None:
    recipe = Digest("12" * 32)
    with RunStore.create(tmp_path / "run", FILES) as store:
        digest = store.save_responses(recipe, sample_evaluation())
        record = Evaluated(CandidateId("c"), recipe, "search", task_scores(sample_evaluation()), digest)
        (path,) = (store.folder / RESPONSES).glob("1212*.json")
        whole = path.read_text()
        path.write_text(whole.replace("0.0", "1.0"))
        with pytest.raises(StoreError, match="was altered"):
            store.load_responses(record)
        path.unlink()
        with pytest.raises(StoreError, match="is lost"):
            store.load_responses(record)
        assert store.save_responses(recipe, sample_evaluation()) == digest
        (path,) = (store.folder / RESPONSES).glob("items-*.json")
        path.unlink()
        with pytest.raises(StoreError, match="is lost"):
            store.load_responses(record)


class FullDisk:
    """`os.write` on a disk with `room` bytes left: a short write first, then the error."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.write = os.write

    def __call__(self, fd: int, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.write(fd, data[: self.room])
        self.room -= written
        return written


def test_a_full_disk_loses_nothing_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore.create(tmp_path / "run", FILES)
    store.append(Note("a"))
    before = (tmp_path / "run" / JOURNAL).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", FullDisk(10))
        with pytest.raises(DiskFull, match=r"No space left on device while writing .*journal\.jsonl"):
            store.append(Note("b"))
    assert (tmp_path / "run" / JOURNAL).read_bytes() == before
    with pytest.raises(StoreError, match="not open for writing"):
        store.append(Note("b"))
    store.close()
    with RunStore.open(tmp_path / "run", write=True) as again:
        again.append(Note("c"))
        assert tuple(again.records()) == (Note("a"), Note("c"))


def test_a_run_that_does_not_fit_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match="No space left on device"):
        RunStore.create(tmp_path / "run", FILES)
    assert list(tmp_path.iterdir()) == []


_CRASHER = """
import os, sys
from pathlib import Path
from evomerge.runs.records import Note
from evomerge.runs.store import RunStore
store = RunStore.create(Path(sys.argv[1]), {"job.yaml": ""})
for i in range(10**6):
    store.append(Note("n", data={"i": i, "pad": "x" * (i % 300)}))
    os.write(1, b"%d\\n" % i)
"""


@pytest.mark.kill
def test_what_append_returned_for_survives_kill_9(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    child = subprocess.Popen([sys.executable, "-c", _CRASHER, str(folder)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    for _ in range(50):
        child.stdout.readline()
    child.kill()
    acknowledged = 50 + len(child.stdout.read().splitlines())
    copy = (folder / JOURNAL).read_bytes()
    started = time.monotonic()
    with RunStore.open(folder, write=True) as store:
        assert time.monotonic() - started < 10.0
        numbers = [r.data["i"] for r in store.records() if isinstance(r, Note)]
    child.wait()
    child.stdout.close()
    assert numbers == list(range(len(numbers)))
    assert acknowledged <= len(numbers) <= acknowledged + 1
    assert (folder / JOURNAL).read_bytes().startswith(copy)


def test_leftovers_of_a_creation_that_was_killed_are_swept(tmp_path: Path) -> None:
    host = os.uname().nodename
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = tmp_path / f".run.{host}.{gone.pid}.new"
    alive = tmp_path / f".run.{host}.{os.getppid()}.new"
    for folder in (dead, alive):
        folder.mkdir()
    RunStore.create(tmp_path / "run", FILES).close()
    assert not dead.exists()
    assert alive.exists()


def test_a_candidate_costs_little_in_the_journal_and_in_time(tmp_path: Path) -> None:
    """At most 2 KB and 24 bytes per gene over all records of a candidate, with 12 tasks and the worst floats."""
    from evomerge.runs.records import Asked, Candidate, Failed, Reused
    from evomerge.types import Failure

    dim = 300
    genes = tuple(1e-5 / (i + 3.3) for i in range(dim))
    recipe = Digest("ab" * 32)
    names = [f"a_long_task_name_{i}" for i in range(12)]
    scores = tuple(1 / 3 for _ in range(100))
    answers = {n: TaskAnswers(n, tuple(f"{n}-{i}" for i in range(100)), scores) for n in names}
    evaluation = Evaluation("search", answers, {"merge": 1 / 3, "score": 1 / 7, "total": 1 / 9})
    identity = CandidateId("g000123-i0456")
    with RunStore.create(tmp_path / "run", FILES) as store:
        digest = store.save_responses(recipe, evaluation)
        before = (store.folder / JOURNAL).stat().st_size
        scored = task_scores(evaluation)
        store.append(
            Asked(1, (Candidate(identity, "candidate", recipe, genes),)),
            Evaluated(identity, recipe, "search", scored, digest, evaluation.timing_s, "worker-0", 2),
            Told(1),
        )
        size = (store.folder / JOURNAL).stat().st_size - before
        assert size <= 2048 + 24 * dim
        before = (store.folder / JOURNAL).stat().st_size
        store.append(
            Asked(1, (Candidate(identity, "candidate", recipe, genes),)),
            Failed(identity, recipe, "search", Failure("crash", "m" * 5000, "t\n" * 9000, "host"), "worker-0"),
            Reused(identity, recipe, "search"),
            Told(1),
        )
        assert (store.folder / JOURNAL).stat().st_size - before <= 2048 + 24 * dim
        assert sum(p.stat().st_size for p in (store.folder / RESPONSES).glob("abab*")) < 30_000


def test_the_journal_is_text_that_anybody_can_read(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run", FILES) as store:
        store.append(Opened(1, False, "host", 1), Told(0))
    lines = (tmp_path / "run" / JOURNAL).read_text().splitlines()
    first, second = (json.loads(line) for line in lines)
    assert (first["n"], first["t"], first["schema"]) == (0, "opened", 4)
    assert (second["n"], second["t"], second["batch"]) == (1, "told", 0)
    assert abs(second["at"] - time.time()) < 60


def test_no_number_that_json_has_not_reaches_the_journal(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run", FILES) as store:
        with pytest.raises(ValueError, match="not JSON compliant"):
            store.append(Note("n", data={"x": float("nan")}))
        store.append(Note("n"))
        assert tuple(store.records()) == (Note("n"),)


def test_store_errors_are_typed(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_bytes(b"garbage\nmore garbage\n" + frame(0, {"t": "told", "batch": 0}))
    with pytest.raises(EvomergeError, match="line 1 fails its checksum"):
        RunStore.open(tmp_path, write=False)

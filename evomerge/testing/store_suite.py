"""What every run store must do: subclass it in a test module and let pytest collect the methods."""

# ruff: noqa: D102 - the tests' names say what they demand

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.errors import ConfigError, CorruptJournal, RunLocked, StoreError
from evomerge.runs.race_records import BankFitted, Estimated, EstimateRow, Rung
from evomerge.runs.records import (
    Asked,
    Baseline,
    Candidate,
    Chosen,
    Evaluated,
    Failed,
    Finished,
    Interrupted,
    Note,
    Opened,
    PhaseBegun,
    Record,
    Reused,
    TaskScore,
    Told,
)
from evomerge.runs.store import JOURNAL, RunStore
from evomerge.types import CandidateId, Digest, Evaluation, Failure, TaskAnswers

FILES: dict[str, str | bytes] = {"job.yaml": "name: first\n", "manifest.json": b"{}"}


def sample_records() -> tuple[Record, ...]:
    """One record of every kind that a run writes, in a sensible order."""
    a, b = Digest("ab" * 32), Digest("cd" * 32)
    first, second = CandidateId("g0000-i00"), CandidateId("g0000-i01")
    failure = Failure("nan", "NonFinite: a logit is NaN", "Traceback ...", "host")
    row = EstimateRow(b, {"add": TaskScore(1 / 3, 0.05, 3)}, {"flips of add against math": (0.1, 1 / 30)})
    return (
        Opened(1, False, "host", 42, {"cma": "4.5.0"}, {"budget": {"evaluations": 8}}),
        PhaseBegun("search"),
        Baseline(CandidateId("math"), "parent", b, {"format": "evomerge.recipe"}, name="math"),
        Asked(0, (Candidate(first, "injected", a, (0.1, 1 / 3)), Candidate(second, "candidate", b, (0.5, 1e-17)))),
        Evaluated(first, a, "search", {"add": TaskScore(2 / 3, 0.1, 20)}, "ef" * 32, {"merge": 0.25}, "worker-1", 2),
        Failed(second, b, "search", failure, "worker-0"),
        Told(0),
        BankFitted(0, "add", "banks/add-000.npz", 5, 1, "run"),
        Asked(1, (Candidate(CandidateId("g0001-i00"), "candidate", a, (0.1, 1 / 3)),)),
        Reused(CandidateId("g0001-i00"), a, "search"),
        Rung(1, 0, (CandidateId("g0001-i00"),), {"add": (0, 3, 7), "rev": (1,)}),
        Evaluated(CandidateId("g0001-i01"), Digest("12" * 32), "search", {"add": TaskScore(1.0, 0.0, 3)}, part=1),
        Estimated(1, "search", (row, EstimateRow(a, {"add": TaskScore(0.5, 0.0, 4)})), {"add": "p-irt"}),
        Note("accepted-drift", "numpy changed", {"genes": 3}),
        Interrupted("SIGTERM"),
        Opened(2, True, "host", 43),
        PhaseBegun("select", "the budget is spent"),
        Chosen(first, a, "knee", (CandidateId("math"),)),
        Finished("the budget is spent", Digest("01" * 32)),
    )


def sample_evaluation() -> Evaluation:
    """Answers to two tasks."""
    add = TaskAnswers("add", ("a1", "a2", "a3"), (1.0, 0.0, 1 / 3))
    return Evaluation("search", {"rev": TaskAnswers("rev", ("r1",), (-7.25,)), "add": add}, {"merge": 0.5})


class RunStoreSuite:
    """Implement the two fixtures `create` and `reopen` as callables, or take the defaults."""

    @pytest.fixture
    def create(self) -> Callable[[Path], RunStore]:
        """Makes a new run directory, open for writing."""
        return lambda folder: RunStore.create(folder, FILES)

    @pytest.fixture
    def reopen(self) -> Callable[..., RunStore]:
        """Opens one."""
        return RunStore.open

    @pytest.fixture
    def run(self, tmp_path: Path, create: Callable[[Path], RunStore]) -> Path:
        """A closed run directory with `sample_records` in it."""
        folder = tmp_path / "runs" / "first"
        with create(folder) as store:
            for record in sample_records():
                store.append(record)
        return folder

    def test_what_was_appended_is_read_back(self, run: Path, reopen: Callable[..., RunStore]) -> None:
        store = reopen(run, write=False)
        assert tuple(store.records()) == sample_records()
        assert [entry.n for entry in store.entries()] == list(range(len(sample_records())))

    def test_several_records_at_once_are_the_same_as_one_by_one(
        self, tmp_path: Path, create: Callable[[Path], RunStore]
    ) -> None:
        with create(tmp_path / "run") as store:
            store.append(*sample_records())
            assert tuple(store.records()) == sample_records()

    def test_a_new_run_holds_its_files_and_no_record(self, tmp_path: Path, create: Callable[[Path], RunStore]) -> None:
        with create(tmp_path / "run") as store:
            assert (store.folder / "job.yaml").read_text() == FILES["job.yaml"]
            assert tuple(store.records()) == ()
        assert [p.name for p in tmp_path.iterdir()] == ["run"]

    def test_a_folder_that_holds_something_is_refused(self, run: Path, create: Callable[[Path], RunStore]) -> None:
        before = (run / JOURNAL).read_bytes()
        with pytest.raises(ConfigError, match=r"first holds a run"):
            create(run)
        assert (run / JOURNAL).read_bytes() == before

    def test_an_empty_folder_is_taken(self, tmp_path: Path, create: Callable[[Path], RunStore]) -> None:
        (tmp_path / "run").mkdir()
        create(tmp_path / "run").close()

    def test_a_folder_without_run_is_refused(self, tmp_path: Path, reopen: Callable[..., RunStore]) -> None:
        with pytest.raises(ConfigError, match="There is no run here"):
            reopen(tmp_path, write=False)

    def test_a_second_writer_is_refused_and_a_reader_is_not(self, run: Path, reopen: Callable[..., RunStore]) -> None:
        with reopen(run, write=True):
            with pytest.raises(RunLocked, match="is held by process"):
                reopen(run, write=True)
            assert len(tuple(reopen(run, write=False).records())) == len(sample_records())
        reopen(run, write=True).close()

    def test_a_reader_cannot_append(self, run: Path, reopen: Callable[..., RunStore]) -> None:
        with pytest.raises(StoreError, match="not open for writing"):
            reopen(run, write=False).append(Told(1))

    def test_the_file_only_grows(self, run: Path, reopen: Callable[..., RunStore]) -> None:
        before = (run / JOURNAL).read_bytes()
        with reopen(run, write=True) as store:
            store.append(Note("more"))
        assert (run / JOURNAL).read_bytes().startswith(before)
        assert tuple(reopen(run, write=False).records()) == (*sample_records(), Note("more"))

    def test_a_cut_loses_at_most_the_last_record(
        self, run: Path, tmp_path: Path, reopen: Callable[..., RunStore]
    ) -> None:
        whole = (run / JOURNAL).read_bytes()
        ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
        copy = tmp_path / "copy"
        shutil.copytree(run, copy)
        for cut in {*range(0, len(whole), 11), *ends, *(end - 1 for end in ends), *(end + 1 for end in ends[:-1])}:
            (copy / JOURNAL).write_bytes(whole[:cut])
            with reopen(copy, write=True) as store:
                store.append(Note("resumed"))
                found = [r for r in store.records() if r.tag != "torn"]
            # A line that lacks nothing but its newline is complete.
            complete = sum(end <= cut + 1 for end in ends)
            assert found == [*sample_records()[:complete], Note("resumed")], f"cut at byte {cut}"
            assert (copy / JOURNAL).read_bytes().startswith(whole[:cut])

    def test_damage_before_the_end_is_told(self, run: Path, reopen: Callable[..., RunStore]) -> None:
        raw = bytearray((run / JOURNAL).read_bytes())
        raw[raw.index(b"cma")] ^= 1
        (run / JOURNAL).write_bytes(bytes(raw))
        with pytest.raises(CorruptJournal, match="line 1 fails its checksum"):
            reopen(run, write=True)
        assert bytes(raw) == (run / JOURNAL).read_bytes()

    def test_answers_come_back_item_by_item(self, run: Path, reopen: Callable[..., RunStore]) -> None:
        recipe = Digest("12" * 32)
        with reopen(run, write=True) as store:
            digest = store.save_responses(recipe, sample_evaluation())
            record = Evaluated(CandidateId("c"), recipe, "search", {}, digest, {"merge": 0.5})
            assert store.save_responses(recipe, sample_evaluation()) == digest
        found = reopen(run, write=False).load_responses(record)
        assert found == sample_evaluation()
        assert list(found.answers) == ["rev", "add"]
        assert found.timing_s == {"merge": 0.5}

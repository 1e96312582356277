"""What a journal says of races: increments and failures as one outcome, estimates, rungs, banks; old journals; size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from evomerge.evaluation.measures import Measure
from evomerge.evaluation.objectives import Estimate, ObjectiveSpec
from evomerge.runs.beliefs import recorded_value
from evomerge.runs.entries import Entry
from evomerge.runs.journal import frame
from evomerge.runs.race_records import BankFitted, Estimated, EstimateRow, Rung
from evomerge.runs.records import Asked, Candidate, Evaluated, Failed, Opened, Record, TaskScore, Told, task_scores
from evomerge.runs.replay import History, read_history
from evomerge.runs.store import JOURNAL, RunStore
from evomerge.testing.store_suite import FILES
from evomerge.types import CandidateId, Digest, Evaluation, Failure, TaskAnswers

A, B = Digest("ab" * 32), Digest("cd" * 32)
KEY = (A, "search")
FAILED = Failed(CandidateId("c"), A, "search", Failure("nan", "a logit is NaN"))


def part(number: int, mean: float = 0.5, n: int = 10, responses: str = "") -> Evaluated:
    score = TaskScore(mean, 0.1, n)
    return Evaluated(CandidateId("c"), A, "search", {"add": score}, responses or f"digest {number}", part=number)


def fold(*records: Record) -> History:
    return read_history(Entry(n, 1.0, record) for n, record in enumerate(records))


def test_increments_are_one_outcome_and_their_questions_add_up() -> None:
    history = fold(part(1, 1.0), part(2, 0.0, 30), part(3, 0.5, 20))
    outcome = history.outcomes[KEY]
    assert isinstance(outcome, Evaluated)
    assert (outcome.tasks["add"].n, outcome.tasks["add"].mean) == (60, pytest.approx(20 / 60))
    assert history.parts == {KEY: (part(1, 1.0), part(2, 0.0, 30), part(3, 0.5, 20))}
    assert (history.counts.evaluated, history.counts.questions, history.counts.repeated) == (1, 60, 0)


def test_an_increment_that_was_asked_again_counts_once_but_was_paid_for() -> None:
    history = fold(part(1), part(2), part(1))
    assert history.parts[KEY] == (part(1), part(2))
    assert (history.counts.questions, history.counts.repeated) == (30, 1)


def test_a_later_failure_is_the_outcome_and_the_answers_stay() -> None:
    history = fold(part(1), FAILED, FAILED)
    assert history.outcomes[KEY] == FAILED
    assert history.parts[KEY] == (part(1), FAILED)
    assert history.record(A, "search") is None
    assert (history.counts.evaluated, history.counts.failed, history.counts.repeated) == (0, 1, 1)


@pytest.mark.parametrize("second", [FAILED, part(0, 0.25)], ids=["failure", "other answers"])
def test_of_whole_sets_the_first_outcome_counts(second: Record) -> None:
    history = fold(part(0), second)
    assert history.outcomes == {KEY: part(0)}
    assert history.counts.repeated == 1
    turned = fold(FAILED, part(0))
    assert turned.outcomes == {KEY: FAILED}
    assert turned.parts == {KEY: (FAILED,)}


def test_a_whole_set_asked_after_increments_is_the_outcome() -> None:
    history = fold(part(1), part(0, 0.25, 100))
    assert history.outcomes == {KEY: part(0, 0.25, 100)}
    assert history.counts.repeated == 0


def test_an_estimate_stands_in_place_of_the_answered_items_scores() -> None:
    first = EstimateRow(A, {"add": TaskScore(0.7, 0.05, 10)}, {"flips": (0.1, 0.02)})
    last = EstimateRow(A, {"add": TaskScore(0.6, 0.04, 20)}, {"flips": (0.2, 0.02)})
    alien = EstimateRow(B, {"add": TaskScore(0.1, 0.1, 5)})
    one, two = Estimated(0, "search", (first, alien)), Estimated(3, "search", (last,), {"add": "p-irt"})
    history = fold(part(1), one, part(2), two)
    record = history.record(A, "search")
    assert record is not None
    assert record.tasks == {"add": TaskScore(0.6, 0.04, 20)}
    assert record.values == {"flips": (0.2, 0.02)}
    assert history.estimates == {KEY: last, (B, "search"): alien}
    assert history.estimated == {0: one, 3: two}
    assert history.record(B, "search") is None  # believed, but never asked anything
    assert history.record(A, "select") is None


def test_without_estimate_a_record_is_the_outcome() -> None:
    history = fold(part(0))
    assert history.record(A, "search") is history.outcomes[KEY]


def test_all_answers_are_better_than_an_older_estimate_and_few_are_no_score() -> None:
    other = replace(part(0, 0.3, 30), recipe=B)
    row = EstimateRow(A, {"add": TaskScore(0.7, 0.05, 10)})
    racing = fold(other, part(1))
    assert racing.sizes == {"search": {"add": 30}}
    assert racing.record(A, "search") is None
    raced = fold(other, part(1), Estimated(0, "search", (row,)))
    believed = raced.record(A, "search")
    assert believed is not None
    assert (believed.tasks, raced.estimate(A, "search")) == (row.tasks, row)
    promoted = fold(other, part(1), Estimated(0, "search", (row,)), part(2, 0.5, 20))
    assert promoted.estimate(A, "search") is None
    assert promoted.record(A, "search") == promoted.outcomes[KEY]
    whole = EstimateRow(A, {"add": TaskScore(0.5, 0.0, 30)})
    told = fold(other, part(1), part(2, 0.5, 20), Estimated(0, "search", (whole,))).record(A, "search")
    assert told is not None
    assert told.tasks == whole.tasks


def test_rungs_and_banks_are_found_by_where_they_stand() -> None:
    rung = Rung(2, 1, (CandidateId("c"),), {"add": (0, 5)})
    bank = BankFitted(1, "add", "banks/add.npz", 12, 1, "run")
    again = replace(bank, n_models=13)
    history = fold(rung, bank, replace(bank, task="rev"), again)
    assert history.rungs == {(2, 1): rung}
    assert history.banks == {(1, "add"): again, (1, "rev"): replace(bank, task="rev")}


def test_what_follows_from_tasks_is_not_looked_up() -> None:
    record = replace(part(1), values={"add": (0.9, 0.01), "m": (0.7, 0.02)})
    # a custom objective may have the name of a task that is bounded
    assert recorded_value(ObjectiveSpec("add", ("add",)), record) == Estimate(0.5, 0.1)
    assert recorded_value(ObjectiveSpec("m", ("add",), measure=Measure("margin")), record) == Estimate(0.7, 0.02)
    assert recorded_value(ObjectiveSpec("n", ("add",), measure=Measure("margin")), record) is None


def test_a_journal_of_version_1_is_read_and_continued(tmp_path: Path) -> None:
    """Lines as the first version wrote them: an evaluation without increments, then a life of this version."""
    on_search = {"at": 3.0, "set_name": "search"}
    opened = {"t": "opened", "at": 1.0, "life": 1, "resumed": False, "host": "h", "pid": 1, "schema": 1}
    asked = {"t": "asked", "at": 2.0, "batch": 0, "rows": [["c", "candidate", A, [0.5]]]}
    scored = {
        "t": "evaluated",
        "at": 3.0,
        "id": "c",
        "recipe": A,
        "set_name": "search",
        "tasks": {"add": [0.5, 0.1, 20]},
    }
    failed = {"t": "failed", **on_search, "id": "d", "recipe": B, "failure": ["nan", "m", "", "h"]}
    with RunStore.create(tmp_path / "run", FILES):
        pass
    old = b"".join(
        frame(n, p) for n, p in enumerate([opened, asked, scored, failed, {"t": "told", "at": 5.0, "batch": 0}])
    )
    (tmp_path / "run" / JOURNAL).write_bytes(old)
    with RunStore.open(tmp_path / "run", write=True) as store:
        store.append(Opened(2, True, "h", 2), part(1))
        history = read_history(store.entries())
    assert (tmp_path / "run" / JOURNAL).read_bytes().startswith(old)
    assert [(life.life, life.schema) for life in history.lives] == [(1, 1), (2, 4)]
    assert history.outcomes[KEY] == Evaluated(CandidateId("c"), A, "search", {"add": TaskScore(0.5, 0.1, 20)})
    assert history.counts.evaluated == history.counts.failed == 1
    assert [b.told for b in history.batches] == [True]


def test_a_raced_candidate_costs_little_in_the_journal(tmp_path: Path) -> None:
    """Halving of 20 candidates in four rungs over four tasks: all records of the batch, per candidate."""
    dim, n, tasks = 40, 20, [f"task_name_{i}" for i in range(4)]
    ids = [CandidateId(f"g0001-i{i:02d}") for i in range(n)]
    recipes = [Digest(f"{i:064x}") for i in range(n)]
    genes = tuple(1e-5 / (i + 3.3) for i in range(dim))
    records: list[Record] = [
        Asked(1, tuple(Candidate(i, "candidate", r, genes) for i, r in zip(ids, recipes, strict=True)))
    ]
    for rung, (alive, asked) in enumerate([(20, 10), (10, 20), (5, 40), (3, 80)]):
        records.append(Rung(1, rung, tuple(ids[:alive]), {t: tuple(range(100, 100 + asked)) for t in tasks}))
        fresh = asked if rung == 0 else asked // 2
        for i in range(alive):
            scores = tuple(float((k * (i + 3)) % 7 < 3) for k in range(fresh))
            answers = {t: TaskAnswers(t, tuple(f"{t}-{k}" for k in range(fresh)), scores) for t in tasks}
            timing = {"merge": 0.1234, "score": 1.2345, "total": 1.3579}
            evaluated = task_scores(Evaluation("search", answers))
            records.append(
                Evaluated(ids[i], recipes[i], "search", evaluated, "ef" * 32, timing, "worker-0", part=rung + 1)
            )
    rows = tuple(EstimateRow(r, {t: TaskScore(1 / 3, 1 / 17, 10) for t in tasks}) for r in recipes)
    records += [Estimated(1, "search", rows, dict.fromkeys(tasks, "gmp-irt-simplex")), Told(1)]
    with RunStore.create(tmp_path / "run", FILES) as store:
        store.append(*records)
        size = (store.folder / JOURNAL).stat().st_size
    assert size / n <= 2048 + 24 * dim


def test_an_increment_costs_less_than_a_kilobyte_and_a_half(tmp_path: Path) -> None:
    """With twelve tasks of long names and the worst floats."""
    scores = {f"a_long_task_name_{i}": TaskScore(1 / 3, 1 / 7000, 20) for i in range(12)}
    timing = {"merge": 0.1234, "score": 1.2345, "total": 1.3579}
    record = Evaluated(CandidateId("g000123-i0456"), A, "search", scores, B, timing, "worker-0", 2, part=4)
    assert len(frame(123456, {"at": 1e9 + 0.123, "t": record.tag, **record.to_json()})) <= 1536

"""A journal folded into one value, against the obvious reading of small histories."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.runs.entries import Entry
from evomerge.runs.race_records import ALL_RECORDS, BankFitted, Estimated, EstimateRow, Rung
from evomerge.runs.records import (
    Asked,
    Candidate,
    Evaluated,
    Failed,
    Finished,
    Interrupted,
    Note,
    Opened,
    PhaseBegun,
    Record,
    TaskScore,
    Told,
)
from evomerge.runs.replay import Batch, Counts, compare_genes, read_history
from evomerge.runs.stream_records import Turn
from evomerge.runs.worker_records import WorkerNews
from evomerge.testing.store_suite import sample_records
from evomerge.types import CandidateId, Digest, Failure

A, B = Digest("ab" * 32), Digest("cd" * 32)


def _entries(records: Sequence[Record], start: float = 1000.0) -> list[Entry]:
    return [Entry(n, start + n, record) for n, record in enumerate(records)]


def test_the_sample_run_is_read_rightly() -> None:
    history = read_history(_entries(sample_records()))
    assert [(b.number, len(b.candidates), b.told) for b in history.batches] == [(0, 2, True), (1, 1, False)]
    assert history.counts == Counts(asked=3, evaluated=2, reused=1, failed=1, questions=23, repeated=0)
    assert history.phase == "select"
    assert history.chosen is not None
    assert history.chosen.why == "knee"
    assert list(history.baselines) == ["math"]
    assert [note.topic for note in history.notes] == ["accepted-drift"]
    assert [life.life for life in history.lives] == [1, 2]
    assert history.life_times == ((1000.0, 1014.0), (1015.0, 1018.0))
    assert history.wall_s == 17.0
    assert history.state(writing=True) == "finished"
    again = history.batches[1].candidates[0]
    assert isinstance(history.outcome(again, "search"), Evaluated)
    assert history.outcome(again, "report") is None
    assert isinstance(history.outcome(history.baselines[CandidateId("math")], "search"), Failed)


def test_an_empty_journal_is_a_history() -> None:
    history = read_history([])
    assert (history.batches, history.phase, history.counts, history.wall_s) == ((), None, Counts(), 0)


def test_states() -> None:
    opened = Opened(1, False, "h", 1)
    running = read_history(_entries([opened]))
    assert (running.state(writing=True), running.state(writing=False)) == ("running", "interrupted")
    stopped = read_history(_entries([opened, Interrupted("SIGTERM")]))
    assert stopped.state(writing=False) == "interrupted"
    failed = read_history(_entries([opened, Interrupted("too many failures", 4)]))
    assert failed.state(writing=False) == "failed"
    resumed = read_history(_entries([opened, Interrupted("too many failures", 4), replace(opened, life=2)]))
    assert resumed.interrupted is None
    assert resumed.state(writing=False) == "interrupted"
    assert read_history(_entries([opened, Finished("done", A)])).state(writing=False) == "finished"


def test_a_finished_run_with_more_to_spend_is_not_finished() -> None:
    first, again, more = (
        Opened(i, i > 1, "h", 1, {}, {"budget": {"evaluations": n}}) for i, n in enumerate((9, 9, 12))
    )
    looked_at = read_history(_entries([first, Finished("done", A), again]))
    assert (looked_at.state(writing=True), looked_at.decided) == ("finished", 9)
    extended = [first, Finished("done", A), again, more]
    assert read_history(_entries(extended)).state(writing=True) == "running"
    assert read_history(_entries(extended)).state(writing=False) == "interrupted"
    assert read_history(_entries(extended)).decided == 9
    assert read_history(_entries([*extended, Finished("done", B)])).decided == 12


def test_a_lost_worker_is_no_outcome_and_the_first_outcome_counts() -> None:
    lost = WorkerNews("lost", "worker-0", "host", detail="the node is gone", candidate="c")
    scored = Evaluated(CandidateId("c"), A, "search", {"add": TaskScore(0.5, 0.1, 10)})
    again = replace(scored, tasks={"add": TaskScore(0.6, 0.1, 10)})
    history = read_history(_entries([lost, scored, again, replace(scored, set_name="select")]))
    assert history.outcomes == {(A, "search"): scored, (A, "select"): replace(scored, set_name="select")}
    assert history.counts == Counts(evaluated=1, questions=30, repeated=1)


def test_only_the_furthest_phase_counts() -> None:
    assert read_history(_entries([PhaseBegun("search"), PhaseBegun("select")])).phase == "select"


def _batch(*genes: tuple[float, ...]) -> Batch:
    return Batch(3, tuple(Candidate(CandidateId(f"g3-i{i}"), "candidate", A, g) for i, g in enumerate(genes)), True)


def test_equal_genes_match_and_different_ones_are_named() -> None:
    recorded = _batch((0.1, 0.25), (0.5, 1 / 3))
    asked = [np.array([0.1, 0.25]), np.array([0.5, 1 / 3])]
    assert compare_genes(asked, recorded, ["w", "density"]) is None
    asked[1] = np.array([0.5, np.nextafter(1 / 3, 1)])
    mismatch = compare_genes(asked, recorded, ["w", "density"])
    assert mismatch is not None
    assert mismatch.got == (
        "g3-i1 in batch 3 differs in 1 of 2 genes, first in density: 0.33333333333333337 instead of 0.3333333333333333"
    )
    assert "--accept-history" in mismatch.fix
    assert mismatch.exit_code == 5


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ([np.zeros(2)], "batch 3 has 1 candidates, the journal 2"),
        ([np.zeros(2), np.zeros(3)], "g3-i1 has 3 genes, the journal 2"),
    ],
)
def test_other_shapes_do_not_match(asked: list[np.ndarray], got: str) -> None:
    mismatch = compare_genes(asked, _batch((0.0, 0.0), (0.0, 0.0)), ["a", "b"])
    assert mismatch is not None
    assert mismatch.got == got


_FLOATS = st.floats(allow_nan=False, allow_infinity=False)
_TEXT = st.text(max_size=20)


@st.composite
def _records(draw: st.DrawFn) -> Record:
    identity, recipe = CandidateId(draw(_TEXT)), Digest(draw(_TEXT))
    genes = tuple(draw(st.lists(st.floats(0, 1), max_size=5)))
    scores = {draw(_TEXT): TaskScore(draw(_FLOATS), draw(_FLOATS), draw(st.integers(1, 9)))}
    values, by = {draw(_TEXT): (draw(_FLOATS), draw(_FLOATS))}, {draw(_TEXT): draw(_TEXT)}
    return draw(
        st.sampled_from(
            [
                Asked(draw(st.integers(0)), (Candidate(identity, "candidate", recipe, genes),)),
                Evaluated(identity, recipe, "search", scores, draw(_TEXT), {draw(_TEXT): draw(_FLOATS)}, "w", 2),
                Failed(identity, recipe, "report", Failure("crash", draw(_TEXT), draw(_TEXT), draw(_TEXT)), "w", 3),
                Note(draw(_TEXT), draw(_TEXT), {draw(_TEXT): [1, draw(_FLOATS), None, True]}),
                Told(draw(st.integers())),
                Turn((3, 1), 0, draw(st.integers(0)), Candidate(identity, "candidate", recipe, genes)),
                Turn(tuple(draw(st.lists(st.integers(0, 999)))), draw(st.integers(0))),
                Evaluated(identity, recipe, "search", scores, part=draw(st.integers(1))),
                Rung(draw(st.integers(0)), 1, (identity,), {draw(_TEXT): tuple(draw(st.lists(st.integers(0, 999))))}),
                Estimated(-1, "search", (EstimateRow(recipe, scores), EstimateRow(recipe, scores, values)), by),
                BankFitted(draw(st.integers(-1)), draw(_TEXT), draw(_TEXT), 3, 2, draw(_TEXT)),
            ]
        )
    )


@settings(deadline=None, max_examples=100)
@given(_records())
def test_every_record_survives_json_floats_included(record: Record) -> None:
    payload = json.loads(json.dumps(record.to_json(), allow_nan=False))
    back = ALL_RECORDS[record.tag].from_json(payload)
    expected = (
        replace(record, data={k: tuple(v) for k, v in record.data.items()}) if isinstance(record, Note) else record
    )
    assert back == expected


def test_genes_come_back_as_a_vector_nobody_can_change() -> None:
    vector = Candidate(CandidateId("c"), "candidate", B, (0.1, 0.2)).vector
    assert vector.tolist() == [0.1, 0.2]
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 1.0

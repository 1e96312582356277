"""The Optuna study of a run: it loads, it says what the journal says, and it is never fatal."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import numpy as np
import optuna
import pytest

from evomerge.evaluation.goals import Goals
from evomerge.evaluation.objectives import ConstraintSpec, ObjectiveSpec, Relative
from evomerge.runs import study as study_module
from evomerge.runs.records import Asked, Baseline, Candidate, Evaluated, Failed, Reused, Told, task_scores
from evomerge.runs.store import JOURNAL, RunStore
from evomerge.runs.study import STUDY_FILE, write_study
from evomerge.space.dimensions import Choice, Gate, Integer, Real
from evomerge.space.space import SearchSpace
from evomerge.testing.fakes import instant_scores
from evomerge.types import CandidateId, Digest, EvalTask, Failure

SPACE = SearchSpace(
    (
        Real("math.weight", -0.5, 1.5),
        Real("density", 0.01, 1.0, step=0.05, scale="log"),
        Integer("layers", 0, 5),
        Choice("method", ("linear", "ties", 3)),
        Gate("skip"),
    )
)
GOALS = Goals(
    (
        ObjectiveSpec("skills", ("add", "rev"), aggregate="mean"),
        ObjectiveSpec("cross", ("rev",), direction="minimize"),
    ),
    (ConstraintSpec("task", "add", "at_least", Relative("best_parent", -0.01)),),
)
N = 12


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A parent, `N` candidates of which number 3 failed, and one that is reused."""
    rng = np.random.default_rng(0)
    with RunStore.create(tmp_path / "run", {"job.yaml": ""}) as store:
        parent = CandidateId("math")
        digest = Digest("ff" * 32)
        store.append(Baseline(parent, "parent", digest, {"w": 0.2}, name="math"))
        _score(store, parent, digest, {"w": 0.2})
        candidates = []
        for i in range(N):
            genes = tuple(float(x) for x in SPACE.quantise(rng.random(SPACE.dim)))
            candidates.append(Candidate(CandidateId(f"g0-i{i:02d}"), "candidate", Digest(f"{i:064x}"), genes))
        store.append(Asked(0, tuple(candidates)))
        for candidate in candidates:
            if candidate.id == "g0-i03":
                store.append(Failed(candidate.id, candidate.recipe, "search", Failure("nan", "a logit is NaN")))
            else:
                _score(store, candidate.id, candidate.recipe, {"w": list(candidate.genes)})
        store.append(Told(0))
        again = Candidate(CandidateId("g1-i00"), "candidate", candidates[0].recipe, candidates[0].genes)
        never = Candidate(CandidateId("g1-i01"), "candidate", Digest("ee" * 32), candidates[0].genes)
        store.append(Asked(1, (again, never)), Reused(again.id, again.recipe, "search"))
    return tmp_path / "run"


def _score(store: RunStore, identity: CandidateId, recipe: Digest, numbers: dict[str, Any]) -> None:
    evaluation = instant_scores(EvalTask(identity, numbers, "search"))
    digest = store.save_responses(recipe, evaluation)
    store.append(Evaluated(identity, recipe, "search", task_scores(evaluation), digest, {"total": 0.5}))


def _load(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="first", storage=f"sqlite:///{folder / STUDY_FILE}")


def test_a_study_loads_and_says_what_the_journal_says(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = RunStore.open(run, write=False)
    assert write_study(store, "first", [SPACE], GOALS) is None
    assert capfd.readouterr() == ("", "")
    study = _load(run)
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["skills", "cross"]
    trials = study.get_trials()
    assert [t.number for t in trials] == list(range(N + 2))
    assert [t.user_attrs["id"] for t in trials] == ["math", *(f"g0-i{i:02d}" for i in range(N)), "g1-i00"]
    parent, first, failed = trials[0], trials[1], trials[4]
    assert parent.params == {}
    assert failed.state == optuna.trial.TrialState.FAIL
    assert failed.user_attrs["failure"] == "nan: a logit is NaN"
    asked = next(r for r in store.records() if isinstance(r, Asked)).candidates[0]
    assert first.params == SPACE.decode(asked.vector)
    scored = next(r for r in store.records() if isinstance(r, Evaluated) and r.id == asked.id)
    add, rev = scored.tasks["add"].mean, scored.tasks["rev"].mean
    assert first.values == pytest.approx([(add + rev) / 2, rev])
    assert first.user_attrs["task rev"] == rev
    assert (first.datetime_complete - first.datetime_start).total_seconds() == pytest.approx(0.5, abs=1e-3)  # type: ignore[operator]
    assert trials[-1].values == first.values
    assert all(t.state == optuna.trial.TrialState.COMPLETE for t in trials if t is not failed)


def test_rows_inserted_at_once_are_those_that_optuna_would_write(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore.open(run, write=False)
    write_study(store, "first", [SPACE], GOALS)
    fast = _load(run).get_trials()
    monkeypatch.setattr(study_module, "_schema_is_known", lambda path: False)
    write_study(store, "first", [SPACE], GOALS)
    slow = _load(run).get_trials()
    assert len(fast) == N + 2
    assert fast == slow
    assert [t.constraints for t in fast] == [t.constraints for t in slow]


def test_constraints_are_readable_by_optuna(run: Path) -> None:
    write_study(RunStore.open(run, write=False), "first", [SPACE], GOALS)
    constraints = [t.constraints for t in _load(run).get_trials() if t.state.name == "COMPLETE"]
    names = {name for c in constraints for name in c}
    assert names == {GOALS.constraints[0].text}
    assert {value > 0 for c in constraints for value in c.values()} <= {True, False}
    assert constraints[0][GOALS.constraints[0].text] > -1.0


def test_a_broken_or_deleted_study_is_rebuilt(run: Path) -> None:
    store = RunStore.open(run, write=False)
    for _ in range(2):
        (run / STUDY_FILE).write_bytes(b"this is no database")
        assert write_study(store, "first", [SPACE], GOALS) is None
        assert len(_load(run).get_trials()) == N + 2
        (run / STUDY_FILE).unlink()


def test_an_empty_run_has_an_empty_study(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run", {"job.yaml": ""}) as store:
        assert write_study(store, "first", [SPACE], GOALS) is None
    assert _load(tmp_path / "run").get_trials() == []


def test_what_goes_wrong_is_said_and_not_raised(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore.open(run, write=False)
    write_study(store, "first", [SPACE], GOALS)
    before = (run / STUDY_FILE).read_bytes()

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(study_module, "_insert", full)
        said = write_study(store, "first", [SPACE], GOALS)
    assert said == "optuna.db was not written: OperationalError: database or disk is full"
    assert (run / STUDY_FILE).read_bytes() == before
    next((run / "responses").glob("ffff*")).unlink()
    said = write_study(store, "first", [SPACE], GOALS)
    assert said is not None
    assert "StoreError: A file of per-item answers is lost." in said
    assert sorted(p.name for p in run.glob(".*") if "optuna" in p.name) == []
    assert (run / JOURNAL).exists()


def test_optuna_dashboard_shows_the_study(run: Path) -> None:
    import optuna_dashboard as dashboard

    write_study(RunStore.open(run, write=False), "first", [SPACE], GOALS)
    storage = optuna.storages.RDBStorage(f"sqlite:///{run / STUDY_FILE}")
    app = dashboard.wsgi(storage)

    def get(path: str) -> Any:
        status: list[str] = []
        environ: dict[str, Any] = {"PATH_INFO": path}
        setup_testing_defaults(environ)
        body = b"".join(app(environ, lambda s, headers, error=None: status.append(s)))
        assert status == ["200 OK"]
        return json.loads(body)

    (summary,) = get("/api/studies")["study_summaries"]
    assert (summary["study_name"], summary["directions"]) == ("first", ["maximize", "minimize"])
    detail = get(f"/api/studies/{summary['study_id']}")
    assert len(detail["trials"]) == N + 2
    storage.remove_session()
    storage.engine.dispose()

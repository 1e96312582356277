"""Runs whose candidates were raced, as reports and the study read them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import optuna
import pytest

from evomerge.evaluation.goals import Goals
from evomerge.evaluation.objectives import ConstraintSpec, ObjectiveSpec
from evomerge.evaluation.statistics import CONFIDENCE, normal_quantile
from evomerge.recipe.serialize import recipe_digest, recipe_to_json
from evomerge.report.book import Book
from evomerge.report.collect import summarise, summary_of
from evomerge.report.details import run_details
from evomerge.report.summary import TaskScore as ShownScore
from evomerge.runs.partial import restrict
from evomerge.runs.race_records import Estimated, EstimateRow, Rung
from evomerge.runs.records import (
    Asked,
    Baseline,
    Candidate,
    Evaluated,
    Failed,
    Opened,
    PhaseBegun,
    Record,
    TaskScore,
    Told,
    task_scores,
)
from evomerge.runs.store import RunStore
from evomerge.runs.study import STUDY_FILE, write_study
from evomerge.space.dimensions import Real
from evomerge.space.space import SearchSpace
from evomerge.testing.sample_journal import TASKS, sample_answers, sample_manifest, sample_recipe_of
from evomerge.types import CandidateId, Digest, Failure

MODELS = ("g0000-i00", "g0001-i00", "g0001-i01", "g0000-i02")
GOALS = Goals(
    tuple(ObjectiveSpec(t, (t,)) for t in TASKS),
    (ConstraintSpec("task", "add", "at_least", 0.5),),
)
BELIEVED = {"g0000-i00": (0.45, 0.8), "g0001-i00": (0.8, 0.5)}
"""What the search believed; answers alone say (1, 1) of the items asked, because the first ones are all right."""


def digest_of(model: str) -> Digest:
    return recipe_digest(sample_recipe_of(model))


def increment(store: RunStore, model: str, number: int, places: range) -> Evaluated:
    whole = sample_answers(model, "search")
    part = restrict(whole, {t: {a.items[i] for i in places} for t, a in whole.answers.items()})
    saved = store.save_responses(digest_of(model), part)
    return Evaluated(
        CandidateId(model), digest_of(model), "search", task_scores(part), saved, part.timing_s, part=number
    )


def raced(folder: Path) -> Path:
    """A parent that was asked everything; four candidates in two rungs: one fails, one is not judged yet."""
    files = {"job.yaml": "name: sample\n", "manifest.json": json.dumps(sample_manifest(GOALS))}
    with RunStore.create(folder, files) as store:
        parent = CandidateId("parent-math")
        evaluation = sample_answers(parent, "search")
        saved = store.save_responses(digest_of(parent), evaluation)
        recipe = recipe_to_json(sample_recipe_of(parent))
        rows = tuple(
            EstimateRow(digest_of(m), {t: TaskScore(v, 0.1, 8) for t, v in zip(TASKS, values, strict=True)})
            for m, values in BELIEVED.items()
        )
        records: list[Record] = [
            Opened(1, False, "host", 1),
            PhaseBegun("search"),
            Baseline(parent, "parent", digest_of(parent), recipe, name="math"),
            Evaluated(parent, digest_of(parent), "search", task_scores(evaluation), saved, evaluation.timing_s),
            Asked(0, tuple(Candidate(CandidateId(m), "candidate", digest_of(m), (0.5,)) for m in MODELS)),
            Rung(0, 0, tuple(CandidateId(m) for m in MODELS), dict.fromkeys(TASKS, (0, 1, 2, 3))),
            *(increment(store, m, 1, range(2, 6)) for m in MODELS[:3]),
            Failed(CandidateId(MODELS[3]), digest_of(MODELS[3]), "search", Failure("nan", "of task rev")),
            increment(store, MODELS[0], 2, range(2)),
            increment(store, MODELS[1], 2, range(2)),
            Estimated(0, "search", rows, dict.fromkeys(TASKS, "p-irt")),
            Told(0),
        ]
        store.append(*records)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return raced(tmp_path_factory.mktemp("runs") / "raced")


def test_scores_of_raced_models_are_what_the_search_believed(run: Path) -> None:
    summary = summarise(run)
    (best,) = summary.front
    assert best.id == "g0001-i00"  # the other one is believed to be infeasible
    for task, value in zip(TASKS, BELIEVED[best.id], strict=True):
        assert best.search.tasks[task] == ShownScore(value, 0.1, 8)
        found = best.search.objectives[task]
        half = normal_quantile(CONFIDENCE) * 0.1
        assert (found.value, found.se) == (value, 0.1)
        assert (found.low, found.high) == (pytest.approx(value - half), pytest.approx(value + half))
    parent = summary.baselines[0].search.objectives["add"]
    assert (parent.value, parent.se) == (pytest.approx(0.6), pytest.approx(math.sqrt(0.6 * 0.4 / 19)))


def test_counts_are_of_models_and_of_all_questions(run: Path) -> None:
    counts = summarise(run).counts
    assert (counts.asked, counts.evaluated, counts.failed, counts.reused) == (4, 4, 1, 0)
    assert counts.questions == len(TASKS) * (20 + 3 * 4 + 2 * 2)


def test_rows_show_beliefs_the_sum_of_times_and_failures(run: Path) -> None:
    rows = {r.id: r for r in run_details(run).evaluations}
    assert set(rows) == {"parent-math", *MODELS} - {"g0001-i01"}  # still racing: nothing is believed of it
    first = rows["g0000-i00"]
    assert first.objectives == dict(zip(TASKS, BELIEVED[first.id], strict=True))
    assert (first.feasible, first.merge_s, first.score_s) == (False, 0.5, 1.5)
    assert rows["g0000-i02"].failure == "nan: of task rev"


def test_answers_of_increments_come_in_the_order_of_the_plan(run: Path) -> None:
    book = Book(run)
    record = book.record(digest_of("g0000-i00"), "search")
    assert record is not None
    assert book.is_estimated(record)
    items = tuple(f"search-add-{i}" for i in range(6))
    assert book.answers(record).answers["add"].items == items
    parent = book.record(digest_of("parent-math"), "search")
    assert parent is not None
    assert book.answers(parent) == sample_answers("parent-math", "search")
    assert not book.is_estimated(parent)


def test_the_digest_depends_on_beliefs_not_on_how_they_were_asked(run: Path, tmp_path: Path) -> None:
    again = Book(raced(tmp_path / "again"))
    assert summary_of(again).result_digest == summarise(run).result_digest


def test_the_study_has_what_the_search_believed(run: Path) -> None:
    space = SearchSpace((Real("weight", 0.0, 1.0),))
    with RunStore.open(run, write=False) as store:
        assert write_study(store, "raced", [space], GOALS) is None
    study = optuna.load_study(study_name="raced", storage=f"sqlite:///{run / STUDY_FILE}")
    trials = {t.user_attrs["id"]: t for t in study.get_trials()}
    assert set(trials) == {"parent-math", *MODELS} - {"g0001-i01"}
    for model, values in BELIEVED.items():
        assert trials[model].values == list(values)
        assert trials[model].user_attrs["task add"] == values[0]
        (violation,) = trials[model].constraints.values()
        assert violation == pytest.approx(0.5 - values[0])
    assert trials["g0000-i02"].state == optuna.trial.TrialState.FAIL

"""Simulated models answer as they should, and a search over them claims no more than is true."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.evaluation.statistics import wilson_interval
from evomerge.recipe.baselines import soup_recipe
from evomerge.testing.honesty import EVERY, Findings, findings_of
from evomerge.testing.responders import Responders, ability_for, expected_score
from evomerge.testing.simulated_jobs import REFS, SimulatedJob, Truth, candidate_recipe, known_models, run_simulated

SIZES = {"search": 40, "select": 30, "report": 50}


def responders(seed: int = 3) -> Responders:
    return Responders(seed, ("t0", "t1"), SIZES)


def test_expected_scores_are_symmetric_and_invertible() -> None:
    assert expected_score(0.0) == pytest.approx(0.5, abs=1e-9)
    for ability in (-3.0, -0.7, 0.4, 2.5):
        assert expected_score(ability) + expected_score(-ability) == pytest.approx(1.0, abs=1e-9)
        assert ability_for(expected_score(ability)) == pytest.approx(ability, abs=1e-9)
    with pytest.raises(ValueError, match="no simulated model"):
        ability_for(1.0)


def test_answers_have_the_expected_score() -> None:
    many = Responders(1, ("t",), {"search": 40_000, "select": 1, "report": 1})
    for score in (0.2, 0.6, 0.9):
        ability = ability_for(score)
        assert many.expected_on(ability, "search") == pytest.approx(score, abs=0.01)
        low, high = wilson_interval(many.answer("m", ability, "search").answers["t"].mean, 40_000, 0.999)
        assert low <= many.expected_on(ability, "search") <= high


def test_models_answer_independently_given_the_item() -> None:
    """The covariance of two models' answers is the variance of the items' chances, nothing more."""
    many = Responders(2, ("t",), {"search": 40_000, "select": 1, "report": 1})
    first, second = (np.array(many.answer(m, 0.5, "search").answers["t"].scores) for m in ("m", "n"))
    third = np.array(many.answer("m", 0.5, "search").answers["t"].scores)
    assert np.array_equal(first, third)
    agreement = np.mean(first == second)
    chances = np.mean([np.array(many.answer(f"m{i}", 0.5, "search").answers["t"].scores) for i in range(60)], axis=0)
    variance = np.mean(chances * (1 - chances)) * 60 / 59
    assert 1 - agreement == pytest.approx(2 * variance, abs=0.01)


@settings(deadline=None, max_examples=25)
@given(st.sets(st.integers(0, 39), min_size=1), st.randoms(use_true_random=False))
def test_an_answer_does_not_depend_on_what_else_is_asked(rows: set[int], random) -> None:
    world = responders()
    whole = world.answer("m", 0.3, "search").answers["t1"]
    right = dict(zip(whole.items, whole.scores, strict=True))
    some = [whole.items[i] for i in rows]
    random.shuffle(some)
    asked = responders().answer("m", 0.3, "search", {"t1": tuple(some)})
    assert list(asked.answers) == ["t1"]
    assert asked.answers["t1"].items == tuple(some)
    assert asked.answers["t1"].scores == tuple(right[item] for item in some)


def test_item_sets_are_disjoint() -> None:
    world = responders()
    hashes = [h for s in ("search", "select", "report") for task in world.items(s).values() for h in task]
    assert len(set(hashes)) == len(hashes) == 2 * (40 + 30 + 50)


@pytest.mark.parametrize("depth", ["model", "each"])
def test_planted_truth_is_what_the_job_says(depth: str) -> None:
    job = SimulatedJob(5, gain=0.06, below=0.04, depth=depth)
    truth = Truth(job)
    known = {model.id: truth.score(model.recipe) for model in known_models(depth)}
    assert [known[f"parent-{p}"] for p in ("a", "b", "c", "base")] == pytest.approx([0.6, 0.58, 0.56, 0.5])
    assert truth.score(truth.best) == pytest.approx(0.66)
    middle = candidate_recipe(depth, np.full(3 if depth == "model" else 18, 0.4))
    assert truth.score(middle) == pytest.approx(0.56)
    assert truth.score(soup_recipe(REFS[1:])) < 0.66


def test_null_truth_is_the_same_for_all() -> None:
    truth = Truth(SimulatedJob(5))
    assert {truth.score(model.recipe) for model in known_models("model")} == {0.6}
    assert truth.score(candidate_recipe("model", [0.1, 0.9, 0.5])) == 0.6


@pytest.fixture
def fast(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where the system has one: a job writes some hundred files, each to the disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def found(job: SimulatedJob, folder: Path) -> Findings:
    run = folder / f"run-{job.gain}-{job.seed}"
    run_simulated(job, run)
    return findings_of(job, run)


def searched(jobs: Sequence[SimulatedJob], folder: Path) -> list[Findings]:
    return [found(job, folder) for job in jobs]


# more than 60 evaluations, or `auto` takes the Gaussian process, which takes seconds a job
SMALL = SimulatedJob(0, candidates=60, tasks=2, search=30, select=30, report=100)


def test_equal_models_are_not_called_better_and_intervals_cover(fast: Path) -> None:
    """Sixteen null jobs: two claims are possible by chance (2.5 % each), three are not (P < 0.01)."""
    jobs = searched([replace(SMALL, seed=seed) for seed in range(16)], fast)
    assert sum(job.claims_any for job in jobs) <= 2
    assert sum(job.claims_every for job in jobs) <= 1
    assert sum(job.covers for job in jobs) >= 13
    assert sum(job.differences_covered for job in jobs) >= 0.9 * sum(job.differences for job in jobs)
    assert fmean(job.top_search - job.top_truth for job in jobs) > 0.04  # the luckiest of 68
    assert abs(fmean(job.report - job.truth for job in jobs)) < 0.025  # three standard errors, as the next
    assert abs(fmean(job.difference_error for job in jobs)) < 0.03
    assert fmean(job.select - job.truth for job in jobs) > 0.03  # the luckiest finalist: no set for reports
    assert all(job.questions == 2 * 30 * job.models for job in jobs)


def test_a_large_gain_is_found_and_told(fast: Path) -> None:
    plan = replace(SMALL, gain=0.25, search=60, report=400)
    jobs = searched([replace(plan, seed=seed) for seed in range(4)], fast)
    assert sum(job.claims_every and job.kind != "parent" for job in jobs) >= 3
    assert all(job.false_claims == 0 for job in jobs)
    assert all((EVERY in job.told) == job.claims_every for job in jobs)
    assert fmean(job.over_parent for job in jobs) > 0.12


def test_the_same_job_gives_the_same_findings(fast: Path) -> None:
    job = replace(SMALL, candidates=60)
    assert found(job, fast / "first") == found(job, fast / "second")

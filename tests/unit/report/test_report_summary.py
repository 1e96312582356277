"""The summary of a run: its JSON, its digest, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evomerge.report.gene_values import GeneTable
from evomerge.report.summary import (
    ConstraintInfo,
    Entry,
    EvaluationRow,
    ObjectiveInfo,
    ObjectiveScore,
    RunSummary,
    Timing,
)
from evomerge.testing.sample_runs import sample_entry, sample_run
from evomerge.types import Digest

CONTRACT = {
    "schema_version", "state", "name", "seed", "counts", "timing", "objectives", "constraints", "baselines", "front",
    "chosen", "result_digest",
}  # fmt: skip


COUNTS = {"asked", "evaluated", "reused", "failed", "questions", "candidate_questions", "full_questions"}


def test_the_json_has_the_keys_of_the_contract_and_no_others() -> None:
    found = sample_run()[0].to_json()
    assert set(found) == CONTRACT
    assert found["schema_version"] == 1
    assert set(found["counts"]) == COUNTS
    assert set(found["timing"]) == {"wall_s", "evaluations_per_min", "lives"}
    assert found["objectives"] == [
        {"name": "skills", "direction": "maximize"},
        {"name": "cross", "direction": "maximize"},
    ]
    for entry in (*found["baselines"], *found["front"], found["chosen"]):
        assert set(entry) == {"id", "kind", "recipe_digest", "feasible", "search", "select", "report"}
        assert set(entry["search"]["objectives"]["skills"]) == {"value", "se", "low", "high"}
        assert set(entry["search"]["tasks"]["add"]) == {"value", "se", "n"}


def test_sets_that_were_not_scored_are_null() -> None:
    found = sample_run(state="running")[0].to_json()
    assert found["chosen"] is None
    assert {e["report"] for e in found["front"]} == {None}


def test_the_digest_covers_the_result_and_neither_times_nor_lives() -> None:
    summary = sample_run()[0]
    later = replace(summary, timing=Timing(1.0, 2.0, 9), state="interrupted", seed=8)
    assert later.result_digest == summary.result_digest
    assert replace(summary, chosen=None).result_digest != summary.result_digest
    assert replace(summary, front=summary.front[1:]).result_digest != summary.result_digest
    bound = ConstraintInfo("task", "rev", 0.5, "rev >= 0.5")
    assert replace(summary, constraints=(bound,)).result_digest != summary.result_digest


def test_entries_are_listed_once_baselines_first() -> None:
    summary = sample_run()[0]
    ids = list(summary.entries())
    assert ids[: len(summary.baselines)] == [b.id for b in summary.baselines]
    assert len(ids) == len(summary.baselines) + len(summary.front)


def test_values_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="low is nan"):
        ObjectiveScore(0.5, 0.1, float("nan"), 1.0)
    with pytest.raises(ValueError, match="'winner' is not one of parent, soup"):
        replace(sample_entry("x", "candidate", {"a": 0.5}), kind="winner")
    with pytest.raises(ValueError, match="c1: either objectives or a failure"):
        EvaluationRow("c1", 0, "candidate", None, feasible=False)
    with pytest.raises(ValueError, match=r"weight: the values do not have shape \(1, 2\)"):
        GeneTable("weight", ("a",), ("0", "1"), ((0.5,),))
    objectives = (ObjectiveInfo("a"),)
    summary = sample_run(("a",))[0]
    bad = sample_entry("c9", "candidate", {"a": 0.5}, feasible=False)
    with pytest.raises(ValueError, match="c9 is infeasible and cannot be on the front"):
        replace(summary, front=(bad,))
    with pytest.raises(ValueError, match="at least one objective"):
        replace(summary, objectives=())
    with pytest.raises(ValueError, match="state 'paused'"):
        RunSummary("paused", "n", 1, summary.counts, summary.timing, objectives)  # type: ignore[arg-type]


def test_scores_are_found_by_set() -> None:
    entry = sample_entry("x", "candidate", {"a": 0.5}, scored_on=2)
    assert entry.scores("search") is entry.search
    assert entry.scores("select") is entry.select
    assert entry.scores("report") is None
    assert isinstance(entry, Entry)
    assert isinstance(entry.recipe_digest, str)
    assert Digest(entry.recipe_digest) == entry.recipe_digest

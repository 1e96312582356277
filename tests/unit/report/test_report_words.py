"""Sentences about a run: never more than is known, and losses told as losses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evomerge.report.summary import Difference, ObjectiveInfo, RunDetails, RunSummary, Verdict
from evomerge.report.words import duration, not_drawn, plainly, recommendation, separability, what_next
from evomerge.testing.sample_runs import sample_run


def judged(*verdicts: tuple[str, str, Verdict]) -> RunDetails:
    return RunDetails(differences=tuple(Difference(a, w, 0.1, 0.0, 0.2, v) for a, w, v in verdicts))


@pytest.fixture(scope="module")
def summary() -> RunSummary:
    return sample_run(("skills",), n=30, parents=("math", "lang"))[0]


def test_durations() -> None:
    seconds = (8.21, 245, 3600, 12_000, 190_000)
    assert [duration(s) for s in seconds] == ["8.2 s", "4 min 05 s", "1 h 00 min", "3 h 20 min", "2 d 4 h"]


def test_better_is_said_only_of_all_parents(summary: RunSummary) -> None:
    told = recommendation(summary, judged(("math", "skills", "better"), ("lang", "skills", "better")))
    assert told.endswith("On skills it is better than every parent, by the report set's intervals.")
    told = recommendation(summary, judged(("math", "skills", "better"), ("lang", "skills", "not separable")))
    assert "better" not in told
    assert told.endswith("On skills there is no significant gain over lang.")


def test_a_loss_is_told_as_a_loss(summary: RunSummary) -> None:
    told = recommendation(summary, judged(("math", "skills", "worse"), ("lang", "skills", "not separable")))
    assert told.endswith("On skills it is worse than math and there is no significant gain over lang.")


def test_baselines_that_are_no_parents_do_not_count(summary: RunSummary) -> None:
    differences = judged(("math", "skills", "better"), ("lang", "skills", "better"), ("soup", "skills", "worse"))
    assert "better than every parent" in recommendation(summary, differences)
    assert plainly(summary, differences) == ("skills: better than math and lang; worse than soup.",)


def test_tasks_do_not_speak_for_objectives(summary: RunSummary) -> None:
    told = recommendation(summary, judged(("math", "add", "better"), ("lang", "add", "better")))
    assert "better" not in told


def test_a_baseline_that_wins_is_recommended_as_one(summary: RunSummary) -> None:
    soup = next(b for b in summary.baselines if b.kind == "soup")
    told = recommendation(replace(summary, chosen=soup), RunDetails())
    assert told == "Nothing that the search found beats the baseline soup on the select set: it is what to use."


def test_a_baseline_between_several_objectives_is_only_the_choice(summary: RunSummary) -> None:
    """The knee need not be better than anything in any single objective, and one of them may be a latency."""
    soup = next(b for b in summary.baselines if b.kind == "soup")
    several = replace(summary, chosen=soup, objectives=(*summary.objectives, ObjectiveInfo("speed", "minimize")))
    told = recommendation(several, RunDetails())
    assert told == "The choice among the front of the select set is the baseline soup."


def test_one_is_told_as_one() -> None:
    assert not_drawn(1) == "1 more member of the front is not drawn."
    assert not_drawn(3) == "3 more members of the front are not drawn."


def test_nothing_feasible_recommends_nothing() -> None:
    none = sample_run(n=10, feasible_share=0.0)[0]
    assert recommendation(none, RunDetails()) == "No merge satisfies every constraint; nothing is recommended."
    so_far = replace(none, state="running")
    assert recommendation(so_far, RunDetails()).startswith("No merge satisfies every constraint so far")
    assert "2 merges" not in recommendation(replace(so_far, state="failed"), RunDetails())


def test_separability_tells_every_baseline() -> None:
    told = separability(judged(("math", "skills", "better"), ("math", "add", "worse"), ("lang", "skills", "worse")))
    assert told == (
        "Against math: better on skills (+0.100); worse on add (+0.100).",
        "Against lang: worse on skills (+0.100).",
    )


def test_the_next_command_fits_the_state(summary: RunSummary) -> None:
    assert what_next(replace(summary, state="running"), "runs/a") == "evomerge status runs/a --watch"
    assert what_next(replace(summary, state="interrupted"), "runs/a b") == "evomerge resume 'runs/a b'"
    assert what_next(replace(summary, state="failed"), "runs/a") == "evomerge resume runs/a --set budget.failures=1"
    assert summary.chosen is not None
    first = what_next(summary, "runs/a").splitlines()[0]
    assert first == f"evomerge export runs/a --pick id:{summary.chosen.id} --as checkpoint --to merged/"
    none = sample_run(n=10, feasible_share=0.0)[0]
    assert what_next(none, "r").endswith("--run-dir r-again --set 'constraints=[]'")

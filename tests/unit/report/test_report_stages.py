"""What stages added: winners of a journal with known answers against each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from evomerge.evaluation.goals import Goals
from evomerge.evaluation.objectives import CostObjective, ObjectiveSpec
from evomerge.recipe.serialize import recipe_digest
from evomerge.report.book import Book
from evomerge.report.collect import summary_of
from evomerge.report.details import details_of, used_optimizer
from evomerge.report.html import render_report
from evomerge.report.stage_values import StageReport
from evomerge.report.stages import stage_report, stage_sentences, stages_section
from evomerge.runs.records import Evaluated, task_scores
from evomerge.runs.stage_records import StageBegun, StageWon
from evomerge.runs.store import RunStore
from evomerge.testing import sample_journal
from evomerge.testing.sample_journal import CHOSEN, sample_answers, sample_recipe_of, write_sample_run
from evomerge.types import CandidateId, Evaluation, SetName

ONE_TASK = Goals((ObjectiveSpec("add", ("add",)),))


def staged(folder: Path, *winners: str, goals: Goals = ONE_TASK) -> Path:
    """The sample run, its batches one stage each, with these winners."""
    write_sample_run(folder, goals=goals)
    with RunStore.open(folder, write=True) as store:
        for number, winner in enumerate(winners):
            digest = recipe_digest(sample_recipe_of(winner))
            store.append(StageBegun(number, ("weights", "path")[number], number))
            answers = sample_answers(winner, "report")
            responses = store.save_responses(digest, answers)
            record = Evaluated(CandidateId(winner), digest, "report", task_scores(answers), responses)
            store.append(replace(record, costs=answers.costs))
            store.append(StageWon(number, CandidateId(winner), digest))
    return folder


def report_of(folder: Path) -> StageReport:
    found = stage_report(Book(folder))
    assert found is not None
    return found


def test_a_run_without_stages_has_no_section(tmp_path: Path) -> None:
    book = Book(write_sample_run(tmp_path / "run"))
    assert stage_report(book) is None
    assert stages_section(summary_of(book), None, {}) == ""


def test_every_winner_is_compared_with_the_one_before(tmp_path: Path) -> None:
    report = report_of(staged(tmp_path / "run", "g0000-i00", CHOSEN))
    assert [(r.title, r.evaluations, r.is_new) for r in report.results] == [
        ("1 weights", 2, True),
        ("2 path", 2, True),
    ]
    first, second = (g.difference for g in report.gained)
    # parent-math is best on the search set: 0.6; then 0.55, then 0.9
    assert (first.against, first.what, first.mean) == ("parent-math", "add", pytest.approx(-0.05))
    assert (second.against, second.mean, second.verdict) == ("1 weights", pytest.approx(0.35), "better")
    assert first.low <= -0.05 <= first.high
    assert {g.difference.what for g in report.outside} == {"rev"}
    # rev: 0.6 of the best parent there, then 0.7, then 0.6
    assert [g.difference.mean for g in report.outside] == [pytest.approx(0.1), pytest.approx(-0.1)]
    assert [(g.stage, g.difference.verdict) for g in report.regressions] == [("2 path", "worse")]


def test_sentences_say_what_was_added_and_what_was_lost(tmp_path: Path) -> None:
    first, second, outside = stage_sentences(report_of(staged(tmp_path / "run", "g0000-i00", CHOSEN)))
    assert first.startswith("Stage 1 weights added: add -0.050 [")
    assert "over 1 weights, better" in second
    assert outside.startswith("On tasks outside the objectives worse: rev by -0.100 [")


def test_a_stage_that_changed_nothing_says_so(tmp_path: Path) -> None:
    report = report_of(staged(tmp_path / "run", CHOSEN, CHOSEN))
    assert [r.is_new for r in report.results] == [True, False]
    assert [g.stage for g in report.gained] == ["1 weights"]
    assert stage_sentences(report)[1] == "Stage 2 path added: nothing: its winner is the one before."


def test_costs_are_told_beside_what_they_bought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that loses answers and saves layers says both; time is not compared."""
    plain = sample_journal.sample_answers

    def told(model: str, set_name: SetName) -> Evaluation:
        hops = {"g0000-i00": 3.0, CHOSEN: 5.0}.get(model, 4.0)
        return replace(plain(model, set_name), costs={"hops": (hops, 0.0), "latency": (1e-5 * hops, 1e-9)})

    monkeypatch.setattr(sample_journal, "sample_answers", told)
    monkeypatch.setitem(globals(), "sample_answers", told)
    goals = Goals(
        (ObjectiveSpec("add", ("add",)), CostObjective("depth", "hops"), CostObjective("speed", "latency")), ()
    )
    report = report_of(staged(tmp_path / "run", "g0000-i00", CHOSEN, goals=goals))
    assert [(g.stage, g.difference.what, g.difference.mean) for g in report.costs] == [
        ("1 weights", "depth", -1.0),
        ("2 path", "depth", 2.0),
    ]
    first, second, _ = stage_sentences(report)
    assert first.endswith("; depth -1.")
    assert second.endswith("; depth +2.")
    assert "speed" not in first + second


def test_the_headline_names_every_stages_optimizer() -> None:
    first = {"name": "gp", "options": {}, "why": "few evaluations"}
    assert used_optimizer({"optimizer": first}) == {"optimizer": "gp", "optimizer_why": "few evaluations"}
    stages = [{"name": "weights", "optimizer": "gp"}, {"name": "path", "optimizer": "scan"}]
    found = used_optimizer({"optimizer": first, "stages": stages})
    assert found["optimizer"] == "gp in stage weights, scan in stage path"
    assert found["optimizer_why"] == "in stage weights, few evaluations"
    older = used_optimizer({"optimizer": first | {"why": ""}, "stages": [{"name": "weights"}, {"name": "path"}]})
    assert older == {"optimizer": "gp in stage weights", "optimizer_why": ""}


def test_tasks_of_objectives_are_not_outside(tmp_path: Path) -> None:
    both = Goals((ObjectiveSpec("both", ("add", "rev")),))
    report = report_of(staged(tmp_path / "run", CHOSEN, goals=both))
    assert report.outside == ()
    assert len(report.gained) == 1
    assert not any("outside" in s for s in stage_sentences(report))


def test_a_stage_that_is_running_has_no_winner(tmp_path: Path) -> None:
    folder = write_sample_run(tmp_path / "run", StageBegun(0, "weights", 0), done=False)
    report = report_of(folder)
    assert [(r.winner, r.is_new, r.evaluations) for r in report.results] == [(None, False, 4)]
    assert (report.gained, report.outside) == ((), ())


def test_the_page_has_the_section(tmp_path: Path) -> None:
    book = Book(staged(tmp_path / "run", "g0000-i00", CHOSEN))
    summary = summary_of(book)
    details = details_of(book, summary, lambda model: sample_recipe_of(model.id))
    page = render_report(summary, details)
    assert "What each stage added" in page
    assert "Tasks outside the objectives" in page
    assert "winner minus what was best before" in page

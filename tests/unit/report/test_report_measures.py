"""Reports of runs whose goals look at the answers: values from loaded answers, and none before there can be any."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.evaluation.goals import Goals
from evomerge.evaluation.measures import Measure
from evomerge.evaluation.objectives import ConstraintSpec, ObjectiveSpec
from evomerge.evaluation.statistics import objective_interval, wilson_interval
from evomerge.report.book import Book
from evomerge.report.collect import summarise
from evomerge.report.details import run_details
from evomerge.runs.records import Evaluated
from evomerge.runs.store import RunStore
from evomerge.testing.sample_journal import CHOSEN, N_ITEMS, SKILLS, write_sample_run
from evomerge.types import CandidateId

UNLEARNED = ObjectiveSpec("unlearned", ("add",), direction="minimize", measure=Measure("flips", "math"))
SKILL = ObjectiveSpec("skill", ("add", "rev"), measure=Measure("ability"))
GOALS = Goals(
    (ObjectiveSpec("rev", ("rev",)), UNLEARNED, SKILL),
    (ConstraintSpec("task", "add", "at_most", 0.1, measure=Measure("flips", "math")),),
)


def flips(model: str) -> float:
    """Every model has its first items right, so that it flips what the parent has right beyond them."""
    return max(0.0, SKILLS["parent-math"][0] - SKILLS[model][0])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_run(tmp_path_factory.mktemp("runs") / "sample", goals=GOALS)


def test_flips_come_from_the_answers(run: Path) -> None:
    summary = summarise(run)
    assert summary.entries()[CHOSEN].report is not None
    for entry in summary.entries().values():
        for set_name in ("search", "select", "report"):
            scores = entry.scores(set_name)  # type: ignore[arg-type]
            if scores is None:
                continue
            found = scores.objectives["unlearned"]
            n = N_ITEMS[set_name]  # type: ignore[index]
            assert found.value == pytest.approx(flips(entry.id))
            assert (found.low, found.high) == pytest.approx(wilson_interval(found.value, n))
        assert entry.feasible == (flips(entry.id) <= 0.1)
    assert summary.constraints[0].rule == "flips of add against math <= 0.1"


def test_abilities_follow_the_answers_to_both_tasks(run: Path) -> None:
    summary = summarise(run)
    found = {i: e.search.objectives["skill"] for i, e in summary.entries().items()}
    assert found[CHOSEN].value > found["soup"].value > found["parent-lang"].value
    book = Book(run)
    record = book.record(book.models[CandidateId(CHOSEN)].recipe, "search")
    assert record is not None
    interval = objective_interval(SKILL, book.answers(record), references=book.references("search"))
    assert (found[CHOSEN].low, found[CHOSEN].high) == pytest.approx(interval)


def test_differences_are_of_the_measures(run: Path) -> None:
    found = {(d.what, d.against): d for d in run_details(run).differences}
    for baseline in ("parent-math", "parent-lang", "soup"):
        assert found[("unlearned", baseline)].mean == pytest.approx(flips(CHOSEN) - flips(baseline))
    assert found[("unlearned", "parent-lang")].verdict == "better"
    assert found[("skill", "parent-lang")].verdict == "better"


def test_nothing_has_a_value_before_the_parents_are_scored(run: Path, tmp_path: Path) -> None:
    """A reader of a run that is going on: with one parent scored, then on a report set begun with the choice."""
    with RunStore.open(run, write=False) as store:
        records = list(store.records())
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    scored = [i for i, r in enumerate(records) if isinstance(r, Evaluated) and r.set_name == "search"]
    reported = [i for i, r in enumerate(records) if isinstance(r, Evaluated) and r.set_name == "report"]
    for name, end, on_search in (("one", scored[0] + 1, 0), ("two", scored[1] + 1, 2), ("end", reported[0] + 1, 6)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "responses").symlink_to(run / "responses")
        for file in ("job.yaml", "manifest.json"):
            (folder / file).write_bytes((run / file).read_bytes())
        (folder / "journal.jsonl").write_bytes(b"".join(lines[:end]))
        summary = summarise(folder)
        assert len(Book(folder).models) == on_search
        assert all(e.report is None for e in summary.entries().values())
        assert run_details(folder).differences == ()
        assert summary.counts.evaluated > 0

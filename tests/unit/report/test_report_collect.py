"""From a run directory with known answers to summary and details."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from evomerge.archive.hypervolume import hypervolume
from evomerge.errors import ConfigError, StoreError
from evomerge.evaluation.goals import Goals
from evomerge.evaluation.objectives import ConstraintSpec, ObjectiveSpec
from evomerge.recipe.serialize import recipe_digest
from evomerge.report.book import Book
from evomerge.report.collect import summarise, summary_of
from evomerge.report.details import details_of, recorded_recipe, run_details
from evomerge.report.write import write_report
from evomerge.runs.records import Chosen, Interrupted, Note, PhaseBegun
from evomerge.runs.store import RunStore
from evomerge.testing.sample_journal import CHOSEN, FRONT, N_ITEMS, SKILLS, TASKS, sample_recipe_of, write_sample_run
from evomerge.types import CandidateId


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample_run(tmp_path_factory.mktemp("runs") / "sample")


def test_the_summary_of_a_finished_run(run: Path) -> None:
    summary = summarise(run)
    assert (summary.state, summary.name, summary.seed, summary.budget) == ("finished", "sample", 7, 7)
    assert [b.id for b in summary.baselines] == ["parent-math", "parent-lang", "soup"]
    assert [b.feasible for b in summary.baselines] == [True, False, True]
    assert {e.id for e in summary.front} == set(FRONT)
    assert summary.chosen is not None
    assert summary.chosen.id == CHOSEN
    c = summary.counts
    assert (c.asked, c.evaluated, c.reused, c.failed) == (5, 6, 1, 1)
    n_models = {"search": 6, "select": 5, "report": 4}
    assert c.questions == sum(n_models[s] * n * len(TASKS) for s, n in N_ITEMS.items())
    assert summary.timing.lives == 1


def test_a_choice_under_a_later_name_of_its_recipe_is_found(tmp_path: Path) -> None:
    """The mean may be what the last batch asked for behind the end of the budget: the candidate has the score then."""
    recipe = recipe_digest(sample_recipe_of(CHOSEN))
    choice = Chosen(CandidateId("mean-6"), recipe, "knee", (CandidateId("soup"),))
    summary = summarise(write_sample_run(tmp_path / "run", PhaseBegun("select"), choice, done=False))
    assert summary.chosen is not None
    assert summary.chosen.id == CHOSEN


def test_scores_are_the_shares_of_right_answers(run: Path) -> None:
    summary = summarise(run)
    for entry in summary.entries().values():
        for task, skill in zip(TASKS, SKILLS[entry.id], strict=True):
            score = entry.search.objectives[task]
            assert score.value == pytest.approx(skill)
            assert score.low < score.value < score.high
            n = N_ITEMS["search"]
            assert entry.search.tasks[task].n == n
            assert score.se == pytest.approx(math.sqrt(skill * (1 - skill) / (n - 1)))


def test_only_what_was_chosen_and_compared_has_report_scores(run: Path) -> None:
    summary = summarise(run)
    scored = {e.id for e in summary.entries().values() if e.report is not None}
    assert scored == {"parent-math", "parent-lang", "soup", CHOSEN}


def test_the_bound_follows_the_best_parent(run: Path) -> None:
    (constraint,) = summarise(run).constraints
    assert constraint.rule == "add >= best_parent - 0.1"
    assert constraint.at_least == pytest.approx(0.5)
    assert constraint.bound == constraint.at_least


def test_an_upper_bound_is_told_as_one(tmp_path: Path) -> None:
    goals = Goals((ObjectiveSpec("add", ("add",)),), (ConstraintSpec("task", "rev", "at_most", 0.65),))
    summary = summarise(write_sample_run(tmp_path / "r", goals=goals))
    (constraint,) = summary.constraints
    assert (constraint.at_least, constraint.at_most) == (None, 0.65)
    assert [e.id for e in summary.front] == ["g0001-i00"]


def test_the_digest_depends_on_the_result_alone(run: Path, tmp_path: Path) -> None:
    note = Note("drift", "another library")
    again = summarise(write_sample_run(tmp_path / "again", notes=(note,)))
    assert again.result_digest == summarise(run).result_digest
    unfinished = summarise(write_sample_run(tmp_path / "half", done=False))
    assert unfinished.result_digest != again.result_digest


def test_states(tmp_path: Path) -> None:
    assert summarise(write_sample_run(tmp_path / "killed", done=False)).state == "interrupted"
    failed = write_sample_run(tmp_path / "failed", Interrupted("too many failures", 4), done=False)
    assert summarise(failed).state == "failed"
    going_on = write_sample_run(tmp_path / "going-on", done=False)
    with RunStore.open(going_on, write=True):
        assert summarise(going_on).state == "running"
    assert summarise(going_on).state == "interrupted"


def test_reading_changes_nothing(run: Path) -> None:
    before = {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}
    summarise(run)
    assert {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()} == before


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run here"):
        summarise(tmp_path)


def test_a_damaged_manifest_is_told(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "r")
    (run / "manifest.json").write_text('{"format": "something", "version": 1}')
    with pytest.raises(StoreError, match=r"manifest of the run cannot be used[\s\S]*something"):
        summarise(run)


def test_details_rows_are_in_the_order_of_asking(run: Path) -> None:
    rows = run_details(run).evaluations
    assert [(r.id, r.batch, r.reused) for r in rows] == [
        ("parent-math", -1, False),
        ("parent-lang", -1, False),
        ("soup", -1, False),
        ("g0000-i00", 0, False),
        ("g0000-i01", 0, True),
        ("g0000-i02", 0, False),
        ("g0001-i00", 1, False),
        ("g0001-i01", 1, False),
    ]
    by_id = {r.id: r for r in rows}
    assert by_id["g0000-i02"].failure == "nan: the logits of task rev are not finite"
    assert by_id["g0000-i01"].objectives == by_id["soup"].objectives
    assert (by_id["g0000-i01"].merge_s, by_id["soup"].merge_s) == (0.0, 0.25)
    assert not by_id["g0001-i01"].feasible


def test_hypervolume_grows_and_ends_at_the_front_s(run: Path) -> None:
    book = Book(run)
    details = details_of(book, summary_of(book), recorded_recipe(book))
    counts, values = zip(*details.hypervolume, strict=True)
    assert list(values) == sorted(values)
    assert counts[-1] == 7  # six scored, one failed; the reused one cost nothing
    losses = [tuple(-s for s in SKILLS[m]) for m in FRONT]
    worst = [max(-SKILLS[p][k] for p in ("parent-math", "parent-lang")) for k in range(2)]
    best = [min(-SKILLS[p][k] for p in ("parent-math", "parent-lang")) for k in range(2)]
    # the reference point lies 10 % of the parents' range beyond the worst parent in every objective
    reference = [w + 0.1 * (w - b) for w, b in zip(worst, best, strict=True)]
    assert values[-1] == pytest.approx(hypervolume(losses, reference))


def test_differences_are_paired_and_judged(run: Path) -> None:
    found = {(d.against, d.what): d for d in run_details(run).differences}
    assert set(found) == {(b, t) for b in ("parent-math", "parent-lang", "soup") for t in TASKS}
    for (against, task), d in found.items():
        k = TASKS.index(task)
        assert d.mean == pytest.approx(SKILLS[CHOSEN][k] - SKILLS[against][k])
        assert d.low <= d.mean <= d.high
    assert found["parent-math", "rev"].verdict == "better"
    assert found["parent-lang", "rev"].verdict == "not separable"  # both 0.6, the very same items


def test_before_the_end_there_is_nothing_to_compare(tmp_path: Path) -> None:
    details = run_details(write_sample_run(tmp_path / "r", done=False))
    assert details.differences == ()
    assert details.selection == ""
    assert details.recipe == ""


def test_public_test_splits_and_notes_are_warned_of(tmp_path: Path) -> None:
    run = write_sample_run(tmp_path / "r", public=("gsm8k",), notes=(Note("drift", "numpy was updated"),))
    details = run_details(run)
    assert "public test split (gsm8k)" in details.notes[0]
    assert details.notes[1] == "numpy was updated"
    page = write_report(run).read_text(encoding="utf-8")
    assert "public test split (gsm8k)" in page


def test_genes_come_from_recorded_recipes(run: Path) -> None:
    book = Book(run)
    summary = summary_of(book)
    every = {m: sample_recipe_of(m) for m in SKILLS}
    details = details_of(book, summary, lambda model: every[model.id])
    assert [g.entry_id for g in details.genes] == [CHOSEN, "g0000-i00"]
    assert json.loads(details.recipe)["format"] == "evomerge.recipe"
    soup = recorded_recipe(book)(next(m for m in book.models.values() if m.id == "soup"))
    assert soup == sample_recipe_of("soup")
    assert recorded_recipe(book)(book.models[next(i for i in book.models if i == CHOSEN)]) is None

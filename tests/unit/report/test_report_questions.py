"""Runs that asked in part: what the report says of questions, races, banks, and of the search set learned by heart."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evomerge.evaluation.goals import Goals
from evomerge.evaluation.objectives import ObjectiveSpec
from evomerge.recipe.recipe import Recipe, Rule
from evomerge.recipe.serialize import recipe_digest, recipe_to_json
from evomerge.report.asked import AskedModel, RungTold
from evomerge.report.banks import banks_of
from evomerge.report.book import Book
from evomerge.report.collect import summarise
from evomerge.report.html import render_report
from evomerge.report.overfit import gap, gap_sentence, over_time, selected_models
from evomerge.report.questions import bank_section, saving
from evomerge.report.race import asked_questions, candidate_counts, races
from evomerge.report.race_plots import questions_over_time, race_chart, shown_racers
from evomerge.report.summary import Counts, EntryKind, ObjectiveInfo, RunDetails, Selected
from evomerge.report.words import asked_share
from evomerge.report.write import write_report
from evomerge.runs.partial import restrict
from evomerge.runs.race_records import BankFitted, Estimated, EstimateRow, Rung
from evomerge.runs.records import (
    Asked,
    Baseline,
    Candidate,
    Chosen,
    Evaluated,
    Failed,
    Note,
    Opened,
    PhaseBegun,
    Record,
    TaskScore,
    Told,
    task_scores,
)
from evomerge.runs.store import RunStore
from evomerge.testing.sample_journal import PARENTS, sample_manifest, write_sample_run
from evomerge.testing.sample_runs import sample_entry
from evomerge.types import CandidateId, Digest, Evaluation, Failure, SetName, TaskAnswers

TASKS = ("add", "rev")
SIZE = 20
BASELINES = ("parent-math", "parent-lang", "soup")
WHOLE = ("g0000-i00", "g0000-i01", "g0000-i02")
RACED = ("g0001-i00", "g0001-i01", "g0001-i02", "g0001-i03")
CUT = ("g0002-i00", "g0002-i01")
MODELS = (*BASELINES, *WHOLE, *RACED, *CUT)
MEAN = Goals((ObjectiveSpec("mean", TASKS),))
FULL = SIZE * len(TASKS)


def recipe_of(model: str) -> Recipe:
    weight = 0.05 * (1 + MODELS.index(model))
    weights = {"math": {"weight": weight}, "lang": {"weight": 1 - weight}}
    return Recipe(PARENTS, None, (Rule("linear", {"normalize": True}, weights),))


def digest_of(model: str) -> Digest:
    return recipe_digest(recipe_of(model))


def answers_of(model: str, set_name: SetName) -> Evaluation:
    """Harder items are right less often; of later models more are right, on the search set most of all."""
    rng = np.random.default_rng([MODELS.index(model), len(set_name)])
    skill = 0.06 * MODELS.index(model) + (0.15 if set_name == "search" and model.startswith("g0") else 0.0)
    items = {t: tuple(f"{set_name}-{t}-{i}" for i in range(SIZE)) for t in TASKS}
    right = {t: tuple(float(rng.random() < 0.3 + skill + 0.02 * (10 - i)) for i in range(SIZE)) for t in TASKS}
    answers = {t: TaskAnswers(t, items[t], right[t]) for t in TASKS}
    return Evaluation(set_name, answers, {"merge": 0.25, "score": 0.04})


def scored(
    store: RunStore, model: str, set_name: SetName = "search", part: int = 0, items: range = range(SIZE)
) -> Record:
    evaluation = answers_of(model, set_name)
    if part:
        evaluation = restrict(evaluation, {t: {a.items[i] for i in items} for t, a in evaluation.answers.items()})
    saved = store.save_responses(digest_of(model), evaluation)
    scores, seconds = task_scores(evaluation), evaluation.timing_s
    return Evaluated(CandidateId(model), digest_of(model), set_name, scores, saved, seconds, part=part)


def baseline(model: str) -> Record:
    kind = "soup" if model == "soup" else "parent"
    return Baseline(
        CandidateId(model), kind, digest_of(model), recipe_to_json(recipe_of(model)), name=model.removeprefix("parent-")
    )


def asked(number: int, models: tuple[str, ...]) -> Record:
    return Asked(number, tuple(Candidate(CandidateId(m), "candidate", digest_of(m), (0.5,)) for m in models))


def rung(batch: int, number: int, models: tuple[str, ...], n: int) -> Record:
    return Rung(batch, number, tuple(CandidateId(m) for m in models), dict.fromkeys(TASKS, tuple(range(n))))


def believed(batch: int, values: dict[str, float]) -> Record:
    rows = tuple(EstimateRow(digest_of(m), {t: TaskScore(v, 0.05, 4) for t in TASKS}) for m, v in values.items())
    return Estimated(batch, "search", rows, {"add": "p-irt", "rev": "stratified"})


def search_records(store: RunStore) -> list[Record]:
    """Generation 1 races over two rungs, one candidate fails in the first; generation 2 is cut after one candidate."""
    first, second, third, failing = RACED
    return [
        Opened(1, False, "host", 1, {"numpy": "2"}, {"budget": {"evaluations": 11}, "cluster": {"workers": 2}}),
        Note("questions", "The bank old.npz is ignored."),
        PhaseBegun("search"),
        *(baseline(m) for m in BASELINES),
        *(scored(store, m) for m in BASELINES),
        asked(0, WHOLE),
        *(scored(store, m) for m in WHOLE),
        Told(0),
        BankFitted(0, "add", "", 6, 1, "run", "p-irt", {"p-irt": 0.021, "stratified": 0.04}),
        BankFitted(0, "rev", "", 6, 1, "imported", "stratified", {"p-irt": 0.05, "stratified": 0.033}),
        asked(1, RACED),
        rung(1, 0, RACED, 4),
        *(scored(store, m, part=1, items=range(4)) for m in RACED[:3]),
        Failed(CandidateId(failing), digest_of(failing), "search", Failure("nan", "of task rev")),
        rung(1, 1, (second, third), 10),
        *(scored(store, m, part=2, items=range(4, 10)) for m in (second, third)),
        believed(1, {first: 0.5, second: 0.8, third: 0.9}),
        Told(1),
        asked(2, CUT),
        rung(2, 0, CUT, 4),
        scored(store, CUT[0], part=1, items=range(4)),
        believed(-4, {CUT[0]: 0.6}),
    ]


def ending_records(store: RunStore) -> list[Record]:
    finalists = (WHOLE[0], RACED[1], RACED[2])
    chosen = RACED[2]
    compared = tuple(CandidateId(m) for m in BASELINES)
    return [
        PhaseBegun("select"),
        *(scored(store, m, "select") for m in (*BASELINES, *finalists)),
        Chosen(CandidateId(chosen), digest_of(chosen), "best", compared),
        PhaseBegun("report"),
        *(scored(store, m, "report") for m in (*BASELINES, chosen)),
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "raced"
    manifest = sample_manifest(MEAN)
    manifest["suite"]["splits"] = {t: {"search": SIZE, "select": SIZE, "report": SIZE} for t in TASKS}
    with RunStore.create(folder, {"job.yaml": "name: raced\n", "manifest.json": json.dumps(manifest)}) as store:
        store.append(*search_records(store), *ending_records(store))
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text(encoding="utf-8")


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


def test_steps_are_cumulative_and_failures_are_marked(run: Path) -> None:
    found = {m.id: m for m in asked_questions(Book(run)).models}
    assert list(found) == [m for m in MODELS if m != CUT[1]]
    assert found[WHOLE[0]] == AskedModel(WHOLE[0], 0, "candidate", (FULL,), score_s=0.04)
    assert (found[RACED[0]].steps, found[RACED[1]].steps, found[CUT[0]].steps) == ((8,), (8, 20), (8,))
    assert found[RACED[1]].score_s == pytest.approx(0.08)
    assert (found[RACED[3]].steps, found[RACED[3]].failed, found[RACED[3]].questions) == ((), True, 0)


def test_races_leave_out_what_the_budget_cut_off(run: Path) -> None:
    race, cut = races(Book(run))
    sizes = dict.fromkeys(TASKS, 4)
    assert race.rungs == (RungTold(RACED, sizes), RungTold(RACED[1:3], dict.fromkeys(TASKS, 10)))
    assert (race.told, race.mean_questions) == (True, (8 + 20 + 20 + 8) / 4)
    assert race.scores[RACED[2]] == {"mean": (pytest.approx(0.9), pytest.approx(0.05 / 2**0.5))}
    assert RACED[3] not in race.scores
    assert (cut.batch, cut.told, cut.rungs) == (2, False, (RungTold(CUT[:1], sizes),))


def test_counts_are_of_the_optimizers_candidates_that_answered(run: Path) -> None:
    spent = 3 * FULL + 8 + 2 * 20 + 8
    assert candidate_counts(Book(run)) == (spent, 7 * FULL)
    counts = summarise(run).counts
    assert (counts.candidate_questions, counts.full_questions) == (spent, 7 * FULL)
    told = (
        f"candidates were asked {spent} questions of the search set, {spent / 280:.0%} of the 280 of full evaluations"
    )
    assert asked_share(counts) == f"{told}; search scores of those asked in part are estimates"


def test_nothing_is_said_of_runs_that_ask_everything(tmp_path: Path) -> None:
    whole = write_sample_run(tmp_path / "whole")
    counts = summarise(whole).counts
    assert counts.candidate_questions == counts.full_questions == 3 * 40
    assert asked_share(counts) == ""
    assert asked_share(Counts()) == ""
    html = write_report(whole).read_text(encoding="utf-8")
    assert "Every candidate was asked all 40 questions of the search set." in html
    assert "item bank" not in html
    assert "Was the search set learned by heart?" in html


def test_the_saving_uses_the_time_of_full_evaluations(run: Path) -> None:
    found = asked_questions(Book(run))
    assert found.second_per_question == pytest.approx(0.04 / FULL)
    told = saving(found)
    assert "7 candidates were asked 176 questions, 25 of 40 each on average." in told
    assert "280, 1.6 times as many: 0.3 s of scoring, at the 1 ms a question" in told
    assert told.endswith("in place of 0.4 s.")  # small increments cost more than their share


def test_banks_have_their_facts_and_are_fitted_again(run: Path) -> None:
    add, rev = banks_of(Book(run))
    assert (add.task, add.n_items, add.n_models, add.dimensions, add.fits, add.imported) == (
        "add",
        SIZE,
        6,
        1,
        1,
        False,
    )
    assert (rev.estimator, dict(rev.errors), rev.imported) == ("stratified", {"p-irt": 0.05, "stratified": 0.033}, True)
    assert add.bank is not None
    assert add.positions is not None
    assert add.bank.items == answers_of("soup", "search").answers["add"].items
    assert add.bank.n_models == len(add.positions) == 10  # all that answered any of its questions


def test_lost_answers_leave_the_facts(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    for path in run.rglob("*"):
        if path.is_file() and not (path.name.startswith(digest_of(RACED[0])[:16])):
            copy = folder / path.relative_to(run)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    add, _ = banks_of(Book(folder))
    assert (add.n_models, add.bank, add.positions) == (6, None, None)
    assert "2.1 points" in text_of(bank_section(asked_questions(Book(folder), banks_of(Book(folder)))))


def test_the_page_tells_all_of_it(page: str) -> None:
    told = text_of(page)
    for expected in (
        "Questions asked", "The baselines and generation 0 answered everything", "The race of generation 1",
        "4 &rarr; 2 8 &rarr; 20 14 35% 10 10", "The item bank", "2.1 points stratified 4.0",
        "For rev a bank from elsewhere was used", "Questions of add", "The bank old.npz is ignored.",
        "Questions spent: 296 of the search set on 11 models, 240 of the select set on 6, 160 of the report set on 4.",
    ):  # fmt: skip
        assert expected in told, expected
    drawings = re.findall(r"<svg.*?</svg>", page)
    assert not any(re.search(r"\b(nan|inf|None)\b", d) for d in drawings)


def test_a_race_shows_who_came_farthest_first(run: Path) -> None:
    race = races(Book(run))[0]
    assert shown_racers(race, ObjectiveInfo("mean")) == [RACED[2], RACED[1], RACED[0], RACED[3]]
    assert shown_racers(race, ObjectiveInfo("mean", "minimize"))[:2] == [RACED[1], RACED[2]]
    chart = race_chart(race, (ObjectiveInfo("mean"),))
    assert chart.count("<rect") == 6
    assert chart.count(">failed<") == 1


def test_the_chart_of_questions_has_a_mark_for_every_model(run: Path) -> None:
    chart = questions_over_time(asked_questions(Book(run)), RACED[2])
    assert f"{RACED[1]}: 8 + 12 questions" in chart
    assert f"{RACED[3]}: failed after 0 questions" in chart
    assert chart.count('class="stem') == 10
    assert "everything: 40" in chart


# -- learned by heart -----------------------------------------------------------------------------------------------


def pair(name: str, search: float, select: float, batch: int) -> Selected:
    kind: EntryKind = "candidate" if batch >= 0 else "parent"
    found = sample_entry(name, kind, {"mean": search})
    later = sample_entry(name, kind, {"mean": select}).search
    return Selected(replace(found, select=later), batch)


MAXIMIZED, MINIMIZED = ObjectiveInfo("mean"), ObjectiveInfo("mean", "minimize")


def test_selected_models_are_baselines_then_the_search_in_order(run: Path) -> None:
    found = [(s.entry.id, s.batch) for s in selected_models(Book(run))]
    assert found == [*((m, -1) for m in BASELINES), (WHOLE[0], 0), (RACED[1], 1), (RACED[2], 1)]


def test_the_gap_is_a_mean_in_the_direction_of_the_objective() -> None:
    models = [pair("a", 0.8, 0.7, 0), pair("b", 0.9, 0.7, 1)]
    found = gap(models, MAXIMIZED)
    assert found is not None
    assert (found.mean, found.n) == (pytest.approx(0.15), 2)
    single = [(0.8, 0.7), (0.9, 0.7)]
    errors = [np.sqrt((a * (1 - a) + b * (1 - b)) / 100) for a, b in single]
    assert found.se == pytest.approx(np.mean(errors))
    turned = gap(models, MINIMIZED)
    assert turned is not None
    assert turned.mean == pytest.approx(-0.15)
    assert gap([], MAXIMIZED) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ((0.99, 0.55), (0.5, 0.51), "too high by 45.0 points (± 17.1 points at most): luck, or learned by heart."),
        ((0.80, 0.75), (0.5, 0.51), "too high by 6.0 points (± 18.0 points at most), which may be chance."),
        ((0.70, 0.75), (0.5, 0.49), "gains no more than that: nothing was learned by heart."),
    ],
)
def test_the_gap_in_words(ours: tuple[float, float], theirs: tuple[float, float], expected: str) -> None:
    told = gap_sentence([pair("p", *theirs, -1), pair("c", *ours, 0)], MAXIMIZED)
    assert expected in told
    assert told.startswith("One candidate does ")
    assert "; one baseline, which nothing selected, " in told


def test_the_gap_without_baselines_and_without_candidates() -> None:
    alone = gap_sentence([pair("c", 0.8, 0.7, 0)], MAXIMIZED)
    assert alone.endswith("no baseline tells how much easier one of the sets is.")
    assert gap_sentence([pair("p", 0.8, 0.7, -1)], MAXIMIZED) == ""


def test_scores_that_are_no_shares_are_told_as_numbers() -> None:
    margins = [pair("p", 0.5, 0.5, -1), pair("c", 0.5, 0.5, 0)]
    scaled = [Selected(sample_entry(s.entry.id, s.entry.kind, {"mean": 3.0}, scored_on=2), s.batch) for s in margins]
    assert "points" not in gap_sentence(scaled, MAXIMIZED)
    assert "points" in gap_sentence(margins, MAXIMIZED)


def test_the_gap_over_time() -> None:
    models = [pair("p", 0.6, 0.6, -1), pair("a", 0.7, 0.69, 2), pair("b", 0.8, 0.75, 7)]
    assert (
        over_time(models, MAXIMIZED) == "From generation 2 to generation 7 the gap went from +1.0 point to +5.0 points."
    )
    assert over_time(models[:2], MAXIMIZED) == ""


def test_reports_without_a_book_have_no_such_sections(run: Path) -> None:
    summary = summarise(run)
    bare = render_report(summary, RunDetails(run_folder="x"))
    assert "Questions asked" not in bare
    assert "learned by heart" not in bare

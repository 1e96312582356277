"""Races that are cut anywhere and resumed end as if nothing had happened; what was recorded stands."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from race_world import N_ITEMS, TASKS, Remembered, Stop, live, result, setup, two_goals

from evomerge.errors import Interrupted
from evomerge.irt.bank import ItemBank
from evomerge.irt.estimators import calibration
from evomerge.irt.fit import fit
from evomerge.loop import SearchSetup
from evomerge.racing import race as race_module
from evomerge.racing import task_model

NAMES = ("nsga2", "cma", "lra-cma")
RACES = ("halving", "elimination", "none")
STRIDE = 11
FITS = Remembered(fit)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the disk, and equal banks are fitted once."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    for module in (task_model, calibration):
        monkeypatch.setattr(module, "fit", FITS)


def small(name: str, race: str, **questions: Any) -> SearchSetup:
    goals = two_goals(constrained=True) if name == "nsga2" else None
    return setup(name, goals, budget=18, population=5, race=race, **questions)


def lines_of(folder: Path) -> list[bytes]:
    return (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)


def check_cuts(tmp_path: Path, plan: SearchSetup, cuts: range, score: str = "race_world:scorer") -> None:
    """Resume from behind some records of the undisturbed journal; the files of later answers are there already."""
    calm = live(tmp_path / "calm", plan, score=score)
    lines = lines_of(tmp_path / "calm")
    for cut in cuts:
        if cut >= len(lines):
            break
        folder = tmp_path / "cut"
        shutil.copytree(tmp_path / "calm", folder)
        prefix = b"".join(lines[:cut])
        (folder / "journal.jsonl").write_bytes(prefix)
        resumed = live(folder, plan, score=score)
        assert result(resumed) == result(calm), cut
        assert resumed.counts == calm.counts
        assert (folder / "journal.jsonl").read_bytes().startswith(prefix)
        shutil.rmtree(folder)


@pytest.mark.parametrize("race", RACES)
@pytest.mark.parametrize("name", NAMES)
def test_resume_behind_records_gives_the_undisturbed_result(tmp_path: Path, name: str, race: str) -> None:
    offset = NAMES.index(name) * 3 + RACES.index(race)
    check_cuts(tmp_path, small(name, race), range(1 + offset, 1000, STRIDE))


def test_resume_behind_every_record_of_a_race(tmp_path: Path) -> None:
    check_cuts(tmp_path, replace(small("nsga2", "halving"), budget=13), range(1, 1000))


def test_resume_with_estimators_that_are_chosen(tmp_path: Path) -> None:
    check_cuts(tmp_path, small("cma", "halving", estimator="auto", order="information"), range(10, 1000, 11))


def test_resume_where_candidates_fail_at_some_rung(tmp_path: Path) -> None:
    plan = setup("cma", race="halving", number=10)
    check_cuts(tmp_path, plan, range(20, 1000, 13), "race_world:crashing_scorer")
    later = [parts for parts in live(tmp_path / "calm", plan).parts.values() if len({type(p) for p in parts}) == 2]
    assert later  # some failed after they had answered


@pytest.mark.parametrize(("name", "race"), [("nsga2", "halving"), ("lra-cma", "elimination")])
def test_an_interrupt_after_every_outcome_changes_nothing(tmp_path: Path, name: str, race: str) -> None:
    plan = small(name, race)
    calm = live(tmp_path / "calm", plan)
    lives = 0
    while True:
        try:
            final = live(tmp_path / "run", plan, Stop(1))
            break
        except Interrupted:
            lives += 1
    assert result(final) == result(calm)
    assert final.counts == calm.counts
    outcomes = [part for found in calm.parts.values() for part in found]
    # a stop that comes with the last outcome of a rung is noticed with the first of the next
    assert lives >= len(outcomes) - len(calm.rungs) - 6


def test_a_resumed_finished_race_asks_and_writes_nothing(tmp_path: Path) -> None:
    plan = small("cma", "halving")
    first = live(tmp_path / "run", plan)
    before = lines_of(tmp_path / "run")
    again = live(tmp_path / "run", plan)
    assert result(again) == result(first)
    assert len(lines_of(tmp_path / "run")) == len(before) + 1


# -- what is recorded stands -------------------------------------------------------------------------------------------


def contrary(responses: Any, *arguments: Any, **more: Any) -> Any:
    """A fit whose items are the other way round: what was hard is easy."""
    found = FITS(responses, *arguments, **more)
    bank: ItemBank = found.bank
    return replace(found, bank=replace(bank, intercepts=-bank.intercepts[::-1], slopes=bank.slopes[::-1]))


def disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another numeric library: fits and rankings come out otherwise."""
    for module in (task_model, calibration):
        monkeypatch.setattr(module, "fit", contrary)
    ranks = race_module.expected_ranks
    monkeypatch.setattr(race_module, "expected_ranks", lambda *a, **k: -ranks(*a, **k))


@pytest.mark.parametrize("race", ["halving", "none"])
def test_recorded_rungs_and_estimates_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, race: str) -> None:
    plan = small("nsga2", race)
    calm = live(tmp_path / "calm", plan)
    with monkeypatch.context() as patch:
        disagree(patch)
        assert result(live(tmp_path / "other", plan)) != result(calm)  # it would have gone otherwise
        lines = lines_of(tmp_path / "calm")
        estimated = [i for i, line in enumerate(lines) if b'"t":"estimated"' in line]
        rungs = [i for i, line in enumerate(lines) if b'"t":"rung"' in line]
        for cut in {len(lines), estimated[-1] + 1, estimated[0] + 1, rungs[-1] + 1}:
            folder = tmp_path / f"cut{cut}"
            shutil.copytree(tmp_path / "calm", folder)
            (folder / "journal.jsonl").write_bytes(b"".join(lines[:cut]))
            resumed = live(folder, replace(plan, accept_history=True))
            assert (folder / "journal.jsonl").read_bytes().startswith(b"".join(lines[:cut]))
            for key in list(calm.rungs)[: sum(b'"t":"rung"' in line for line in lines[:cut])]:
                assert resumed.rungs[key] == calm.rungs[key]
            for key in list(calm.estimated)[: sum(b'"t":"estimated"' in line for line in lines[:cut])]:
                assert resumed.estimated[key] == calm.estimated[key]
            assert resumed.counts.repeated == 0
            if cut == len(lines):
                assert result(resumed) == result(calm)


def test_the_optimizer_is_told_what_was_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small("cma", "halving")
    first: list[Any] = []
    live(tmp_path / "run", spied(plan, first))
    again: list[Any] = []
    disagree(monkeypatch)
    live(tmp_path / "run", spied(plan, again))
    assert len(first) == len(again) > 0
    for one, other in zip(first, again, strict=True):
        assert [(t.losses, t.violations) for t in one] == [(t.losses, t.violations) for t in other]
        np.testing.assert_array_equal([t.vector for t in one], [t.vector for t in other])


def spied(plan: SearchSetup, log: list[Any]) -> SearchSetup:
    """The same plan, with everything that its optimizer is told kept in a list."""

    def make() -> Any:
        optimizer = plan.make_optimizer()
        tell = optimizer.tell

        def told(found: Any) -> None:
            log.append(found)
            tell(found)

        optimizer.tell = told
        return optimizer

    return replace(plan, make_optimizer=make)


# -- larger budgets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("race", RACES)
@pytest.mark.parametrize("budgets", [(10, 18), (9, 11, 18)])
def test_a_larger_budget_continues_the_same_races(tmp_path: Path, race: str, budgets: tuple[int, ...]) -> None:
    """The first budgets end inside a generation, the second time twice in the same one."""
    name = "nsga2"
    for budget in budgets:
        grown = live(tmp_path / "grown", replace(small(name, race), budget=budget))
    direct = live(tmp_path / "direct", small(name, race))
    for found in (grown, direct):
        assert found.counts.evaluated == 18
    keys = [key for key in direct.parts if key[1] == "search"]
    assert {k: grown.outcomes[k].tasks for k in keys} == {k: direct.outcomes[k].tasks for k in keys}
    whole = {n: e for n, e in direct.estimated.items() if n >= 0}
    assert {n: e for n, e in grown.estimated.items() if n >= 0} == whole
    assert dict(grown.rungs) == dict(direct.rungs)


def test_a_batch_that_the_budget_cuts_is_believed_as_far_as_it_was_asked(tmp_path: Path) -> None:
    plan = replace(small("nsga2", "halving"), budget=10)  # 3 known, a generation of 5, then 2 of the next
    history = live(tmp_path / "run", plan)
    assert history.counts.evaluated == 10
    assert min(history.estimated) == -3
    assert len(history.estimated[-3].rows) == 2
    assert not history.batches[-1].told
    lengthened = live(tmp_path / "run", replace(plan, budget=11))
    assert len(lengthened.estimated[-3].rows) == 3
    assert lengthened.counts.evaluated == 11


def test_lives_are_deterministic_without_any_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (task_model, calibration):
        monkeypatch.setattr(module, "fit", fit)
    plan = small("cma", "halving", estimator="auto")
    one, other = (live(tmp_path / name, plan) for name in ("one", "other"))
    assert result(one) == result(other)
    assert max(len(rung.items[t]) for rung in one.rungs.values() for t in TASKS) <= N_ITEMS

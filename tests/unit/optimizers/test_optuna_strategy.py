"""Optuna behind the protocol: generations stay aligned, failures rank last, the study learns evaluated genes."""

import logging
import time
from typing import Any

import numpy as np
import pytest

from evomerge.optimizers.base import Told
from evomerge.optimizers.optuna_methods import nsga2
from evomerge.optimizers.optuna_strategy import OptunaStrategy
from evomerge.optimizers.protocol import AskTell
from evomerge.optimizers.variation import COARSE_STEP
from evomerge.testing.optimizer_suite import drive
from evomerge.testing.problems import KnownProblem, quantise, sphere, two_spheres

KEY = "NSGAIISampler:generation"


def nsga(seed: int) -> Any:
    from optuna.samplers import NSGAIISampler

    return NSGAIISampler(population_size=8, seed=seed)


def strategy_for(known: KnownProblem, **more: Any) -> OptunaStrategy:
    problem = known.problem(**more)
    return OptunaStrategy(problem, nsga, batch=8, first=8, spread=1.0, mark_failures=True)


def trials_of(strategy: OptunaStrategy) -> list[Any]:
    return strategy._study.get_trials(deepcopy=False)


def test_every_batch_is_one_generation_failures_included() -> None:
    known = two_spheres(3)
    strategy = strategy_for(known, injected=[np.zeros(3)])
    optimizer = AskTell(known.problem(), strategy)
    for batch in range(4):
        asked = optimizer.ask()
        optimizer.tell([Told(v, None) if i == batch else known.told(v) for i, v in enumerate(asked)])
    assert [t.system_attrs[KEY] for t in trials_of(strategy)] == [g for g in range(4) for _ in range(8)]


def test_a_failure_is_told_the_worst_seen_and_infeasible() -> None:
    known = sphere(2)
    strategy = strategy_for(known)
    asked = list(strategy.propose())
    losses = np.linspace(3.0, 1.0, 8)
    results = [Told(v, None if i == 5 else (float(losses[i]),)) for i, v in enumerate(asked)]
    strategy.learn(asked, results)
    trials = trials_of(strategy)
    assert [t.values for t in trials] == [[float(x)] if i != 5 else [3.0] for i, x in enumerate(losses)]
    assert [t.constraints["failed"] for t in trials] == [float(i == 5) for i in range(8)]


def test_a_failure_violates_at_least_as_much_as_anything_scored() -> None:
    known = two_spheres(2)
    problem = type(known.problem())(2, 2, 2, np.full(2, 0.5), np.full(2, 0.2), np.zeros(2), 100, 0)
    strategy = OptunaStrategy(problem, nsga, batch=8, first=8, spread=1.0, mark_failures=True)
    asked = list(strategy.propose())
    scored = [Told(v, (0.0, 1.0), (0.3, -1.0)) for v in asked[:7]]
    strategy.learn(asked, [*scored, Told(asked[7], None)])
    assert trials_of(strategy)[7].constraints == {"c0": 0.3, "c1": 0.0, "failed": 1.0}


def test_nothing_scored_yet_means_no_worst_value() -> None:
    known = sphere(2)
    strategy = strategy_for(known)
    asked = list(strategy.propose())
    strategy.learn(asked, [Told(v, None) for v in asked])
    assert {t.state.name for t in trials_of(strategy)} == {"FAIL"}
    again = list(strategy.propose())
    strategy.learn(again, [known.told(v) for v in again])
    assert {t.system_attrs[KEY] for t in trials_of(strategy)[8:]} == {0}


def test_the_study_holds_the_evaluated_genes() -> None:
    known = sphere(3)
    strategy = strategy_for(known)
    asked = list(strategy.propose())
    strategy.learn(asked, [known.told(v) for v in asked])
    for vector, trial in zip(asked, trials_of(strategy), strict=True):
        assert list(trial.params.values()) == quantise(vector).tolist()


def test_optunas_log_level_is_left_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    before = logging.getLogger("optuna").level
    with caplog.at_level(logging.DEBUG):
        drive(nsga2(sphere(2).problem(), {}), sphere(2), 40)
    assert logging.getLogger("optuna").level == before
    assert [r for r in caplog.records if r.name.startswith("optuna")] == []


def test_choices_are_recombined_as_they_are() -> None:
    """Between two options of a choice there is nothing: children take their parents' genes or a fresh draw."""
    known = sphere(6)
    problem = known.problem(seed=2)
    coarse = type(problem)(6, 1, 0, problem.start, problem.spread, np.full(6, COARSE_STEP), 200, 2)
    for chosen, inherits in ((coarse, True), (problem, False)):
        optimizer = nsga2(chosen, {"population": 12})
        first = optimizer.ask()
        optimizer.tell([Told(v, known.answer(v).losses) for v in first])
        genes = {float(x) for v in first for x in v}
        shares = [np.mean([float(x) in genes for x in child]) for child in optimizer.ask()]
        assert (np.mean(shares) > 0.6) == inherits


def test_asking_stays_fast_with_500_trials() -> None:
    known = two_spheres(32)
    optimizer = nsga2(known.problem(budget=500), {"population": 20})
    drive(optimizer, known, 500)
    begun = time.process_time()
    assert len(optimizer.ask()) == 20
    assert (time.process_time() - begun) / 20 < 0.02

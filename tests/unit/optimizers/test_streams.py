"""Optimizers without generations: the contract of streams, and what each method makes of results in any order."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import pytest
from optuna.study import Study
from optuna.trial import FrozenTrial

from evomerge.errors import ConfigError
from evomerge.optimizers.base import Optimizer, Problem, Stream, Told
from evomerge.optimizers.registry import ASYNCHRONOUS, OPTIMIZERS, make_optimizer, stream_of
from evomerge.testing.problems import KnownProblem, half_space_sphere, mixed_sphere, sphere, two_spheres
from evomerge.types import Vector

QUICK = ("cma", "sep-cma", "lra-cma", "catcmawm", "evolve", "random", "nsga2")
SAMPLERS = ("nsga3", "tpe", "gp")


def problem_for(name: str) -> KnownProblem:
    return mixed_sphere(5) if name == "scan" else sphere(5)


def stream(name: str, problem: Problem, **options: int) -> Stream:
    return stream_of(name, make_optimizer(name, problem, options))


def flow(
    optimizer: Stream, known: KnownProblem, n: int, *, ahead: int = 5, seed: int = 0, fail: Sequence[int] = ()
) -> tuple[list[Vector], list[Told]]:
    """Ask and tell `n` vectors, `ahead` of them out at a time, in an order of completion that `seed` decides."""
    rng = np.random.default_rng(seed)
    out: list[tuple[float, int]] = []
    asked: list[Vector] = []
    results: list[Told] = []
    now = 0.0
    while len(results) < n:
        while len(out) < ahead and len(asked) < n:
            heapq.heappush(out, (now + rng.lognormal(0.0, 0.55), len(asked)))
            asked.append(optimizer.ask())
        now, number = heapq.heappop(out)
        told = known.told(known.quantise(asked[number]))
        told = Told(told.vector, None) if number in fail else told
        optimizer.tell(number, told)
        results.append(told)
    return asked, results


def best(results: Sequence[Told]) -> float:
    return min(t.losses[0] for t in results if t.losses is not None)


def test_the_list_of_those_that_can_is_true() -> None:
    for name in OPTIMIZERS.builtin:
        known = two_spheres(4) if name == "como-catcmawm" else problem_for(name)
        can = make_optimizer(name, known.problem(), {}).stream() is not None
        assert can == (name in ASYNCHRONOUS)


def test_an_optimizer_that_needs_generations_is_refused_with_those_that_do_not() -> None:
    with pytest.raises(ConfigError, match=r"(?s)'como-catcmawm' needs whole.*cma, sep-cma.*random"):
        stream("como-catcmawm", two_spheres(4).problem())


@pytest.mark.parametrize("name", [*QUICK, *SAMPLERS, "scan"])
def test_the_same_asks_and_tells_give_the_same_vectors(name: str) -> None:
    known = problem_for(name)
    n, ahead, options = (9, 3, {"startup": 4}) if name == "gp" else (40, 5, {})
    injected = (known.quantise(np.full(5, 0.2)), known.quantise(np.full(5, 0.9)))
    one, two, other = (
        flow(stream(name, known.problem(injected=injected, seed=4), **options), known, n, ahead=ahead, seed=seed)[0]
        for seed in (1, 1, 2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(one[:2], injected, strict=True))
    assert all(v.shape == (5,) and np.all((v >= 0) & (v <= 1)) and not v.flags.writeable for v in one)
    if name not in ("random", "scan", "gp"):
        assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", ["cma", "sep-cma", "lra-cma", "catcmawm"])
def test_with_one_vector_out_cma_is_the_generational_search(name: str) -> None:
    known = sphere(6)

    def generational(optimizer: Optimizer) -> list[Vector]:
        asked: list[Vector] = []
        while len(asked) < 60:
            batch = optimizer.ask()
            asked.extend(batch)
            optimizer.tell([known.told(known.quantise(v)) for v in batch])
        return asked[:60]

    calm = generational(make_optimizer(name, known.problem(seed=2), {}))
    asked, _ = flow(stream(name, known.problem(seed=2)), known, 60, ahead=1)
    assert all(np.allclose(a, b, atol=1e-12) for a, b in zip(asked, calm, strict=True))


@pytest.mark.parametrize("name", ["cma", "sep-cma", "lra-cma", "catcmawm", "evolve"])
def test_learns_from_results_in_any_order(name: str) -> None:
    known = sphere(6)
    start = known.told(known.start_vector).losses
    assert start is not None
    _, results = flow(stream(name, known.problem(seed=1)), known, 200, ahead=18)
    assert best(results) < 0.3 * start[0]
    losses = [t.losses[0] for t in results if t.losses is not None]
    assert np.median(losses[-50:]) < np.median(losses[:50])


@pytest.mark.parametrize("name", ["nsga2", "tpe"])
def test_samplers_learn_with_trials_that_run(name: str) -> None:
    known = sphere(4)
    _, results = flow(stream(name, known.problem(seed=1)), known, 90, ahead=8)
    losses = [t.losses[0] for t in results if t.losses is not None]
    assert np.median(losses[-30:]) < 0.7 * np.median(losses[:30])


def test_no_result_of_a_genetic_search_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every generation has its members whole, although many are bred while an earlier one fills."""
    from optuna.samplers import NSGAIISampler

    sizes: list[int] = []
    population = NSGAIISampler.get_population

    def counted(self: NSGAIISampler, study: Study, generation: int) -> list[FrozenTrial]:
        found: list[FrozenTrial] = population(self, study, generation)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(NSGAIISampler, "get_population", counted)
    known = two_spheres(4)
    flow(stream("nsga2", known.problem(seed=1), population=6), known, 60, ahead=14)
    assert len(sizes) >= 6
    assert set(sizes) == {6}


def test_constraints_are_respected() -> None:
    known = half_space_sphere(4)
    for name in ("cma", "evolve"):
        _, results = flow(stream(name, known.problem(seed=5)), known, 150, ahead=10)
        feasible = [t.losses[0] for t in results if t.losses is not None and t.feasible]
        assert min(feasible) < known.optimum[0] + 0.02


@pytest.mark.parametrize("name", QUICK)
def test_cohorts_that_fail_are_survived(name: str) -> None:
    known = sphere(4)
    asked, _ = flow(stream(name, known.problem()), known, 60, fail=range(25))
    assert all(np.all(np.isfinite(v)) for v in asked)


def test_two_cohorts_may_come_in_without_an_ask_between() -> None:
    known = sphere(4)
    optimizer = stream("cma", known.problem(), population=4)
    asked = [optimizer.ask() for _ in range(17)]
    before = optimizer.mean()
    for number, vector in enumerate(asked):
        optimizer.tell(number, known.told(known.quantise(vector)))
    after = optimizer.mean()
    assert before is not None
    assert after is not None
    assert not np.array_equal(before, after)


def test_results_of_a_run_that_has_ended_are_passed_over() -> None:
    """A gene with a coarse grid converges at once; the restart must not learn from the run before."""
    known = sphere(2)
    problem = Problem(2, 1, 0, np.full(2, 0.5), np.full(2, 1e-6), np.full(2, 0.01), 400, 1)
    optimizer = stream("cma", problem, population=4)
    asked = [optimizer.ask() for _ in range(12)]
    for number in range(4):
        optimizer.tell(number, known.told(known.quantise(asked[number])))
    restarted = optimizer.ask()  # somewhere else
    assert np.max(np.abs(restarted - asked[0])) > 0
    mean = optimizer.mean()
    for number in range(4, 12):
        optimizer.tell(number, known.told(known.quantise(asked[number])))
    again = optimizer.mean()
    assert mean is not None
    assert again is not None
    assert np.array_equal(mean, again)


def test_evolve_never_asks_twice_while_results_are_out() -> None:
    known = mixed_sphere(6)
    asked, _ = flow(stream("evolve", known.problem()), known, 80, ahead=20)
    keys = {known.quantise(v).tobytes() for v in asked}
    assert len(keys) >= 78


def test_a_scan_ends_when_everything_was_asked() -> None:
    known = mixed_sphere(4)
    optimizer = stream("scan", known.problem(budget=10_000))
    asked = 0
    while optimizer.should_stop() is None:
        vector = optimizer.ask()
        optimizer.tell(asked, known.told(known.quantise(vector)))
        asked += 1
        assert asked < 20_000
    assert optimizer.should_stop() == f"all {asked} combinations were asked"


def test_a_search_that_repeats_itself_ends_and_the_reason_stays() -> None:
    problem = Problem(1, 1, 0, np.full(1, 0.5), np.full(1, 0.3), np.full(1, 1.0), 1000, 1)
    optimizer = stream("random", problem, population=2)
    for number in range(52):
        optimizer.ask()
        optimizer.tell(number, Told(np.zeros(1), (1.0,)))
    reason = optimizer.should_stop()
    assert reason == "the last 50 results were of candidates that were known"
    optimizer.ask()
    optimizer.tell(52, Told(np.ones(1), (0.5,)))
    assert optimizer.should_stop() == reason


def test_the_protocol_is_held_to() -> None:
    known = sphere(3)
    optimizer = make_optimizer("cma", known.problem(), {})
    optimizer.ask()
    with pytest.raises(RuntimeError, match="a batch was asked before"):
        optimizer.stream()
    streaming = stream("cma", known.problem())
    assert streaming.population >= 4
    with pytest.raises(RuntimeError, match="ask 0, which is not out"):
        streaming.tell(0, known.told(np.zeros(3)))
    streaming.ask()
    with pytest.raises(ValueError, match="result of ask 0: 2 losses, expected 1"):
        streaming.tell(0, Told(np.zeros(3), (1.0, 2.0)))
    with pytest.raises(ValueError, match=r"does not lie in \[0, 1\]"):
        streaming.tell(0, Told(np.full(3, 1.5), (1.0,)))
    streaming.tell(0, known.told(np.zeros(3)))
    with pytest.raises(RuntimeError, match="ask 0, which is not out"):
        streaming.tell(0, known.told(np.zeros(3)))

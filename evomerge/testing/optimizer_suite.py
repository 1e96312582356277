"""What every optimizer must do, as a pytest class: subclass it for an optimizer of your own.

```python
class TestMine(OptimizerSuite):
    factory = "my_package.mine:make"       # (problem, options) -> Optimizer
    options = {"population": 8}
    objectives = (1, 2)                    # the numbers of objectives that it accepts
    kinds = ("real", "mixed")              # the kinds of genes that it accepts
```

The suite needs no model and takes a second or two.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
import pytest

from evomerge.archive.hypervolume import hypervolume
from evomerge.errors import ConfigError
from evomerge.optimizers.base import Optimizer, Problem, Told
from evomerge.testing.problems import (
    KnownProblem,
    constrained_two_spheres,
    gated_sphere,
    half_space_sphere,
    mixed_sphere,
    mixed_spheres,
    sphere,
    two_spheres,
)
from evomerge.types import Vector

Make = Callable[[Problem], Optimizer]
Trace = list[tuple[Vector, ...]]


def load_factory(spec: str) -> Callable[[Problem, Mapping[str, Any]], Optimizer]:
    """The factory behind `"module:attribute"`."""
    module, attribute = spec.split(":")
    factory: Callable[[Problem, Mapping[str, Any]], Optimizer] = getattr(import_module(module), attribute)
    return factory


def drive(optimizer: Optimizer, known: KnownProblem, budget: int) -> tuple[Trace, list[Told]]:
    """Ask and tell until the budget is spent or the optimizer stops: the batches asked and all results."""
    trace: Trace = []
    results: list[Told] = []
    while len(results) < budget and optimizer.should_stop() is None:
        trace.append(optimizer.ask())
        told = [known.told(v) for v in trace[-1]]
        optimizer.tell(told)
        results += told
    return trace, results


def accident_prone(known: KnownProblem, batch: int, vectors: Sequence[Vector]) -> list[Told]:
    """Results in which batch 1 fails altogether and one candidate in five of every other batch."""
    return [
        Told(known.quantise(v), None) if batch == 1 or (batch + i) % 5 == 0 else known.told(v)
        for i, v in enumerate(vectors)
    ]


def known_problem(n_objectives: int, kinds: str, dim: int, *, constrained: bool = False) -> KnownProblem:
    """The suite's problem of one or two objectives, of `kinds` "real" or "mixed"."""
    if kinds == "mixed":
        if constrained:
            return gated_sphere(dim, n_objectives)
        return mixed_sphere(dim) if n_objectives == 1 else mixed_spheres(dim)
    if constrained:
        return half_space_sphere(dim) if n_objectives == 1 else constrained_two_spheres(dim)
    return sphere(dim) if n_objectives == 1 else two_spheres(dim)


def trace_digest(make: Make, n_objectives: int, n_batches: int = 6, kinds: str = "real") -> str:
    """A digest of everything asked in a run with constraints, failures and injected vectors.

    Equal in every process whatever its hash seed and threads, when the optimizer keeps its contract.
    """
    known = known_problem(n_objectives, kinds, 5, constrained=True)
    optimizer = make(known.problem(seed=11, injected=corners(5)))
    digest = hashlib.sha256()
    for batch in range(n_batches):
        asked = optimizer.ask()
        for vector in asked:
            digest.update(vector.tobytes())
        optimizer.tell(accident_prone(known, batch, asked))
    mean = optimizer.mean()
    digest.update(b"" if mean is None else mean.tobytes())
    return digest.hexdigest()


def corners(dim: int) -> tuple[Vector, ...]:
    """Vectors worth injecting: both corners, and one that lies on no grid."""
    return np.zeros(dim), np.ones(dim), np.linspace(0.0, 0.987654321, dim)


def _random_states() -> tuple[Any, ...]:
    kind, words, *rest = np.random.get_state()  # noqa: NPY002 - the global generator is what must not change
    state: tuple[Any, ...] = (random.getstate(), kind, np.asarray(words).tobytes(), *rest)
    if "torch" in sys.modules:
        state = (*state, sys.modules["torch"].get_rng_state().numpy().tobytes())
    return state


class OptimizerSuite:
    """The contract of `optimizers.base.Optimizer`, as tests.

    Attributes:
        factory: `"module:attribute"` of the factory.
        options: given to the factory in every test; choose them so that a batch is small.
        objectives: the numbers of objectives that the optimizer accepts.
        kinds: the kinds of genes that it accepts: "real" (none is discrete), "mixed", or both.
        seeded: False for an optimizer that draws nothing.
        budget: evaluations in the tests of improvement.
        n_driven: evaluations in the other tests; more than a first batch.
        learns: False for an optimizer that is not expected to improve on random vectors.
    """

    factory: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    objectives: ClassVar[tuple[int, ...]] = (1,)
    kinds: ClassVar[tuple[str, ...]] = ("real", "mixed")
    seeded: ClassVar[bool] = True
    budget: ClassVar[int] = 150
    learns: ClassVar[bool] = True
    n_driven: ClassVar[int] = 24

    def make(self, problem: Problem) -> Optimizer:
        """A fresh optimizer."""
        return load_factory(self.factory)(problem, dict(self.options))

    def known(self, kinds: str | None = None, dim: int = 4) -> KnownProblem:
        """A problem of the smallest number of objectives that the optimizer accepts, of real genes if it may."""
        return known_problem(min(self.objectives), kinds or self.kinds[0], dim)

    def skip_unless(self, kinds: str) -> None:
        """Skip the test for an optimizer of other kinds of genes."""
        if kinds not in self.kinds:
            pytest.skip(f"this optimizer does not search {kinds} genes")

    def test_ask_and_tell_alternate(self) -> None:
        """A second ask, or a tell without a batch, is an error that changes nothing."""
        known = self.known()
        optimizer = self.make(known.problem())
        with pytest.raises(RuntimeError, match="no batch is out"):
            optimizer.tell([])
        asked = optimizer.ask()
        with pytest.raises(RuntimeError, match="twice"):
            optimizer.ask()
        optimizer.tell([known.told(v) for v in asked])
        with pytest.raises(RuntimeError, match="no batch is out"):
            optimizer.tell([known.told(v) for v in asked])

    def test_results_that_do_not_fit_are_refused(self) -> None:
        """Too many results, losses or violations, or genes outside the cube; the batch stays open."""
        known = self.known()
        optimizer = self.make(known.problem())
        results = [known.told(v) for v in optimizer.ask()]
        with pytest.raises(ValueError, match=f"{len(results)} vectors were asked"):
            optimizer.tell([*results, results[0]])
        losses = results[0].losses or ()
        with pytest.raises(ValueError, match=f"{len(losses) + 1} losses"):
            optimizer.tell([Told(results[0].vector, (*losses, 0.0)), *results[1:]])
        with pytest.raises(ValueError, match="1 violations"):
            optimizer.tell([Told(results[0].vector, losses, (0.0,)), *results[1:]])
        with pytest.raises(ValueError, match="does not lie in"):
            optimizer.tell([Told(results[0].vector + 2.0, losses), *results[1:]])
        optimizer.tell(results)

    @pytest.mark.parametrize("kinds", ["real", "mixed"])
    def test_vectors_are_fresh_read_only_and_inside(self, kinds: str) -> None:
        """Nobody can change what was asked, and every vector decodes."""
        self.skip_unless(kinds)
        known = self.known(kinds)
        trace, _ = drive(self.make(known.problem(injected=corners(4))), known, self.n_driven)
        for vector in [v for batch in trace for v in batch]:
            assert vector.shape == (4,)
            assert vector.dtype == np.float64
            assert not vector.flags.writeable
            assert np.all((vector >= 0) & (vector <= 1))
        assert len({id(v) for batch in trace for v in batch}) == sum(len(batch) for batch in trace)

    @pytest.mark.parametrize("kinds", ["real", "mixed"])
    def test_injected_vectors_are_asked_exactly_and_once(self, kinds: str) -> None:
        """In the first batch, beside vectors of its own."""
        self.skip_unless(kinds)
        known = self.known(kinds)
        injected = corners(4)
        trace, _ = drive(self.make(known.problem(injected=injected)), known, self.n_driven)
        for vector in injected:
            assert sum(np.array_equal(vector, v) for v in trace[0]) == 1
        assert len(trace[0]) > len(injected) or not self.learns

    @pytest.mark.parametrize("kinds", ["real", "mixed"])
    def test_more_injected_vectors_than_a_batch_holds(self, kinds: str) -> None:
        """Sixteen parents and their soups may outnumber a population."""
        self.skip_unless(kinds)
        known = self.known(kinds)
        injected = [np.full(4, value) for value in np.linspace(0, 1, 40)]
        optimizer = self.make(known.problem(injected=injected))
        asked = optimizer.ask()
        assert all(any(np.array_equal(v, a) for a in asked) for v in injected)
        optimizer.tell([known.told(v) for v in asked])
        assert len(optimizer.ask()) >= 1

    def test_arguments_are_not_changed(self) -> None:
        """Neither the results nor the problem."""
        known = self.known()
        problem = known.problem(injected=corners(4))
        optimizer = self.make(problem)
        asked = optimizer.ask()
        results = [known.told(v) for v in asked]
        before = [(t.vector.copy(), t.losses, t.violations) for t in results]
        kept = list(results)
        optimizer.tell(results)
        optimizer.ask()
        assert results == kept
        for told, (vector, losses, violations) in zip(results, before, strict=True):
            assert np.array_equal(told.vector, vector)
            assert (told.losses, told.violations) == (losses, violations)
        assert all(np.array_equal(a, b) for a, b in zip(problem.injected, corners(4), strict=True))

    @pytest.mark.parametrize(("n_bad", "kinds"), [(1, "real"), (3, "real"), (2, "mixed")])
    def test_failures_are_survived(self, n_bad: int, kinds: str) -> None:
        """Whole generations that fail, the first ones included, then some failures in every batch."""
        self.skip_unless(kinds)
        known = self.known(kinds)
        optimizer = self.make(known.problem(injected=corners(4)))
        for batch in range(n_bad + 3):
            asked = optimizer.ask()
            failed = [batch < n_bad or i % 3 == 0 for i in range(len(asked))]
            optimizer.tell(
                [Told(known.quantise(v), None) if bad else known.told(v) for v, bad in zip(asked, failed, strict=True)]
            )
            assert optimizer.should_stop() is None
        assert all(np.all(np.isfinite(v)) for v in optimizer.ask())

    @pytest.mark.parametrize("kinds", ["real", "mixed"])
    def test_replay_asks_the_same(self, kinds: str) -> None:
        """A fresh optimizer that is told the same asks the same: that is what resume rests on."""
        self.skip_unless(kinds)
        for n_objectives in self.objectives:
            one, two = (trace_digest(self.make, n_objectives, 4, kinds) for _ in range(2))
            assert one == two

    def test_another_seed_asks_for_others(self) -> None:
        """The seed matters."""
        if not self.seeded:
            pytest.skip("this optimizer draws nothing")
        known = self.known()
        one, two = (drive(self.make(known.problem(seed=seed)), known, self.n_driven)[0] for seed in (1, 2))
        assert not np.array_equal(one[-1][-1], two[-1][-1])

    @pytest.mark.parametrize("kinds", ["real", "mixed"])
    def test_learns_from_what_was_evaluated_when_it_is_not_what_was_asked(self, kinds: str) -> None:
        """With an accepted history the recorded genes are told, wherever they lie."""
        self.skip_unless(kinds)
        known = self.known(kinds)
        optimizer = self.make(known.problem())
        rng = np.random.default_rng(0)
        for _ in range(3):
            optimizer.tell([known.told(rng.random(4)) for _ in optimizer.ask()])
        assert len(optimizer.ask()) >= 1

    def test_no_global_state_is_touched(self, capfd: pytest.CaptureFixture[str]) -> None:
        """No global generator, nothing printed."""
        known = self.known()
        drive(self.make(known.problem()), known, self.n_driven)  # imports may do as they like
        before = _random_states()
        drive(self.make(known.problem()), known, self.n_driven)
        assert _random_states() == before
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("kinds", ["real", "mixed"])
    def test_flat_losses_do_not_stop_it(self, kinds: str) -> None:
        """Accuracy on few items is flat over wide areas."""
        self.skip_unless(kinds)
        known = self.known(kinds)
        flat = replace(known, name="flat", answer=lambda _: known.answer(np.zeros(4)))
        budget = min(self.budget, 100)
        _, results = drive(self.make(flat.problem(budget=budget)), flat, budget)
        assert len(results) >= budget

    @pytest.mark.parametrize("kinds", ["real", "mixed"])
    def test_the_mean_is_a_point_of_the_cube_or_absent(self, kinds: str) -> None:
        """Before the first tell and after."""
        self.skip_unless(kinds)
        known = self.known(kinds)
        optimizer = self.make(known.problem())
        for _ in range(2):
            mean = optimizer.mean()
            assert mean is None or (mean.shape == (4,) and np.all((mean >= 0) & (mean <= 1)))
            drive(optimizer, known, 1)

    def test_an_unknown_option_is_refused_with_a_suggestion(self) -> None:
        """A typing error must not be a silent default."""
        with pytest.raises(ConfigError, match="Did you mean 'population'"):
            load_factory(self.factory)(self.known().problem(), {"populaton": 8})

    def test_improves_on_a_sphere(self) -> None:
        """To a tenth of the loss at the start, and the whole search moves."""
        if 1 not in self.objectives or not self.learns or "real" not in self.kinds:
            pytest.skip("this optimizer does not learn from one objective over real genes")
        known = sphere(5)
        start = known.told(np.full(5, known.start)).losses
        _, results = drive(self.make(known.problem(seed=3, budget=self.budget)), known, self.budget)
        losses = [t.losses[0] for t in results if t.losses is not None]
        assert start is not None
        assert min(losses) < 0.1 * start[0]
        assert np.median(losses[-len(losses) // 4 :]) < np.median(losses[: len(losses) // 4])

    def test_improves_mixed_genes(self) -> None:
        """To half of the loss at the start: choices are found and kept; the whole search moves."""
        self.skip_unless("mixed")
        if 1 not in self.objectives or not self.learns:
            pytest.skip("this optimizer does not learn from one objective")
        known = mixed_sphere(6)
        start = known.told(known.start_vector).losses
        _, results = drive(self.make(known.problem(seed=3, budget=self.budget)), known, self.budget)
        losses = [t.losses[0] for t in results if t.losses is not None]
        assert start is not None
        assert min(losses) < 0.25 * start[0]
        assert np.median(losses[-len(losses) // 4 :]) < np.median(losses[: len(losses) // 4])

    def test_improves_two_objectives(self) -> None:
        """The front grows after the first quarter, and covers most of the true one."""
        if 2 not in self.objectives or not self.learns or "real" not in self.kinds:
            pytest.skip("this optimizer does not learn from two objectives over real genes")
        known = two_spheres(5)
        _, results = drive(self.make(known.problem(seed=3, budget=self.budget)), known, self.budget)
        losses = [t.losses for t in results if t.losses is not None]
        volume = hypervolume(losses, (0.2, 0.2))
        assert volume > 1.05 * hypervolume(losses[: len(losses) // 4], (0.2, 0.2))
        assert volume > 0.6 * (0.04 - 0.4**4 / 6)  # the front's own: r^2 minus the integral of (0.4 - sqrt f)^2

    @pytest.mark.parametrize("kinds", ["real", "mixed"])
    def test_respects_constraints(self, kinds: str) -> None:
        """The best vectors are infeasible: a search that ignored that would end among them."""
        self.skip_unless(kinds)
        if not self.learns:
            pytest.skip("this optimizer does not learn")
        known = known_problem(min(self.objectives), kinds, 4 if kinds == "real" else 8, constrained=True)
        _, results = drive(self.make(known.problem(seed=5, budget=self.budget)), known, self.budget)
        feasible = [t.losses[0] for t in results if t.losses is not None and t.feasible]
        assert min(feasible) < known.optimum[0] + 0.02
        last = results[-max(8, len(results) // 3) :]
        assert np.mean([t.feasible for t in last]) > 0.3

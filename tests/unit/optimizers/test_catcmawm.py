"""CatCMAwM behind the engine's contract: tables, codes, points from outside, and when a run is over."""

import numpy as np
import pytest

from evomerge.optimizers.base import Told
from evomerge.optimizers.catcmawm import CatEngine, Coder, start_table
from evomerge.optimizers.como import _Scale, default_kernels
from evomerge.optimizers.genes import Genes
from evomerge.optimizers.registry import make_optimizer
from evomerge.testing.optimizer_suite import corners, drive
from evomerge.testing.problems import KnownProblem, gated_sphere, mixed_sphere, mixed_spheres

DIM = 8
KNOWN = mixed_sphere(DIM)
GENES = Genes.of(KNOWN.problem())


def engine(seed: int = 1, population: int = 12, known: KnownProblem = KNOWN) -> CatEngine:
    problem = known.problem()
    return CatEngine(problem.start, problem.spread, population, seed, genes=Genes.of(problem), changes=2.0)


def test_tables_begin_at_the_start_and_change_as_many_genes_as_they_should() -> None:
    table = start_table(KNOWN.start_vector, GENES, 1.0)
    n = GENES.n_values[GENES.choice]
    values = GENES.values(KNOWN.start_vector, GENES.choice)
    assert np.allclose(table.sum(axis=1), 1.0)
    assert np.all(table[np.arange(len(n)), values] == 1 - 1.0 / len(n))
    assert all(np.all(row[k:] == 0) for row, k in zip(table, n, strict=True))
    assert np.allclose(start_table(KNOWN.start_vector, GENES, 99.0)[1, :2], 0.5)  # never beyond uniform


def test_coding_is_exact() -> None:
    coder = Coder(GENES)
    vector = KNOWN.start_vector
    raw = coder.raw(vector)
    n_real = len(GENES.real)
    again = coder.vector(raw[:n_real], raw[n_real:], coder.one_hot(vector))
    assert np.array_equal(again, vector)


def test_samples_are_values_around_the_start() -> None:
    samples = engine().ask(500)
    assert all(np.array_equal(KNOWN.quantise(s)[GENES.discrete], s[GENES.discrete]) for s in samples)
    changed = np.mean([(s != KNOWN.start_vector)[GENES.choice].sum() for s in samples])
    assert changed == pytest.approx(2.0, abs=0.25)
    assert np.allclose(samples[:, GENES.real].std(axis=0), 0.2, rtol=0.2)


def test_a_generation_of_equals_teaches_nothing() -> None:
    one, two = engine(), engine()
    one.tell(one.ask(12), np.full(12, 5.5))
    two.ask(12)
    assert np.array_equal(one.mean(), two.mean())
    assert np.array_equal(one.ask(12), two.ask(12))


def test_samples_are_remembered_until_they_are_told() -> None:
    engine_ = engine()
    asked = engine_.ask(12)
    row = asked[0].tobytes()
    engine_._samples[row].append(engine_._samples[row][0])  # two samples may have the same genes
    engine_.tell(asked, np.arange(12.0))
    assert {key: len(left) for key, left in engine_._samples.items()} == {row: 1}
    engine_.tell(np.repeat(asked[:1], 12, axis=0), np.arange(12.0))  # its own once, then as from outside
    assert engine_._samples == {}


def test_a_far_point_from_outside_moves_real_genes_by_a_plausible_step() -> None:
    here = engine()
    genes = here.ask(12)
    genes[0] = 1.0
    here.tell(genes, np.arange(12.0))
    assert np.all(np.abs(here.mean() - KNOWN.start_vector)[GENES.real] < 0.5)
    assert np.all(np.isfinite(here.ask(12)))


def test_the_mean_is_the_mode_of_the_choices() -> None:
    assert np.array_equal(engine().mean(), KNOWN.start_vector)
    optimizer = make_optimizer("catcmawm", KNOWN.problem(seed=2, budget=400), {})
    drive(optimizer, KNOWN, 400)
    mean = optimizer.mean()
    assert mean is not None
    assert np.array_equal(mean, KNOWN.quantise(mean)) or len(GENES.real) > 0
    assert KNOWN.answer(KNOWN.quantise(mean)).losses[0] < 0.01


def test_a_settled_run_ends_and_the_next_one_has_twice_the_population() -> None:
    gates = mixed_sphere(4)
    optimizer = make_optimizer("catcmawm", gates.problem(budget=3000), {})
    trace, _ = drive(optimizer, gates, 900)
    sizes = [len(batch) for batch in trace]
    assert sizes[0] == 8
    assert 16 in sizes


def test_broken_numbers_are_seen() -> None:
    here = engine()
    assert not here.broken()
    here._es._q[0, 0] = np.nan
    assert here.broken()


def test_como_keeps_its_batches_and_tells_the_infeasible_behind_the_feasible() -> None:
    known = mixed_spheres(DIM)
    optimizer = make_optimizer("como-catcmawm", known.problem(budget=200, injected=corners(DIM)), {})
    trace, _ = drive(optimizer, known, 120)
    sizes = [len(batch) for batch in trace]
    population, kernels = 10, default_kernels(known.problem(budget=200))
    assert sizes[:3] == [population, population + kernels - 1, population + 1]
    assert set(sizes[2:]) == {population + 1}


def test_como_orders_violations_and_failures() -> None:
    known = gated_sphere(DIM, 2)
    x = known.start_vector
    feasible = [Told(x, (0.0, 4.0), (-1.0,)), Told(x, (2.0, 0.0), (-1.0,))]
    scale = _Scale(feasible)
    a, b, slightly, badly, failed = scale.units(
        [*feasible, Told(x, (0.1, 0.1), (0.1,)), Told(x, (0.0, 0.0), (9.0,)), Told(x, None)]
    )
    assert (a.tolist(), b.tolist()) == ([0.0, 1.0], [1.0, 0.0])
    assert np.all(slightly > [1.0, 1.0])
    assert np.all(slightly < badly)
    assert np.all(badly < failed)

"""Kinds of genes: numbers of values and back, first batches, edits, and what Optuna is told."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.optimizers.base import Problem
from evomerge.optimizers.edits import Editor
from evomerge.optimizers.genes import FIRST_CHANGES, Genes, mixed_vectors
from evomerge.optimizers.optuna_methods import nsga2
from evomerge.optimizers.protocol import gaussian_vectors
from evomerge.testing.optimizer_suite import drive
from evomerge.testing.problems import mixed_kinds, mixed_sphere, sphere
from evomerge.types import GeneKind, Vector

STEPS = (("none", "a0", "a1"), ("none", "a0", "a1", "a2"), ("none", "a1", "a2"))


def problem_of(*kinds: GeneKind, start: Vector | None = None, seed: int = 0) -> Problem:
    d = len(kinds)
    steps = np.array([0.01 if k.type == "real" else 1 / k.n_values for k in kinds])
    start = np.array([0.5 / k.n_values for k in kinds]) if start is None else start
    return Problem(d, 1, 0, start, np.full(d, 0.2), steps, 200, seed, kinds=kinds)


def sequence(seed: int = 0) -> Problem:
    return problem_of(*(GeneKind("choice", len(s), s) for s in STEPS), seed=seed)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(2, 40), min_size=1, max_size=8), st.integers(0, 10_000))
def test_values_and_centres_are_inverse(sizes: list[int], seed: int) -> None:
    genes = Genes.of(problem_of(*(GeneKind("integer", n) for n in sizes)))
    values = np.array([seed % n for n in sizes])
    columns = genes.discrete
    assert genes.values(genes.centres(values, columns), columns).tolist() == values.tolist()
    assert genes.values(np.ones(len(sizes)), columns).tolist() == [n - 1 for n in sizes]


def test_an_integer_of_two_values_is_a_choice() -> None:
    genes = Genes.of(problem_of(GeneKind("integer", 2), GeneKind("integer", 3), GeneKind("real", 9)))
    assert (genes.choice.tolist(), genes.integer.tolist(), genes.real.tolist()) == ([0], [1], [2])


def test_real_problems_draw_as_they_always_did() -> None:
    """Recorded runs replay: with kinds that are all real, or with none, nothing changes."""
    plain = sphere(5).problem(seed=4)
    named = problem_of(*[GeneKind("real", 101)] * 5)
    for problem in (plain, named):
        one, two = (draw(problem, 7, np.random.default_rng(1)) for draw in (mixed_vectors, gaussian_vectors))
        assert np.array_equal(one, two)


def test_first_vectors_change_a_few_choices() -> None:
    problem = problem_of(*[GeneKind("choice", 9)] * 12)
    vectors = mixed_vectors(problem, 4000, np.random.default_rng(0))
    changed = np.mean(np.sum(vectors != problem.start, axis=1))
    assert changed == pytest.approx(FIRST_CHANGES * 8 / 9, rel=0.05)


def test_discrete_genes_of_a_first_batch_are_values() -> None:
    known = mixed_sphere(8)
    for row in mixed_vectors(known.problem(), 50, np.random.default_rng(3)):
        quantised = known.quantise(row)
        assert all(row[i] == quantised[i] for i, k in enumerate(known.kinds) if k.type != "real")


def edits(problem: Problem, code: list[int], n: int = 3000) -> list[tuple[int, ...]]:
    editor, rng = Editor(problem), np.random.default_rng(0)
    return [tuple(editor.edited(np.array(code, dtype=float), rng).astype(int).tolist()) for _ in range(n)]


def labels_of(code: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(step[k] for step, k in zip(STEPS, code, strict=True))


def test_edits_stay_inside_and_leave_their_argument() -> None:
    problem = problem_of(*mixed_kinds(8))
    code = np.array([0.3, 1, 2, 0, 0.7, 3, 5, 1])
    editor, rng = Editor(problem), np.random.default_rng(1)
    before = code.copy()
    sizes = np.array([1, 4, 6, 2, 1, 4, 6, 2])
    for _ in range(500):
        edited = editor.edited(code, rng)
        assert np.all((edited >= 0) & (edited < sizes))
        assert edited[[0, 4]].tolist() == [0.3, 0.7]
        assert np.array_equal(code, before)


def test_a_sequence_moves_by_labels_not_by_numbers() -> None:
    """a1 stands at number 2, 2 and 1 of the three steps; a shift to the left keeps the layer, not the number."""
    found = {labels_of(code) for code in edits(sequence(), [0, 1, 1])}
    assert labels_of((0, 1, 1)) == ("none", "a0", "a1")
    assert ("a0", "a1", "none") in found
    assert ("a0", "none", "a1") in found  # exchanged
    assert ("none", "none", "a1") in found  # one redrawn


def test_a_value_that_the_next_step_lacks_is_drawn_afresh() -> None:
    codes = edits(sequence(), [1, 3, 2])  # a0 a2 a2: a2 is nothing that the first step could run
    assert all(step in STEPS[i] for code in codes for i, step in enumerate(labels_of(code)))


def test_gates_change_places() -> None:
    found = set(edits(problem_of(*[GeneKind("choice", 2)] * 4), [1, 0, 0, 0]))
    assert {(0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)} <= found
    assert {(0, 0, 0, 0), (1, 1, 0, 0)} <= found


def test_integers_step_more_often_than_they_jump() -> None:
    values = [code[0] for code in edits(problem_of(GeneKind("integer", 9)), [4])]
    assert np.mean([abs(v - 4) == 1 for v in values]) > 0.55
    assert set(values) == set(range(9)) - {4}


def test_optuna_is_told_what_a_gene_stands_for() -> None:
    known = mixed_sphere(4)
    optimizer: Any = nsga2(known.problem(), {"population": 8})
    drive(optimizer, known, 24)
    kinds = [type(d).__name__ for d in optimizer._strategy._space.values()]
    assert kinds == ["FloatDistribution", "CategoricalDistribution", "IntDistribution", "CategoricalDistribution"]
    trial = optimizer._strategy._study.get_trials(deepcopy=False)[0]
    assert [type(v) for v in trial.params.values()] == [float, int, int, int]


def test_children_of_nsga2_hold_values_and_inherit_integers() -> None:
    """Integers are exchanged or mutated, never blended: a child's come from its parents most of the time."""
    kinds = [GeneKind("integer", 50)] * 10 + [GeneKind("real", 101)]
    problem = problem_of(*kinds, start=np.full(11, 0.5))
    optimizer = nsga2(problem, {"population": 12})
    first = optimizer.ask()
    known = sphere(11)
    optimizer.tell([type(t)(v, t.losses) for v, t in ((v, known.told(v)) for v in first)])
    pool = [{v[i] for v in first} for i in range(10)]
    children = optimizer.ask()
    assert np.mean([child[i] in pool[i] for child in children for i in range(10)]) > 0.75
    cells = np.array(children)[:, :10] * 50 - 0.5
    assert np.allclose(cells, np.rint(cells))

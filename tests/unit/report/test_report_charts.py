"""What the charts are computed from: the front's border, progress, genes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.layout import Role, TensorInfo
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.report.gene_values import GeneTable
from evomerge.report.genes import constant_of, gene_map, largest, merge_genes
from evomerge.report.marks import role_of
from evomerge.report.plots import outside_search_scatter, search_scatter, staircase
from evomerge.report.progress import best_so_far, evaluated_rows, objective_progress, steps
from evomerge.report.summary import EvaluationRow, ObjectiveInfo
from evomerge.report.svg import Scale
from evomerge.testing.sample_runs import sample_recipe, sample_rows, sample_run


def border_height(corners: list[tuple[float, float]], x: float) -> float:
    """Height of the border just right of x, read off its horizontal pieces."""
    for (x1, y1), (x2, y2) in pairwise(corners):
        if y1 == y2 and x1 <= x < x2:
            return y1
    raise LookupError(x)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=20),
    st.sampled_from([(1, 1), (1, -1), (-1, 1), (-1, -1)]),
)
@settings(deadline=None, max_examples=200)
def test_the_staircase_is_the_border_of_what_is_attained(points: list[tuple[int, int]], signs: tuple[int, int]) -> None:
    """Slow reference: at each x the best y among points that are at least as good in x."""
    sx, sy = signs  # 1: maximized

    def dominates(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a != b and sx * a[0] >= sx * b[0] and sy * a[1] >= sy * b[1]

    front = sorted({p for p in points if not any(dominates(q, p) for q in points)})
    corners = staircase([(float(x), float(y)) for x, y in front], maximize_x=sx == 1)
    for x in np.arange(front[0][0] + 0.5, front[-1][0], 1.0):
        attained = [y for px, y in front if sx * px >= sx * x]
        best = max(attained) if sy == 1 else min(attained)
        assert border_height(corners, float(x)) == best


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_best_so_far_ignores_the_infeasible(direction: str) -> None:
    rows = sample_rows(60, ("a",), failures=6, feasible_share=0.6)
    track = best_so_far(rows, ObjectiveInfo("a", direction))  # type: ignore[arg-type]
    best = max if direction == "maximize" else min
    for k, value in track:
        seen = [r.objectives["a"] for r in rows[:k] if r.feasible and r.objectives is not None]
        assert value == best(seen)
    first = next(k for k, r in enumerate(rows, start=1) if r.feasible)
    assert [k for k, _ in track] == list(range(first, 61))


def test_a_step_curve_keeps_its_value_until_the_next() -> None:
    unit = Scale(0, 10, 0, 10)
    assert steps([(1, 3.0), (4, 5.0)], unit, unit) == [(1, 3), (4, 3), (4, 5)]


def test_reused_candidates_are_no_evaluations() -> None:
    _, details = sample_run(n=20)
    again = EvaluationRow("c9", 1, "candidate", {"skills": 0.1, "cross": 0.1}, True, reused=True)
    more = type(details)(evaluations=(*details.evaluations, again))
    assert len(evaluated_rows(more)) == 20


def test_the_chart_marks_failures_and_the_choice() -> None:
    summary, details = sample_run(("skills",), n=40, failures=5)
    svg = objective_progress(summary, details, summary.objectives[0], wide=500, high=300)
    assert svg.count('class="failure"') == 5
    assert svg.count('class="chosen"') == 1
    assert svg.count('class="baseline-line"') == len(summary.baselines)


def test_the_scatter_draws_every_candidate() -> None:
    summary, details = sample_run(n=50, failures=4, feasible_share=0.5)
    svg = search_scatter(summary, details, wide=600, high=500)
    rows = [r for r in details.evaluations if r.objectives is not None]
    feasible = sum(r.feasible for r in rows)
    assert svg.count('class="candidate"') == feasible
    assert svg.count('class="infeasible"') == len(rows) - feasible
    assert outside_search_scatter(summary, details) == 0


def test_roles() -> None:
    summary, _ = sample_run()
    assert summary.chosen is not None
    assert role_of(summary.chosen, summary) == "chosen"
    assert {role_of(b, summary) for b in summary.baselines} == {"baseline"}
    assert {role_of(f, summary) for f in summary.front} == {"front", "chosen"}


def genes_at(table: GeneTable, row: str, column: str) -> float | None:
    return table.values[table.rows.index(row)][table.columns.index(column)]


def test_genes_are_what_the_rules_say() -> None:
    recipe = sample_recipe(n_layers=3, parents=("m", "s"))
    genes = merge_genes("x", recipe, 3)
    (weight,) = [t for t in genes.tables if t.parameter == "weight"]
    assert weight.columns == ("embed", "0", "1", "2", "norm", "head")
    roles: tuple[tuple[str, Role], ...] = (("attention", "attention"), ("mlp", "mlp"), ("norm+other", "norm"))
    for parent in ("m", "s"):
        for name, role in roles:
            for layer in range(3):
                rule = recipe.rule_for(TensorInfo("t", (), "F32", layer, role))
                assert genes_at(weight, f"{parent} · {name}", str(layer)) == rule.per_parent[parent]["weight"]
        assert genes_at(weight, f"{parent} · attention", "head") == 0.3
        assert genes_at(weight, f"{parent} · mlp", "head") is None
    (scale,) = [t for t in genes.tables if t.parameter == "lambda"]
    assert scale.rows[0].startswith("all parents")
    assert constant_of(scale) == 1.0
    assert genes.methods == ("task_arithmetic",)


def test_one_row_per_parent_where_modules_agree() -> None:
    parents = (ParentRef("a", "a"), ParentRef("b", "b"))
    rule = Rule("linear", {"normalize": True}, {"a": {"weight": 0.25}, "b": {"weight": 0.75}})
    (table,) = merge_genes("x", Recipe(parents, None, (rule,)), 4).tables  # flags are no genes
    assert table.rows == ("a", "b")
    assert table.values == ((0.25,) * 7, (0.75,) * 7)


def test_a_heat_map_has_a_cell_per_value_and_colours_by_sign() -> None:
    table = GeneTable("weight", ("a",), ("0", "1", "2"), ((0.5, -1.0, None),))
    svg = gene_map(table, largest([table]))
    assert svg.count('class="heat"') == 1
    assert svg.count('class="heat-minus"') == 1
    assert svg.count('class="heat-none"') == 1
    assert "weight, a, 1: -1" in svg


def test_a_deep_model_fits_the_page() -> None:
    table = GeneTable("weight", ("a",), tuple(str(k) for k in range(80)), ((0.5,) * 80,))
    svg = gene_map(table, 1.0)
    width = float(svg.split('viewBox="0 0 ')[1].split()[0])
    assert width <= 1100

"""Baselines, and when a rule is nothing but a weighted sum."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.errors import RecipeError
from evomerge.recipe.baselines import parent_recipe, soup_recipe, task_arithmetic_recipe
from evomerge.recipe.equivalence import linear_coefficients, the_only_parent
from evomerge.recipe.recipe import ParentRef, Recipe, Rule

A, B, C = (ParentRef(n, n) for n in "abc")
NAMES = ("a", "b", "c")


def sums(rule, base="c"):
    found = linear_coefficients(rule, base, NAMES)
    return None if found is None else dict(found)


def rule(method, weights, shared=None, **per_parent):
    values = {p: {"weight": w, **{k: v[p] for k, v in per_parent.items()}} for p, w in weights.items()}
    return Rule(method, shared or {}, values)


def test_a_parent_is_itself():
    assert the_only_parent(parent_recipe(B)) == "b"
    assert parent_recipe(B).parents == (B,)


def test_a_soup_is_the_average():
    recipe = soup_recipe([A, B, C])
    assert sums(recipe.rules[0]) == dict.fromkeys("abc", 1 / 3)
    assert the_only_parent(recipe) is None
    assert the_only_parent(soup_recipe([A])) == "a"


def test_task_arithmetic_adds_deltas():
    recipe = task_arithmetic_recipe([A, B], C, 0.25)
    assert recipe.base == "c"
    assert sums(recipe.rules[0]) == {"a": 0.25, "b": 0.25, "c": 0.5}
    assert the_only_parent(task_arithmetic_recipe([A], C, 1)) == "a"
    assert the_only_parent(task_arithmetic_recipe([A, B], C, 0)) == "c"
    with pytest.raises(RecipeError, match="base 'c' among the models"):
        task_arithmetic_recipe([A, C], C, 0.5)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear", "dare_ties"])
@pytest.mark.parametrize("normalize", [True, False])
def test_one_model_alone_at_full_density_is_a_sum(method, normalize):
    found = sums(rule(method, {"a": 0.5, "b": 0.0}, {"normalize": normalize}))
    assert found == ({"a": 1.0} if normalize else {"a": 0.5, "c": 0.5})


def test_what_drops_or_elects_is_no_sum():
    both = {"a": 0.5, "b": 0.5}
    assert sums(rule("ties", both)) is None
    assert sums(rule("dare_ties", both)) is None
    assert sums(rule("dare_linear", both)) == {"a": 0.5, "b": 0.5}
    assert sums(rule("dare_linear", both, density={"a": 1.0, "b": 0.9})) is None
    assert sums(rule("ties", {"a": 1.0}, density={"a": 0.9})) is None
    assert sums(rule("linear", {"a": 0.5, "b": -0.5})) is None
    assert sums(rule("a plug-in's", both)) is None
    assert sums(rule("task_arithmetic", both), base=None) is None


def test_slerp_is_a_sum_at_its_ends():
    assert [sums(Rule("slerp", {"t": t})) for t in (0.0, 1.0, 0.5)] == [{"a": 1.0}, {"b": 1.0}, None]


def test_defaults_are_the_methods():
    assert sums(rule("linear", {"a": 2.0, "b": 2.0})) == {"a": 0.5, "b": 0.5}
    assert sums(rule("task_arithmetic", {"a": 2.0, "b": 2.0})) == {"a": 2.0, "b": 2.0, "c": -3.0}


WEIGHTS = st.floats(-2, 2).filter(lambda w: w == 0 or abs(w) > 1e-3)


@given(WEIGHTS, WEIGHTS, st.booleans(), st.floats(0.1, 2))
def test_sums_agree_with_the_formula(a, b, normalize, strength):
    """Merging three numbers instead of three models, by the formula of task arithmetic."""
    found = sums(rule("task_arithmetic", {"a": a, "b": b}, {"normalize": normalize, "lambda": strength}))
    if found is None:
        assert normalize
        assert abs(a + b) < 0.1 * (abs(a) + abs(b))
        return
    values = {"a": 3.0, "b": -1.0, "c": 0.5}
    delta = a * (3.0 - 0.5) + b * (-1.0 - 0.5)
    divisor = (a + b) if normalize and (a or b) else 1.0
    expected = 0.5 + strength * delta / divisor
    merged = sum(values[p] * c for p, c in found.items())
    assert merged == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_layers_that_are_different_parents_are_a_merge():
    rules = (rule("linear", {"a": 1.0}), rule("linear", {"b": 1.0}))
    assert the_only_parent(Recipe((A, B), None, rules)) is None
    assert the_only_parent(Recipe((A, B), None, (rules[0], rule("linear", {"a": 3.0, "b": 0.0})))) == "a"

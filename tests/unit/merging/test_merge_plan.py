from __future__ import annotations

import pytest

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.errors import ConfigError, MergeError, PluginError, RecipeError
from evomerge.merging.compiled import Variant
from evomerge.merging.foresight import variants_of
from evomerge.merging.methods import load_method
from evomerge.merging.parents import ParentPool
from evomerge.merging.plan import plan_merge
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.registry import Registry
from evomerge.testing.tiny import tiny_checkpoint

WEIGHTS = {"x": {"weight": 0.5}, "y": {"weight": 0.25}}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    names = {n: tiny_checkpoint(folder / n, "llama", i, dtype="bfloat16") for i, n in enumerate("bxy")}
    names["wide"] = tiny_checkpoint(folder / "wide", "llama", 3, dtype="bfloat16", hidden_size=64)
    return ParentPool({n: open_checkpoint(f) for n, f in names.items()})


def recipe(*rules, names="bxy", base="b", **rest):
    return Recipe(tuple(ParentRef(n, n) for n in names), base, rules, **rest)


def test_defaults_are_filled_in_and_inputs_are_in_the_recipes_order(pool):
    plan = plan_merge(recipe(Rule("ties", {"lambda": 2}, dict(reversed(WEIGHTS.items())))), pool)
    rule = plan.tensors[0].rule
    assert (rule.base, rule.inputs) == ("b", ("x", "y"))
    assert rule.shared == {"normalize": True, "rescale": False, "lambda": 2.0}
    assert rule.per_parent == ({"weight": 0.5, "density": 1.0}, {"weight": 0.25, "density": 1.0})
    assert plan.template == "b"
    assert {t.dtype for t in plan.tensors} == {"BF16"}
    assert [t.info.name for t in plan.tensors] == [t.name for t in pool.checkpoint("b").layout.tensors]


def test_the_first_rule_that_selects_a_tensor_decides(pool):
    rules = (Rule("linear", {}, WEIGHTS, roles=("mlp",), layers=(0,)), Rule("task_arithmetic", {}, WEIGHTS))
    plan = plan_merge(recipe(*rules, dtype="float32"), pool)
    for tensor in plan.tensors:
        first = tensor.info.role == "mlp" and tensor.info.layer == 0
        assert tensor.rule.name == ("linear" if first else "task_arithmetic")
        assert tensor.dtype == "F32"


def test_slerp_takes_both_parents_or_leaves_the_base_out(pool):
    assert plan_merge(recipe(Rule("slerp", {"t": 0.5}), names="xy", base=None), pool).tensors[0].rule.inputs == (
        "x",
        "y",
    )
    assert plan_merge(recipe(Rule("slerp", {"t": 0.5})), pool).tensors[0].rule.inputs == ("x", "y")
    assert plan_merge(recipe(Rule("slerp", {"t": 0.5}), names="bx"), pool).tensors[0].rule.inputs == ("b", "x")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule("ties", {"lamda": 1.0}, WEIGHTS), "Did you mean 'lambda'"),
        (Rule("ties", {"weight": 1.0}, WEIGHTS), "no such parameter"),
        (Rule("ties", {}, {"x": {"density": 0.5}}), "no weight of parent x"),
        (Rule("ties", {}, {"x": {"weight": 1.0, "density": 1.5}}), r"density = 1.5 of parent x[\s\S]*\[0, 1\]"),
        (Rule("ties", {"normalize": 1.0}, WEIGHTS), "true or false"),
        (Rule("task_arithmetic", {}, {"x": {"weight": True}}), "a finite number"),
        (Rule("ties", {}, {"b": {"weight": 1.0}}), "merges the base with itself"),
        (Rule("slerp", {}), "no t"),
        (Rule("slerp", {"t": 0.5}, {"x": {}}), "exactly 2"),
    ],
)
def test_rules_that_do_not_fit_their_method_are_refused(pool, rule, message):
    with pytest.raises(RecipeError, match=message):
        plan_merge(recipe(rule), pool)


def test_a_base_is_asked_for(pool):
    with pytest.raises(RecipeError, match="needs a base"):
        plan_merge(recipe(Rule("ties", {}, WEIGHTS), names="xy", base=None), pool)


def test_an_unknown_method_is_answered_with_the_nearest(pool):
    with pytest.raises(ConfigError, match="Did you mean 'ties'"):
        plan_merge(recipe(Rule("tise", {}, WEIGHTS)), pool)


def test_a_tensor_without_a_rule_is_refused(pool):
    with pytest.raises(RecipeError, match="selected by no rule"):
        plan_merge(recipe(Rule("linear", {}, WEIGHTS, roles=("mlp",))), pool)


def test_a_parent_that_is_not_loaded_is_refused(pool):
    with pytest.raises(MergeError, match="Did you mean 'x'"):
        plan_merge(Recipe((ParentRef("xx", "xx"),), None, (Rule("linear", {}, {"xx": {"weight": 1.0}}),)), pool)


def test_other_shapes_are_refused(pool):
    with pytest.raises(MergeError, match="do not have the same tensors"):
        plan_merge(
            recipe(Rule("linear", {}, {"x": {"weight": 1.0}, "wide": {"weight": 1.0}}), names=("x", "wide"), base=None),
            pool,
        )


def test_an_empty_pool_is_refused():
    with pytest.raises(MergeError, match="nothing to merge"):
        ParentPool({})


def test_a_plugin_that_is_no_merge_method_is_refused(monkeypatch):
    registry = Registry("evomerge.merge_methods", "merge method", {"odd": "builtins:print"})
    monkeypatch.setattr("evomerge.merging.methods.METHODS", registry)
    with pytest.raises(PluginError, match="is not a merge method"):
        load_method("odd")


def test_foresight_names_the_variants_that_a_recipe_needs(pool):
    densities = {n: {**v, "density": 0.5} for n, v in WEIGHTS.items()}
    ties = {"histogram", "collect", "gta"}
    found = variants_of(recipe(Rule("ties", {}, densities)), pool)
    assert {v.kind for v in found} == ties
    assert Variant("gta", 16, 2, trim=True, elect=True, norm=True) in found
    assert variants_of(recipe(Rule("task_arithmetic", {}, WEIGHTS)), pool) == {Variant("delta", 16, 2)}
    assert variants_of(recipe(Rule("task_arithmetic", {}, WEIGHTS), compat="mergekit"), pool) == frozenset()

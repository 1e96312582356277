"""What `compat: mergekit` plans: which rules are refused from their numbers, and which dtype a result is stored in."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.errors import MergeError, RecipeError
from evomerge.merging.compat import compat_dtype
from evomerge.merging.compat_rules import check_compat_rule
from evomerge.merging.export import merge_tensors
from evomerge.merging.parents import ParentPool
from evomerge.merging.plan import MERGEKIT_METHODS, plan_merge
from evomerge.recipe.mergekit_specs import MERGEKIT_SPECS
from evomerge.recipe.methods import method_spec
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.testing.tiny import tiny_checkpoint

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


def check(method, shared=None, **columns):
    spec = method_spec(method)
    given = {n: spec.parameters[n].default for n in spec.shared()} | (shared or {})
    n = len(next(iter(columns.values())))
    rows = [
        {k: columns[k][i] if k in columns else spec.parameters[k].default for k in spec.per_parent()} for i in range(n)
    ]
    check_compat_rule(method, given, rows, tuple("xyz"[:n]))


def test_all_twenty_methods_are_known():
    assert tuple(s.name for s in MERGEKIT_SPECS) == MERGEKIT_METHODS
    assert len(MERGEKIT_METHODS) == 20


@pytest.mark.parametrize(("method", "flag"), [("linear", "normalize"), ("multislerp", "normalize_weights")])
class TestSums:
    def test_weights_that_sum_to_zero_are_refused(self, method, flag):
        with pytest.raises(RecipeError, match="sum to zero") as caught:
            check(method, weight=(0.5, -0.5))
        assert f"{flag}: false" in caught.value.allowed

    def test_in_fp32_too(self, method, flag):
        with pytest.raises(RecipeError, match="sum to zero"):
            check(method, weight=(1.0, -1.0 + 1e-9))

    def test_others_are_not(self, method, flag):
        check(method, weight=(0.5, -0.25))
        check(method, {flag: False}, weight=(0.5, -0.5))


def test_multislerp_returns_a_single_model_whatever_its_weight():
    check("multislerp", weight=(0.0,))
    with pytest.raises(RecipeError, match="sum to zero"):
        check("linear", weight=(0.0,))


@pytest.mark.parametrize("method", ["della", "della_linear"])
class TestProbabilities:
    @pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.15), (0.9, 0.15), (0.5, 0.5), (0.15, 0.15)])
    def test_outside_the_open_interval_they_are_refused(self, method, density, epsilon):
        with pytest.raises(RecipeError, match="density - epsilon") as caught:
            check(method, weight=(1.0, 1.0), density=(0.5, density), epsilon=(0.1, epsilon))
        assert "parent y" in caught.value.got

    @pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.15), (0.5, 0.0), (0.0, 0.9), (1.0, 0.9)])
    def test_inside_it_and_where_nothing_is_drawn_they_are_not(self, method, density, epsilon):
        check(method, weight=(1.0,), density=(density,), epsilon=(epsilon,))


@pytest.mark.parametrize(
    ("method", "given", "shape", "stored"),
    [
        ("linear", [BF16, BF16], (3,), BF16),
        ("ties", [BF16, F16], (3,), F32),
        ("karcher", [F16, F32], (3,), F32),
        ("slerp", [F32, F64], (3,), F64),
        ("arcee_fusion", [BF16, BF16], (3,), F32),
        ("ramplus_tl", [F16, F16], (3,), F32),
        ("ramplus_tl", [F64, F16], (3,), F64),
        ("karcher", [BF16, BF16], (1,), BF16),
        ("karcher", [BF16, BF16], (), F32),
        ("karcher", [BF16], (), BF16),
        ("linear", [BF16, BF16], (), BF16),
    ],
    ids=str,
)
def test_the_stored_dtype_is_what_mergekit_computed(method, given, shape, stored):
    assert compat_dtype(method, given, shape, len(given)) == stored


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compat")
    for i, (name, dtype) in enumerate({"b": "bfloat16", "x": "bfloat16", "h": "float16"}.items()):
        tiny_checkpoint(folder / name, "llama", i, dtype=dtype)
    return folder


def recipe_of(folder, names, rule, **rest):
    pool = ParentPool({n: open_checkpoint(folder / n) for n in names})
    return Recipe(tuple(ParentRef(n, str(folder / n)) for n in names), "b", (rule,), **rest), pool


TASK = {n: Rule("task_arithmetic", {}, {n: {"weight": 0.5}}) for n in "xh"}


@pytest.mark.parametrize(
    ("model", "changes", "stored"),
    [
        ("x", {}, "BF16"),
        ("h", {}, "F32"),
        ("h", {"dtype": "float16"}, "F16"),
        ("h", {"compat": "off"}, "BF16"),
        ("x", {"arithmetic": "float32"}, "F32"),
        ("x", {"arithmetic": "float32", "dtype": "bfloat16"}, "BF16"),
    ],
    ids=str,
)
def test_planned_dtypes(folder, model, changes, stored):
    recipe, pool = recipe_of(folder, ("b", model), TASK[model], **{"compat": "mergekit", **changes})
    plan = plan_merge(recipe, pool)
    assert {t.dtype for t in plan.tensors} == {stored}
    name, merged = next(merge_tensors(recipe, pool))
    assert merged.dtype == {"BF16": BF16, "F16": F16, "F32": F32}[stored]
    assert merged.shape == pool.checkpoint("b").tensor(name).shape


def test_a_plan_refuses_what_mergekit_stops_at(folder):
    recipe, pool = recipe_of(
        folder, ("b", "x"), Rule("linear", {}, {"b": {"weight": 1.0}, "x": {"weight": -1.0}}), compat="mergekit"
    )
    with pytest.raises(RecipeError, match="sum to zero"):
        plan_merge(recipe, pool)


def with_tensor(folder, name, value):
    target = folder / name
    if not target.exists():
        target.mkdir()
        (target / "config.json").write_bytes((folder / "b" / "config.json").read_bytes())
        tensors = load_file(folder / "b" / "model.safetensors")
        save_file({**tensors, "model.steps": value}, target / "model.safetensors", {"format": "pt"})
    return target


def test_weights_in_one_parent_and_integers_in_another_are_refused(folder, tmp_path):
    (tmp_path / "b").symlink_to(folder / "b")
    with_tensor(tmp_path, "f", torch.ones(3))
    with_tensor(tmp_path, "i", torch.ones(3, dtype=torch.int64))
    with_tensor(tmp_path, "j", torch.ones(3, dtype=torch.int32))
    for names, message in ((("f", "i"), "weights in one parent"), (("i", "j"), "cannot be merged")):
        pool = ParentPool({n: open_checkpoint(tmp_path / n) for n in names})
        refs = tuple(ParentRef(n, str(tmp_path / n)) for n in names)
        rule = Rule("linear", {}, {n: {"weight": 1.0} for n in names})
        with pytest.raises(MergeError, match=message) as caught:
            list(merge_tensors(Recipe(refs, None, (rule,), compat="mergekit"), pool))
        assert "model.steps" in caught.value.got

"""Recipes of element-wise methods on checkpoints: compiled in place, eager and in parts, with the same bits."""

from __future__ import annotations

import pytest
import torch

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.merging import compiled
from evomerge.merging.execute import merge_parts, prepare
from evomerge.merging.export import merge_tensors
from evomerge.merging.foresight import variants_of
from evomerge.merging.kernels import Kernels
from evomerge.merging.methods import load_method
from evomerge.merging.parents import ParentPool
from evomerge.merging.plan import plan_merge
from evomerge.merging.resident import ResidentModel
from evomerge.recipe.element_specs import ELEMENT_SPECS
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.testing.tiny import tiny_checkpoint

WEIGHTS = {"x": {"weight": 0.6}, "y": {"weight": -0.3}}
ALL_OF_IT = {"density": 0.6, "dropout": 0.4, "epsilon": 0.1}
CASES = {
    "ram": ({"epsilon": 0.01}, {}),
    "ramplus_tl": ({"epsilon": 0.01}, {}),
    "sce": ({"select_topk": 0.4}, {}),
    "nearswap": ({"t": 0.01}, {"x": {}}),
    "arcee_fusion": ({}, {"y": {}}),
    "magmax": ({}, {}),
    "emr": ({}, WEIGHTS),
    "consensus": ({}, WEIGHTS),
    "pcb": ({"ratio": 0.3}, WEIGHTS),
    "pcb of the whole model": ({"ratio": 0.3, "model_wide": True}, {}),
    "ternary": ({}, WEIGHTS),
    "binary": ({}, WEIGHTS),
    "widen": ({}, {}),
    "universal": ({"election": 0.4, "sharpness": 0.5, "norm": 0.7}, {n: w | ALL_OF_IT for n, w in WEIGHTS.items()}),
}

needs_compiler = pytest.mark.skipif(compiled.find_compiler() is None, reason="no C compiler")


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elements")
    names = {n: tiny_checkpoint(folder / n, "llama", i, dtype="bfloat16") for i, n in enumerate("bxy")}
    return ParentPool({n: open_checkpoint(f) for n, f in names.items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


def recipe(case, **rest):
    shared, per_parent = CASES[case]
    rule = Rule(case.split()[0], shared, per_parent)
    return Recipe(tuple(ParentRef(n, n) for n in "bxy"), "b", (rule,), **rest)


def test_every_method_is_tried():
    assert {s.name for s in ELEMENT_SPECS} <= {case.split()[0] for case in CASES}


@needs_compiler
@pytest.mark.parametrize("case", CASES)
def test_in_place_streamed_and_in_parts(pool, folder, case):
    made = recipe(case)
    expected = dict(merge_tensors(made, pool))
    kernels = Kernels(folder)
    resident = ResidentModel(pool, "b", kernels=kernels)
    resident.apply(made)
    held = dict(resident.model.named_parameters())
    assert any(not torch.equal(held[n], pool.checkpoint("b").tensor(n)) for n in held)
    for name, tensor in held.items():
        assert torch.equal(tensor, expected[name])
    resident.apply(made)
    assert resident.n_merged == 0
    assert kernels._functions.keys() <= variants_of(made, pool)
    plan = plan_merge(made, pool)
    tensor = next(t for t in plan.tensors if t.info.name.endswith("q_proj.weight"))
    parts = [p.values.clone() for p in merge_parts(tensor, prepare(plan, tensor, pool, kernels), 1000)]
    assert len(parts) > 1
    assert torch.equal(torch.cat(parts), expected[tensor.info.name].view(-1))


def test_thresholds_of_the_whole_model_are_not_those_of_a_tensor(pool):
    name = "model.layers.0.self_attn.q_proj.weight"
    whole, alone = (dict(merge_tensors(recipe(c), pool))[name] for c in ("pcb of the whole model", "pcb"))
    assert not torch.equal(whole, alone)


def test_the_seed_decides_only_where_something_is_drawn(pool):
    name = "model.layers.0.self_attn.q_proj.weight"
    for case in ("universal", "ternary"):
        draws = [dict(merge_tensors(recipe(case, seed=s), pool))[name] for s in (0, 1)]
        assert torch.equal(*draws) != load_method(case).spec.random


def test_a_new_candidate_replaces_what_was_measured_for_the_last(pool):
    for strength in (0.2, 0.4):
        rule = Rule("universal", {"norm": 0.5, "election": strength}, WEIGHTS)
        list(merge_tensors(Recipe(tuple(ParentRef(n, n) for n in "bxy"), "b", (rule,)), pool))
    found = pool._measured["model.layers.0.self_attn.q_proj.weight"].values()
    assert [len(f) for f in found if isinstance(f, dict)] == [1]

"""Spaces in which the method of a group of layers and modules is itself a gene."""

from __future__ import annotations

import pickle
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import SpaceError
from evomerge.recipe.baselines import parent_recipe, task_arithmetic_recipe
from evomerge.recipe.methods import BUILTIN
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.recipe.serialize import recipe_digest
from evomerge.space.language import parse_space

WEIGHT = {"low": 0, "high": 1.5, "step": 0.05, "start": 0.5}
CHOICES = ["task_arithmetic", "ties", "dare_ties"]
MODELS = ("m0", "m1")
REFS = tuple(ParentRef(name, f"/models/{name}") for name in ("base", *MODELS))
SEED = 5


def make(llama, method=None, layers=2, **more):
    parameters = {"weight": WEIGHT, "density": {"low": 0.1, "high": 1, "step": 0.1}} | more.pop("parameters", {})
    mapping = {"method": {"choices": CHOICES, "depth": "each"} if method is None else method, "depth": "model", **more}
    return parse_space({**mapping, "parameters": parameters}, models=MODELS, base="base", layout=llama(layers))


def build(space, vector):
    return space.build(space.space.decode(vector), parents=REFS, base="base", seed=SEED)


def vector_of(space, **values):
    start = space.space.decode(space.space.start)
    return space.space.encode({**start, **values})


def test_the_method_is_a_gene_per_place_and_needs_no_name_of_a_parent(llama):
    space = make(llama)
    genes = [g for g in space.genes if g.parameter == "method"]
    assert [g.name for g in genes] == ["method.embedding", "method.layer0", "method.layer1", "method.head"]
    assert all(g.parent is None for g in genes)
    kinds = dict(zip(space.space.names, space.space.kinds, strict=True))
    assert kinds["method.layer0"].type == "choice"
    assert kinds["method.layer0"].labels == tuple(CHOICES)


def test_every_place_gets_the_rule_of_its_method_with_that_methods_parameters(llama):
    space = make(llama)
    chosen = {"method.embedding": "task_arithmetic", "method.layer0": "ties", "method.layer1": "dare_ties"}
    recipe = build(space, vector_of(space, **chosen, **{"method.head": "ties"}))
    wanted = {0: "ties", 1: "dare_ties", "embedding": "task_arithmetic", "norm": "ties", "head": "ties"}
    for tensor in space.layout.tensors:
        place = tensor.role if tensor.layer is None else tensor.layer
        assert recipe.rule_for(tensor).method == wanted[place]
    for rule in recipe.rules:
        spec = BUILTIN[rule.method]
        assert set(rule.shared) == set(spec.shared())
        assert all(set(values) == set(spec.per_parent()) for values in rule.per_parent.values())


def test_each_method_keeps_its_own_defaults(llama):
    space = make(llama)
    rules = {
        rule.method: rule
        for method in CHOICES
        for rule in build(space, vector_of(space, **{g.name: method for g in space.genes[:4]})).rules
    }
    assert rules["ties"].shared["normalize"] is True
    assert rules["task_arithmetic"].shared["normalize"] is False
    assert rules["dare_ties"].shared["rescale"] is True
    assert rules["ties"].shared["rescale"] is False


def test_the_seed_counts_only_where_something_is_drawn(llama):
    space = make(llama)
    everywhere = {m: build(space, vector_of(space, **{g.name: m for g in space.genes[:4]})) for m in CHOICES}
    assert {m: r.seed for m, r in everywhere.items()} == {"task_arithmetic": 0, "ties": 0, "dare_ties": SEED}


def test_genes_that_the_chosen_method_does_not_read_make_no_other_recipe(llama):
    space = make(llama)
    plain = {g.name: "task_arithmetic" for g in space.genes if g.parameter == "method"}
    digests = {recipe_digest(build(space, vector_of(space, **plain, **{"density.m0": d}))) for d in (0.1, 0.5, 1.0)}
    assert len(digests) == 1


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000))
def test_every_vector_is_a_legal_recipe_that_comes_back(llama, seed):
    space = make(llama)
    vector = space.space.quantise(np.random.default_rng(seed).random(space.space.dim))
    recipe = build(space, vector)
    back = space.encode_recipe(recipe, seed=SEED)
    assert back is not None
    assert recipe_digest(build(space, back)) == recipe_digest(recipe)


@pytest.mark.parametrize("strength", [0.3, 0.5])
def test_baselines_are_held_exactly(llama, strength):
    space = make(llama)
    base, *models = REFS
    for recipe in (task_arithmetic_recipe(models, base, strength), parent_recipe(models[1])):
        vector = space.encode_recipe(recipe, seed=SEED)
        assert vector is not None
    assert build(space, vector) == parent_recipe(models[1])


def test_a_recipe_of_a_method_that_is_no_choice_is_not_held(llama):
    space = make(llama)
    rule = Rule("breadcrumbs", {}, {m: {"weight": 0.5, "density": 0.5} for m in MODELS})
    assert space.encode_recipe(Recipe(REFS, "base", (rule,)), seed=SEED) is None


def test_modules_may_choose_apart_and_spaces_are_picklable_values(llama):
    space = make(llama, {"choices": CHOICES, "depth": "model", "modules": "apart"})
    assert [g.module for g in space.genes if g.parameter == "method"] == [
        "embedding", "attention", "mlp", "norm", "head",
    ]  # fmt: skip
    assert pickle.loads(pickle.dumps(space)) == space
    assert space.digest != make(llama, {"choices": CHOICES[:2], "modules": "apart"}).digest


def test_methods_with_and_without_a_base_may_stand_together(llama):
    space = make(llama, {"choices": ["linear", "ties"], "depth": "each"})
    for pair in product(["linear", "ties"], repeat=2):
        chosen = dict(zip(["method.layer0", "method.layer1"], pair, strict=True))
        recipe = build(space, vector_of(space, **chosen))
        assert {r.method for r in recipe.rules} <= {"linear", "ties"}
        assert all("base" not in r.per_parent for r in recipe.rules)


BAD = [
    ({"choices": ["ties"]}, "list of methods is expected"),
    ({"choices": ["ties", "tis"]}, "method is unknown.*ties"),
    ({"choices": ["ties", "ties"]}, "stands twice"),
    ({"choices": ["ties", "karcher"]}, "merges all parents alike"),
    ({"choices": CHOICES, "start": "linear"}, "start is not among"),
    ({"choices": CHOICES, "depth": {"knots": 3}}, "cannot be interpolated"),
    ({"choices": CHOICES, "deph": "each"}, "unknown"),
]


@pytest.mark.parametrize(("method", "message"), BAD, ids=lambda x: str(x)[:40])
def test_what_cannot_be_chosen_is_refused(llama, method, message):
    with pytest.raises(SpaceError, match=f"(?s){message}"):
        make(llama, method)


def test_a_parameter_without_default_must_be_said(llama):
    with pytest.raises(SpaceError, match="'weight' is missing, which task_arithmetic needs"):
        make(llama, parameters={"weight": None})

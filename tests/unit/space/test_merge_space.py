"""Merge spaces: every vector is a legal recipe, and known recipes come back as vectors."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import SpaceError
from evomerge.recipe.baselines import parent_recipe, soup_recipe, task_arithmetic_recipe
from evomerge.recipe.equivalence import linear_coefficients
from evomerge.recipe.methods import method_spec
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.recipe.serialize import recipe_digest
from evomerge.space.language import parse_space

WEIGHT = {"low": 0, "high": 1.5, "step": "1/60", "start": 0.6}
DENSITY = {"low": 0.1, "high": 1, "step": 0.01, "start": 0.5}
SEED = 5


def refs(n):
    return tuple(ParentRef(name, f"/models/{name}") for name in ["base", *names(n)])


def names(n):
    return [f"m{i}" for i in range(n)]


def make(llama, method="task_arithmetic", n=3, layers=4, **more):
    parameters = {"weight": WEIGHT} if method != "slerp" else {"t": {"low": 0, "high": 1}}
    if "density" in method_spec(method).parameters:
        parameters["density"] = DENSITY
    parameters |= more.pop("parameters", {})
    mapping = {"method": method, "parameters": parameters, **more}
    return parse_space(mapping, models=names(n), base="base", layout=llama(layers))


def build(space, vector, n=3):
    return space.build(space.space.decode(vector), parents=refs(n), base="base", seed=SEED)


def random_vector(space, seed=0):
    return np.random.default_rng(seed).random(space.space.dim)


@pytest.mark.parametrize(
    ("depth", "modules", "genes"),
    [
        ("model", "together", 1),
        ("each", "together", 4 + 2),
        ({"knots": 3}, "together", 3),
        ({"knots": 9}, "together", 4),
        ({"blocks": 2}, "together", 2),
        ("model", "apart", 5),
        ("each", "apart", 3 * 4 + 2),
        ({"knots": 2}, "apart", 3 * 2 + 2),
        ("each", [["attention"], ["mlp", "norm"], ["embedding", "head"]], 2 * 4 + 2),
        ("model", [["attention", "mlp"], ["norm", "embedding", "head"]], 2),
    ],
    ids=str,
)
def test_genes_per_model(llama, depth, modules, genes):
    space = make(llama, depth=depth, modules=modules)
    assert space.space.dim == 3 * genes
    assert space.space.names == tuple(g.name for g in space.genes)
    assert {g.parent for g in space.genes} == {"m0", "m1", "m2"}


def test_gene_names_say_what_they_govern(llama):
    space = make(llama, n=1, layers=2, modules="apart", parameters={"lambda": {"low": 0.5, "high": 1.5}})
    assert space.space.names[:9] == (
        "weight.m0.embedding",
        "weight.m0.layer0.attention",
        "weight.m0.layer0.mlp",
        "weight.m0.layer0.norm",
        "weight.m0.layer1.attention",
        "weight.m0.layer1.mlp",
        "weight.m0.layer1.norm",
        "weight.m0.head",
        "lambda.embedding",
    )
    assert make(llama, n=1, depth="model").space.names == ("weight.m0",)
    gene = space.genes[1]
    assert (gene.parameter, gene.parent, gene.place, gene.module) == ("weight", "m0", "layer0", "attention")


def weights_by_tensor(space, recipe, model="m0"):
    return {t.name: recipe.rule_for(t).per_parent[model]["weight"] for t in space.layout.tensors}


def test_each_layer_takes_its_own_gene(llama):
    space = make(llama)
    values = space.space.decode(random_vector(space))
    recipe = space.build(values, parents=refs(3), base="base", seed=SEED)
    found = weights_by_tensor(space, recipe, "m1")
    assert found["model.embed_tokens.weight"] == values["weight.m1.embedding"]
    assert found["model.norm.weight"] == found["lm_head.weight"] == values["weight.m1.head"]
    for layer in range(4):
        assert found[f"model.layers.{layer}.mlp.up_proj.weight"] == values[f"weight.m1.layer{layer}"]
        assert found[f"model.layers.{layer}.input_layernorm.weight"] == values[f"weight.m1.layer{layer}"]


def test_knots_are_interpolated_and_stay_on_the_grid(llama):
    space = make(llama, n=1, layers=7, depth={"knots": 3}, parameters={"weight": {"low": 0, "high": 1, "step": 0.01}})
    values = {"weight.m0.knot0": 0.0, "weight.m0.knot1": 0.9, "weight.m0.knot2": 0.3}
    found = weights_by_tensor(space, space.build(values, parents=refs(1), base="base", seed=0))
    layers = [found[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(7)]
    assert layers == [0.0, 0.3, 0.6, 0.9, 0.7, 0.5, 0.3]
    assert found["model.embed_tokens.weight"] == 0.0
    assert found["lm_head.weight"] == 0.3


def test_blocks_divide_the_layers(llama):
    space = make(llama, n=1, layers=5, depth={"blocks": 2})
    recipe = build(space, random_vector(space), n=1)
    found = weights_by_tensor(space, recipe)
    layers = [found[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(5)]
    assert layers[0] == layers[1] == layers[2] == found["model.embed_tokens.weight"]
    assert layers[3] == layers[4] == found["lm_head.weight"] != layers[0]


def test_rules_are_as_few_as_values_allow(llama):
    space = make(llama)
    vector = np.array(space.space.start)
    assert len(build(space, vector).rules) == 1
    vector[space.space.names.index("weight.m0.layer2")] = 0.0
    rules = build(space, vector).rules
    assert [r.layers for r in rules] == [(), (0, 1, 3), (2,)]
    apart = make(llama, modules="apart", depth="model")
    rules = build(apart, random_vector(apart)).rules
    assert len(rules) == 5
    assert {r.layers for r in rules} == {(), (0, 1, 2, 3)}


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties"])
@pytest.mark.parametrize("modules", ["together", "apart"])
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_every_vector_is_a_legal_recipe(llama, method, modules, data):
    n = 2 if method == "slerp" else 3
    space = make(llama, method, n=n, layers=3, modules=modules)
    corner = st.sampled_from([0.0, 1.0])
    genes = data.draw(st.lists(st.one_of(corner, st.floats(0, 1)), min_size=space.space.dim, max_size=space.space.dim))
    check_legal(space, build(space, np.array(genes), n), n)


def check_legal(space, recipe, n):
    assert {p.name for p in recipe.parents} <= {"base", *names(n)}
    for tensor in space.layout.tensors:
        rule = recipe.rule_for(tensor)
        spec = method_spec(rule.method)
        assert set(rule.shared) == set(spec.shared())
        assert all(spec.parameters[k].accepts(v) for k, v in rule.shared.items())
        for values in rule.per_parent.values():
            assert set(values) == set(spec.per_parent())
            assert all(spec.parameters[k].accepts(v) for k, v in values.items())
        if rule.method == "linear" and rule.shared["normalize"]:
            assert abs(sum(v["weight"] for v in rule.per_parent.values())) > 1e-8


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "ties", "dare_ties"])
def test_own_recipes_come_back(llama, method, seed):
    n = 2 if method == "slerp" else 3
    space = make(llama, method, n=n, layers=3, modules="apart")
    vector = random_vector(space, seed)
    recipe = build(space, vector, n)
    back = space.encode_recipe(recipe, seed=SEED)
    assert back is not None
    assert recipe_digest(build(space, back, n)) == recipe_digest(recipe)


def start_recipes(n):
    parents = refs(n)
    found = {p.name: parent_recipe(p) for p in parents}
    found["soup"] = soup_recipe(parents[1:])
    return found | {f"ta{s}": task_arithmetic_recipe(parents[1:], parents[0], s) for s in (0.3, 0.5, 0.7)}


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize(
    ("method", "held"),
    [
        ("task_arithmetic", {"base", "parents", "soup", "ta"}),
        ("dare_linear", {"base", "parents", "soup", "ta"}),
        ("ties", {"base", "parents"}),
        ("dare_ties", {"base", "parents"}),
        ("linear", {"parents", "soup"}),
    ],
)
def test_known_recipes_are_held_where_the_method_can(llama, method, held, n):
    space = make(llama, method, n=n, layers=3)
    for name, recipe in start_recipes(n).items():
        kind = "parents" if name.startswith("m") else name.rstrip("0.357")
        vector = space.encode_recipe(recipe, seed=SEED)
        is_soup = name == "ta0.5" and n == 2  # base + (a - base) / 2 + (b - base) / 2
        assert (vector is not None) == (kind in held or (is_soup and "soup" in held)), name
        if vector is None:
            continue
        assert np.array_equal(vector, space.space.quantise(vector))
        built = build(space, vector, n)
        for tensor in space.layout.tensors:
            assert_same_sum(built, recipe, tensor)
        if kind in ("base", "parents"):  # a parent is scored once, under one digest
            assert recipe_digest(built) == recipe_digest(recipe)


def assert_same_sum(one, other, tensor):
    a, b = (linear_coefficients(r.rule_for(tensor), r.base, [p.name for p in r.parents]) for r in (one, other))
    for parent in {*a, *b}:
        assert a.get(parent, 0.0) == pytest.approx(b.get(parent, 0.0), abs=1e-9)


def test_the_soup_is_not_rounded_onto_a_grid(llama):
    space = make(llama, parameters={"weight": {"low": 0, "high": 1.5, "step": 0.01}})
    assert space.encode_recipe(start_recipes(3)["soup"], seed=SEED) is None
    assert space.encode_recipe(start_recipes(3)["ta0.3"], seed=SEED) is not None


def test_slerp_holds_its_ends_and_nothing_between_others(llama):
    space = make(llama, "slerp", n=2)
    for t, name in enumerate(names(2)):
        vector = space.encode_recipe(start_recipes(2)[name], seed=SEED)
        assert np.array_equal(vector, np.full(space.space.dim, float(t)))
    assert space.encode_recipe(start_recipes(2)["soup"], seed=SEED) is None


def test_fixed_numbers_are_respected_when_encoding(llama):
    soup, strong = start_recipes(3)["soup"], start_recipes(3)["ta0.5"]
    normal = make(llama, parameters={"normalize": True})
    assert normal.encode_recipe(soup, seed=SEED) is not None
    assert normal.encode_recipe(strong, seed=SEED) is None
    scaled = make(llama, parameters={"lambda": 0.5, "weight": {"low": 0, "high": 1.5, "step": 0.1}})
    vector = scaled.encode_recipe(strong, seed=SEED)
    assert set(scaled.space.decode(vector).values()) == {1.0}
    zero = make(llama, parameters={"lambda": 0})
    assert zero.encode_recipe(strong, seed=SEED) is None
    gate = make(llama, depth="model", parameters={"normalize": {"choices": [True, False], "start": False}})
    assert gate.space.decode(gate.encode_recipe(strong, seed=SEED))["normalize"] is False


def test_recipes_that_are_not_the_same_are_not_encoded(llama):
    space = make(llama, "dare_ties")
    recipe = build(space, random_vector(space))
    assert space.encode_recipe(recipe, seed=SEED + 1) is None  # other masks
    assert space.encode_recipe(replace(recipe, compat="mergekit"), seed=SEED) is None
    assert space.encode_recipe(replace(recipe, dtype="float16"), seed=SEED) is None
    stranger = Recipe((ParentRef("x", "x"),), None, (Rule("linear", {}, {"x": {"weight": 1.0}}),))
    assert space.encode_recipe(stranger, seed=SEED) is None
    partial = replace(recipe, rules=(replace(recipe.rules[-1], layers=(0,)),))
    assert space.encode_recipe(partial, seed=SEED) is None
    split = Rule("linear", {"normalize": True}, {"m0": {"weight": 1.0}}, (), ("norm",))
    rest = Rule("linear", {"normalize": True}, {"m1": {"weight": 1.0}})
    halves = Recipe(refs(3)[1:], None, (split, rest))  # final norm and head share a gene
    assert make(llama, "linear").encode_recipe(halves, seed=SEED) is None


def test_densities_of_absent_models_do_not_matter(llama):
    space = make(llama, "ties", depth="model")
    rule = Rule("ties", {"normalize": True, "lambda": 1.0}, {"m0": {"weight": 0.5, "density": 0.3}})
    vector = space.encode_recipe(Recipe(refs(3), "base", (rule,)), seed=SEED)
    values = space.space.decode(vector)
    assert (values["weight.m0"], values["density.m0"], values["weight.m1"]) == (0.5, 0.3, 0.0)


def test_weights_that_cancel_mean_the_average(llama):
    space = make(llama, "linear", depth="model", parameters={"weight": {"low": -1, "high": 1}})
    names_ = space.space.names
    for weights in ((0.0, 0.0, 0.0), (0.5, -0.25, -0.25)):
        recipe = space.build(dict(zip(names_, weights, strict=True)), parents=refs(3), base=None, seed=0)
        assert [v["weight"] for v in recipe.rules[0].per_parent.values()] == [1.0, 1.0, 1.0]


def test_recipes_do_not_depend_on_order_or_seed(llama):
    space = make(llama)
    values = space.space.decode(random_vector(space))
    one = space.build(values, parents=refs(3), base="base", seed=1)
    other = space.build(values, parents=refs(3)[::-1], base="base", seed=2)
    assert one == other
    assert [p.name for p in one.parents] == ["base", "m0", "m1", "m2"]
    dare = make(llama, "dare_linear")
    values = dare.space.decode(random_vector(dare))
    assert dare.build(values, parents=refs(3), base="base", seed=2).seed == 2


def test_wrong_parents_and_values_are_refused(llama):
    space = make(llama)
    values = space.space.decode(space.space.start)
    with pytest.raises(SpaceError, match=r"base None"):
        space.build(values, parents=refs(3), base=None, seed=0)
    with pytest.raises(SpaceError, match="parents base, m0, m1; base base"):
        space.build(values, parents=refs(2), base="base", seed=0)
    with pytest.raises(SpaceError, match=r"weight\.m0\.head"):
        space.build({k: v for k, v in values.items() if k != "weight.m0.head"}, parents=refs(3), base="base", seed=0)


def test_spaces_are_values(llama):
    space = make(llama, "ties")
    again = pickle.loads(pickle.dumps(space))
    assert again == space
    assert again.digest == space.digest
    others = [
        make(llama, "ties", n=2),
        make(llama, "ties", layers=5),
        make(llama, "ties", modules="apart"),
        make(llama, "ties", depth={"knots": 2}),
        make(llama, "ties", parameters={"normalize": False}),
        make(llama, "dare_ties"),
    ]
    assert len({space.digest, *(o.digest for o in others)}) == 7


def test_a_deep_model_is_built_in_milliseconds(llama):
    """Driver overhead per candidate: counted in calls, not in seconds, so that the test is no lottery."""
    space = make(llama, n=16, layers=48, depth={"knots": 4})
    assert space.space.dim == 64
    recipe = build(space, random_vector(space), 16)
    weights = weights_by_tensor(space, recipe)
    layers = [weights[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(48)]
    assert max(abs(a - b) for a, b in pairwise(layers)) < 0.15


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), corner=st.sampled_from([None, 0.0, 1.0]))
def test_della_never_asks_for_probabilities_outside_zero_and_one(llama, seed, corner):
    ranges = {"density": {"low": 0, "high": 1, "step": 0.05}, "epsilon": {"low": 0, "high": 0.5, "step": 0.05}}
    space = make(llama, "della", parameters=ranges)
    vector = random_vector(space, seed) if corner is None else np.full(space.space.dim, corner)
    for rule in build(space, vector).rules:
        for values in rule.per_parent.values():
            density, epsilon = values.get("density", 1.0), values.get("epsilon", 0.0)
            assert density >= 1 or density == 0 or (density - epsilon > 0 and density + epsilon < 1)

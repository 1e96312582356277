"""Path spaces: every vector is a legal recipe, equal models are equal recipes, and known recipes come back."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from path_cases import MAPPINGS, MERGE, REFS, build, decoded, hops, layout, parse, path, some_vector

from evomerge.errors import SpaceError
from evomerge.recipe.baselines import parent_recipe, soup_recipe, task_arithmetic_recipe
from evomerge.recipe.path import Hop, check_layers, plain_path
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.recipe.serialize import recipe_digest, recipe_from_json, recipe_to_json
from evomerge.space.dimensions import Choice, Gate, Integer, Real

BASE, A, B = REFS
ELITE = decoded(parse(MERGE), np.random.default_rng(1).random(14))
SPACES = [parse(m) for m in MAPPINGS] + [parse(m).around([ELITE]) for m in MAPPINGS]
ids = [f"{i}-{m['genotype']}" for i, m in enumerate(MAPPINGS + MAPPINGS)]
every_space = pytest.mark.parametrize("space", SPACES, ids=ids)


@every_space
@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 2**32 - 1), corner=st.sampled_from([None, None, None, 0.0, 1.0]))
def test_every_vector_is_a_legal_recipe_that_comes_back(space, seed, corner):
    random = np.random.default_rng(seed)
    vector = some_vector(space, random) if corner is None else np.full(space.space.dim, corner)
    recipe = decoded(space, vector)
    for tensor in layout(5).tensors:
        recipe.rule_for(tensor)
    check_layers(recipe.path or plain_path(5), 5)
    assert len(recipe.path or plain_path(5)) <= space.plan.max_hops
    assert recipe_from_json(recipe_to_json(recipe)) == recipe
    back = space.encode_recipe(recipe, seed=3)
    assert back is not None
    assert np.array_equal(back, space.space.quantise(back))
    assert recipe_digest(decoded(space, back)) == recipe_digest(recipe)


@every_space
def test_the_search_starts_from_the_plain_stack(space):
    recipe = decoded(space, space.space.start)
    first = space.paths.ground.first
    expected = ELITE if first == "merged" else parent_recipe({p.name: p for p in REFS}[first])
    assert recipe == expected
    assert recipe_digest(recipe) == recipe_digest(expected)
    assert np.array_equal(space.encode_recipe(expected, seed=3), space.space.quantise(space.space.start))


@every_space
def test_spaces_are_values(space):
    again = pickle.loads(pickle.dumps(space))
    assert again == space
    assert again.digest == space.digest
    assert space.starts == ()
    assert space.space.names == tuple(g.name for g in space.genes)
    assert len(space.space.kinds) == space.space.dim


def test_spaces_that_differ_have_other_digests():
    assert len({s.digest for s in SPACES}) == len({repr(s) for s in SPACES})
    other = parse(MAPPINGS[0], n_layers=6), parse(MAPPINGS[0], models=("b", "a")), parse(MAPPINGS[0]).around([ELITE])
    assert len({parse(MAPPINGS[0]).digest, *(s.digest for s in other)}) == 4


def test_pure_paths_name_every_parent_and_only_those_that_matter():
    space = path(genotype="free", sources=["b", "base", "a"])
    values = space.space.decode(space.space.start)
    recipe = build(space, {**values, "step0": "base.4", "step1": "none"})
    assert hops(recipe) == [("base", 4), ("b", 2), ("b", 3), ("b", 4)]
    assert [p.name for p in recipe.parents] == ["b", "base"]
    assert recipe.rules == parent_recipe(B).rules
    assert (recipe.base, recipe.seed, recipe.dtype) == (None, 0, "parent")
    one = build(space, {**values, "step4": "a.4", "step1": "base.1"})
    assert [p.name for p in one.parents] == ["b", "base", "a"], "the owner of the embeddings, the base, the models"
    assert build(space, values, REFS[::-1]) == parent_recipe(B), "whatever the order of the parents"


def test_a_stack_of_another_model_is_a_path_because_of_its_embeddings():
    space = path(genotype="free", reach=0)
    recipe = build(space, {f"step{t}": f"b.{t}" for t in range(5)})
    assert hops(recipe) == [("b", i) for i in range(5)]
    assert recipe.rules == parent_recipe(A).rules
    assert space.encode_recipe(parent_recipe(B), seed=0) is None


@pytest.mark.parametrize("mapping", [m for m in MAPPINGS if "gains" in m or "scales" in m], ids=str)
def test_genes_of_hops_that_do_not_run_change_nothing(mapping):
    space = parse(mapping)
    values = dict(space.space.decode(space.space.start))
    used = {s.place for s in space.paths.genotype.steps(values)}
    recipe = build(space, values)
    gains = [g for g in space.genes if g.parameter in ("gain", "scale")]
    plain = [f".layer{i}.to.{space.paths.ground.first}.layer{i + 1}" for i in range(4)]
    for gene in gains:
        name = gene.name.split(".", 1)[1]
        acts = name in used or any(name.endswith(space.paths.ground.first + p) for p in plain)
        changed = {**values, gene.name: space.space.dimensions[space.space.names.index(gene.name)].value_at(0)}
        assert (build(space, changed) != recipe) == acts, gene.name


def test_gains_are_in_the_recipe_and_must_be_exact():
    space = path(genotype="skips", gains={"low": 0.5, "high": 2})
    values = dict(space.space.decode(space.space.start))
    recipe = build(space, {**values, "gain.layer1": 2.0, "run.layer3": False, "gain.layer3": 0.5})
    assert recipe.path == (Hop(0, "a"), Hop(1, "a", 2.0), Hop(2, "a"), Hop(4, "a"))
    back = space.space.decode(space.encode_recipe(recipe, seed=0))
    assert (back["gain.layer1"], back["run.layer3"], back["gain.layer3"]) == (2.0, False, 1.0)
    near = replace(recipe, path=(Hop(0, "a"), Hop(1, "a", 1.9999)))
    assert space.encode_recipe(near, seed=0) is None
    assert path(genotype="skips").encode_recipe(recipe, seed=0) is None


def test_recipes_of_other_spaces_are_not_encoded():
    space = path(genotype="slots", fixed_ends=False)
    soup, arithmetic = soup_recipe((A, B)), task_arithmetic_recipe((A, B), BASE, 0.5)
    foreign = replace(parent_recipe(A), dtype="float16")
    stranger = parent_recipe(ParentRef("c", "c"))
    named = replace(parent_recipe(A), parents=(A, stranger.parents[0]), path=(Hop(0, "c"),))
    for recipe in (soup, arithmetic, foreign, stranger, named, ELITE, replace(ELITE, path=(Hop(1),))):
        assert space.encode_recipe(recipe, seed=0) is None
    assert space.encode_recipe(replace(parent_recipe(A), path=(Hop(1),)), seed=0) is not None, "a hop of the rules"
    around = space.around([ELITE])
    other = replace(ELITE, rules=soup.rules, base=None, parents=(A, B))
    for recipe in (soup, other, replace(ELITE, dtype="float16"), replace(ELITE, path=(Hop(1, "base"),))):
        assert around.encode_recipe(recipe, seed=0) is None


def test_around_a_merge_its_layers_are_a_source():
    space = path(genotype="free", length={"extra": 1}, reach=2)
    around = space.around([ELITE, parent_recipe(A)])
    assert around.paths.sources == ("merged", "a", "b")
    assert around.paths.ground.first == "merged"
    values = dict(around.space.decode(around.space.start))
    recipe = build(around, {**values, "step1": "b.3", "step2": "none"})
    assert hops(recipe) == [(None, 0), ("b", 3), (None, 3), (None, 4)]
    assert recipe == replace(ELITE, path=recipe.path)
    begun = space.around([recipe])
    assert build(begun, begun.space.decode(begun.space.start)) == recipe, "the search starts from the elite's path"
    assert begun.merged == ELITE
    assert begun.digest != around.digest


def test_paths_that_the_genotype_cannot_say_begin_plainly():
    odd = replace(ELITE, path=(Hop(3), Hop(0)))
    space = path(genotype="skips").around([odd])
    assert build(space, space.space.decode(space.space.start)) == ELITE


def test_embeddings_may_be_a_parents_around_a_merge():
    space = path(genotype="free", reach=1, sources=["merged", "b"], embeddings="b").around([ELITE])
    values = dict(space.space.decode(space.space.start))
    assert build(space, values) == parent_recipe(B)
    recipe = build(space, {**values, "step1": "merged.1"})
    assert hops(recipe) == [("b", 0), (None, 1), ("b", 2), ("b", 3), ("b", 4)]
    outside = next(t for t in layout(5).tensors if t.layer is None)
    assert recipe.rule_for(outside) == replace(parent_recipe(B).rules[0], layers=())
    inside = next(t for t in layout(5).tensors if t.layer == 1)
    assert recipe.rule_for(inside) == ELITE.rule_for(inside)
    assert recipe.base == "base"
    assert space.encode_recipe(ELITE, seed=0) is None


def test_a_merge_that_is_one_parent_is_that_parent():
    space = path(genotype="slots").around([parent_recipe(B)])
    assert space.paths.sources == ("b", "a")
    assert build(space, space.space.decode(space.space.start)) == parent_recipe(B)
    named = path(genotype="windows", sources=["merged", "a"], embeddings="merged").around([parent_recipe(A)])
    assert named.paths.sources == ("a",)
    pure = replace(parent_recipe(B), parents=(B, A), path=(Hop(0, "b"), Hop(1, "a"), Hop(4, "b")))
    begun = path(genotype="slots").around([pure])
    assert build(begun, begun.space.decode(begun.space.start)) == pure


def test_spaces_without_merged_keep_their_sources():
    space = path(genotype="windows", sources=["a"], windows=2)
    recipe = build(space, {**space.space.decode(space.space.start), "window1.times": 2})
    begun = space.around([recipe])
    assert begun.paths == space.paths
    assert build(begun, begun.space.decode(begun.space.start)) == recipe
    assert space.around([]) is space
    assert space.around([ELITE]) == space


def test_merged_means_nothing_before_a_merge():
    space = path(genotype="windows", sources=["merged"])
    assert space.space.dim == 3
    with pytest.raises(SpaceError, match="nothing has been merged yet"):
        build(space, space.space.decode(space.space.start))
    assert space.encode_recipe(parent_recipe(A), seed=0) is None
    for mapping in ({"embeddings": "merged"}, {"genotype": "windows", "from": "merged"}):
        named = path(**{"genotype": "free", **mapping})
        assert named.paths.sources == ("merged", "a", "b"), "what is named is a source"
        around = named.around([ELITE])
        assert build(around, around.space.decode(around.space.start)) == ELITE


def test_wrong_parents_and_values_are_refused():
    space = path(genotype="slots")
    values = space.space.decode(space.space.start)
    with pytest.raises(SpaceError, match="parents base, a, b"):
        build(space, values, (BASE, A))
    with pytest.raises(SpaceError, match=r"slot\.a\.layer1"):
        build(space, {k: v for k, v in values.items() if k != "slot.a.layer1"})
    with pytest.raises(SpaceError, match="does not hold a value"):
        build(space, {**values, "slot.a.layer1": 1})


def test_kinds_and_reports():
    space = path(genotype="windows", windows=2, **{"from": "any"}, gains={"low": 0.5, "high": 2})
    kinds = {g.name: type(d) for g, d in zip(space.genes, space.space.dimensions, strict=True)}
    assert kinds["window1.start"] is kinds["window2.times"] is Integer
    assert kinds["window2.from"] is Choice
    assert kinds["gain.layer4.again2"] is Real
    assert type(path(genotype="slots").space.dimensions[0]) is Gate
    gene = next(g for g in path(genotype="slots", repeats=2).genes if g.name == "slot.b.layer3.round2")
    assert (gene.parameter, gene.parent, gene.place) == ("slot", "b", "layer3")
    gene = next(g for g in space.genes if g.name == "window2.times")
    assert (gene.parameter, gene.parent, gene.place) == ("times", None, "window2")


def test_a_deep_model_is_decoded_in_milliseconds():
    """Counted in genes and hops, not in seconds: nothing grows faster than the path."""
    space = path(48, genotype="slots", repeats=3, scales={"low": 0.4, "high": 1.5})
    assert space.space.dim == 2 * 3 * 2 * 48 + 2
    recipe = decoded(space, np.random.default_rng(0).random(space.space.dim))
    assert 100 < len(recipe.path) < 200
    assert space.encode_recipe(recipe, seed=0) is not None


def test_rules_of_a_merge_stay_as_they_are():
    rule = Rule("linear", {"normalize": True}, {"a": {"weight": 0.3}, "b": {"weight": 0.7}})
    merge = Recipe((A, B), None, (rule,), seed=9)
    space = path(genotype="skips").around([merge])
    recipe = build(space, {**space.space.decode(space.space.start), "run.layer2": False})
    assert recipe == replace(merge, path=tuple(Hop(i) for i in (0, 1, 3, 4)))


@pytest.mark.parametrize("mapping", MAPPINGS[::4], ids=str)
def test_hops_name_no_other_parents_than_the_space_says(mapping):
    random = np.random.default_rng(3)
    for space in (parse(mapping), parse(mapping).around([ELITE]), parse(mapping).around([parent_recipe(B)])):
        assert space.runs_paths
        recipes = [decoded(space, some_vector(space, random)) for _ in range(50)]
        named = {hop.parent for recipe in recipes for hop in recipe.path or ()} - {None}
        assert named <= set(space.hop_parents)
    assert parse(mapping).hop_parents == parse(mapping).paths.sources


def test_a_merge_that_is_one_parent_is_not_held_twice():
    space = path(genotype="windows", sources=["merged", "a"])
    assert space.around([ELITE]).hop_parents == ("a",)
    assert space.around([parent_recipe(A)]).hop_parents == ("a",)
    assert space.around([parent_recipe(B)]).hop_parents == ("b", "a")

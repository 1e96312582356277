"""Merges and paths together: genes of both, one canonical recipe, and all that earlier stages may hand over."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from path_cases import GENOTYPES, MERGE, REFS, build, decoded, hops, layout, parse, path, some_vector

from evomerge.recipe.baselines import parent_recipe, soup_recipe, task_arithmetic_recipe
from evomerge.recipe.equivalence import linear_coefficients
from evomerge.recipe.path import Hop, plain_path
from evomerge.recipe.serialize import recipe_digest

BASE, A, B = REFS
LINEAR = {"method": "linear", "depth": "model", "parameters": {"weight": {"low": 0, "high": 1, "start": 0.5}}}
TIES = {
    "method": "ties",
    "modules": "apart",
    "depth": {"knots": 2},
    "parameters": {"weight": {"low": 0, "high": 1}, "density": {"low": 0.1, "high": 1, "start": 0.5, "depth": "model"}},
}
TIES["modules"] = [["attention", "embedding"], ["mlp", "head"]]
SOURCES = ({}, {"sources": ["merged", "b"], "embeddings": "b"})
PATHS = tuple(
    {"genotype": g["genotype"], **more, **{k: v for k, v in g.items() if k in ("repeats", "windows", "reach")}}
    for g, more in product(GENOTYPES[:2] + GENOTYPES[2:3] + GENOTYPES[5:6] + GENOTYPES[8:9], SOURCES)
)
SPACES = [parse({"kind": "both", "merge": merge, "path": p}) for merge, p in product((MERGE, LINEAR), PATHS)]
SPACES += [parse({"kind": "both", "merge": TIES, "path": {**p, "gains": {"low": 0.5, "high": 2}}}) for p in PATHS]
every_space = pytest.mark.parametrize("space", SPACES, ids=range(len(SPACES)))


def effective(recipe):
    """What runs: per hop the sums of parents in each module (or the parent), with gains; and the outside."""
    names = [p.name for p in recipe.parents]

    def at(layer):
        rules = [recipe.rule_for(t) for t in layout(5).tensors if t.layer == layer]
        sums = [linear_coefficients(r, recipe.base, names) for r in rules]
        return [s or (r.method, r.shared, r.per_parent) for s, r in zip(sums, rules, strict=True)]

    path = recipe.path or plain_path(5)
    return at(None), [(h.gain, [{h.parent: 1.0}] * 2 if h.parent else at(h.layer)) for h in path]


@every_space
@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_vector_is_a_legal_recipe_that_comes_back(space, seed):
    recipe = decoded(space, some_vector(space, np.random.default_rng(seed)))
    for tensor in layout(5).tensors:
        recipe.rule_for(tensor)
    back = space.encode_recipe(recipe, seed=3)
    assert back is not None
    assert np.array_equal(back, space.space.quantise(back))
    assert effective(decoded(space, back)) == effective(recipe)


@every_space
def test_what_does_not_run_changes_nothing(space):
    """Equal models are equal recipes: genes of merged layers that do not run are shuffled."""
    random = np.random.default_rng(7)
    for _ in range(4):
        vector = space.space.quantise(some_vector(space, random))
        values = space.space.decode(vector)
        runs = space.paths.runs(values)
        used = {r.layer for r in runs if r.source == "merged"}
        outside = space.paths.ground.first == "merged"
        touched = set()
        for site in space.merge.sites:
            if site.place in used or (outside and isinstance(site.place, str)):
                touched |= {share.control for _, shares in space.merge.controls(site) for share in shares}
        free = [i for i, name in enumerate(space.merge.space.names) if name not in touched]
        shuffled = np.array(vector)
        shuffled[free] = random.random(len(free))
        assert recipe_digest(decoded(space, shuffled)) == recipe_digest(decoded(space, vector))


def test_genes_and_values():
    space = parse({"kind": "both", "merge": MERGE, "path": {"genotype": "windows", "sources": ["merged"]}})
    assert space.space.dim == 2 * 7 + 3
    assert space.space.names == tuple(g.name for g in space.genes)
    assert space.starts == (0.3, 0.5, 0.7)
    again = pickle.loads(pickle.dumps(space))
    assert (again, again.digest) == (space, space.digest)
    assert len({s.digest for s in SPACES}) == len(SPACES)
    assert space.around([soup_recipe((A, B))]) is space


def make(**mapping):
    return parse({"kind": "both", "merge": MERGE, "path": mapping})


def test_the_plain_path_is_the_merge_alone():
    space = make(genotype="windows", windows=2)
    merge = parse(MERGE)
    vector = np.random.default_rng(2).random(14)
    alone = decoded(merge, vector)
    assert decoded(space, [*vector, *space.space.start[14:]]) == alone
    for recipe in (alone, parent_recipe(A), parent_recipe(BASE), task_arithmetic_recipe((A, B), BASE, 0.5)):
        found = space.encode_recipe(recipe, seed=3)
        assert found is not None
        assert np.array_equal(found[:14], merge.encode_recipe(recipe, seed=3))
        assert build(space, space.space.decode(found)).path is None


def test_a_path_around_a_merge_is_held():
    merge = decoded(parse(MERGE), np.random.default_rng(2).random(14))
    stage = path(genotype="slots", fixed_ends=False).around([merge])
    values = {**stage.space.decode(stage.space.start), "slot.a.layer1": True, "slot.merged.layer2": False}
    elite = build(stage, values)
    assert hops(elite) == [(None, 0), (None, 1), (None, 3), (None, 4), ("a", 1)]
    space = make(genotype="slots", fixed_ends=False)
    vector = space.encode_recipe(elite, seed=3)
    assert effective(decoded(space, vector)) == effective(elite)
    assert make(genotype="windows").encode_recipe(elite, seed=3) is None


def test_a_path_of_parents_is_held_where_the_merge_can_be_a_parent():
    pure = replace(parent_recipe(B), parents=(B, A), path=(Hop(0, "b"), Hop(3, "a"), Hop(4, "b")))
    merged = make(genotype="slots")
    assert decoded(merged, merged.encode_recipe(pure, seed=3)) == pure
    assert pure != replace(pure, path=(Hop(0, "b"), Hop(3, "a"), Hop(4, "a")))
    named = make(genotype="slots", sources=["merged", "b", "a"], embeddings="b")
    vector = named.encode_recipe(pure, seed=3)
    assert decoded(named, vector) == pure
    only_a = make(genotype="slots", sources=["merged", "a"])
    assert decoded(only_a, only_a.encode_recipe(pure, seed=3)) == pure, "merged stands for b"
    soup = replace(soup_recipe((A, B)), path=tuple(Hop(i) for i in (0, 2, 4)))
    assert effective(decoded(only_a, only_a.encode_recipe(soup, seed=3))) == effective(soup)


def test_recipes_that_it_does_not_hold():
    space = make(genotype="windows", sources=["merged"])
    merge = decoded(parse(MERGE), np.random.default_rng(2).random(14))
    assert space.encode_recipe(replace(merge, path=(Hop(4), Hop(0))), seed=3) is None
    assert space.encode_recipe(replace(merge, path=(*plain_path(4), Hop(4, "a"))), seed=3) is None
    assert space.encode_recipe(replace(merge, dtype="float16"), seed=3) is None
    assert make(genotype="windows", embeddings="a").encode_recipe(merge, seed=3) is None
    odd = soup_recipe((A,))
    assert space.encode_recipe(replace(odd, path=(*plain_path(5, "a"), Hop(4, "b")), parents=(A, B)), seed=3) is None
    half = parse({"kind": "both", "merge": MERGE, "path": {"genotype": "skips"}}, models=("a",))
    assert half.encode_recipe(parent_recipe(B), seed=3) is None


def test_embeddings_of_a_parent():
    space = make(genotype="free", sources=["merged", "b"], embeddings="b", reach=0)
    values = dict(space.space.decode(space.space.start))
    assert build(space, values) == parent_recipe(B)
    uniform = {name: 0.5 if name.startswith("weight") else v for name, v in values.items()}
    recipe = build(space, {**uniform, "step2": "merged.2"})
    assert [r.layers for r in recipe.rules] == [(), None]
    assert [p.name for p in recipe.parents] == ["base", "a", "b"]
    other = build(space, {**uniform, "step2": "merged.2", "weight.a.embedding": 0.1, "weight.a.layer0": 0.1})
    assert other == recipe


@every_space
def test_hops_name_no_other_parents_than_the_space_says(space):
    random = np.random.default_rng(4)
    weights = space.merge.space.dim
    corners = [space.merge.encode_recipe(parent_recipe(ref), seed=0) for ref in REFS]
    named = set()
    for k in range(60):
        vector = some_vector(space, random)
        corner = corners[k % len(corners)]
        if k % 2 and corner is not None:
            vector[:weights] = corner
        named |= {hop.parent for hop in decoded(space, vector).path or ()} - {None}
    assert space.runs_paths
    assert named <= set(space.hop_parents)


def test_a_merge_may_be_a_parent_where_its_weights_allow_it():
    def both(low, high, **of_path):
        merge = {**MERGE, "parameters": {"weight": {"low": low, "high": high, "step": 0.1, "start": 0.5}}}
        return parse({"kind": "both", "merge": merge, "path": {"genotype": "windows", **of_path}})

    assert both(0, 1, sources=["merged"]).hop_parents == ("base", "a", "b")
    assert both(0, 0.9, sources=["merged"]).hop_parents == ("base",)
    assert both(0.1, 0.9, sources=["merged"]).hop_parents == ()
    assert both(0.1, 0.9, sources=["merged", "b"]).hop_parents == ("b",)
    assert both(0.1, 0.9).hop_parents == ("a", "b")
    merge = parse(MERGE)
    assert (merge.hop_parents, merge.runs_paths) == ((), False)

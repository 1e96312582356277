"""What a pool measures is what tensors at hand say, merges of every kind have one result, and variants are foreseen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.errors import RecipeError
from evomerge.merging.elements import hash_range, tie_salts
from evomerge.merging.execute import merge_into, merge_parts, new_tensor, prepare
from evomerge.merging.export import merge_tensors
from evomerge.merging.foresight import variants_of
from evomerge.merging.kernels import Kernels
from evomerge.merging.methods import Parameters, TensorFacts
from evomerge.merging.parents import ParentPool, PoolFacts
from evomerge.merging.plan import plan_merge
from evomerge.merging.resident import ResidentModel
from evomerge.merging.thresholds import MagnitudePart, Magnitudes, joint_cut
from evomerge.recipe.equivalence import linear_coefficients
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.testing.tiny import tiny_checkpoint

W = {"x": {"weight": 0.5}, "y": {"weight": 0.75}}
D = {n: {**v, "density": 0.4} for n, v in W.items()}
G = {n: {**v, "gamma": 0.1} for n, v in D.items()}
RULES = {
    "ties": Rule("ties", {"rescale": True}, D),
    "breadcrumbs": Rule("breadcrumbs", {"rescale": True}, G),
    "breadcrumbs_ties": Rule("breadcrumbs_ties", {}, G),
    "della": Rule("della", {}, D),
    "della_linear": Rule("della_linear", {"rescale": False}, D),
    "nuslerp": Rule("nuslerp", {}, W),
    "nuslerp rows": Rule("nuslerp", {"nuslerp_flatten": False}, W),
    "nuslerp columns": Rule("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}, W),
    "multislerp": Rule("multislerp", {}, W),
    "karcher": Rule("karcher"),
    "model_stock": Rule("model_stock"),
    "model_stock rows": Rule("model_stock", {"filter_wise": True}),
    "lines": Rule("lines", {}, W),
    "fedlaw": Rule("fedlaw", {"gamma": 0.99}, {"x": {"logit": 0.5}, "y": {"logit": 0.0}}),
    "expo": Rule("expo", {"alpha": 0.3}, {"x": {}}),
    "metagpt": Rule("metagpt"),
    "localize_and_stitch": Rule("localize_and_stitch"),
    "localize_and_stitch per tensor": Rule("localize_and_stitch", {"model_wide": False}, D),
    "passthrough": Rule("passthrough", {}, {"y": {"scale": 1.1}}),
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Two bf16 models with a bf16 base; y is stored in fp32, as made parents are."""
    folder = tmp_path_factory.mktemp("facts")
    dtypes = {"b": "bfloat16", "x": "bfloat16", "y": "float32"}
    found = {n: tiny_checkpoint(folder / n, "llama", i, dtype=d) for i, (n, d) in enumerate(dtypes.items())}
    return ParentPool({n: open_checkpoint(f) for n, f in found.items()})


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return Kernels(tmp_path_factory.mktemp("kernels"))


def recipe(*rules, **rest):
    return Recipe(tuple(ParentRef(n, n) for n in "bxy"), "b", rules, **rest)


def names(pool, axes=1):
    return [t for t in pool.checkpoint("b").layout.tensors if len(t.shape) >= axes]


@pytest.mark.parametrize("name", RULES)
def test_in_place_streamed_eager_and_compiled_are_the_same_bits(pool, kernels, name):
    made = recipe(RULES[name], seed=5)
    before = set(kernels._functions)
    resident = ResidentModel(pool, "b", kernels=kernels)
    resident.apply(made)
    whole = dict(merge_tensors(made, pool, kernels))
    plan = plan_merge(made, pool)
    fresh = ParentPool(pool.checkpoints)
    for tensor in plan.tensors:
        key = tensor.info.name
        eager = new_tensor(tensor)
        merge_into(tensor, prepare(plan, tensor, fresh, Kernels()), eager.view(-1))
        assert torch.equal(eager, whole[key]), key
        parts = merge_parts(tensor, prepare(plan, tensor, fresh, kernels), 777)
        assert torch.equal(torch.cat([p.values.clone() for p in parts]), whole[key].view(-1)), key
    held = resident.model.state_dict()
    assert all(torch.equal(held[k], v) for k, v in whole.items() if k in held)
    used = {v for v, function in kernels._functions.items() if function is not None}
    assert used - before <= variants_of(made, pool)


@pytest.mark.parametrize("name", RULES)
def test_foreseen_variants_are_used(pool, tmp_path, name):
    made = recipe(RULES[name], seed=5)
    counting = Kernels(tmp_path)
    asked = set()
    counting._function = asked.add
    for _ in merge_tensors(made, ParentPool(pool.checkpoints), counting):
        pass
    assert asked == variants_of(made, pool)


def facts_of(pool, info, kernels, parents=("x", "y")):
    measured = PoolFacts(pool, info.name, info.shape, base="b", parents=parents, kernels=kernels)
    flat = [pool.flat(p, info.name) for p in parents]
    parameters = Parameters(info.name, parents, {}, ({},) * len(parents))
    return measured, TensorFacts(parameters, pool.flat("b", info.name), flat, info.shape, Kernels())


def test_a_pool_says_what_the_tensors_say(pool, kernels):
    for info in names(pool):
        measured, direct = facts_of(pool, info, kernels)
        assert measured.shape == direct.shape
        assert measured.has_base
        assert measured.pool is pool
        for deltas in (False, True):
            np.testing.assert_array_equal(measured.gram(deltas=deltas), direct.gram(deltas=deltas))
            for columns in (False, True):
                pair = [f.vector_grams(deltas=deltas, columns=columns) for f in (measured, direct)]
                np.testing.assert_array_equal(*pair)
        count = max(1, measured.numel // 3)
        for i in (0, 1):
            assert measured.cut(i, count) == direct.cut(i, count)
            assert measured.norm(i, count) == direct.norm(i, count)
            assert measured.norm(i, measured.numel) == direct.norm(i, measured.numel)
            ranks = direct.ranks(i)
            assert torch.equal(measured.ranks(i), ranks)
            for start, stop in ((0, 1), (measured.numel // 3, measured.numel // 2), (0, measured.numel)):
                assert torch.equal(measured.ranks_between(i, start, stop), ranks[start:stop])
                assert torch.equal(measured.ranks_within(i, start, stop), ranks[start:stop])


def test_facts_are_measured_once(pool, kernels, monkeypatch):
    own = ParentPool(pool.checkpoints)
    info = names(own, 2)[1]
    measured, _ = facts_of(own, info, kernels)
    first = (measured.ranks(0), measured.gram(deltas=True), measured.vector_grams(deltas=True, columns=False))
    monkeypatch.setattr("evomerge.merging.parents.gram_matrix", None)
    monkeypatch.setattr("evomerge.merging.parents.vector_grams", None)
    again = (measured.ranks(0), measured.gram(deltas=True), measured.vector_grams(deltas=True, columns=False))
    assert all(a is b for a, b in zip(first, again, strict=True))
    assert own.measured_bytes() >= first[0].numel() + first[2].nbytes


def test_what_is_said_of_deltas_needs_a_base(pool, kernels):
    info = names(pool, 2)[0]
    measured = PoolFacts(pool, info.name, info.shape, base=None, parents=("x", "y"), kernels=kernels)
    assert not measured.has_base
    assert measured.gram().shape == (2, 2)
    with pytest.raises(ValueError, match="deltas need a base"):
        measured.gram(deltas=True)
    parameters = Parameters(info.name, ("x",), {}, ({},))
    bare = TensorFacts(parameters, None, [pool.flat("x", info.name)], info.shape, Kernels())
    assert not bare.has_base
    with pytest.raises(ValueError, match="deltas need a base"):
        bare.cut(0, 1)


def test_the_models_gram_is_the_sum_over_its_tensors(pool, kernels):
    measured, _ = facts_of(pool, names(pool)[0], kernels)
    whole = [
        torch.cat([(pool.flat(p, t.name).float() - pool.flat("b", t.name).float()) for t in names(pool)]) for p in "xy"
    ]
    expected = [[float(torch.dot(a.double(), b.double())) for b in whole] for a in whole]
    np.testing.assert_allclose(measured.model_gram(), expected, rtol=1e-10)


@pytest.mark.parametrize("density", [0.001, 0.1, 0.77])
def test_the_models_threshold_keeps_the_share_of_all_tensors_with_two_axes(pool, kernels, density):
    matrices = names(pool, 2)
    kept, total, smallest, largest = 0, 0, float("inf"), 0.0
    cuts = set()
    for info in matrices:
        measured, _ = facts_of(pool, info, kernels)
        cut = measured.model_cut(1, density)
        cuts.add(cut)
        delta = pool.flat("y", info.name).float() - pool.flat("b", info.name).float()
        common, own = tie_salts(info.name, "y")
        ties = hash_range(0, delta, common).numpy().view(np.uint32) ^ np.uint32(own)
        patterns = delta.abs().view(torch.int32).numpy()
        above = (patterns > cut.bits) | ((patterns == cut.bits) & (ties <= cut.bound))
        kept, total = kept + int(above.sum()), total + delta.numel()
        sizes = delta.abs().numpy()
        smallest, largest = min(smallest, sizes[above].min(initial=9.0)), max(largest, sizes[~above].max(initial=0.0))
    assert len(cuts) == 1
    assert kept == round(density * total)
    assert smallest >= largest


def test_a_joint_threshold_splits_equal_magnitudes_over_tensors():
    base = torch.zeros(500)
    tensors = {"first": torch.full((500,), 0.5), "second": torch.full((500,), -0.5)}
    kernels, kept = Kernels(), 0
    parts = [
        MagnitudePart(Magnitudes.measure(base, x, kernels), lambda x=x: (base, x), (n, "p")) for n, x in tensors.items()
    ]
    for count in (1, 300, 700, 1000):
        cut = joint_cut(count, parts, kernels)
        assert cut.bits == int(torch.tensor(0.5).view(torch.int32))
        kept = 0
        for name in tensors:
            common, own = tie_salts(name, "p")
            kept += int(((hash_range(0, base, common).numpy().view(np.uint32) ^ np.uint32(own)) <= cut.bound).sum())
        assert kept == count


def test_layers_reach_the_method(pool):
    plan = plan_merge(recipe(RULES["lines"]), pool)
    layers = {t.info.name: (t.parameters.layer, t.parameters.n_layers) for t in plan.tensors}
    depth = pool.checkpoint("b").layout.n_layers
    assert layers["model.embed_tokens.weight"] == (None, depth)
    assert layers[f"model.layers.{depth - 1}.mlp.up_proj.weight"] == (depth - 1, depth)


def test_a_plan_refuses_dellas_probabilities(pool):
    rule = Rule("della", {}, {"x": {"weight": 1.0, "density": 0.1}})
    with pytest.raises(RecipeError, match="probabilities leave the range") as told:
        plan_merge(recipe(rule), pool)
    assert "density = 0.1, epsilon = 0.15" in str(told.value)


SUMS = {
    "breadcrumbs": Rule("breadcrumbs", {}, {n: {**v, "gamma": 0.0} for n, v in W.items()}),
    "breadcrumbs alone": Rule("breadcrumbs_ties", {"lambda": 0.7}, {"x": {"weight": -0.4, "gamma": 0.0}}),
    "della_linear": Rule("della_linear", {"normalize": True}, W),
    "della alone": Rule("della", {}, {"x": {"weight": -0.4}}),
    "ties alone": Rule("ties", {"lambda": 0.5}, {"x": {"weight": -0.4}}),
    "passthrough": RULES["passthrough"],
    "nuslerp": Rule("nuslerp", {}, {"x": {"weight": 0.0}, "y": {"weight": 0.3}}),
    "multislerp": Rule("multislerp", {"normalize_weights": False}, {"x": {"weight": 0.0}, "y": {"weight": 0.3}}),
    "karcher": Rule("karcher", {}, {"y": {}}),
    "fedlaw": RULES["fedlaw"],
    "fedlaw of all": Rule("fedlaw"),
    "expo": RULES["expo"],
    "lines": Rule("lines", {"alpha": 0.8, "beta": 0.0}, W),
    "metagpt": Rule("metagpt", {"lambda": 0.4}, {"y": {}}),
    "stitch": Rule("localize_and_stitch", {"lambda": 0.9}, {n: {**v, "density": 1.0} for n, v in W.items()}),
}


@pytest.mark.parametrize("name", SUMS)
def test_rules_that_are_weighted_sums_are_those_sums(pool, name):
    made = recipe(SUMS[name], dtype="float32")
    sums = linear_coefficients(SUMS[name], "b", ["b", "x", "y"])
    assert sums
    for key, merged in merge_tensors(made, pool):
        expected = sum(c * pool.checkpoint(p).tensor(key).double() for p, c in sums.items())
        torch.testing.assert_close(merged.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(RULES.keys() - {"fedlaw", "expo", "passthrough"}))
def test_other_rules_are_no_sums(name):
    assert linear_coefficients(RULES[name], "b", ["b", "x", "y"]) is None

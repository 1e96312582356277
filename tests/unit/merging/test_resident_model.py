from __future__ import annotations

import pickle
import time

import pytest
import torch

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.dataflow.export import write_recipe
from evomerge.errors import MergeError, ModelError, NonFinite
from evomerge.merging.export import METADATA_KEY, merge_tensors
from evomerge.merging.kernels import Kernels
from evomerge.merging.parents import ParentPool
from evomerge.merging.placement import place
from evomerge.merging.resident import ResidentModel, load_model
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.testing.tiny import FAMILIES, tiny_checkpoint

PARENTS = {"x": {"weight": 0.5, "density": 0.4}, "y": {"weight": 0.75, "density": 0.6}}
WEIGHTS = {n: {"weight": v["weight"]} for n, v in PARENTS.items()}
RULES = {
    "linear": Rule("linear", {}, WEIGHTS),
    "slerp": Rule("slerp", {"t": 0.3}),
    "task_arithmetic": Rule("task_arithmetic", {}, WEIGHTS),
    "ties": Rule("ties", {}, PARENTS),
    "dare_linear": Rule("dare_linear", {}, PARENTS),
    "dare_ties": Rule("dare_ties", {"lambda": 0.8}, PARENTS),
}


def open_pool(folder, family="llama", dtype="bfloat16", **config):
    found = {n: tiny_checkpoint(folder / n, family, i, dtype=dtype, **config) for i, n in enumerate("bxy")}
    return ParentPool({n: open_checkpoint(f) for n, f in found.items()})


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return open_pool(tmp_path_factory.mktemp("resident"))


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return Kernels(tmp_path_factory.mktemp("kernels"))


def recipe(*rules, **rest):
    return Recipe(tuple(ParentRef(n, n) for n in "bxy"), "b", rules, **rest)


def held(resident):
    return {n: p.read() for n, p in place(resident.model, resident._layout.tensors).items()}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    odd = [n for n in left if not torch.equal(left[n], right[n])]
    assert not odd


@pytest.mark.parametrize("compat", ["off", "mergekit"])
@pytest.mark.parametrize("name", RULES)
def test_in_place_streamed_eager_and_compiled_are_the_same_bits(pool, kernels, name, compat):
    made = recipe(RULES[name], compat=compat, seed=5)
    resident = ResidentModel(pool, "b", kernels=kernels)
    resident.apply(recipe(RULES["linear"]))  # what was there before must not matter
    resident.apply(made)
    assert_equal(held(resident), dict(merge_tensors(made, pool)))
    assert_equal(held(resident), dict(merge_tensors(made, pool, kernels)))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_merged_in_place_and_loads_from_its_export(tmp_path, kernels, family):
    pool = open_pool(tmp_path, family)
    made = recipe(RULES["ties"])
    resident = ResidentModel(pool, "b", kernels=kernels)
    resident.apply(made)
    write_recipe(made, pool, tmp_path / "out", extra_files={"README.md": "merged"})
    exported = load_model(str(tmp_path / "out"), "auto", "cpu")
    assert_equal(dict(resident.model.state_dict()), dict(exported.state_dict()))
    ids = torch.arange(5, 13)[None]
    with torch.no_grad():
        assert torch.equal(resident.model(ids).logits, exported(ids).logits)
    assert (tmp_path / "out" / "README.md").read_text() == "merged"


def test_the_exports_metadata_is_the_recipe(tmp_path, pool):
    from safetensors import safe_open

    from evomerge.digest import canonical_json
    from evomerge.recipe.serialize import recipe_to_json

    made = recipe(RULES["task_arithmetic"], dtype="float32")
    write_recipe(made, pool, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata()[METADATA_KEY] == canonical_json(recipe_to_json(made))
    assert {t.dtype for t in open_checkpoint(tmp_path / "out").layout.tensors} == {"F32"}
    assert load_model(str(tmp_path / "out"), "auto", "cpu").dtype == torch.float32


def test_a_parent_as_a_recipe_is_the_parent(pool, kernels):
    for method in ("linear", "task_arithmetic", "ties"):
        made = recipe(Rule(method, {}, {"x": {"weight": 1.0}, "y": {"weight": 0.0}}))
        for name, tensor in merge_tensors(made, pool, kernels):
            assert torch.equal(tensor, pool.checkpoint("x").tensor(name))


def test_the_model_may_be_wider_than_the_recipe_stores(pool):
    wide = ResidentModel(pool, "b", dtype="float32", kernels=Kernels())
    made = recipe(RULES["ties"])
    wide.apply(made)
    assert_equal(held(wide), {n: t.float() for n, t in merge_tensors(made, pool)})


def test_tied_weights_stay_tied_and_are_merged_once(tmp_path):
    pool = open_pool(tmp_path, "llama", tie=True)
    resident = ResidentModel(pool, "b", kernels=Kernels())
    resident.apply(recipe(RULES["linear"]))
    model = resident.model
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    assert "lm_head.weight" not in held(resident)


def test_only_what_changed_is_merged_again(pool):
    resident = ResidentModel(pool, "b", kernels=Kernels())
    total = len(held(resident))
    resident.apply(recipe(RULES["ties"]))
    assert resident.n_merged == total
    resident.apply(recipe(RULES["ties"]))
    assert resident.n_merged == 0
    split = (Rule("ties", {}, {**PARENTS, "y": {"weight": 0.8, "density": 0.6}}, roles=("mlp",)), RULES["ties"])
    resident.apply(recipe(*split))
    mlp = [t for t in pool.checkpoint("b").layout.tensors if t.role == "mlp"]
    assert resident.n_merged == len(mlp)
    assert_equal(held(resident), dict(merge_tensors(recipe(*split), pool)))
    resident.apply(recipe(*split, seed=9))  # no random masks: the seed changes nothing
    assert resident.n_merged == 0
    resident.apply(recipe(*split, compat="mergekit"))
    assert resident.n_merged == total


def test_seeds_change_random_masks(pool):
    first, again, other = (dict(merge_tensors(recipe(RULES["dare_linear"], seed=s), pool)) for s in (1, 1, 2))
    assert_equal(first, again)
    assert any(not torch.equal(first[n], other[n]) for n in first)


def test_overflow_is_a_failure_and_the_next_candidate_is_whole(pool, kernels):
    resident = ResidentModel(pool, "b", kernels=kernels)
    resident.apply(recipe(RULES["linear"]))
    huge = Rule("linear", {"normalize": False}, {"x": {"weight": 3e38}, "y": {"weight": 3e38}})
    with pytest.raises(NonFinite, match="holds NaN or infinity"):
        resident.apply(recipe(huge))
    resident.apply(recipe(RULES["linear"]))
    assert_equal(held(resident), dict(merge_tensors(recipe(RULES["linear"]), pool)))


def test_weights_ask_for_no_gradient_and_parents_are_never_written(pool):
    before = {n: pool.checkpoint("b").tensor(n).clone() for n in ("model.embed_tokens.weight", "model.norm.weight")}
    resident = ResidentModel(pool, "b", kernels=Kernels())
    resident.apply(recipe(RULES["dare_ties"]))
    assert not any(p.requires_grad for p in resident.model.parameters())
    assert not resident.model.training
    with torch.no_grad():
        for tensor in resident.model.parameters():
            tensor.zero_()
    assert all(torch.equal(pool.checkpoint("b").tensor(n), t) for n, t in before.items())


def test_memory_of_the_model_stays_where_it_is(pool, kernels):
    resident = ResidentModel(pool, "b", kernels=kernels)
    before = [p.data_ptr() for p in resident.model.parameters()]
    for rule in RULES.values():
        resident.apply(recipe(rule))
    assert [p.data_ptr() for p in resident.model.parameters()] == before


def test_pools_travel_between_processes(pool):
    copy = pickle.loads(pickle.dumps(pool))
    assert_equal(dict(merge_tensors(recipe(RULES["ties"]), copy)), dict(merge_tensors(recipe(RULES["ties"]), pool)))


def test_a_small_model_is_merged_in_milliseconds(pool, kernels):
    resident = ResidentModel(pool, "b", kernels=kernels)
    resident.apply(recipe(RULES["ties"]))
    fastest = 1.0
    for i in range(5):
        made = recipe(Rule("task_arithmetic", {}, {"x": {"weight": 0.1 * i + 0.1}, "y": {"weight": 0.3}}))
        start = time.perf_counter()
        resident.apply(made)
        fastest = min(fastest, time.perf_counter() - start)
    assert fastest < 0.03


def test_a_checkpoint_that_does_not_line_up_is_refused(pool, tmp_path):
    other = open_checkpoint(tiny_checkpoint(tmp_path / "gpt2", "gpt2", 0))
    model = load_model(str(pool.checkpoint("b").folder), "auto", "cpu")
    with pytest.raises(ModelError, match="do not line up"):
        place(model, other.layout.tensors)
    with pytest.raises(ModelError, match="stands in no file"):
        place(model, pool.checkpoint("b").layout.tensors[:-1])


def test_a_recipe_of_another_template_is_refused(pool, tmp_path):
    narrow = open_checkpoint(tiny_checkpoint(tmp_path / "z", "llama", 0, num_hidden_layers=1, dtype="bfloat16"))
    mixed = ParentPool({**pool.checkpoints, "z": narrow})
    resident = ResidentModel(mixed, "b", kernels=Kernels())
    with pytest.raises(MergeError, match="does not cover the resident model"):
        resident.apply(Recipe((ParentRef("z", "z"),), None, (Rule("linear", {}, {"z": {"weight": 1.0}}),)))

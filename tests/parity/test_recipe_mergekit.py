"""A mergekit file of ours, merged by mergekit itself, is our merge; and mergekit's files come back as recipes."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.merging.export import merge_tensors
from evomerge.merging.parents import ParentPool
from evomerge.recipe.mergekit import Models, from_mergekit, mergekit_models, to_mergekit
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.space.language import parse_space
from evomerge.testing.tiny import tiny_checkpoint

pytest.importorskip("mergekit")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
]

MODELS = ("a", "b", "c")
LAYERS = 4
SEED = 7


@pytest.fixture(autouse=True)
def _offline_on_one_thread(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def zoo(request, tmp_path_factory):
    """A base and three models whose deltas look like fine-tuning: dtype, pool, references by name."""
    folder = tmp_path_factory.mktemp(f"zoo-{request.param}")
    for i, name in enumerate(("base", *MODELS)):
        tiny_checkpoint(folder / name, "llama", i, request.param, num_hidden_layers=LAYERS, tokenizer=True)
    near_base(folder)
    checkpoints = {name: open_checkpoint(folder / name) for name in ("base", *MODELS)}
    refs = {name: ParentRef(name, str(folder / name), None, c.content) for name, c in checkpoints.items()}
    yield request.param, ParentPool(checkpoints), refs
    for checkpoint in checkpoints.values():
        checkpoint.close()


def near_base(folder):
    """Replace the models' weights by the base's plus a twentieth of their own."""
    from safetensors.torch import load_file, save_file

    base = load_file(folder / "base" / "model.safetensors")
    for name in MODELS:
        path = folder / name / "model.safetensors"
        own = load_file(path)
        mixed = {k: (base[k].float() + 0.05 * own[k].float()).to(own[k].dtype) for k in own}
        save_file(mixed, path, metadata={"format": "pt"})


def run_mergekit(text, folder):
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
    from safetensors.torch import load_file

    config = MergeConfiguration.model_validate(yaml.safe_load(text))
    options = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False, random_seed=SEED)
    run_merge(config, str(folder), options)
    return load_file(folder / "model.safetensors")


def space_of(zoo, method, depth, modules, positive=False):
    ranges = {
        "linear": {"weight": {"low": -0.2, "high": 1.2}},
        "slerp": {"t": {"low": 0, "high": 1}},
        "task_arithmetic": {"weight": {"low": -0.5, "high": 1.5}, "lambda": 0.9},
        "ties": {"weight": {"low": 0, "high": 1.5}, "density": {"low": 0.1, "high": 1}},
        "dare_ties": {"weight": {"low": 0, "high": 1.5}, "density": {"low": 0.1, "high": 1}},
    }
    if positive and method != "slerp":
        ranges[method]["weight"] = {"low": 0.1, "high": 0.6}
    mapping = {"method": method, "depth": depth, "modules": modules, "parameters": ranges[method]}
    models = MODELS[:2] if method == "slerp" else MODELS
    return parse_space(mapping, models=models, base="base", layout=zoo[1].checkpoint("base").layout)


def random_recipe(zoo, method, depth, modules, positive=False):
    space = space_of(zoo, method, depth, modules, positive)
    vector = np.random.default_rng(SEED).random(space.space.dim)
    refs = tuple(zoo[2].values())
    return space.build(space.space.decode(vector), parents=refs, base="base", seed=SEED)


def ordered(x):
    """Bits as integers that count representable numbers, so that differences are units in the last place."""
    bits = x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16).long()
    smallest = -(2**31) if x.dtype == torch.float32 else -(2**15)
    return torch.where(bits < 0, smallest - bits, bits)


def distances(recipe, zoo, folder):
    """Units in the last place between our tensors and mergekit's, all tensors in one vector."""
    pool = zoo[1]
    theirs = run_mergekit(to_mergekit(recipe, pool.checkpoint("base").layout), folder)
    found = []
    for name, ours in merge_tensors(recipe, pool):
        assert theirs[name].dtype == ours.dtype
        found.append((ordered(ours) - ordered(theirs[name])).abs().flatten())
    assert len(found) == len(theirs)
    return torch.cat(found)


STRUCTURES = [
    ("model", "together"),
    ("each", "together"),
    ("each", "apart"),
    ({"knots": 3}, [["attention"], ["mlp", "norm", "embedding", "head"]]),
]
METHODS = ["linear", "slerp", "task_arithmetic", "ties"]
CASES = [(m, s) for i, m in enumerate(METHODS) for j, s in enumerate(STRUCTURES) if j in (2, i)]


@pytest.mark.parametrize(("method", "structure"), CASES, ids=str)
def test_in_compat_mode_mergekit_makes_the_same_bits(method, structure, zoo, tmp_path):
    recipe = replace(random_recipe(zoo, method, *structure), compat="mergekit")
    assert int(distances(recipe, zoo, tmp_path / "out").max()) == 0


@pytest.mark.parametrize("structure", [STRUCTURES[0], STRUCTURES[2]], ids=str)
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_in_default_mode_sums_differ_by_rounding_alone(method, structure, zoo, tmp_path):
    recipe = random_recipe(zoo, method, *structure, positive=True)
    dtype, pool, _ = zoo
    theirs = run_mergekit(to_mergekit(recipe, pool.checkpoint("base").layout), tmp_path / "out")
    ulps = []
    for name, ours in merge_tensors(recipe, pool):
        ulps.append((ordered(ours) - ordered(theirs[name])).abs().flatten())
        # where a sum cancels, the rounding of its terms is many units of the small result: compare absolutely too
        step = 2.0**-24 if dtype == "float32" else 2.0**-8
        assert bool(((ours.float() - theirs[name].float()).abs() <= 4 * step * ours.float().abs().max()).all()), name
    differing = float((torch.cat(ulps) > 0).float().mean())
    assert (torch.cat(ulps) <= 1).float().mean() > 0.95
    assert differing < (0.6 if dtype == "float32" else 1e-3)


def test_default_ties_differs_at_few_elements(zoo, tmp_path):
    recipe = random_recipe(zoo, "ties", "each", "together")
    ulps = distances(recipe, zoo, tmp_path / "out")
    limit = 1 if zoo[0] == "bfloat16" else 64
    share = float((ulps > limit).float().mean())
    assert share < (0.03 if zoo[0] == "bfloat16" else 0.002)  # bf16 deltas lie on a lattice: many equal magnitudes


def test_dare_files_run_and_say_that_masks_differ(zoo, tmp_path):
    recipe = random_recipe(zoo, "dare_ties", "each", "together")
    text = to_mergekit(recipe, zoo[1].checkpoint("base").layout)
    assert "random masks come from other generators" in text
    assert f"--random-seed {SEED}" in text
    theirs = run_mergekit(text, tmp_path / "out")
    base = zoo[1].checkpoint("base")
    moved = [not torch.equal(theirs[t.name], base.tensor(t.name)) for t in base.layout.tensors]
    assert all(moved)


@pytest.mark.parametrize("compat", ["mergekit", "off"])
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_what_we_write_we_read(method, structure, compat, zoo):
    recipe = replace(random_recipe(zoo, method, *structure), compat=compat)
    layout = zoo[1].checkpoint("base").layout
    names = {ref.source: ref.name for ref in zoo[2].values()}
    back = from_mergekit(to_mergekit(recipe, layout), Models(lambda ref: layout), names=names, compat=compat)
    assert (back.base, back.compat) == (recipe.base, compat)
    assert [p.name for p in back.parents] == [p.name for p in recipe.parents]
    for tensor in layout.tensors:
        dense = compat == "off" and len(tensor.shape) == 1  # norm gains, which the default never thins out
        assert numbers_of(back.rule_for(tensor), dense) == numbers_of(recipe.rule_for(tensor), dense)


def numbers_of(rule, dense):
    change = {"density": 1.0} if dense and rule.method == "ties" else {}
    return rule.method, dict(rule.shared), {p: {**v, **change} for p, v in rule.per_parent.items()}


GRADIENTS = """
merge_method: task_arithmetic
base_model: BASE
slices:
  - sources:
      - model: A
        layer_range: [0, 3]
        parameters: {weight: [{filter: self_attn, value: [0.2, 0.9]}, {value: [1, 0, 0.5]}]}
      - {model: B, layer_range: [0, 3], parameters: {weight: 0.25}}
      - {model: BASE, layer_range: [0, 3]}
    parameters: {lambda: 1.1}
  - sources:
      - {model: A, layer_range: [3, 4], parameters: {weight: [{filter: mlp, value: 1e-1}]}}
      - {model: B, layer_range: [3, 4]}
      - {model: BASE, layer_range: [3, 4]}
parameters: {weight: [0.3, 0.8], lambda: [{filter: lm_head, value: 0.5}, {filter: "*", value: 0.75}], int8_mask: true}
dtype: DTYPE
"""
MODELS_FORM = """
merge_method: ties
base_model: BASE
models:
  - model: A
    parameters:
      weight: [0, 0.5, 1]
      density: [{filter: mlp, value: 0.4}, {filter: norm, value: 2}, {value: 0.6}]
  - {model: BASE}
  - {model: B, parameters: {weight: 0.7, density: [0.9, 0.3]}}
parameters: {normalize: [{filter: self_attn, value: false}, {value: 1}]}
dtype: DTYPE
"""
SLERP = """
merge_method: slerp
base_model: B
models: [{model: A}, {model: B}]
parameters:
  t: [{filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}, {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}, {value: 0.5}]
dtype: DTYPE
"""
LINEAR = """
merge_method: linear
models: [{model: B, parameters: {weight: 0.3}}, {model: A, parameters: {weight: [0.1, 0.9]}}]
parameters: {normalize: true}
dtype: DTYPE
"""


@pytest.mark.parametrize("text", [GRADIENTS, MODELS_FORM, SLERP, LINEAR], ids=["gradients", "ties", "slerp", "linear"])
def test_files_of_others_give_mergekits_bits(text, zoo, tmp_path):
    dtype, pool, refs = zoo
    for mark, name in (("A", "a"), ("B", "b"), ("BASE", "base")):
        text = re.sub(rf"model: {mark}\b", f"model: {refs[name].source}", text)
    text = text.replace("DTYPE", dtype)
    recipe = from_mergekit(text, Models(lambda ref: pool.checkpoint("base").layout))
    assert recipe.compat == "mergekit"
    assert {p.source for p in mergekit_models(text)} == {p.source for p in recipe.parents}
    theirs = run_mergekit(text, tmp_path / "out")
    for name, ours in merge_tensors(recipe, pool):
        assert torch.equal(ours, theirs[name]), name


def test_filters_with_names_inside_names(zoo, tmp_path):
    """Every tensor kind of one layer with its own number; neighbouring layers share prefixes of their names."""
    layout = zoo[1].checkpoint("base").layout
    rules = [
        Rule("linear", {"normalize": False}, {"a": {"weight": 0.1 + i / 10}, "b": {"weight": 0.5}}, layers, roles)
        for i, (layers, roles) in enumerate(
            [((), ("embedding",)), ((), ("norm",)), ((), ("head",)), ((1, 2), ("norm",)), ((2,), None), (None, None)]
        )
    ]
    recipe = Recipe((zoo[2]["a"], zoo[2]["b"]), None, tuple(rules), compat="mergekit")
    assert int(distances(recipe, zoo, tmp_path / "out").max()) == 0
    assert len({dict(recipe.rule_for(t).per_parent["a"])["weight"] for t in layout.tensors}) == 6

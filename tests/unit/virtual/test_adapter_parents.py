"""Adapters as parents: the numbers by hand, PEFT's own models as peer, what is refused, and merges as adapters."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.errors import ModelError, RecipeError
from evomerge.merging.export import merge_tensors
from evomerge.merging.parents import ParentPool
from evomerge.recipe.path import Hop
from evomerge.recipe.recipe import Making, ParentRef, Recipe, Rule
from evomerge.testing.tiny import tiny_checkpoint
from evomerge.virtual.factors import norms, product, tree_sum
from evomerge.virtual.merged_adapter import adapter_of, write_adapter
from evomerge.virtual.opening import ParentOpener

Q = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a head of its own and a tokenizer. Never write into it."""
    return tiny_checkpoint(tmp_path_factory.mktemp("base") / "llama", "llama", 1, tokenizer=True, tie=False)


def lora(folder: Path, modules: Mapping[str, tuple[int, int, int]], seed: int = 0, **config: Any) -> Path:
    """An adapter with random factors: module -> (rank, in, out)."""
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for path, (rank, into, out) in modules.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = torch.randn(rank, into, generator=rng) * 0.1
        tensors[f"base_model.model.{path}.lora_B.weight"] = torch.randn(out, rank, generator=rng) * 0.1
    return saved(folder, tensors, **config)


def saved(folder: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir(parents=True)
    said = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config}
    (folder / "adapter_config.json").write_text(json.dumps({k: v for k, v in said.items() if v is not None}))
    save_file(dict(tensors), folder / "adapter_model.safetensors")
    return folder


def ref(adapter: Path, base: Path, name: str = "a", **settings: float) -> ParentRef:
    return ParentRef(name, str(adapter), made=Making("adapter", (), ParentRef("base", str(base)), settings))


def open_made(parent: ParentRef, cache: Path) -> OpenParent:
    opener = ParentOpener(cache)
    found = opener.open(parent)
    opener.make()
    return found


def factors(folder: Path, path: str) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = load_file(folder / "adapter_model.safetensors")
    return tuple(tensors[f"base_model.model.{path}.lora_{k}.weight"].double() for k in "AB")  # type: ignore[return-value]


# --- the numbers


def test_by_hand(tmp_path: Path, base: Path) -> None:
    a, b = torch.zeros(1, 32), torch.zeros(32, 1)
    a[0, 3], b[5, 0] = 2.0, 0.5
    names = [f"base_model.model.{Q}.lora_{k}.weight" for k in "AB"]
    folder = saved(tmp_path / "a", {names[0]: a, names[1]: b}, r=1, lora_alpha=3)
    made = open_made(ref(folder, base, weight=2.0), tmp_path / "cache")
    want = open_checkpoint(base).tensor(f"{Q}.weight").clone()
    want[5, 3] += 2.0 * 3.0 * 2.0 * 0.5
    assert torch.equal(made.tensor(f"{Q}.weight"), want)
    changed = [
        t.name for t in made.layout.tensors if not made.tensor(t.name).equal(open_checkpoint(base).tensor(t.name))
    ]
    assert changed == [f"{Q}.weight"]
    assert sum(f.stat().st_size for f in (tmp_path / "cache").rglob("*.safetensors")) < 5000


@pytest.mark.parametrize(
    ("config", "scale_q", "scale_down"),
    [
        ({}, 8 / 4, 8 / 2),
        ({"use_rslora": True}, 8 / math.sqrt(4), 8 / math.sqrt(2)),
        ({"alpha_pattern": {"down_proj": 6}}, 8 / 4, 6 / 2),
        (
            {"alpha_pattern": {"layers.0.self_attn.q_proj": 5, ".*down_proj": 1}, "use_rslora": True},
            5 / 2,
            1 / math.sqrt(2),
        ),
        ({"alpha_pattern": {"proj": 9}}, 8 / 4, 8 / 2),  # a pattern is a whole name, not a part of one
    ],
)
def test_scales_and_patterns(tmp_path: Path, base: Path, config: Any, scale_q: float, scale_down: float) -> None:
    folder = lora(tmp_path / "a", {Q: (4, 32, 32), DOWN: (2, 48, 32)}, rank_pattern={"down_proj": 2}, **config)
    made, under = open_made(ref(folder, base), tmp_path / "cache"), open_checkpoint(base)
    for path, scale in ((Q, scale_q), (DOWN, scale_down)):
        a, b = factors(folder, path)
        want = under.tensor(f"{path}.weight").double() + scale * (b @ a)
        torch.testing.assert_close(made.tensor(f"{path}.weight").double(), want, rtol=0, atol=1e-6)


def test_the_sum_is_the_obvious_loop_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(37, 5)).astype(np.float32), rng.normal(size=(5, 41)).astype(np.float32)
    want = np.zeros((37, 41), np.float32)
    for rank in range(5):
        want = want + left[:, rank : rank + 1] * right[rank]
    got = product(torch.from_numpy(left), torch.from_numpy(right)).numpy()
    assert (got == want).all()


@pytest.mark.parametrize("shape", [(1, 1), (3, 700_000), (700_000, 2), (513, 1025)])
def test_chunks_do_not_change_bits(shape: tuple[int, int]) -> None:
    rng = torch.Generator().manual_seed(0)
    left, right = torch.randn(shape[0], 3, generator=rng), torch.randn(3, shape[1], generator=rng)
    rows = torch.randperm(shape[0], generator=rng)[:5]
    columns = torch.randperm(shape[1], generator=rng)[:5]
    whole = product(left, right)
    assert torch.equal(whole[rows][:, columns], product(left[rows], right[:, columns]))
    axis = int(shape[0] > shape[1])
    some = columns if axis == 0 else rows
    assert torch.equal(norms(whole, axis).index_select(1 - axis, some), norms(whole.index_select(1 - axis, some), axis))


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 40), m=st.integers(1, 4), axis=st.sampled_from([0, 1]))
def test_tree_sums_are_sums(n: int, m: int, axis: int) -> None:
    values = torch.arange(n * m, dtype=torch.float64).reshape((n, m) if axis == 0 else (m, n))
    assert torch.equal(tree_sum(values, axis), values.sum(axis, keepdim=True))


def test_weight_nought_is_the_base_and_settings_are_other_contents(tmp_path: Path, base: Path) -> None:
    folder = lora(tmp_path / "a", {Q: (4, 32, 32)})
    nothing = open_made(ref(folder, base, weight=0.0), tmp_path / "cache")
    assert torch.equal(nothing.tensor(f"{Q}.weight"), open_checkpoint(base).tensor(f"{Q}.weight"))
    contents = {ParentOpener(tmp_path / "cache").open(ref(folder, base, weight=w)).content for w in (0.0, 1.0)}
    other = lora(tmp_path / "b", {Q: (4, 32, 32)}, seed=1)
    contents.add(ParentOpener(tmp_path / "cache").open(ref(other, base)).content)
    lora(tmp_path / "c", {Q: (4, 32, 32)}, lora_alpha=9)
    contents.add(ParentOpener(tmp_path / "cache").open(ref(tmp_path / "c", base)).content)
    assert len(contents) == 4


def test_files_may_have_other_prefixes(tmp_path: Path) -> None:
    plain = tiny_checkpoint(tmp_path / "gpt2", "gpt2", 1)
    tensors = load_file(plain / "model.safetensors")
    short = tmp_path / "short"
    short.mkdir()
    for name in ("config.json", "generation_config.json"):
        (short / name).write_bytes((plain / name).read_bytes())
    save_file({n.removeprefix("transformer."): t for n, t in tensors.items()}, short / "model.safetensors")
    folder = lora(tmp_path / "a", {"transformer.h.0.attn.c_attn": (4, 32, 96)})
    made = open_made(ref(folder, short), tmp_path / "cache")
    a, b = factors(folder, "transformer.h.0.attn.c_attn")
    want = tensors["transformer.h.0.attn.c_attn.weight"].double() + 2 * (b @ a).T
    torch.testing.assert_close(made.tensor("h.0.attn.c_attn.weight").double(), want, rtol=0, atol=1e-6)


# --- PEFT's models as peer


def peft_logits(base: Path, folder: Path, **config: Any) -> torch.Tensor:
    """Logits of a PEFT model with random weights, saved to `folder`."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, **config)).eval()
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn(parameter.shape) * 0.05
    wrapped.save_pretrained(folder)
    with torch.no_grad():
        return torch.as_tensor(wrapped(torch.arange(24)[None] * 2).logits)


def logits(parent: OpenParent, folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    write_checkpoint(folder, ((t.name, parent.tensor(t.name)) for t in parent.layout.tensors), template=parent)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return torch.as_tensor(model(torch.arange(24)[None] * 2).logits)


PLAIN = {"target_modules": ["q_proj", "down_proj"]}
CONV = {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
PEERS = [
    pytest.param("llama", False, {"target_modules": "all-linear", "lora_alpha": 3}, id="all linear modules"),
    pytest.param(
        "llama",
        False,
        {**PLAIN, "use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 7}},
        id="patterns",
    ),
    pytest.param("llama", False, {**PLAIN, "use_dora": True}, id="dora"),
    pytest.param("llama", False, {"target_modules": ["embed_tokens"], "use_dora": True}, id="dora of the embedding"),
    pytest.param("llama", True, {"target_modules": ["q_proj", "embed_tokens"]}, id="embedding of a tied base"),
    pytest.param("llama", True, {"target_modules": ["q_proj", "lm_head"]}, id="head of a tied base"),
    pytest.param("llama", True, {**PLAIN, "modules_to_save": ["embed_tokens"]}, id="whole embedding of a tied base"),
    pytest.param("llama", True, {**PLAIN, "modules_to_save": ["embed_tokens", "lm_head"]}, id="both whole, tied"),
    pytest.param("llama", False, {**PLAIN, "modules_to_save": ["lm_head", "norm"]}, id="whole head and norm"),
    pytest.param("gpt2", None, {**CONV, "bias": "all"}, id="conv1d and biases"),
    pytest.param("gpt2", None, {**CONV, "use_dora": True}, id="conv1d and dora"),
    pytest.param("qwen2", None, {"target_modules": ["q_proj"], "lora_bias": True}, id="biases of the factors"),
    pytest.param("gpt_neox", None, {"target_modules": ["query_key_value", "lm_head"]}, id="head under another name"),
]


@pytest.mark.filterwarnings("ignore")  # of the peer
@pytest.mark.parametrize(("family", "tie", "config"), PEERS)
def test_the_model_is_the_one_that_peft_runs(tmp_path: Path, family: str, tie: bool | None, config: Any) -> None:
    under = tiny_checkpoint(tmp_path / "base", family, 1, tie=tie)
    want = peft_logits(under, tmp_path / "adapter", **config)
    got = logits(open_made(ref(tmp_path / "adapter", under), tmp_path / "cache"), tmp_path / "out")
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)
    plain = logits(open_checkpoint(under), tmp_path / "plain")
    assert float((plain - want).abs().max()) > 0.1


@pytest.mark.filterwarnings("ignore")  # of the peer
def test_weights_move_whole_tensors_and_magnitudes_between_base_and_adapter(tmp_path: Path, base: Path) -> None:
    peft_logits(base, tmp_path / "a", **PLAIN, use_dora=True, modules_to_save=["lm_head"])
    ends = [open_made(ref(tmp_path / "a", base, weight=w), tmp_path / "cache") for w in (0.0, 0.25, 1.0)]
    for name in (f"{Q}.weight", "lm_head.weight"):
        start, quarter, end = (p.tensor(name).double() for p in ends)
        torch.testing.assert_close(start, open_checkpoint(base).tensor(name).double(), rtol=0, atol=1e-7)
        torch.testing.assert_close(quarter, 0.75 * start + 0.25 * end, rtol=0, atol=1e-6)
        assert not torch.equal(start, end)


# --- rows of tokens


def test_an_adapter_with_more_tokens_brings_its_tokenizer(tmp_path: Path, base: Path) -> None:
    rows = {n: torch.full((70, 32), float(i)) for i, n in enumerate(("model.embed_tokens.weight", "lm_head.weight"))}
    tensors = {f"base_model.model.{n}": t for n, t in rows.items()}
    folder = saved(tmp_path / "a", tensors, modules_to_save=["embed_tokens", "lm_head"])
    (folder / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    made = open_made(ref(folder, base, weight=0.5), tmp_path / "cache")
    assert made.config["vocab_size"] == 70
    assert made.tokenizer_folder == folder
    assert torch.equal(made.tensor("lm_head.weight")[64:], torch.ones(6, 32))
    torch.testing.assert_close(
        made.tensor("lm_head.weight")[:64],
        0.5 + 0.5 * open_checkpoint(base).tensor("lm_head.weight"),
        rtol=0,
        atol=1e-6,
    )


def test_an_adapter_that_leaves_tokens_alone_has_the_bases_tokenizer(tmp_path: Path, base: Path) -> None:
    folder = lora(tmp_path / "a", {Q: (4, 32, 32)})
    (folder / "tokenizer.json").write_text("{}")
    assert ParentOpener(tmp_path / "cache").open(ref(folder, base)).tokenizer_folder == base


# --- what is refused


def bad(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], **config: Any) -> Path:
    folder = lora(folder, {Q: (4, 32, 32)}, **config)
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def _nothing(tensors: dict[str, torch.Tensor]) -> None:
    del tensors


A, B = (f"base_model.model.{Q}.lora_{k}.weight" for k in "AB")
REFUSED = [
    ({"peft_type": "IA3"}, _nothing, r"peft_type = 'IA3'"),
    ({"peft_type": None}, _nothing, r"peft_type = 'None'"),
    ({"layer_replication": [[0, 2], [0, 2]]}, _nothing, "layer_replication"),
    ({"trainable_token_indices": [3]}, _nothing, "trainable_token_indices"),
    ({"target_parameters": ["experts.weight"]}, _nothing, "target_parameters"),
    ({"init_lora_weights": "pissa_niter_4"}, _nothing, "pissa_niter_4', which changes the base"),
    ({"init_lora_weights": "LoftQ"}, _nothing, "LoftQ', which changes the base"),
    ({"r": 0}, _nothing, "r = '0'"),
    ({"r": True}, _nothing, "r = 'True'"),
    ({"lora_alpha": "8"}, _nothing, "lora_alpha = '8'"),
    ({"rank_pattern": {"q_proj": "4"}}, _nothing, "rank_pattern = "),
    ({"rank_pattern": {"(": 4}}, _nothing, r"rank_pattern: '\('.*not closed"),
    ({"rank_pattern": {r"(\w+\w*)+": 4}}, _nothing, "around another quantifier"),
    ({"alpha_pattern": {"(?i)x": 4}}, _nothing, r"alpha_pattern: '\(\?i\)x'"),
    ({"alpha_pattern": {".*": 10**400}}, _nothing, "alpha_pattern = "),
    ({"rank_pattern": {".*": 4.5}}, _nothing, "positive whole numbers"),
    ({"rank_pattern": {".*" * 120 + str(i): 4 for i in range(3000)}}, _nothing, "3000 patterns for 1 modules"),
    ({"lora_alpha": 10**400}, _nothing, "lora_alpha = '10000"),
    ({"r": 10**400}, _nothing, "r = '10000"),
    ({}, lambda t: t.update({f"base_model.model.{'a' * 300}.lora_A.weight": torch.zeros(4, 32)}), "300 characters"),
    ({"rank_pattern": {"q_proj": 8}}, _nothing, "of rank 4, 8 in adapter_config.json"),
    ({"modules_to_save": "norm"}, _nothing, "modules_to_save = 'norm'"),
    ({"use_dora": True}, _nothing, "without a magnitude"),
    ({}, lambda t: t.update({f"base_model.model.{Q}.lora_magnitude_vector": torch.ones(32)}), "with a magnitude"),
    ({}, lambda t: t.pop(B), "with a alone"),
    ({}, lambda t: t.update({B: torch.zeros(32, 3)}), r"B \[32, 3\]"),
    ({}, lambda t: t.update({A: torch.zeros(4, 32, dtype=torch.int8)}), "dtype I8"),
    ({}, lambda t: t.update({"base_model.model.x.lora_E": torch.zeros(4)}), r"'base_model\.model\.x\.lora_E'"),
    ({}, lambda t: t.clear(), "no tensors"),
    ({}, lambda t: t.update({A: torch.zeros(4, 33)}), f"{Q} is for 32 x 33"),
    ({}, lambda t: t.update({"base_model.model.model.norm.weight": torch.zeros(3)}), r"is for \[3\]"),
    (
        {},
        lambda t: t.update({"base_model.model.nothing.weight": torch.zeros(3)}),
        r"nothing\.weight is not in the base",
    ),
    ({}, lambda t: t.update({f"base_model.model.{Q}.lora_B.bias": torch.zeros(32)}), "has no bias in the base"),
    ({}, lambda t: t.update({f"base_model.model.{Q}.weight": torch.zeros(32, 32)}), "two of its tensors"),
]


@pytest.mark.parametrize(("config", "change", "told"), REFUSED)
def test_what_cannot_be_read_is_refused_by_name(
    tmp_path: Path, base: Path, config: Any, change: Any, told: str
) -> None:
    folder = bad(tmp_path / "a", change, **config)
    with pytest.raises(ModelError, match=told):
        ParentOpener(tmp_path / "cache").open(ref(folder, base))


def test_pickles_and_other_folders_are_refused(tmp_path: Path, base: Path) -> None:
    folder = lora(tmp_path / "a", {Q: (4, 32, 32)})
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match="a pickle only"):
        ParentOpener(tmp_path / "cache").open(ref(folder, base))
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        ParentOpener(tmp_path / "cache").open(ref(base, base))


def test_the_wrong_base_is_told_with_the_right_one(tmp_path: Path) -> None:
    folder = lora(tmp_path / "a", {Q: (4, 32, 32)}, base_model_name_or_path="org/right")
    wrong = tiny_checkpoint(tmp_path / "gpt2", "gpt2", 1)
    with pytest.raises(ModelError, match="no matrix of the base; its config names org/right"):
        ParentOpener(tmp_path / "cache").open(ref(folder, wrong))


# --- merges as adapters


@pytest.fixture(scope="module")
def three(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ParentRef]:
    """The base and adapters of ranks 4, 2 and 3 on some of its modules."""
    root = tmp_path_factory.mktemp("adapters")
    folders = [
        lora(root / "a", {Q: (4, 32, 32), DOWN: (4, 48, 32)}, 1),
        lora(root / "b", {Q: (2, 32, 32)}, 2, r=2, lora_alpha=5, use_rslora=True),
        lora(root / "c", {DOWN: (3, 48, 32), "model.layers.0.mlp.up_proj": (3, 32, 48)}, 3, r=3),
    ]
    refs = {n: ref(f, base, n) for n, f in zip("abc", folders, strict=True)}
    refs["c"] = ref(folders[2], base, "c", weight=0.5)
    return {"base": ParentRef("base", str(base)), **refs}


def pool_of(refs: Mapping[str, ParentRef], cache: Path) -> ParentPool:
    opener = ParentOpener(cache)
    found = {n: opener.open(r) for n, r in refs.items()}
    opener.make()
    return ParentPool(found)


def assert_equal_merges(recipe: Recipe, pool: ParentPool, base: Path, tmp_path: Path) -> Path:
    """The adapter that is written, put on the base by our reader, is the full merge."""
    folder = tmp_path / "merged"
    write_adapter(recipe, pool, folder)
    again = open_made(ref(folder, base), tmp_path / "cache")
    for name, want in merge_tensors(recipe, pool):
        error = float((again.tensor(name) - want).abs().max() / want.abs().max())
        assert error < 1e-6, (name, error)
    return folder


def by_layer(*weights: Mapping[str, float]) -> tuple[Rule, ...]:
    """Task arithmetic with other weights in each layer, and outside the layers."""
    places: list[tuple[int, ...] | None] = [*((i,) for i in range(len(weights) - 1)), None]
    return tuple(
        Rule("task_arithmetic", per_parent={n: {"weight": w} for n, w in row.items()}, layers=place)
        for row, place in zip(weights, places, strict=True)
    )


def test_task_arithmetic_of_adapters_is_an_adapter(three: dict[str, ParentRef], base: Path, tmp_path: Path) -> None:
    rules = by_layer({"a": 0.7, "b": -0.4, "c": 1.3}, {"a": 0.2, "b": 9.0, "c": 0.6}, {"a": 1.0, "b": 1.0, "c": 1.0})
    recipe = Recipe(tuple(three.values()), "base", rules)
    folder = assert_equal_merges(recipe, pool_of(three, tmp_path / "cache"), base, tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"]) == (7, {Q: 6, "model.layers.0.mlp.up_proj": 3})
    assert config["base_model_name_or_path"] == str(base)


@pytest.mark.filterwarnings("ignore")  # of the peer
def test_peft_runs_the_merged_adapter(three: dict[str, ParentRef], base: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    rules = by_layer({"a": 0.7, "b": -0.4, "c": 1.3}, {"a": 0.0, "b": 9.0, "c": 0.6}, {"a": 1.0, "b": 1.0, "c": 1.0})
    recipe, pool = Recipe(tuple(three.values()), "base", rules), pool_of(three, tmp_path / "cache")
    write_adapter(recipe, pool, tmp_path / "merged", extra_files={"README.md": "a card"})
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "merged")
    found = model.merge_and_unload().state_dict()
    for name, want in merge_tensors(recipe, pool):
        torch.testing.assert_close(found[name], want, rtol=0, atol=1e-6 * float(want.abs().max()))
    assert (tmp_path / "merged" / "README.md").read_text() == "a card"


def test_means_and_spheres_of_adapters_are_adapters(three: dict[str, ParentRef], base: Path, tmp_path: Path) -> None:
    parents = {n: three[n] for n in "ab"}
    pool = pool_of(parents, tmp_path / "cache")
    weights = {"a": {"weight": 3.0}, "b": {"weight": 1.0}}
    assert_equal_merges(
        Recipe(tuple(parents.values()), None, (Rule("linear", per_parent=weights),)), pool, base, tmp_path / "1"
    )
    with_base = {"base": three["base"], "a": three["a"]}
    shared = {"base": {"weight": 0.75}, "a": {"weight": 0.25}}
    recipe = Recipe(tuple(with_base.values()), None, (Rule("linear", per_parent=shared),))
    folder = assert_equal_merges(recipe, pool_of(with_base, tmp_path / "cache"), base, tmp_path / "2")
    a, b = factors(three["a"].source and Path(three["a"].source), Q)
    merged_a, merged_b = factors(folder, Q)
    torch.testing.assert_close(merged_b @ merged_a, 0.25 * 2.0 * (b @ a))


def test_embeddings_in_factors(tmp_path: Path, base: Path) -> None:
    def adapter(name: str, rank: int, seed: int) -> ParentRef:
        rng = torch.Generator().manual_seed(seed)
        path = "base_model.model.model.embed_tokens.lora_embedding_"
        tensors = {f"{path}A": torch.randn(rank, 64, generator=rng), f"{path}B": torch.randn(32, rank, generator=rng)}
        return ref(saved(tmp_path / name, tensors, r=rank), base, name)

    refs = {"base": ParentRef("base", str(base)), "a": adapter("a", 2, 1), "b": adapter("b", 3, 2)}
    weights = {"a": {"weight": 0.5}, "b": {"weight": -0.25}}
    recipe = Recipe(tuple(refs.values()), "base", (Rule("task_arithmetic", per_parent=weights),))
    assert_equal_merges(recipe, pool_of(refs, tmp_path / "cache"), base, tmp_path)


def ties(weight: float = 1.0) -> tuple[Rule, ...]:
    return (Rule("ties", per_parent={n: {"weight": weight, "density": 0.5} for n in "abc"}),)


def flat(**weights: float) -> tuple[Rule, ...]:
    return (Rule("task_arithmetic", per_parent={n: {"weight": w} for n, w in weights.items()}),)


def test_other_merges_are_no_adapters(three: dict[str, ParentRef], base: Path, tmp_path: Path) -> None:
    pool, parents = pool_of(three, tmp_path / "cache"), tuple(three.values())
    only = tuple(three[n] for n in "ab")
    halves = {n: {"weight": 0.4} for n in "ab"}
    cases = [
        (Recipe(parents, "base", ties()), "merged by ties"),
        (Recipe(parents, "base", flat(a=0.0, b=0.0, c=0.0)), "the base itself"),
        (Recipe(parents, "base", flat(a=1.0, b=0.0, c=0.0), compat="mergekit"), "compat: mergekit"),
        (Recipe(parents, "base", flat(a=1.0, b=1.0, c=1.0), path=(Hop(0), Hop(0))), "a path through"),
        (Recipe(only, None, (Rule("linear", {"normalize": False}, halves),)), r"coefficients of sum 0\.8"),
    ]
    for recipe, told in cases:
        with pytest.raises(RecipeError, match=told):
            adapter_of(recipe, pool)


def test_other_parents_are_no_adapters(three: dict[str, ParentRef], base: Path, tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other", "llama", 2, tie=False)
    whole = {"base_model.model.model.norm.weight": torch.ones(32)}
    cases = {
        "parent x, a checkpoint": ParentRef("x", str(other)),
        "parent x, on .* instead of": ref(Path(three["a"].source), other, "x"),
        "parent x, with whole modules": ref(saved(tmp_path / "whole", whole), base, "x"),
    }
    for told, parent in cases.items():
        refs = {"base": three["base"], "a": three["a"], "x": parent}
        recipe = Recipe(tuple(refs.values()), "base", flat(a=1.0, x=1.0))
        with pytest.raises(RecipeError, match=told):
            adapter_of(recipe, pool_of(refs, tmp_path / "cache"))


@settings(deadline=None, max_examples=8)
@given(weights=st.lists(st.floats(-2, 2), min_size=9, max_size=9))
def test_any_weights(
    three: dict[str, ParentRef], base: Path, tmp_path_factory: pytest.TempPathFactory, weights: list[float]
) -> None:
    rows = [dict(zip("abc", weights[i : i + 3], strict=True)) for i in (0, 3, 6)]
    rows[0]["a"] = 0.5  # so that something changes
    tmp_path = tmp_path_factory.mktemp("any")
    assert_equal_merges(
        Recipe(tuple(three.values()), "base", by_layer(*rows)), pool_of(three, tmp_path / "cache"), base, tmp_path
    )


def test_an_adapter_of_the_hub_is_named_by_its_commit(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = lora(tmp_path / "models--org--lora" / "snapshots" / "0123abc", {Q: (4, 32, 32)})
    asked = []

    def snapshot_download(source: str, revision: str | None, **_: Any) -> str:
        asked.append((source, revision))
        return str(commit)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    opener = ParentOpener(tmp_path / "cache")
    parent = ParentRef("a", "org/lora@main", made=Making("adapter", (), ParentRef("base", str(base))))
    known = opener.known(parent)
    assert set(asked) == {("org/lora", "main")}
    assert (known.revision, known.source) == ("0123abc", "org/lora@main")
    assert ParentOpener(tmp_path / "cache").open(known).content == known.content
    assert asked[-1] == ("org/lora", "0123abc")

"""Layers and roles from names and config: ten real families, and names of other architectures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from evomerge.checkpoints.architecture import config_depth, infer_layout, is_derived_buffer, language_config
from evomerge.checkpoints.header import HeaderEntry
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.errors import ModelError
from evomerge.testing.tiny import FAMILIES, tiny_checkpoint

# written out by hand from the architectures' definitions: what the words of one layer mean
ATTENTION = r"self_attn\.[qkvo]_proj|self_attn\.qkv_proj|attn\.c_(attn|proj)|attention\.(query_key_value|dense)"
MLP = r"mlp\.(gate|up|down|gate_up)_proj|mlp\.c_(fc|proj)|mlp\.dense_(h_to_4h|4h_to_h)"
NORM = r"(input|post_attention|pre_feedforward|post_feedforward)_layernorm|ln_[12]|self_attn\.[qk]_norm"
OUTSIDE = {
    "model.embed_tokens.weight": "embedding",
    "transformer.wte.weight": "embedding",
    "transformer.wpe.weight": "embedding",
    "gpt_neox.embed_in.weight": "embedding",
    "model.norm.weight": "norm",
    "transformer.ln_f.weight": "norm",
    "transformer.ln_f.bias": "norm",
    "gpt_neox.final_layer_norm.weight": "norm",
    "gpt_neox.final_layer_norm.bias": "norm",
    "lm_head.weight": "head",
    "embed_out.weight": "head",
}
LAYER = re.compile(r"^(model\.layers|transformer\.h|gpt_neox\.layers)\.(\d+)\.(.+)\.(weight|bias)$")


def test_there_are_the_ten_families() -> None:
    asked = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "gpt_neox", "olmo2"}
    assert asked <= set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_family_has_the_right_layer_and_role(zoo: Mapping[str, Path], family: str) -> None:
    layout = open_checkpoint(zoo[family]).layout
    assert layout.n_layers == 2
    for tensor in layout.tensors:
        match = LAYER.match(tensor.name)
        if match is None:
            assert (tensor.layer, tensor.role) == (None, OUTSIDE[tensor.name])
            continue
        expected = {
            role
            for role, words in (("attention", ATTENTION), ("mlp", MLP), ("norm", NORM))
            if re.fullmatch(words, match[3])
        }
        assert tensor.layer == int(match[2])
        assert {tensor.role} == expected, tensor.name
    assert {t.layer for t in layout.tensors} == {None, 0, 1}
    assert {"embedding", "attention", "mlp", "norm"} <= set(layout.roles())


def test_twelve_layers_are_numbers_and_not_words(tmp_path: Path) -> None:
    layout = open_checkpoint(tiny_checkpoint(tmp_path / "deep", "llama", 1, num_hidden_layers=12)).layout
    assert layout.n_layers == 12
    assert {t.layer for t in layout.tensors if t.layer is not None} == set(range(12))
    assert [t.name for t in layout.tensors] == sorted(t.name for t in layout.tensors)


def header(*names: str, shape: tuple[int, ...] = (4, 4)) -> dict[str, HeaderEntry]:
    return {name: HeaderEntry("F32", shape) for name in names}


OTHER_ARCHITECTURES = [
    ("transformer.h.{}.self_attention.query_key_value.weight", "attention"),  # Falcon, Bloom
    ("transformer.h.{}.mlp.dense_h_to_4h.bias", "mlp"),
    ("transformer.blocks.{}.attn.Wqkv.weight", "attention"),  # MPT
    ("transformer.blocks.{}.norm_1.weight", "norm"),
    ("transformer.blocks.{}.norm_attn_norm.attn.Wqkv.weight", "attention"),  # DBRX
    ("transformer.blocks.{}.norm_attn_norm.norm_2.weight", "norm"),
    ("transformer.blocks.{}.ffn.experts.mlp.w1", "mlp"),
    ("transformer.blocks.{}.ffn.router.layer.weight", "other"),
    ("model.layers.{}.block_sparse_moe.gate.weight", "other"),  # Mixtral
    ("model.layers.{}.block_sparse_moe.experts.3.w2.weight", "mlp"),
    ("model.layers.{}.mlp.shared_expert_gate.weight", "other"),
    ("model.layers.{}.mlp.gate.e_score_correction_bias", "other"),  # DeepSeek
    ("model.layers.{}.mlp.shared_experts.down_proj.weight", "mlp"),
    ("model.layers.{}.feed_forward.expert_bias", "other"),  # LFM 2
    ("model.layers.{}.self_attention.experts.router.layer.weight", "other"),  # JetMoE
    ("model.layers.{}.mlp.gate.weight", "mlp"),  # of a dense network
    ("model.layers.{}.input_layernorm.1.weight", "norm"),  # LongCat
    ("model.layers.{}.post_attention_layernorm.0.weight", "norm"),
    ("model.layers.{}.self_attn.kv_a_proj_with_mqa.weight", "attention"),
    ("model.layers.{}.self_attn.kv_a_layernorm.weight", "norm"),
    ("model.layers.{}.self_attn.q_layernorm.weight", "norm"),
    ("model.layers.{}.self_attn.sinks", "attention"),  # gpt-oss
    ("model.layers.{}.mlp.experts.gate_up_proj", "mlp"),
    ("model.layers.{}.mlp.experts.gate_up_proj_bias", "mlp"),
    ("model.layers.{}.self_attn.rotary_emb.inv_freq", "other"),
    ("model.layers.{}.attention.wqkv.weight", "attention"),  # InternLM 2
    ("model.layers.{}.attention_norm.weight", "norm"),
    ("model.layers.{}.feed_forward.w3.weight", "mlp"),
    ("model.layers.{}.ffn_norm.weight", "norm"),
    ("model.decoder.layers.{}.fc1.weight", "mlp"),  # OPT
    ("model.decoder.layers.{}.self_attn.out_proj.bias", "attention"),
    ("model.decoder.layers.{}.self_attn_layer_norm.bias", "norm"),
    ("model.layers.{}.linear_attn.A_log", "attention"),  # Qwen3-Next
    ("backbone.layers.{}.mixer.up_proj.weight", "mlp"),  # Nemotron-H
    ("backbone.layers.{}.mixer.q_proj.weight", "attention"),
    ("backbone.layers.{}.mixer.A_log", "other"),
    ("transformer.blocks.{}.att_proj.weight", "attention"),  # OLMo 1
    ("transformer.blocks.{}.ff_proj.weight", "mlp"),
    ("model.language_model.layers.{}.self_attn.q_proj.weight", "attention"),
]


@pytest.mark.parametrize(("name", "role"), OTHER_ARCHITECTURES)
def test_names_of_other_architectures(name: str, role: str) -> None:
    layout = infer_layout(header(name.format(0), name.format(1)), {"num_hidden_layers": 2})
    assert [(t.layer, t.role) for t in layout.tensors] == [(0, role), (1, role)]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("transformer.word_embeddings.weight", "embedding"),
        ("transformer.word_embeddings_layernorm.weight", "norm"),
        ("model.tok_embeddings.weight", "embedding"),
        ("model.decoder.embed_positions.weight", "embedding"),
        ("output.weight", "head"),
        ("transformer.output_layer.weight", "head"),
        ("lm_head.bias", "head"),
        ("model.norm_f.weight", "norm"),
        ("model.rotary_emb.inv_freq", "other"),
        ("model.vision_tower.embeddings.patch_embedding.weight", "other"),
        ("model.decoder.project_in.weight", "other"),
    ],
)
def test_names_outside_the_layers(name: str, role: str) -> None:
    layout = infer_layout(header(name, "model.layers.0.mlp.fc1.weight"), {"num_hidden_layers": 1})
    found = next(t for t in layout.tensors if t.name == name)
    assert (found.layer, found.role) == (None, role)


def test_the_list_as_long_as_the_config_says_wins_over_a_larger_one() -> None:
    names = [f"encoder.blocks.{i}.mlp.weight" for i in range(5)] + [f"model.layers.{i}.mlp.weight" for i in range(3)]
    entries = header(*names[:5], shape=(100, 100)) | header(*names[5:])
    layout = infer_layout(entries, {"num_hidden_layers": 3})
    assert {t.name: t.layer for t in layout.tensors}["model.layers.2.mlp.weight"] == 2
    assert all(t.layer is None for t in layout.tensors if t.name.startswith("encoder"))


def test_a_vision_tower_of_equal_depth_is_not_the_language_model() -> None:
    tower = header(*(f"vision_tower.layers.{i}.mlp.weight" for i in range(2)), shape=(99, 99))
    layout = infer_layout(tower | header("model.layers.0.mlp.w1", "model.layers.1.mlp.w1"), {"num_hidden_layers": 2})
    assert {t.layer for t in layout.tensors if t.name.startswith("vision")} == {None}
    assert {t.layer for t in layout.tensors if t.name.startswith("model")} == {0, 1}


def test_experts_inside_a_layer_are_not_layers() -> None:
    names = [f"model.layers.{i}.mlp.experts.{e}.w1.weight" for i in range(2) for e in range(4)]
    assert infer_layout(header(*names), {"num_hidden_layers": 2}).n_layers == 2


def test_a_gate_beside_experts_is_their_router() -> None:
    moe = ["mlp.gate.weight", "mlp.gate.wg.weight", "mlp.experts.0.gate_proj.weight", "self_attn.gate.weight"]
    layout = infer_layout(header(*(f"model.layers.0.{n}" for n in moe)), {"num_hidden_layers": 1})
    roles = {t.name.removeprefix("model.layers.0."): t.role for t in layout.tensors}
    assert roles == dict(zip(moe, ("other", "other", "mlp", "attention"), strict=True))


def test_without_a_depth_in_the_config_the_largest_complete_list_counts() -> None:
    assert infer_layout(header("h.0.mlp.w", "h.1.mlp.w", "h.2.mlp.w"), {}).n_layers == 3


def test_prediction_modules_behind_the_last_layer_are_no_layers() -> None:
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)]
    layout = infer_layout(header(*names), {"num_hidden_layers": 2, "num_nextn_predict_layers": 1})
    assert [(t.layer, t.role) for t in layout.tensors] == [(0, "mlp"), (1, "mlp"), (None, "other")]


@pytest.mark.parametrize(
    ("names", "config", "match"),
    [
        (("h.0.mlp.w", "h.2.mlp.w"), {"n_layer": 3}, "without 1"),
        (("h.0.mlp.w", "h.1.mlp.w"), {"n_layer": 3}, "2 layers under 'h', numbers 0 to 1, without 2"),
        (("h.0.mlp.w", "h.1.mlp.w"), {"n_layer": 1}, "2 layers under 'h'"),
        (("weight", "bias"), {"n_layer": 1}, "no numbered modules"),
        (("h.1.mlp.w", "h.2.mlp.w"), {}, "without 0"),
    ],
)
def test_layers_that_disagree_with_the_config_are_refused(
    names: tuple[str, ...], config: dict[str, int], match: str
) -> None:
    with pytest.raises(ModelError, match=match):
        infer_layout(header(*names), config)


def test_depths_are_found_under_every_spelling() -> None:
    assert config_depth({"n_layer": 3}) == config_depth({"text_config": {"num_hidden_layers": 3}}) == 3
    assert config_depth({"num_hidden_layers": True}) is None
    assert config_depth({"num_hidden_layers": 4, "text_config": {"num_hidden_layers": 3}}) == 4
    assert language_config({"text_config": {"a": 1}}) == {"a": 1}


@pytest.mark.parametrize(
    ("name", "shape", "derived"),
    [
        ("h.0.attn.bias", (1, 1, 8, 8), True),
        ("h.0.attn.masked_bias", (), True),
        ("gpt_neox.layers.0.attention.bias", (1, 1, 8, 8), True),
        ("gpt_neox.layers.0.attention.rotary_emb.inv_freq", (4,), True),
        ("h.0.attn.attention.bias", (1, 1, 8, 8), True),
        ("h.0.attn.c_attn.bias", (24,), False),
        ("h.0.attn.bias", (8,), False),
        ("h.0.ln_1.bias", (8,), False),
    ],
)
def test_derived_buffers(name: str, shape: tuple[int, ...], derived: bool) -> None:
    assert is_derived_buffer(name, HeaderEntry("F32", shape)) is derived

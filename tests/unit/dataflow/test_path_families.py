from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.dataflow.families import FAMILIES, Branch, LayerName, family_of, layer_lists, path_config
from evomerge.dataflow.refusals import refusal
from evomerge.errors import ModelError
from evomerge.testing.path_models import CASES, N_LAYERS, path_parent
from evomerge.testing.tiny import FAMILIES as TINY
from evomerge.testing.tiny import MORE_FAMILIES, tiny_checkpoint

FULL, ALTERNATING = ("full_attention",) * 4, ("sliding_attention", "full_attention") * 2
MINIMAL = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}


def test_every_family_is_tested_and_every_tested_family_is_one() -> None:
    built = {path_parent(case, 0).config.model_type for case in CASES}
    assert built == set(FAMILIES)
    assert {family for family, _ in CASES.values()} == {*TINY, *MORE_FAMILIES}


@pytest.mark.parametrize("name", [*TINY, *MORE_FAMILIES])
def test_facts_agree_with_the_checkpoint(name: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path, name, 0))
    family, layout = family_of(checkpoint.config), checkpoint.layout
    checkpoint.close()
    by_layer: dict[int, dict[str, str]] = {}
    for tensor in layout.tensors:
        parts = family.layer_name(tensor.name)
        assert (parts.layer if parts else None) == tensor.layer
        if parts:
            assert f"{parts.prefix}{parts.layer}.{parts.rest}" == tensor.name
            by_layer.setdefault(parts.layer, {})[parts.rest] = tensor.role
    assert len(by_layer) == layout.n_layers
    for roles in by_layer.values():
        for branch, role in zip(family.ends, ("attention", "mlp"), strict=True):
            assert roles[f"{branch.end}.weight"] == ("norm" if branch.norm else role)


@pytest.mark.parametrize("case", CASES)
def test_config_json_says_as_much_as_the_config(case: str) -> None:
    config = path_parent(case, 0).config
    mapping = json.loads(json.dumps(config.to_dict()))
    assert family_of(mapping) == family_of(config)
    assert layer_lists(mapping) == layer_lists(config)
    assert all(len(values) == N_LAYERS for values in layer_lists(mapping).values())


@pytest.mark.parametrize("case", CASES)
def test_the_config_of_a_path_is_one_that_the_architecture_accepts(case: str) -> None:
    config = path_parent(case, 0).config
    mapping, layers = json.loads(json.dumps(config.to_dict())), [3, 3, 1, 0, 2, 3]
    before = json.dumps(mapping)
    path = path_config(mapping, layers)
    assert json.dumps(mapping) == before
    loaded = type(config).from_dict(path)
    assert loaded.num_hidden_layers == len(layers)
    changed = {key for key in {**mapping, **path} if path.get(key) != mapping.get(key)}
    assert changed <= {family_of(mapping).depth_key, *layer_lists(mapping)}
    for key, values in layer_lists(mapping).items():
        assert path[key] == getattr(loaded, key) == [values[i] for i in layers]
    assert path_config(mapping, range(N_LAYERS)) == mapping


@pytest.mark.parametrize(
    ("config", "lists"),
    [
        ({"model_type": "gemma2"}, {"layer_types": ALTERNATING}),
        ({"model_type": "qwen2", "sliding_window": 8, "max_window_layers": 3}, {"layer_types": FULL}),
        (
            {"model_type": "qwen2", "sliding_window": 8, "max_window_layers": 3, "use_sliding_window": True},
            {"layer_types": (*("full_attention",) * 3, "sliding_attention")},
        ),
        ({"model_type": "gemma3_text", "sliding_window_pattern": 2}, {"layer_types": ALTERNATING}),
        ({"model_type": "smollm3"}, {"layer_types": FULL, "no_rope_layers": (1, 1, 1, 0)}),
        ({"model_type": "llama"}, {}),
        ({"model_type": "mistral", "layer_types": ["full_attention"] * 4}, {"layer_types": FULL}),
    ],
)  # fmt: skip
def test_lists_that_a_file_leaves_out_are_filled_in(config: dict[str, Any], lists: dict[str, Any]) -> None:
    """By the position in the original, before anything moves."""
    mapping = {**MINIMAL, "num_hidden_layers": 4, **config}
    assert layer_lists(mapping) == lists
    path = path_config(mapping, [3, 0])
    assert path["num_hidden_layers"] == 2
    assert {key: path[key] for key in lists} == {key: [values[3], values[0]] for key, values in lists.items()}


def test_a_list_of_another_length_is_refused() -> None:
    mapping = {**MINIMAL, "model_type": "qwen3", "num_hidden_layers": 4, "layer_types": ["full_attention"] * 3}
    with pytest.raises(ModelError, match="layer_types with 3 entries for 4 layers"):
        layer_lists(mapping)


def test_gpt2_says_its_depth_in_its_own_way() -> None:
    assert path_config({"model_type": "gpt2", "n_layer": 2}, [0, 1, 1]) == {"model_type": "gpt2", "n_layer": 3}
    assert path_config({"model_type": "gpt2"}, [0, 1, 1]) == {"model_type": "gpt2", "n_layer": 3}
    assert path_config({"model_type": "gpt2", "num_hidden_layers": 2}, [0])["num_hidden_layers"] == 1


def test_names_of_layers() -> None:
    gpt2, llama = FAMILIES["gpt2"], FAMILIES["llama"]
    assert gpt2.layer_name("transformer.h.10.ln_1.bias") == LayerName("transformer.h.", 10, "ln_1.bias")
    assert gpt2.layer_name("h.10.ln_1.bias") == LayerName("h.", 10, "ln_1.bias")
    assert llama.layer_name("model.layers.0.mlp.down_proj.weight") == ("model.layers.", 0, "mlp.down_proj.weight")
    for outside in (
        "model.norm.weight",
        "lm_head.weight",
        "model.layersX.0.a",
        "visual.model.layers.0.a",
        "wte.weight",
    ):
        assert llama.layer_name(outside) is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "mamba2"}, "recurrent or convolutional state"),
        ({"model_type": "qwen3_next"}, "recurrent or convolutional state"),
        ({"model_type": "rwkv"}, "recurrent or convolutional state"),
        ({"model_type": "mixtral"}, "mixtures of experts"),
        ({"model_type": "llama", "num_local_experts": 8}, "mixtures of experts"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "position biases live in the first layer"),
        ({"model_type": "bart"}, "two stacks"),
        ({"model_type": "something", "is_encoder_decoder": True}, "two stacks"),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, "wraps a language model"),
        ({"model_type": "llava", "text_config": {"model_type": "llama"}}, "wraps a language model"),
        ({"model_type": "gemma3n_text"}, "reuse the keys and values of other layers"),
        ({"model_type": "opt", "do_layer_norm_before": False}, "a norm stands on the residual stream itself"),
        ({"model_type": "opt"}, "nobody has checked its layers"),
        ({"model_type": "openai-gpt"}, "a norm stands on the residual stream itself"),
        ({"model_type": "bloom"}, "apply_residual_connection_post_layernorm"),
        ({"model_type": "falcon"}, "several layouts"),
        ({"model_type": "gpt_neo"}, "attention_types"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "depends on the layer's number"),
        ({"model_type": "gpt2", "add_cross_attention": True}, "also attend to an encoder"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "not causal"),
        ({"model_type": "llama", "quantization_config": {"bits": 4}}, "its weights are quantised"),
        ({"model_type": "llama", "per_layer_config": {"0": {"intermediate_size": 8}}}, "differ in shape"),
        ({"model_type": "qwen3", "layer_types": ["linear_attention"]}, "layers of the kind linear_attention"),
        ({}, "nobody has checked"),
        ({"model_type": "lama"}, "nobody has checked"),
    ],
)  # fmt: skip
def test_architectures_that_cannot_are_refused_by_name_with_the_reason(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        family_of(config)
    assert f"model_type {str(config.get('model_type'))!r}" in caught.value.got
    assert all(name in caught.value.allowed for name in FAMILIES)


def test_no_causal_language_model_of_transformers_slips_through() -> None:
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if name not in FAMILIES:
            with pytest.raises(ModelError, match=f"model_type '{name}': "):
                family_of({"model_type": name})
        else:
            assert refusal({"model_type": name}) is None


def test_a_projection_has_no_offset() -> None:
    with pytest.raises(ValueError, match="only a norm has an offset"):
        Branch("mlp.down_proj", offset=1.0)

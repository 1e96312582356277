"""Why no path runs through an architecture: the reasons by name, from config.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

_STATE = "its layers carry a recurrent or convolutional state, not only a key-value cache"
_EXPERTS = "mixtures of experts are stored under other names than they run under, and their routers are not checked"
_ENCODER = "an encoder and a decoder are two stacks; a path is one"
_WRAPPER = "it wraps a language model with other modalities; paths run through text models only"

_BY_REASON: Final = (
    (
        _STATE,
        "bamba falcon_h1 falcon_mamba granitemoehybrid jamba kimi_linear lfm2 mamba mamba2 minimax nemotron_h"
        " olmo_hybrid qwen3_next recurrent_gemma rwkv xlstm zamba zamba2",
    ),
    ("its layers share keys and values with other layers and carry several streams", "gemma3n gemma3n_text"),
    (
        "its position biases live in the first layer, and encoder and decoder are two stacks",
        "longt5 mt5 switch_transformers t5 umt5",
    ),
)
_REASON_OF: Final = MappingProxyType({name: why for why, names in _BY_REASON for name in names.split()})


def _experts(config: Mapping[str, Any]) -> bool:
    keys = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    return any(isinstance(config.get(k), int) and config[k] > 1 for k in keys)


def _of_settings(config: Mapping[str, Any]) -> str | None:
    """What a config says about itself, whatever its name."""
    if config.get("is_encoder_decoder"):
        return _ENCODER
    if any(isinstance(config.get(k), Mapping) for k in ("text_config", "vision_config", "audio_config")):
        return _WRAPPER
    if _experts(config):
        return _EXPERTS
    if config.get("quantization_config"):
        return "its weights are quantised"
    if config.get("per_layer_config"):
        return "its layers differ in shape"
    return None


def _of_known(config: Mapping[str, Any]) -> str | None:
    """Settings that break the chain of a family that otherwise runs."""
    if config.get("add_cross_attention"):
        return "its layers also attend to an encoder (add_cross_attention)"
    if config.get("scale_attn_by_inverse_layer_idx"):
        return "a layer's attention is divided by its number (scale_attn_by_inverse_layer_idx), so it cannot move"
    if config.get("use_bidirectional_attention"):
        return "its attention is not causal (use_bidirectional_attention)"
    return None


def refusal(config: Mapping[str, Any], known: bool) -> str | None:
    """The reason why no path runs through an architecture.

    Args:
        config: the content of config.json.
        known: whether its `model_type` is a family that runs.

    Returns:
        None when nothing speaks against it.
    """
    name = str(config.get("model_type"))
    return _REASON_OF.get(name) or _of_settings(config) or (_of_known(config) if known else None)

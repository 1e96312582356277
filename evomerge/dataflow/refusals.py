"""Why no path runs through an architecture: the reasons by name, from config.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

_KINDS: Final = frozenset({"full_attention", "sliding_attention"})
_STATE: Final = "its layers carry a recurrent or convolutional state besides keys and values"
_EXPERTS: Final = (
    "its layers are mixtures of experts, stored under other names than they run under; that is not handled"
)
_ENCODER: Final = "encoder and decoder are two stacks; a path runs through one"
_WRAPPER: Final = "it wraps a language model with other modalities; paths run through text models alone"
_NORMED_STREAM: Final = (
    "a norm stands on the residual stream itself, behind each addition, so its layers are no residual chain"
)
_NUMBERED: Final = "a layer's attention depends on the layer's number, so it cannot move"

_NAMES_OF: Final = (
    (
        _STATE,
        "bailing_hybrid bamba falcon_h1 falcon_mamba granitemoehybrid jamba kimi_linear lfm2 lfm2_moe lfm3 mamba mamba2"
        " minimax nemotron_h olmo_hybrid qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_next recurrent_gemma"
        " rwkv xlstm zamba zamba2 zaya",
    ),
    (
        _EXPERTS,
        "afmoe aria_text cohere2_moe dbrx deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 dots1 ernie4_5_moe"
        " exaone_moe flex_olmo glm4_moe glm4_moe_lite glm_moe_dsa gpt_oss granitemoe granitemoe_swa granitemoeshared"
        " hunyuan_v1_moe jetmoe llama4 llama4_text longcat_flash mimo_v2_flash minimax_m2 mixtral olmoe phimoe"
        " qwen2_moe qwen3_moe solar_open",
    ),
    (
        "its layers feed several streams and reuse the keys and values of other layers",
        "gemma3n gemma3n_text gemma4 gemma4_text",
    ),
    (
        "its position biases live in the first layer, and " + _ENCODER,
        "longt5 mt5 switch_transformers t5 umt5",
    ),
    (_ENCODER, "bart blenderbot blenderbot-small marian mbart pegasus"),
    (_WRAPPER, "gemma3 got_ocr2 llava mistral3 mllama paligemma phi4_multimodal qwen2_5_vl qwen2_vl qwen3_vl"),
    (_NORMED_STREAM, "bert bert-generation camembert electra openai-gpt roberta xlm xlm-roberta"),
    (_NUMBERED, "diffllama"),
    ("its first layer has no norm, so it cannot move", "modernbert-decoder"),
    (
        "its attention and mlp add the residual themselves, from behind the norm where"
        " apply_residual_connection_post_layernorm is set; that is not handled",
        "bloom",
    ),
    (
        "several layouts of norms and branches go by this name, with positions by rotation or by a bias; that is not"
        " handled",
        "falcon",
    ),
    ("its layers attend globally or locally by their number (attention_types); that is not handled", "gpt_neo"),
)
_REASON_OF: Final[Mapping[str, str]] = MappingProxyType(
    {name: reason for reason, names in _NAMES_OF for name in names.split()}
)
_EXPERT_COUNTS: Final = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_MODALITIES: Final = ("text_config", "language_config", "llm_config", "vision_config", "audio_config")


def _of_settings(config: Mapping[str, Any]) -> str | None:
    """What a config says about itself, whatever its name."""
    if any(isinstance(config.get(k), Mapping) for k in _MODALITIES):
        return _WRAPPER
    if config.get("is_encoder_decoder"):
        return _ENCODER
    if config.get("add_cross_attention"):
        return "its layers also attend to an encoder (add_cross_attention)"
    if any(isinstance(config.get(k), int) and config[k] > 1 for k in _EXPERT_COUNTS):
        return _EXPERTS
    if config.get("quantization_config"):
        return "its weights are quantised"
    if config.get("per_layer_config"):
        return "its layers differ in shape (per_layer_config)"
    if config.get("do_layer_norm_before") is False:
        return f"{_NORMED_STREAM} (do_layer_norm_before: false)"
    if config.get("scale_attn_by_inverse_layer_idx"):
        return f"{_NUMBERED} (scale_attn_by_inverse_layer_idx)"
    if config.get("use_bidirectional_attention"):
        return "its attention is not causal (use_bidirectional_attention)"
    kinds = {str(kind) for kind in config.get("layer_types") or ()} - _KINDS
    return f"nobody has checked layers of the kind {', '.join(sorted(kinds))} (layer_types)" if kinds else None


def refusal(config: Mapping[str, Any]) -> str | None:
    """The known reason why no path runs through an architecture.

    Args:
        config: the content of config.json.

    Returns:
        None when nothing is known to speak against it.
    """
    return _REASON_OF.get(str(config.get("model_type"))) or _of_settings(config)

"""Tiny configurations of every model family that is tested: the class of its config, and arguments for two layers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple


class Family(NamedTuple):
    """How to build a family's tiny model.

    Attributes:
        config: name of the config's class in transformers.
        arguments: its keyword arguments.
    """

    config: str
    arguments: Mapping[str, Any]


_TOKENS: Final = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_COMMON: Final = {
    **_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_FULL_HEADS: Final = {k: v for k, v in _COMMON.items() if k != "num_key_value_heads"}
_HEAD_DIM: Final = {"head_dim": 8}
_WINDOW: Final = {"sliding_window": 64}
_MIXED_WINDOW: Final = {**_WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_GPT2: Final = {**_TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}

# parts that recur among mixtures and state-space layers
_EXPERTS: Final = {"num_experts": 4, "num_experts_per_tok": 2}
_SMALL_EXPERTS: Final = {**_EXPERTS, "moe_intermediate_size": 16}
_LOCAL_EXPERTS: Final = {"num_local_experts": 4, "num_experts_per_tok": 2}
_GROUPS: Final = {"n_group": 1, "topk_group": 1}
_ROUTED: Final = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, **_GROUPS}
_SHARED: Final = {**_ROUTED, "n_shared_experts": 1, "first_k_dense_replace": 1}
_LATENT: Final = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
# so many that none is left out: ties of zeros, which random weights make, would fall by rounding
_INDEXER: Final = {"index_topk": 128, "index_n_heads": 2, "index_head_dim": 16}
_LINEAR: Final = {
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_MAMBA: Final = {**_TOKENS, "hidden_size": 32, "num_hidden_layers": 2}
_STATE: Final = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
_PER_LAYER: Final = {"vocab_size_per_layer_input": 512, "hidden_size_per_layer_input": 8}


def _table(**families: tuple[str, Mapping[str, Any]]) -> Mapping[str, Family]:
    return MappingProxyType({name: Family(*family) for name, family in families.items()})


BASIC: Final = _table(
    llama=("LlamaConfig", _COMMON),
    mistral=("MistralConfig", {**_COMMON, **_HEAD_DIM}),
    qwen2=("Qwen2Config", _COMMON),
    qwen3=("Qwen3Config", {**_COMMON, **_HEAD_DIM}),
    gemma2=("Gemma2Config", {**_COMMON, **_HEAD_DIM, **_WINDOW}),
    gemma3=("Gemma3TextConfig", {**_COMMON, **_HEAD_DIM, **_WINDOW}),
    phi3=("Phi3Config", {**_COMMON, "original_max_position_embeddings": 128}),
    gpt2=("GPT2Config", _GPT2),
    gpt_neox=("GPTNeoXConfig", _FULL_HEADS),
    olmo2=("Olmo2Config", _COMMON),
)
"""The ten that every part of evomerge is tested with."""

MORE: Final = _table(
    cohere=("CohereConfig", _COMMON),
    cohere2=("Cohere2Config", {**_COMMON, **_WINDOW}),
    exaone4=("Exaone4Config", {**_COMMON, **_WINDOW}),
    gemma=("GemmaConfig", {**_COMMON, **_HEAD_DIM}),
    glm4=("Glm4Config", {**_COMMON, **_HEAD_DIM}),
    granite=("GraniteConfig", {**_COMMON, "residual_multiplier": 0.7, "logits_scaling": 2.0}),
    olmo=("OlmoConfig", _COMMON),
    olmo3=("Olmo3Config", {**_COMMON, **_WINDOW}),
    phi=("PhiConfig", _FULL_HEADS),
    smollm3=("SmolLM3Config", _COMMON),
    stablelm=("StableLmConfig", _COMMON),
    starcoder2=("Starcoder2Config", _COMMON),
)
"""Further ones through whose layers paths run."""

DENSE: Final = _table(
    apertus=("ApertusConfig", _COMMON),
    arcee=("ArceeConfig", _COMMON),
    bamba=("BambaConfig", {**_COMMON, **_STATE, "attn_layer_indices": [1]}),
    biogpt=("BioGptConfig", _FULL_HEADS),
    bloom=("BloomConfig", {**_TOKENS, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    codegen=("CodeGenConfig", {**_GPT2, "rotary_dim": 4}),
    cwm=("CwmConfig", {**_COMMON, **_HEAD_DIM, **_WINDOW}),
    diffllama=("DiffLlamaConfig", _COMMON),
    ernie4_5=("Ernie4_5Config", {**_COMMON, **_HEAD_DIM}),
    falcon=("FalconConfig", _FULL_HEADS),
    falcon_h1=("FalconH1Config", {**_COMMON, **_HEAD_DIM, **_STATE, "mamba_d_ssm": 32, "mamba_n_heads": 4}),
    gemma3n_text=(
        "Gemma3nTextConfig",
        {
            **_COMMON,
            **_HEAD_DIM,
            **_PER_LAYER,
            **_MIXED_WINDOW,
            "num_kv_shared_layers": 0,
            "laurel_rank": 4,
            "intermediate_size": [48, 48],
            "activation_sparsity_pattern": [0.0, 0.0],
        },
    ),
    gemma4_text=("Gemma4TextConfig", {**_COMMON, **_HEAD_DIM, **_PER_LAYER, **_MIXED_WINDOW, "global_head_dim": 8}),
    glm=("GlmConfig", {**_COMMON, **_HEAD_DIM}),
    gpt_bigcode=("GPTBigCodeConfig", _GPT2),
    gpt_neo=(
        "GPTNeoConfig",
        {
            **_TOKENS,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 128,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 16,
        },
    ),
    gptj=("GPTJConfig", {**_GPT2, "rotary_dim": 4}),
    helium=("HeliumConfig", {**_COMMON, **_HEAD_DIM}),
    hunyuan_v1_dense=("HunYuanDenseV1Config", {**_COMMON, **_HEAD_DIM}),
    internlm3=("InternLM3Config", {**_COMMON, **_HEAD_DIM}),
    lfm2=("Lfm2Config", {**_COMMON, "layer_types": ["conv", "full_attention"]}),
    mamba=("MambaConfig", {**_MAMBA, "state_size": 4, "time_step_rank": 4}),
    mamba2=("Mamba2Config", {**_MAMBA, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1}),
    minicpm3=("MiniCPM3Config", {**_COMMON, **_LATENT}),
    ministral=("MinistralConfig", {**_COMMON, **_HEAD_DIM, **_WINDOW}),
    ministral3=("Ministral3Config", {**_COMMON, **_HEAD_DIM}),
    mpt=(
        "MptConfig",
        {**_TOKENS, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "expansion_ratio": 2},
    ),
    nanochat=("NanoChatConfig", _COMMON),
    nemotron=("NemotronConfig", _COMMON),
    olmo_hybrid=("OlmoHybridConfig", {**_COMMON, **_LINEAR}),
    opt=(
        "OPTConfig",
        {
            **{k: v for k, v in _FULL_HEADS.items() if k != "intermediate_size"},
            "ffn_dim": 48,
            "word_embed_proj_dim": 32,
        },
    ),
    persimmon=("PersimmonConfig", _FULL_HEADS),
    qwen3_5_text=("Qwen3_5TextConfig", {**_COMMON, **_HEAD_DIM, **_LINEAR}),
    recurrent_gemma=(
        "RecurrentGemmaConfig",
        {**_COMMON, "lru_width": 32, "attention_window_size": 16, "block_types": ["recurrent", "attention"]},
    ),
    seed_oss=("SeedOssConfig", {**_COMMON, **_HEAD_DIM}),
    vaultgemma=("VaultGemmaConfig", {**_COMMON, **_HEAD_DIM, **_WINDOW}),
    xglm=(
        "XGLMConfig",
        {
            **_TOKENS,
            "d_model": 32,
            "ffn_dim": 48,
            "num_layers": 2,
            "attention_heads": 4,
            "max_position_embeddings": 128,
        },
    ),
)
"""Families without experts through whose layers no path runs yet."""

MIXTURES: Final = _table(
    afmoe=("AfmoeConfig", {**_COMMON, **_HEAD_DIM, **_SMALL_EXPERTS, **_MIXED_WINDOW, "num_dense_layers": 1}),
    aria_text=("AriaTextConfig", {**_COMMON, "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}),
    axk1=("AXK1Config", {**_COMMON, **_LATENT, **_SHARED}),
    cohere2_moe=("Cohere2MoeConfig", {**_COMMON, **_HEAD_DIM, **_SMALL_EXPERTS, **_WINDOW}),
    deepseek_v2=("DeepseekV2Config", {**_COMMON, **_LATENT, **_SHARED}),
    deepseek_v3=("DeepseekV3Config", {**_COMMON, **_LATENT, **_SHARED}),
    deepseek_v32=("DeepseekV32Config", {**_COMMON, **_LATENT, **_SHARED, **_INDEXER}),
    dots1=("Dots1Config", {**_COMMON, **_HEAD_DIM, **_SHARED}),
    ernie4_5_moe=(
        "Ernie4_5_MoeConfig",
        {**_COMMON, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_num_shared_experts": 1},
    ),
    exaone_moe=(
        "ExaoneMoeConfig",
        {**_COMMON, **_HEAD_DIM, **_SMALL_EXPERTS, **_GROUPS, **_MIXED_WINDOW, "first_k_dense_replace": 1},
    ),
    flex_olmo=("FlexOlmoConfig", {**_COMMON, **_EXPERTS}),
    glm4_moe=("Glm4MoeConfig", {**_COMMON, **_HEAD_DIM, **_SHARED}),
    glm4_moe_lite=("Glm4MoeLiteConfig", {**_COMMON, **_LATENT, **_SHARED}),
    glm_moe_dsa=("GlmMoeDsaConfig", {**_COMMON, **_LATENT, **_SHARED, **_INDEXER}),
    gpt_oss=("GptOssConfig", {**_COMMON, **_HEAD_DIM, **_LOCAL_EXPERTS, **_WINDOW}),
    granitemoe=("GraniteMoeConfig", {**_COMMON, **_LOCAL_EXPERTS}),
    granitemoehybrid=(
        "GraniteMoeHybridConfig",
        {
            **_COMMON,
            **_LOCAL_EXPERTS,
            **_STATE,
            "shared_intermediate_size": 24,
            "layer_types": ["mamba", "attention"],
        },
    ),
    granitemoeshared=("GraniteMoeSharedConfig", {**_COMMON, **_LOCAL_EXPERTS, "shared_intermediate_size": 24}),
    hunyuan_v1_moe=("HunYuanMoEV1Config", {**_COMMON, **_HEAD_DIM, "num_experts": 4, "moe_topk": 2}),
    hy_v3=("HYV3Config", {**_COMMON, **_HEAD_DIM, **_SMALL_EXPERTS}),
    jamba=(
        "JambaConfig",
        {
            **_COMMON,
            **_EXPERTS,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    jetmoe=("JetMoeConfig", {**_COMMON, **_LOCAL_EXPERTS, "kv_channels": 8}),
    kimi_linear=(
        "KimiLinearConfig",
        {
            **_COMMON,
            **_LATENT,
            **_LOCAL_EXPERTS,
            "q_lora_rank": None,
            "moe_intermediate_size": 16,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    laguna=("LagunaConfig", {**_COMMON, **_HEAD_DIM, **_SMALL_EXPERTS}),
    lfm2_moe=(
        "Lfm2MoeConfig",
        {**_COMMON, **_SMALL_EXPERTS, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    ),
    llama4_text=(
        "Llama4TextConfig",
        {**_COMMON, **_HEAD_DIM, **_LOCAL_EXPERTS, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 1},
    ),
    longcat_flash=(
        "LongcatFlashConfig",
        {
            **_COMMON,
            **_LATENT,
            **_HEAD_DIM,
            "num_layers": 2,
            "ffn_hidden_size": 48,
            "expert_ffn_hidden_size": 16,
            "n_routed_experts": 4,
            "moe_topk": 2,
            "zero_expert_num": 2,
        },
    ),
    mellum=("MellumConfig", {**_COMMON, **_HEAD_DIM, **_SMALL_EXPERTS}),
    minimax=(
        "MiniMaxConfig",
        {
            **_COMMON,
            **_HEAD_DIM,
            **_LOCAL_EXPERTS,
            "layer_types": ["linear_attention", "full_attention"],
            "block_size": 16,
        },
    ),
    minimax_m2=("MiniMaxM2Config", {**_COMMON, **_HEAD_DIM, **_LOCAL_EXPERTS, "rotary_dim": 8}),
    mixtral=("MixtralConfig", {**_COMMON, **_LOCAL_EXPERTS}),
    nemotron_h=(
        "NemotronHConfig",
        {
            **_COMMON,
            **_HEAD_DIM,
            **_ROUTED,
            "num_hidden_layers": 3,
            "moe_shared_expert_intermediate_size": 16,
            "layers_block_type": ["mamba", "attention", "moe"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 2,
        },
    ),
    olmoe=("OlmoeConfig", {**_COMMON, **_EXPERTS}),
    phimoe=("PhimoeConfig", {**_COMMON, **_LOCAL_EXPERTS}),
    qwen2_moe=("Qwen2MoeConfig", {**_COMMON, **_SMALL_EXPERTS, "shared_expert_intermediate_size": 24}),
    qwen3_5_moe_text=(
        "Qwen3_5MoeTextConfig",
        {**_COMMON, **_HEAD_DIM, **_SMALL_EXPERTS, **_LINEAR, "shared_expert_intermediate_size": 16},
    ),
    qwen3_moe=("Qwen3MoeConfig", {**_COMMON, **_HEAD_DIM, **_SMALL_EXPERTS}),
    qwen3_next=(
        "Qwen3NextConfig",
        {**_COMMON, **_HEAD_DIM, **_SMALL_EXPERTS, **_LINEAR, "shared_expert_intermediate_size": 16},
    ),
    solar_open=("SolarOpenConfig", {**_COMMON, **_HEAD_DIM, **_ROUTED, "n_shared_experts": 1}),
)
"""Mixtures of experts."""

ALL: Final[Mapping[str, Family]] = MappingProxyType({**BASIC, **MORE, **DENSE, **MIXTURES})
"""Every family by its name."""

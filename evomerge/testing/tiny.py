"""Tiny random checkpoints of many architectures, saved as transformers saves them, in milliseconds each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from evomerge.errors import ConfigError, suggest
from evomerge.seeds import generator

_COMMON: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
)
_HEAD_DIM = {"head_dim": 8}
_GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
_GPT2 |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

_FAMILIES: Mapping[str, tuple[str, dict[str, Any]]] = MappingProxyType(
    {
        "llama": ("LlamaConfig", {**_COMMON}),
        "mistral": ("MistralConfig", {**_COMMON, **_HEAD_DIM}),
        "qwen2": ("Qwen2Config", {**_COMMON}),
        "qwen3": ("Qwen3Config", {**_COMMON, **_HEAD_DIM}),
        "gemma2": ("Gemma2Config", {**_COMMON, **_HEAD_DIM, "sliding_window": 64}),
        "gemma3": ("Gemma3TextConfig", {**_COMMON, **_HEAD_DIM, "sliding_window": 64}),
        "phi3": ("Phi3Config", {**_COMMON, "original_max_position_embeddings": 128}),
        "gpt2": ("GPT2Config", _GPT2),
        "gpt_neox": ("GPTNeoXConfig", {k: v for k, v in _COMMON.items() if k != "num_key_value_heads"}),
        "olmo2": ("Olmo2Config", {**_COMMON}),
    }
)
FAMILIES: tuple[str, ...] = tuple(_FAMILIES)
"""The architectures that every part is tested with."""
_FULL_HEADS = {k: v for k, v in _COMMON.items() if k != "num_key_value_heads"}
_MORE: Mapping[str, tuple[str, dict[str, Any]]] = MappingProxyType(
    {
        "cohere": ("CohereConfig", {**_COMMON}),
        "cohere2": ("Cohere2Config", {**_COMMON, "sliding_window": 64}),
        "exaone4": ("Exaone4Config", {**_COMMON, "sliding_window": 64}),
        "gemma": ("GemmaConfig", {**_COMMON, **_HEAD_DIM}),
        "glm4": ("Glm4Config", {**_COMMON, **_HEAD_DIM}),
        "granite": ("GraniteConfig", {**_COMMON, "residual_multiplier": 0.7, "logits_scaling": 2.0}),
        "olmo": ("OlmoConfig", {**_COMMON}),
        "olmo3": ("Olmo3Config", {**_COMMON, "sliding_window": 64}),
        "phi": ("PhiConfig", _FULL_HEADS),
        "smollm3": ("SmolLM3Config", {**_COMMON}),
        "stablelm": ("StableLmConfig", {**_COMMON}),
        "starcoder2": ("Starcoder2Config", {**_COMMON}),
    }
)
MORE_FAMILIES: tuple[str, ...] = tuple(_MORE)
"""Further architectures that `tiny_model` and `tiny_checkpoint` build."""


def _randomize(model: Any, seed: int) -> None:
    """Give every parameter values of its own: normal ones of a layer's usual size, norm gains near where they were."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            rng = generator(seed, "tiny", name)
            noise = torch.from_numpy(rng.standard_normal(tuple(parameter.shape), dtype=np.float32))
            if parameter.dim() == 1:
                parameter.add_(0.05 * noise)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)


def _save_tokenizer(folder: Path, vocab_size: int) -> None:
    """A tokenizer of single characters: three special tokens, then printable ASCII, as many as the vocabulary holds."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<bos>", "<eos>"]
    # letters and digits first, so that even a small vocabulary spells the toy tasks
    characters = " 0123456789abcdefghijklmnopqrstuvwxyz+-=?:.,\nABCDEFGHIJKLMNOPQRSTUVWXYZ!\"#$%&'()*/;<>@[\\]^_`{|}~"
    tokens = [*specials, *characters][:vocab_size]
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<pad>"
    )
    wrapped.save_pretrained(folder)


def tiny_model(family: str, seed: int, *, tie: bool | None = None, attention: str | None = None, **config: Any) -> Any:
    """A random fp32 model of two layers, 32 wide, with a vocabulary of 64, in eval mode and without gradients.

    Args:
        family: one of `FAMILIES` or `MORE_FAMILIES`.
        seed: of the weights; equal arguments give equal weights.
        tie: share embedding and head; None leaves it to the architecture.
        attention: transformers' name of the implementation; None leaves it to transformers.
        config: keyword arguments of the architecture's config class, over the tiny defaults.

    Raises:
        ConfigError: for an unknown family.
    """
    if family not in _FAMILIES and family not in _MORE:
        raise ConfigError(
            "There is no tiny checkpoint of this family.",
            got=repr(family),
            allowed=suggest(family, (*FAMILIES, *MORE_FAMILIES)),
            fix="use one of these names.",
        )
    import torch
    import transformers

    class_name, defaults = {**_FAMILIES, **_MORE}[family]
    arguments = {**defaults, **({} if tie is None else {"tie_word_embeddings": tie}), **config}
    model_config = getattr(transformers, class_name)(**arguments)
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModelForCausalLM.from_config(
            model_config, dtype=torch.float32, attn_implementation=attention
        )
    _randomize(model, seed)
    return model.requires_grad_(False).eval()


def tiny_checkpoint(
    folder: Path,
    family: str,
    seed: int,
    dtype: str = "float32",
    *,
    tokenizer: bool = False,
    tie: bool | None = None,
    max_shard_size: str | int = "5GB",
    **config: Any,
) -> Path:
    """Save a random model of two layers, 32 wide, with a vocabulary of 64; about 25 thousand parameters.

    Args:
        folder: where to; is made.
        family: one of `FAMILIES` or `MORE_FAMILIES`.
        seed: of the weights; equal arguments give equal files.
        dtype: of the weights, torch's spelling.
        tokenizer: also save a tokenizer of single characters.
        tie: share embedding and head; None leaves it to the architecture.
        max_shard_size: as in transformers, for sharded checkpoints (`"20KB"`).
        config: keyword arguments of the architecture's config class, over the tiny defaults.

    Returns:
        `folder`.

    Raises:
        ConfigError: for an unknown family.
    """
    import torch

    model = tiny_model(family, seed, tie=tie, **config)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer:
        _save_tokenizer(folder, int(model.config.vocab_size))
    return folder

"""Pairs of small random models of every architecture that paths run through, each kind of layer included."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import torch

from evomerge.dataflow.families import FAMILIES, path_config
from evomerge.recipe.path import Hop, Hops
from evomerge.testing.tiny import tiny_model

N_LAYERS: Final = 4
WINDOW: Final = 5
"""Of sliding layers: shorter than the tests' prompts, so that a wrong kind of layer shows."""
_MIXED: Final = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
}
_FULL_FIRST: Final = {**_MIXED, "layer_types": ["full_attention", "sliding_attention"] * 2}
_BIASES: Final = {"attention_bias": True, "mlp_bias": True}

CASES: Final[Mapping[str, tuple[str, dict[str, Any]]]] = MappingProxyType(
    {
        "llama": ("llama", {}),
        "llama-biases": ("llama", {**_BIASES, "tie_word_embeddings": True}),
        "mistral": ("mistral", {"sliding_window": None}),
        "mistral-window": ("mistral", {"sliding_window": WINDOW}),
        "qwen2": ("qwen2", {}),
        "qwen2-mixed": ("qwen2", {"use_sliding_window": True, **_FULL_FIRST}),
        "qwen3": ("qwen3", {}),
        "qwen3-mixed": ("qwen3", {"use_sliding_window": True, **_MIXED}),
        "phi3": ("phi3", {"sliding_window": WINDOW}),
        "olmo2": ("olmo2", {}),
        "gemma2": ("gemma2", _MIXED),
        "gemma3": ("gemma3", _FULL_FIRST),
        "gpt2": ("gpt2", {}),
        "gpt_neox": ("gpt_neox", {"use_parallel_residual": True}),
        "gpt_neox-serial": ("gpt_neox", {"use_parallel_residual": False}),
        "cohere": ("cohere", {}),
        "cohere2": ("cohere2", _MIXED),
        "exaone4": ("exaone4", _MIXED),
        "gemma": ("gemma", {}),
        "glm4": ("glm4", {}),
        "granite": ("granite", {}),
        "olmo": ("olmo", {"clip_qkv": 1.0}),
        "olmo3": ("olmo3", _FULL_FIRST),
        "phi": ("phi", {}),
        "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1, 1], "use_sliding_window": True, **_MIXED}),
        "stablelm": ("stablelm", {"use_parallel_residual": True}),
        "stablelm-serial": ("stablelm", {"use_parallel_residual": False, "qk_layernorm": True}),
        "starcoder2": ("starcoder2", {"sliding_window": WINDOW}),
    }
)
"""Name -> family of `tiny_model`, and its config over the tiny defaults."""

PATH: Final[Hops] = (
    Hop(0),
    Hop(2, "b"),
    Hop(2, "b", 0.5),
    Hop(1, "a"),
    Hop(3, "b", -0.4),
    Hop(0, "b"),
    Hop(3, "a", 1.7),
)
"""Repeats, a skip, a reordering, both parents and the merged layers, gains of both signs."""


def path_parent(case: str, seed: int, attention: str | None = None, **config: Any) -> Any:
    """A random model of four layers.

    Args:
        case: one of `CASES`.
        seed: of the weights.
        attention: see `tiny_model`.
        config: over the case's.
    """
    family, own = CASES[case]
    depth = {"n_layer" if family == "gpt2" else "num_hidden_layers": N_LAYERS}
    return tiny_model(family, seed, attention=attention, **{**depth, **own, **config})


def stock_model(hops: Hops, merged: Any, sources: Mapping[str, Any]) -> Any:
    """The plain model of the merged model's class that computes what a path does: as deep, gains folded in.

    This is the slow obvious way to run a path; it takes from `Family` only what stands in a checkpoint.

    Args:
        hops: the path.
        merged: gives config, embeddings, norm and head, and the layers of hops without a parent.
        sources: parent -> model.
    """
    family = FAMILIES[merged.config.model_type]
    config = type(merged.config).from_dict(path_config(merged.config.to_dict(), [h.layer for h in hops]))
    stock = type(merged)._from_config(
        config, dtype=merged.dtype, attn_implementation=merged.config._attn_implementation
    )
    tensors: dict[str | None, Any] = {
        None: merged.state_dict(),
        **{name: model.state_dict() for name, model in sources.items()},
    }
    with torch.no_grad():
        for name, parameter in stock.named_parameters():
            parts = family.layer_name(name)
            if parts is None:
                parameter.copy_(tensors[None][name])
                continue
            hop = hops[parts.layer]
            parameter.copy_(tensors[hop.parent][f"{parts.prefix}{hop.layer}.{parts.rest}"])
            for branch in family.ends:
                if parts.rest.startswith(f"{branch.end}.") and hop.gain != 1:
                    parameter.copy_((parameter.double() + branch.offset) * hop.gain - branch.offset)
    return stock.requires_grad_(False).eval()

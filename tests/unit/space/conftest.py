"""Layouts of Llama's shape without any checkpoint."""

from __future__ import annotations

import pytest

from evomerge.layout import Layout, TensorInfo


def _llama(n_layers: int, tied: bool = False, dtype: str = "BF16") -> Layout:
    outside = [("model.embed_tokens.weight", "embedding"), ("model.norm.weight", "norm")]
    outside += [] if tied else [("lm_head.weight", "head")]
    inside = [
        ("self_attn.q_proj.weight", "attention"),
        ("self_attn.o_proj.weight", "attention"),
        ("mlp.up_proj.weight", "mlp"),
        ("mlp.down_proj.weight", "mlp"),
        ("input_layernorm.weight", "norm"),
        ("post_attention_layernorm.weight", "norm"),
    ]
    tensors = [TensorInfo(name, (4,), dtype, None, role) for name, role in outside]
    tensors += [
        TensorInfo(f"model.layers.{i}.{name}", (4,), dtype, i, role) for i in range(n_layers) for name, role in inside
    ]
    return Layout(n_layers, tuple(sorted(tensors, key=lambda t: t.name)))


@pytest.fixture(scope="session")
def llama():
    """Makes a layout from a number of layers."""
    return _llama

"""Paths through Llama against a loop written out by hand, and branch gains against real input scales."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.dataflow.views import PathRunner
from evomerge.recipe.path import Hop, gains_of_scales, plain_path
from evomerge.testing.path_models import N_LAYERS, PATH, path_parent

IDS = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(0))
ORDER = (0, 1, 2, 2, 1, 3)
SCALES = (1.0, 0.4, 1.5, 0.7, 0.9, 1.2)

Tensors = Mapping[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def rms_norm(h: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return weight * h / (h.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def rotated(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary positions: pair (i, i + d/2) of position p is turned by the angle p / theta^(2i / d)."""
    half, length = x.shape[-1] // 2, x.shape[-2]
    turns = theta ** -(torch.arange(half, dtype=torch.float32) * 2 / x.shape[-1])
    angle = (torch.arange(length, dtype=torch.float32)[:, None] * turns).to(torch.float32)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def attention(x: torch.Tensor, w: Tensors, config: Any) -> torch.Tensor:
    heads, groups, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    length = x.shape[1]

    def split(name: str, n: int) -> torch.Tensor:
        return (x @ w[f"self_attn.{name}.weight"].T).view(*x.shape[:2], n, width).transpose(1, 2)

    theta = config.rope_parameters["rope_theta"]
    q, k, v = rotated(split("q_proj", heads), theta), rotated(split("k_proj", groups), theta), split("v_proj", groups)
    k, v = k.repeat_interleave(heads // groups, 1), v.repeat_interleave(heads // groups, 1)
    future = torch.ones(length, length).triu(1).bool()
    weights = (q @ k.transpose(-1, -2) / math.sqrt(width)).masked_fill(future, -math.inf).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2) @ w["self_attn.o_proj.weight"].T


def mlp(x: torch.Tensor, w: Tensors) -> torch.Tensor:
    gate = torch.nn.functional.silu(x @ w["mlp.gate_proj.weight"].T)
    return (gate * (x @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T


def by_hand(
    hops: Sequence[Hop], models: Mapping[str | None, Any], scales: Sequence[float] | None = None
) -> torch.Tensor:
    """Logits of a path; `scales` truly multiply the hidden state before each hop."""
    merged = models[None]
    config, outside = merged.config, merged.state_dict()
    h = outside["model.embed_tokens.weight"][IDS]
    for hop, scale in zip(hops, scales or [1.0] * len(hops), strict=True):
        prefix = f"model.layers.{hop.layer}."
        state = models[hop.parent].state_dict()
        w = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        h = h * scale
        h = h + hop.gain * attention(rms_norm(h, w["input_layernorm.weight"], config.rms_norm_eps), w, config)
        h = h + hop.gain * mlp(rms_norm(h, w["post_attention_layernorm.weight"], config.rms_norm_eps), w)
    return rms_norm(h, outside["model.norm.weight"], config.rms_norm_eps) @ outside["lm_head.weight"].T


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def models_of(dtype: torch.dtype, size: float = 1.0, **config: Any) -> dict[str | None, Any]:
    """A merged model and two sources; what embeddings and branches add to the stream is of this size."""
    merged, source = (path_parent("llama", seed, **config).to(dtype) for seed in (0, 1))
    for model in (merged, source):
        embedding = model.model.embed_tokens.weight
        embedding.mul_(size / embedding.std())
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(size)
            layer.mlp.down_proj.weight.mul_(size)
    return {None: merged, "a": merged, "b": source}


def run(hops: Sequence[Hop], models: Mapping[str | None, Any]) -> torch.Tensor:
    runner = PathRunner(models[None], {name: model for name, model in models.items() if name})
    found: torch.Tensor = runner.model(hops)(IDS).logits
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_path_with_gains_is_the_loop_written_by_hand(dtype: torch.dtype) -> None:
    models = models_of(dtype)
    # the model turns positions and normalises in fp32, whatever its dtype
    assert gap(run(PATH, models), by_hand(PATH, models)) < 2e-6
    assert gap(run(plain_path(N_LAYERS), models), by_hand(plain_path(N_LAYERS), models)) < 2e-6


def test_the_loop_sees_gains_parents_and_order() -> None:
    """The reference itself can fail: every change of a path changes it."""
    models = models_of(torch.float32)
    whole = by_hand(PATH, models)
    for k, hop in enumerate(PATH):
        for other in (Hop(hop.layer, hop.parent, -hop.gain), Hop((hop.layer + 1) % N_LAYERS, hop.parent, hop.gain)):
            assert gap(by_hand((*PATH[:k], other, *PATH[k + 1 :]), models), whole) > 1e-2


def scale_gap(models: Mapping[str | None, Any], scales: Sequence[float] = SCALES) -> float:
    """How far a path run with gains is from the same path with real input scales."""
    plain = tuple(Hop(layer, "b" if k % 2 else None) for k, layer in enumerate(ORDER))
    gained = tuple(Hop(h.layer, h.parent, g) for h, g in zip(plain, gains_of_scales(scales), strict=True))
    return gap(by_hand(gained, models), by_hand(plain, models, scales))


def test_input_scales_are_gains_but_for_the_epsilon_of_the_norms() -> None:
    assert scale_gap(models_of(torch.float64, rms_norm_eps=0.0)) < 1e-13
    assert scale_gap(models_of(torch.float32, rms_norm_eps=0.0)) < 1e-5
    assert scale_gap(models_of(torch.float32, rms_norm_eps=1e-6)) < 1e-5
    assert scale_gap(models_of(torch.float64, 0.02, rms_norm_eps=1e-5)) > 1e-2  # not to be neglected


@pytest.mark.parametrize("size", [0.02, 0.2, 1.0])
def test_the_gap_is_proportional_to_epsilon_over_the_square_of_the_stream(size: float) -> None:
    at = [scale_gap(models_of(torch.float64, size, rms_norm_eps=eps * size**2)) for eps in (1e-7, 1e-5, 1e-3)]
    assert at[0] == pytest.approx(at[1] / 100, rel=0.05)
    assert at[1] == pytest.approx(at[2] / 100, rel=0.05)
    alone = scale_gap(models_of(torch.float64, rms_norm_eps=1e-5))
    assert at[1] == pytest.approx(alone, rel=0.05)


@given(st.lists(st.floats(0.2, 3), min_size=len(ORDER), max_size=len(ORDER)))
@settings(deadline=None, max_examples=8)
def test_any_scales(scales: list[float]) -> None:
    with torch.no_grad():
        assert scale_gap(models_of(torch.float64, rms_norm_eps=0.0), scales) < 1e-11

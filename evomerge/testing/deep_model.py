"""A small model of eight layers that needs every one of them, for tests and benchmarks of paths."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer as TorchOptimizer
from transformers import LlamaForCausalLM

from evomerge.seeds import derive_seed, generator
from evomerge.zoo.model import make_model
from evomerge.zoo.problems import draw_batch
from evomerge.zoo.scoring import IGNORED, make_batch
from evomerge.zoo.spec import ModelSize

NEEDED: Final = 0.3
"""Cross-entropy per token that a model must at least have per layer left out, or when two are exchanged.

One layer that is missing makes some two answers in three wrong. What is missing adds up: otherwise training finds
pairs of layers of which the second repairs what the first spoils, and either alone is worse than none.
"""

MOST_MISSING: Final = 4
"""So many layers are left out at most while training."""


class Training(NamedTuple):
    """How a model is trained; a pure function of its fields and the machine."""

    size: ModelSize
    skill: str = "rev"
    steps: int = 500
    batch: int = 64
    seed: int = 0


DEEP: Final = Training(ModelSize(hidden=32, intermediate=64, layers=8, heads=4))
"""Right on all of 200 held-out items; half a minute on one core."""


def turned_by(model: LlamaForCausalLM, length: int) -> tuple[Tensor, Tensor]:
    """Cosines of the rotary embedding, and sines with the first half negated; `[length, head width]` each."""
    cos, sin = model.model.rotary_emb(torch.zeros(1), torch.arange(length)[None])
    half = sin.shape[-1] // 2
    return cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)


def run_layer(layer: Any, hidden: Tensor, turned: tuple[Tensor, Tensor], gain: float = 1.0) -> Tensor:
    """Hidden states behind a Llama layer whose branches are multiplied by `gain`, `[items, length, width]`.

    The layer's own arithmetic in fewer operations: models of this size spend their time between them.
    """
    attention, mlp = layer.self_attn, layer.mlp
    cos, sin = turned
    n, length, width = hidden.shape
    x = _normed(layer.input_layernorm, hidden)
    q, k, v = (
        functional.linear(x, part.weight).view(n, length, -1, attention.head_dim).transpose(1, 2)
        for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    q, k = (t * cos + torch.cat(t.chunk(2, -1)[::-1], -1) * sin for t in (q, k))
    mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    added = functional.linear(mixed.transpose(1, 2).reshape(n, length, width), attention.o_proj.weight)
    hidden = torch.add(hidden, added, alpha=gain)
    x = _normed(layer.post_attention_layernorm, hidden)
    gated = functional.silu(functional.linear(x, mlp.gate_proj.weight)) * functional.linear(x, mlp.up_proj.weight)
    return torch.add(hidden, functional.linear(gated, mlp.down_proj.weight), alpha=gain)


def _normed(norm: Any, hidden: Tensor) -> Tensor:
    return functional.rms_norm(hidden, (hidden.shape[-1],), norm.weight, norm.variance_epsilon)


def _loss(model: LlamaForCausalLM, ids: Tensor, labels: Tensor, layers: Sequence[nn.Module]) -> Tensor:
    hidden = model.model.embed_tokens(ids[:, :-1])
    turned = turned_by(model, hidden.shape[1])
    for layer in layers:
        hidden = run_layer(layer, hidden, turned)
    logits = model.lm_head(model.model.norm(hidden))
    return functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


class _Wounded(NamedTuple):
    layers: list[nn.Module]
    needed: float
    """Cross-entropy that they must at least have."""


def _wounded(layers: list[nn.Module], rng: np.random.Generator) -> _Wounded:
    """The layers without some of them, or with two neighbours exchanged."""
    if rng.integers(3) == 0:
        i = int(rng.integers(len(layers) - 1))
        return _Wounded([*layers[:i], layers[i + 1], layers[i], *layers[i + 2 :]], NEEDED)
    missing = {int(i) for i in rng.permutation(len(layers))[: int(rng.integers(1, MOST_MISSING + 1))]}
    return _Wounded([x for i, x in enumerate(layers) if i not in missing], NEEDED * len(missing))


def _optimizers(model: LlamaForCausalLM) -> tuple[TorchOptimizer, TorchOptimizer]:
    inner = {name: p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name}
    outer = [p for name, p in model.named_parameters() if name not in inner]
    return torch.optim.Muon(inner.values(), lr=0.02, momentum=0.95, weight_decay=0.0), torch.optim.AdamW(
        outer, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )


def train_deep(training: Training) -> LlamaForCausalLM:
    """A model of one skill that needs every layer, in its place.

    Beside the skill's cross-entropy, a hinge at `NEEDED` on that of the same model with a layer left out or two
    exchanged: without it the later layers of so small a model do almost nothing, and almost any path restores it.
    """
    model = make_model(training.size, derive_seed(training.seed, "planted", "init"))
    rng = generator(training.seed, "planted", "batches")
    layers = list(model.model.layers)
    optimizers = _optimizers(model)
    rates = [o.param_groups[0]["lr"] for o in optimizers]
    for step in range(1, training.steps + 1):
        share = min(1.0, step / 30, (training.steps - step + 1) / (0.3 * training.steps))
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * share
        ids, labels = make_batch(draw_batch({training.skill: 1.0}, training.batch, rng))
        loss = _loss(model, ids, labels, layers)
        if step > 30:
            few, wounded = training.batch // 4, _wounded(layers, rng)
            loss = loss + torch.relu(wounded.needed - _loss(model, ids[:few], labels[:few], wounded.layers))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
    return model.eval().requires_grad_(False)


def noise_like(layer: nn.Module, seed: int) -> nn.Module:
    """A layer of normal noise: every matrix as large as the given layer's."""
    noise = copy.deepcopy(layer)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in noise.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=source) * parameter.std())
    return noise

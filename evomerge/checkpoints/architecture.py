"""Layers and roles of any causal language model, read off its tensor names and its config.

The layers are the numbered list of modules (`model.layers.N.`, `transformer.h.N.`, ...) that is as long as the config
says. A role is decided by words in the name: first whether the tensor belongs to a norm, then, inside a layer, by the
outermost module that names attention or a feed-forward network.

Of a mixture of experts, the experts are `mlp`, shared ones too. What decides which of them run, and how much each
counts, is `other` (routers, their correction biases, the gate of a shared expert): it is small, it answers to changes
unlike any other weight, and so a search can give it values of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from evomerge.checkpoints.header import HeaderEntry
from evomerge.errors import ModelError
from evomerge.layout import Layout, Role, TensorInfo

DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")
"""Where configs state how many layers there are."""
_INPUT_FIRST = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_LEAVES = {"weight", "bias", "scale", "gamma", "beta"}
_FOREIGN = re.compile(r"vision|visual|image|audio|speech|multi_modal|mm_projector")

_NORM = re.compile(r"norm|^ln|_ln$")
_ATTENTION = re.compile(r"att(n|ention)|^att(_|$)|^w?(q|k|v|o|qkv|kv|qk)(_|$)|_(q|k|v|qkv)(_|$)|query|^key$|^value$")
_MLP = re.compile(
    r"mlp|ffn|^ff(_|$)|feed_?forward|moe|expert|^fc|_fc(_|\d|$)|^(gate|up|down|gate_up)(_proj)?$|^w[123]$"
    r"|h_to_4h|4h_to_h|^linear[12]$|^intermediate$"
)
_ROUTER = re.compile(r"^router$|expert_gate$|^expert_bias$|^e_score_correction_bias$|^moe_statics$")
_HEAD = re.compile(r"^(lm_|output_)?head$|embed_out|^output(_layer)?$|unembed|^score$|final_logits_bias")
_EMBEDDING = re.compile(r"embed|^w[tp]e$|^tok_|^shared$")


class _Stack(NamedTuple):
    """The numbered list of layers: names begin with `prefix`, then the layer's number."""

    prefix: tuple[str, ...]
    depth: int


def is_input_first(config: Mapping[str, Any]) -> bool:
    """Whether the linear maps inside the layers are stored as (inputs, outputs), the transpose of everybody else's."""
    return config.get("model_type") in _INPUT_FIRST


def language_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model: the config itself, or what it nests."""
    for key in ("text_config", "language_config", "llm_config"):
        nested = config.get(key)
        if isinstance(nested, Mapping) and not any(k in config for k in DEPTH_KEYS):
            return nested
    return config


def config_depth(config: Mapping[str, Any]) -> int | None:
    """The number of layers that a config states, None when it states none."""
    inner = language_config(config)
    for key in DEPTH_KEYS:
        value = inner.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _numbered_lists(header: Mapping[str, HeaderEntry]) -> dict[tuple[str, ...], dict[int, int]]:
    """Prefix -> {number: elements below it}, for the first number in each name."""
    lists: dict[tuple[str, ...], dict[int, int]] = {}
    for name, entry in header.items():
        parts = tuple(name.split("."))
        for i, part in enumerate(parts[:-1]):
            if part.isascii() and part.isdigit() and len(part) <= 6:
                counts = lists.setdefault(parts[:i], {})
                counts[int(part)] = counts.get(int(part), 0) + entry.numel
                break
    return lists


def _find_stack(header: Mapping[str, HeaderEntry], config: Mapping[str, Any]) -> _Stack:
    lists = _numbered_lists(header)
    depth = config_depth(config)
    extra = language_config(config).get("num_nextn_predict_layers") or 0
    allowed = None if depth is None else {depth, depth + extra if isinstance(extra, int) else depth}

    def fits(numbers: Mapping[int, int]) -> bool:
        complete = set(numbers) == set(range(len(numbers)))
        return complete and (allowed is None or len(numbers) in allowed)

    fitting = {p: n for p, n in lists.items() if fits(n) and not _FOREIGN.search(".".join(p))}
    if fitting:
        prefix = max(fitting, key=lambda p: (sum(fitting[p].values()), p))
        return _Stack(prefix, depth if depth is not None else len(fitting[prefix]))
    largest = max(lists, key=lambda p: (sum(lists[p].values()), p), default=None)
    found = "no numbered modules"
    if largest is not None:
        numbers = sorted(lists[largest])
        absent = sorted(set(range(depth or numbers[-1] + 1)) - set(numbers))
        found = f"{len(numbers)} layers under {'.'.join(largest)!r}, numbers {numbers[0]} to {numbers[-1]}"
        found += f", without {', '.join(map(str, absent[:20]))}" if absent else ""
    raise ModelError(
        "The layers of a checkpoint cannot be told.",
        got=found,
        allowed=f"{depth} numbered layers, as config.json says" if depth else "one complete list of numbered layers",
        fix="repair num_hidden_layers in config.json, or the checkpoint: its tensors and its config disagree.",
    )


def _modules(parts: tuple[str, ...]) -> tuple[str, ...]:
    """The module path of a tensor, in lower case: its name without `weight`, `bias` and the like."""
    lower = tuple(p.lower() for p in parts)
    return lower[:-1] if len(lower) > 1 and lower[-1] in _LEAVES else lower


def _mixtures(header: Mapping[str, HeaderEntry]) -> set[tuple[str, ...]]:
    """The modules that hold experts, each as the parts of its name."""
    found = set()
    for name in header:
        parts = tuple(name.split("."))
        for i, part in enumerate(parts):
            if "expert" in part:
                found.add(parts[:i])
            elif "moe" in part:
                found.add(parts[: i + 1])
    return found


def _is_router(parts: tuple[str, ...], mixtures: set[tuple[str, ...]]) -> bool:
    """Whether a tensor decides which experts run; a module `gate` does so only beside experts."""
    return any(_ROUTER.search(p) or (p == "gate" and parts[:i] in mixtures) for i, p in enumerate(parts))


def _role_inside(parts: tuple[str, ...]) -> Role:
    """The role of a tensor of a layer, not of a router; `parts` is its name behind the layer's number."""
    modules = _modules(parts)
    named = next((m for m in reversed(modules) if not m.isdigit()), modules[-1])
    if _NORM.search(named):
        return "norm"
    for module in modules:
        if "rotary" in module or module == "inv_freq":
            return "other"
        if _ATTENTION.search(module) and not _NORM.search(module):
            return "attention"
        if _MLP.search(module):
            return "mlp"
    # a container such as `norm_attn_norm` may name both; only then is it asked at all
    return "attention" if any(_ATTENTION.search(m) for m in modules) else "other"


def _role_outside(parts: tuple[str, ...]) -> Role:
    """The role of a tensor that belongs to no layer."""
    modules = _modules(parts)
    if _FOREIGN.search(".".join(modules)) or "inv_freq" in modules:
        return "other"
    if _NORM.search(modules[-1]):
        return "norm"
    if any(_HEAD.search(m) for m in modules):
        return "head"
    return "embedding" if any(_EMBEDDING.search(m) for m in modules) else "other"


def is_derived_buffer(name: str, entry: HeaderEntry | TensorInfo) -> bool:
    """Whether a tensor is recomputed from the config by whoever loads the model, so that nobody merges or writes it.

    These are rotary `inv_freq`, the causal masks that old GPT-2, GPT-Neo, GPT-J and GPT-NeoX files carry as
    `attn.bias` (four axes; a real bias has one) and `masked_bias`, and `position_ids`.
    """
    parts = name.split(".")
    if parts[-1] in {"inv_freq", "masked_bias", "position_ids"}:
        return True
    holder = parts[-2] if len(parts) > 1 else ""
    return ("attn" in holder or "attention" in holder) and parts[-1] == "bias" and len(entry.shape) == 4


def infer_layout(header: Mapping[str, HeaderEntry], config: Mapping[str, Any]) -> Layout:
    """Layers and roles of all tensors of a causal language model.

    Args:
        header: tensor name -> entry, over all shards.
        config: the content of `config.json`.

    Returns:
        The layout of every tensor of `header`, sorted by name. Derived buffers have the role `other`.

    Raises:
        ModelError: when no numbered list of modules is as long as the config says.
    """
    stack = _find_stack(header, config)
    mixtures = _mixtures(header)
    width = len(stack.prefix)
    tensors = []
    for name in sorted(header):
        parts, entry = tuple(name.split(".")), header[name]
        layer: int | None = None
        if parts[:width] == stack.prefix and len(parts) > width + 1 and parts[width].isdigit():
            layer = int(parts[width])
        if is_derived_buffer(name, entry):
            role: Role = "other"
        elif layer is None:
            role = _role_outside(parts)
        elif _is_router(parts, mixtures):
            role = "other"
        else:
            role = _role_inside(parts[width + 1 :])
        if layer is not None and layer >= stack.depth:  # multi-token prediction modules behind the last layer
            layer, role = None, "other"
        tensors.append(TensorInfo(name, entry.shape, entry.dtype, layer, role))
    return Layout(stack.depth, tuple(tensors))

"""Can these checkpoints be merged? Compared tensor by tensor and setting by setting; every difference is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.checkpoints.architecture import config_depth, language_config
from evomerge.checkpoints.dtypes import EIGHT_BIT_FLOAT, FLOATING
from evomerge.checkpoints.finite import check_finite
from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.tokenizers import (
    ReadVocabulary,
    VocabularyCache,
    read_vocabulary,
    token_id_faults,
    tokenizer_differences,
)
from evomerge.errors import ConfigError, ModelError, suggest

__all__ = ["check_compatible", "check_finite", "differences"]

_LISTED = 20
_STATED = (
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "partial_rotary_factor",
    "rotary_pct",
    "num_experts_per_tok",
)
"""Settings that must be equal where both configs state them; an absent one means an architecture's default."""


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings, flat, from either spelling: `rope_parameters` or `rope_theta` with `rope_scaling`."""
    inner = language_config(config)
    stated = inner.get("rope_parameters") or {}
    flat: dict[str, Any] = {"rope_type": "default"}
    if inner.get("rope_local_base_freq") is not None:
        flat["sliding_attention.rope_theta"] = inner["rope_local_base_freq"]
    for key in ("rope_theta", "rotary_emb_base"):
        if inner.get(key) is not None:
            flat["rope_theta"] = inner[key]
    scaling = inner.get("rope_scaling") or {}
    nested = {k: v for k, v in stated.items() if isinstance(v, Mapping)}
    parts = [("", scaling), ("", {k: v for k, v in stated.items() if k not in nested})]
    # the long-range kind of layer takes the plain names, so that both spellings meet
    parts += [("" if kind == "full_attention" else f"{kind}.", values) for kind, values in nested.items()]
    for prefix, values in parts:
        if isinstance(values, Mapping):
            flat |= {prefix + ("rope_type" if k == "type" else k): v for k, v in values.items() if v is not None}
    return flat


def _counted(n: int) -> str:
    return "1 difference" if n == 1 else f"{n} differences"


def _config_differences(left: OpenParent, right: OpenParent) -> list[str]:
    a, b = language_config(left.config), language_config(right.config)
    pairs = [("model_type", left.config.get("model_type"), right.config.get("model_type"))]
    pairs.append(("number of layers", config_depth(left.config), config_depth(right.config)))
    pairs.append(("tied embeddings", left.tied_embeddings, right.tied_embeddings))
    pairs += [(key, a[key], b[key]) for key in _STATED if a.get(key) is not None and b.get(key) is not None]
    rope_a, rope_b = _rope(left.config), _rope(right.config)
    pairs += [(f"rotary {key}", rope_a[key], rope_b[key]) for key in sorted(set(rope_a) & set(rope_b))]
    return [f"config: {key} is {y!r}, not {x!r}" for key, x, y in pairs if x != y]


def _dtype_fault(left: str, right: str) -> bool:
    return left != right and not (left in FLOATING and right in FLOATING)


def _tensor_differences(left: OpenParent, right: OpenParent) -> list[str]:
    a, b = ({t.name: t for t in c.layout.tensors} for c in (left, right))
    found = [f"{name} is missing" for name in sorted(set(a) - set(b))]
    found += [f"{name} is not in the reference" for name in sorted(set(b) - set(a))]
    for name in sorted(set(a) & set(b)):
        x, y = a[name], b[name]
        if x.shape != y.shape:
            found.append(f"{name} has shape {list(y.shape)}, not {list(x.shape)}")
        elif _dtype_fault(x.dtype, y.dtype):
            found.append(f"{name} is {y.dtype}, not {x.dtype}")
        elif x.dtype not in FLOATING and not left.tensor(name).equal(right.tensor(name)):
            found.append(f"{name} ({x.dtype}, a buffer that cannot be averaged) has other values")
    return found


def _own_faults(checkpoint: OpenParent, read: ReadVocabulary) -> list[str]:
    """What makes a checkpoint unfit for any merge."""
    found = []
    if language_config(checkpoint.config).get("quantization_config") or checkpoint.config.get("quantization_config"):
        found.append("config: quantization_config; quantised weights cannot be averaged")
    eight = [t.name for t in checkpoint.layout.tensors if t.dtype in EIGHT_BIT_FLOAT]
    if eight:
        found.append(f"{eight[0]} and {len(eight) - 1} others are 8-bit floats, which need their scales")
    has_head = any(t.role == "head" for t in checkpoint.layout.tensors)
    if not has_head and not checkpoint.tied_embeddings:
        found.append("there is no head, and it is not tied to the embedding")
    return found + token_id_faults(checkpoint, read)


def differences(reference: OpenParent, other: OpenParent, read: ReadVocabulary = read_vocabulary) -> list[str]:
    """Every way in which `other` does not fit `reference`, one line each, from headers, configs and tokenizers.

    Floating dtypes may differ. Tensors of other dtypes are compared by value (they are small buffers).

    Args:
        reference: what is compared with.
        other: what is compared.
        read: how vocabularies are read, for a cache.

    Raises:
        ModelError: when a tokenizer's file is damaged.
    """
    found = _config_differences(reference, other) + _tensor_differences(reference, other)
    return found + tokenizer_differences(reference, other, read)


def _describe(faults: Mapping[str, list[str]]) -> str:
    lines = [f"{name}: {text}" for name, texts in faults.items() for text in texts]
    more = f"\n    and {_counted(len(lines) - _LISTED)} more" if len(lines) > _LISTED else ""
    return _counted(len(lines)) + "".join(f"\n    {line}" for line in lines[:_LISTED]) + more


def _fix(between: Sequence[str]) -> str:
    if any(line.startswith(("tokenizer: ", "config: vocab_size ")) for line in between):
        how = "set `parents.tokens: align` (in a mergekit file `tokenizer_source: base`)"
        return f"{how}, which matches rows by token string, or leave out the parents that differ."
    return "use fine-tuned versions of one base model, or leave out the parents that differ."


def check_compatible(checkpoints: Mapping[str, OpenParent], base: str | None) -> None:
    """Refuse parents that cannot be merged.

    Args:
        checkpoints: name -> parent; at least one.
        base: the one that the others are compared with; None compares with the first.

    Raises:
        ConfigError: when `base` is not among the names, or there are none.
        ModelError: listing every difference (the first 20 and the number of the rest), or when a tokenizer's file is
            damaged.
    """
    name = base if base is not None else next(iter(checkpoints), "")
    if name not in checkpoints:
        raise ConfigError(
            "There is no such parent.",
            got=repr(name),
            allowed=suggest(name, checkpoints),
            fix="name one of the parents.",
        )
    reference = checkpoints[name]
    read = VocabularyCache().read
    faults = {n: _own_faults(c, read) for n, c in checkpoints.items()}
    between: list[str] = []
    for other, checkpoint in checkpoints.items():
        if checkpoint is not reference:
            between += (found := differences(reference, checkpoint, read))
            faults[other] += found
    if any(faults.values()):
        raise ModelError(
            f"The parents cannot be merged; {name!r} is the reference.",
            got=_describe(faults),
            allowed="the same architecture: tensor names, shapes, integer buffers, rotary settings and tokens",
            fix=_fix(between),
        )

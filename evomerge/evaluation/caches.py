"""Which models keep only keys and values of tokens between calls."""

from __future__ import annotations

from typing import Any

import torch


def keeps_plain_cache(model: Any) -> bool:
    """Whether a model's cache is keys and values by token, which rows can be padded in, share and be dropped from.

    State-space layers, convolutions and linear attention keep a state that padding on the left changes and that
    transformers cannot take rows out of; indexed attention keeps more than keys and values.

    Args:
        model: a Hugging Face causal language model.
    """
    from transformers import DynamicCache, cache_utils
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if getattr(model, "_is_stateful", False):
        return False
    # older versions, which vLLM asks for, have no layers without a cache
    plain = (DynamicLayer, DynamicSlidingWindowLayer, getattr(cache_utils, "DummyLayer", DynamicLayer))
    return all(type(layer) in plain for layer in DynamicCache(config=model.config).layers)


def select_rows(cache: Any, rows: torch.Tensor) -> None:
    """Keep some rows of a plain cache, in place; its layers may lie on several devices.

    Args:
        cache: of a model that `keeps_plain_cache`.
        rows: their numbers, which may repeat.
    """
    for layer in cache.layers:
        held = getattr(layer, "keys", None)
        layer.batch_select_indices(rows if held is None else rows.to(held.device))

"""Makers with data: what they share, whatever they do with the prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from evomerge.checkpoints.compatible import check_compatible
from evomerge.checkpoints.dtypes import FLOATING
from evomerge.checkpoints.finite import is_finite
from evomerge.checkpoints.opened import OpenParent
from evomerge.errors import ModelError, NonFinite
from evomerge.layout import TensorInfo
from evomerge.virtual.costs import FLOPS, duration
from evomerge.virtual.maker import Ingredients, MadePlan
from evomerge.virtual.prompts import longest_prompt

if TYPE_CHECKING:
    import torch

PASS: Final = 200
"""What going through the elements of a tensor once takes, in operations per element: memory is what limits it."""
_BACKWARD: Final = 2
"""What a backward pass takes, in forward passes."""


def check_models(ingredients: Ingredients, shortest: int = 1) -> MadePlan:
    """The plan to make every floating tensor of the first model (of the base, where there is one) anew, in fp32.

    Args:
        ingredients: of a maker with prompts.
        shortest: tokens that a prompt needs in order to say something.

    Raises:
        ModelError: when the models do not fit each other, a prompt does not fit them, or none is long enough.
    """
    base = ingredients.base
    named = {f"model {i + 1} ({p.source})": p for i, p in enumerate(ingredients.of)}
    under = ingredients.of[0] if base is None else base
    check_compatible(named if base is None else {"base": base, **named}, None if base is None else "base")
    _check_prompts(ingredients, under, shortest)
    changed = tuple(
        TensorInfo(t.name, t.shape, "F32", t.layer, t.role) for t in under.layout.tensors if t.dtype in FLOATING
    )
    return MadePlan(under, changed)


def _check_prompts(ingredients: Ingredients, under: OpenParent, shortest: int) -> None:
    rows = next((t.shape[0] for t in under.layout.tensors if t.role == "embedding" and len(t.shape) == 2), math.inf)
    stated = under.config.get("vocab_size")
    vocabulary = min(rows, stated) if isinstance(stated, int) and stated else rows
    filled = [p for p in ingredients.prompts if p]
    if not any(len(p) >= shortest for p in ingredients.prompts):
        raise _bad_prompts(f"{len(ingredients.prompts)} prompts, none of {shortest} tokens or more")
    for token in (min(map(min, filled)), max(map(max, filled))):
        if not 0 <= token < vocabulary:
            raise _bad_prompts(f"token {token} for a vocabulary of {vocabulary}")
    longest, limit = max(map(len, filled)), longest_prompt(under.config)
    if longest > limit:
        raise _bad_prompts(f"a prompt of {longest} tokens for models that see {limit} at once")


def _bad_prompts(got: str) -> ModelError:
    return ModelError(
        "The prompts do not fit the models that are shown them.",
        got=got,
        allowed="token ids of the models' own tokenizer, no more of them than the models see at once",
        fix="use a suite with questions, compiled with the tokenizer of these models.",
    )


def read_model(model: OpenParent, name: str) -> torch.Tensor:
    """A model's tensor in fp32, a new one where its dtype is another.

    Raises:
        NonFinite: when it holds NaN or infinity.
    """
    found = model.tensor(name).float()
    if not is_finite(found):
        raise NonFinite(
            "A parent cannot be made from a model that holds NaN or infinity.",
            got=f"{name} of {model.source}",
            allowed="finite values",
            fix="leave this model out, or obtain a sound copy of it.",
        )
    return found


def average(models: Sequence[OpenParent], name: str, weights: Sequence[float] | None = None) -> torch.Tensor:
    """A weighted mean of one tensor, in fp64; equal tensors give themselves.

    Args:
        models: at least one.
        name: of the tensor.
        weights: not all zero; None takes all models alike.

    Raises:
        NonFinite: when one holds NaN or infinity.
    """
    shares = [1.0] * len(models) if weights is None else list(weights)
    first = read_model(models[0], name).double()
    found = first.clone()
    for model, share in zip(models[1:], shares[1:], strict=True):
        found.add_(read_model(model, name).double().sub_(first), alpha=share / sum(shares))
        model.release(name)
    models[0].release(name)
    return found


def running_cost(ingredients: Ingredients, forward: float, backward: float, extra: float, held: float) -> str:
    """What running the models over the prompts takes, for people.

    Args:
        ingredients: tell the model's size and the number of tokens.
        forward: forward passes over all prompts.
        backward: backward passes over all prompts.
        extra: operations beside them.
        held: memory, in bytes, beside one model in fp32; parents' pages are mapped and do not count.
    """
    size = sum(math.prod(t.shape) for t in ingredients.of[0].layout.tensors)
    tokens = sum(len(p) for p in ingredients.prompts)
    seconds = (2.0 * size * tokens * (forward + _BACKWARD * backward) + extra) / FLOPS
    n_prompts = len(ingredients.prompts)
    passes = f"{forward * n_prompts:,.0f} forward" + (f" and {backward * n_prompts:,.0f} backward" if backward else "")
    memory = max(8.0 * size, 4.0 * size + held) / 1e9  # there are two models for a moment while the first is loaded
    words = f"about {duration(seconds)} on one core, {passes} passes of {tokens / n_prompts:,.0f} tokens"
    return f"{words}, {memory:.1f} GB of memory"

"""What a model costs, whatever it answers: the layers that run, the parameters that are stored, the time per token.

Hops and parameters follow from the recipe and the layout alone and have standard error 0. Latency is measured, on the
worker that scores the model; two measurements differ by more than their standard errors where the machine's load does.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np

from evomerge.evaluation.tokens import positions_of
from evomerge.layout import Layout, TensorInfo
from evomerge.recipe.path import check_layers
from evomerge.recipe.recipe import Recipe

CostKind = Literal["hops", "parameters", "latency"]
COSTS: Final[tuple[CostKind, ...]] = get_args(CostKind)

UNITS: Final[Mapping[CostKind, str]] = {
    "hops": "layers that run",
    "parameters": "parameters of the exported checkpoint",
    "latency": "seconds per token",
}

WARM_PASSES: Final = 2
TIMED_PASSES: Final = 9
MEASURED: Final[frozenset[CostKind]] = frozenset({"latency"})
"""Costs that a clock tells. Models are measured at different moments, and the machine is not always equally busy: that
one value is below another says nothing about the models, whatever the standard errors of the repetitions are."""

BATCH: Final = (4, 64)
"""Sequences and tokens of each in a timed pass; fewer tokens where a model has fewer positions."""

_MAD_TO_SD: Final = 1.4826
"""Of a normal sample: standard deviation over the median absolute deviation."""


class Cost(NamedTuple):
    """A cost with its standard error over repeated measurements; 0 for what is counted."""

    value: float
    se: float = 0.0


def n_hops(recipe: Recipe, n_layers: int) -> int:
    """How many layers a recipe's model runs."""
    return n_layers if recipe.path is None else len(recipe.path)


def n_parameters(recipe: Recipe, layout: Layout, tied: bool) -> int:
    """How many numbers the exported checkpoint stores: a layer that runs twice is stored twice.

    Args:
        recipe: of the model.
        layout: of its template.
        tied: whether the head is the embedding; then it counts once, also where the layout lists both.

    Raises:
        RecipeError: as `check_layers`.
    """
    sizes = [0] * layout.n_layers
    outside = 0
    for tensor in layout.tensors:
        if tensor.layer is not None:
            sizes[tensor.layer] += math.prod(tensor.shape)
        elif not (tied and _is_second_copy(tensor, layout)):
            outside += math.prod(tensor.shape)
    if recipe.path is None:
        return outside + sum(sizes)
    check_layers(recipe.path, layout.n_layers)
    return outside + sum(sizes[hop.layer] for hop in recipe.path)


def _is_second_copy(tensor: TensorInfo, layout: Layout) -> bool:
    embeddings = {t.shape for t in layout.tensors if t.role == "embedding"}
    return tensor.role == "head" and tensor.shape in embeddings


def costs_of(recipe: Recipe, layout: Layout, tied: bool) -> Mapping[str, float]:
    """What is counted: `hops` and `parameters`.

    Args:
        recipe: of the model.
        layout: of its template.
        tied: whether the head is the embedding.

    Raises:
        RecipeError: as `check_layers`.
    """
    return {
        "hops": float(n_hops(recipe, layout.n_layers)),
        "parameters": float(n_parameters(recipe, layout, tied)),
    }


def wanted_costs(
    wanted: Sequence[str], recipe: Recipe, layout: Layout, tied: bool, model: Callable[[], Any]
) -> dict[str, tuple[float, float]]:
    """The costs that a run asked for, as `Evaluation.costs` has them.

    Args:
        wanted: names of costs.
        recipe: of the model.
        layout: of its template.
        tied: whether the head is the embedding.
        model: gives the model as it runs, with no activations shared; called for latency alone.

    Raises:
        RecipeError: as `check_layers`.
    """
    if not wanted:
        return {}
    counted = costs_of(recipe, layout, tied)
    found = {name: Cost(counted[name]) for name in wanted if name in counted}
    if "latency" in wanted:
        found["latency"] = measure_latency(model())
    return {name: (found[name].value, found[name].se) for name in COSTS if name in found}


def measure_latency(model: Any, *, passes: int = TIMED_PASSES, batch: tuple[int, int] = BATCH) -> Cost:
    """Seconds per token of a forced pass: the median over several, with its standard error.

    A pass reads `batch` tokens, which are the same for every model, and computes the logits of the last one of each
    sequence (of all, where an architecture cannot do less). The passes before the timed ones only warm up. The
    standard error is that of the median of a normal sample, `sqrt(pi / 2) s / sqrt(n)`, with s from the median
    absolute deviation: one pass that something disturbed changes neither.

    Args:
        model: a transformers causal language model in eval mode.
        passes: n, at least 2.
        batch: sequences, and tokens of each; no more than the model has positions.

    Raises:
        ValueError: for fewer than 2 passes.
    """
    if passes < 2:
        raise ValueError(f"{passes} passes have no standard error")
    import torch

    n_sequences = batch[0]
    length = min(batch[1], positions_of(getattr(model, "config", None)) or batch[1])
    embedding = model.get_input_embeddings().weight
    n_tokens = n_sequences * length
    tokens = (torch.arange(n_tokens, device=embedding.device) * 7919 % embedding.shape[0]).view(n_sequences, length)
    seconds = []
    arguments: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        arguments["logits_to_keep"] = 1
    with torch.no_grad():
        for k in range(WARM_PASSES + passes):
            _wait(tokens)
            started = time.perf_counter()
            model(input_ids=tokens, **arguments)
            _wait(tokens)
            if k >= WARM_PASSES:
                seconds.append((time.perf_counter() - started) / n_tokens)
    return median_cost(seconds)


def _wait(tokens: Any) -> None:
    """Until an accelerator has done what it was given."""
    if tokens.is_cuda:
        import torch

        torch.cuda.synchronize(tokens.device)


def median_cost(seconds: Sequence[float]) -> Cost:
    """The median of repeated measurements and its standard error, see `measure_latency`."""
    median = float(np.median(seconds))
    spread = _MAD_TO_SD * float(np.median(np.abs(np.asarray(seconds) - median)))
    return Cost(median, math.sqrt(math.pi / 2) * spread / math.sqrt(len(seconds)))

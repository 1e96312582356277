"""Costs that follow from recipe and layout, and the time that a model takes."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.errors import RecipeError
from evomerge.evaluation import costs
from evomerge.evaluation.costs import COSTS, UNITS, costs_of, measure_latency, median_cost, n_parameters, wanted_costs
from evomerge.layout import Layout, TensorInfo
from evomerge.recipe.baselines import parent_recipe
from evomerge.recipe.path import Hop, plain_path
from evomerge.recipe.recipe import ParentRef, Recipe
from evomerge.testing.tiny import tiny_checkpoint

MODEL = parent_recipe(ParentRef("a", "a"))


def with_path(*layers: int) -> Recipe:
    return Recipe(MODEL.parents, None, MODEL.rules, path=tuple(Hop(layer, "a") for layer in layers))


def layout_of(sizes: list[int], head: bool = True) -> Layout:
    """One tensor per layer, an embedding of 20 numbers and a head of as many."""
    tensors = [TensorInfo(f"layer{k:02d}", (size,), "F32", k, "mlp") for k, size in enumerate(sizes)]
    tensors.insert(0, TensorInfo("embed", (10, 2), "F32", None, "embedding"))
    last = [TensorInfo("z.head", (10, 2), "F32", None, "head")] if head else []
    return Layout(len(sizes), (*tensors, TensorInfo("norm", (2,), "F32", None, "norm"), *last))


def test_every_cost_has_a_unit() -> None:
    assert set(UNITS) == set(COSTS)


@pytest.mark.parametrize(
    ("recipe", "tied", "hops", "parameters"),
    [
        (MODEL, False, 3, 42 + 111),
        (MODEL, True, 3, 22 + 111),
        (with_path(2), False, 1, 42 + 100),
        (with_path(0, 1, 2), False, 3, 42 + 111),
        (with_path(2, 0, 0, 2), True, 4, 22 + 202),
    ],
)
def test_repeats_count_as_often_as_they_are_stored(recipe: Recipe, tied: bool, hops: int, parameters: int) -> None:
    assert costs_of(recipe, layout_of([1, 10, 100]), tied) == {"hops": hops, "parameters": parameters}


def test_a_head_that_is_not_stored_is_not_counted() -> None:
    assert n_parameters(MODEL, layout_of([1], head=False), True) == 23
    assert n_parameters(MODEL, layout_of([1]), True) == 23


def test_a_path_through_unknown_layers_has_no_cost() -> None:
    with pytest.raises(RecipeError, match="hop 1: layer 3"):
        costs_of(with_path(0, 3), layout_of([1, 2, 3]), False)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_parameters_are_a_sum_over_hops(layers: list[int]) -> None:
    layout = layout_of([7, 11, 13, 17])
    one = [n_parameters(with_path(k), layout, False) - 42 for k in range(4)]
    assert n_parameters(with_path(*layers), layout, False) == 42 + sum(one[k] for k in layers)
    plain = Recipe(MODEL.parents, None, MODEL.rules, path=plain_path(4))
    assert costs_of(plain, layout, False) == costs_of(MODEL, layout, False)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_parameters_are_those_of_the_model_in_memory(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_checkpoint(tmp_path / family, family, 1)
    checkpoint = open_checkpoint(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    in_memory = sum(p.numel() for p in model.parameters())
    assert n_parameters(MODEL, checkpoint.layout, checkpoint.tied_embeddings) == in_memory
    checkpoint.close()


class Clock(torch.nn.Module):
    """A model whose passes take the times given, on a clock of its own."""

    def __init__(self, seconds: list[float]) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 2)
        self.now = 0.0
        self.left = list(seconds)
        self.batches: list[torch.Tensor] = []

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embedding

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        self.batches.append(input_ids)
        self.now += self.left.pop(0)
        return SimpleNamespace(logits=None)


def test_latency_is_the_median_of_warm_passes_per_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Clock([9.0, 5.0, 1.0, 3.0, 2.0])
    monkeypatch.setattr(costs.time, "perf_counter", lambda: model.now)
    found = measure_latency(model, passes=3, batch=(2, 5))
    assert found.value == pytest.approx(0.2)
    assert found.se == pytest.approx(math.sqrt(math.pi / 2) * 1.4826 * 0.1 / math.sqrt(3))
    assert model.left == []
    assert all(torch.equal(b, model.batches[0]) and b.shape == (2, 5) for b in model.batches)
    assert int(model.batches[0].max()) < 50


@pytest.mark.parametrize(("positions", "expected"), [(48, 48), (128, 64)])
def test_no_pass_is_longer_than_the_context(positions: int, expected: int, tmp_path: Path) -> None:
    """A learned position embedding has no row for more."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint(tmp_path, "gpt2", 1, n_positions=positions)).eval()
    shapes = []
    model.register_forward_pre_hook(lambda _, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True)
    assert measure_latency(model, passes=2).value > 0
    assert set(shapes) == {(4, expected)}


def test_one_pass_has_no_error() -> None:
    with pytest.raises(ValueError, match="1 passes have no standard error"):
        measure_latency(Clock([]), passes=1)


def test_the_error_of_a_median_is_that_of_normal_samples() -> None:
    rng = np.random.default_rng(1)
    samples = rng.normal(1.0, 0.1, (2000, 25))
    found = [median_cost(list(s)) for s in samples]
    spread = float(np.std([c.value for c in found]))
    assert float(np.mean([c.se for c in found])) == pytest.approx(spread, rel=0.1)
    disturbed = [*samples[0][:-1], 100.0]
    assert median_cost(disturbed).se < 2 * max(found[0].se, 0.01)


def test_only_what_is_wanted_is_told_and_measured() -> None:
    layout = layout_of([1, 10, 100])

    def never() -> Any:
        raise LookupError("no model was needed")

    assert wanted_costs((), MODEL, layout, False, never) == {}
    assert wanted_costs(("parameters", "hops"), MODEL, layout, False, never) == {
        "hops": (3.0, 0.0),
        "parameters": (153.0, 0.0),
    }
    with pytest.raises(LookupError, match="no model was needed"):
        wanted_costs(("latency",), MODEL, layout, False, never)

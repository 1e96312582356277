"""What every plug-in evaluator must do: run these checks over yours, with a small model of your own if you like.

from evomerge.testing.evaluator_suite import check_item_task

def test_mine(tmp_path):
    check_item_task(lambda: MyTask(option=1), tmp_path)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evomerge.evaluation.plugin import ItemTask
from evomerge.testing.eval_tasks import byte_pair_checkpoint

_ASKED = 6


def _models(folder: Path) -> tuple[list[Any], Any]:
    """Two small random models and their tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    from evomerge.evaluation.tokens import load_tokenizer

    folders = [byte_pair_checkpoint(folder / f"model-{seed}", seed=seed) for seed in (0, 1)]
    models = [AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32).eval() for f in folders]
    return models, load_tokenizer(folders[0])


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


def check_items(make: Callable[[], ItemTask]) -> None:
    """Items are texts, different from each other, and the same for every object.

    Raises:
        AssertionError: naming the rule that is broken.
    """
    task, other = make(), make()
    items = list(task.items())
    _require(isinstance(task, ItemTask), "the factory makes an ItemTask")
    _require(bool(task.name) and task.name == other.name, "the name is a text, the same for every object")
    _require(all(isinstance(i, str) for i in items), "items are texts")
    _require(len(items) >= 2, "there are at least two items")
    _require(len(set(items)) == len(items), "items are different from each other")
    _require(items == list(other.items()) == list(task.items()), "items are the same every time")


def check_item_task(make: Callable[[], ItemTask], folder: Path) -> None:
    """All rules of `ItemTask`, on two random models.

    Args:
        make: makes the evaluator, as the worker does.
        folder: an empty folder for two tiny checkpoints.

    Raises:
        AssertionError: naming the rule that is broken.
    """
    import torch

    check_items(make)
    models, tokenizer = _models(folder)
    task = make()
    items = list(task.items())[:_ASKED]
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in models]
    state = torch.random.get_rng_state()
    scores = [list(task.score(m, tokenizer, items)) for m in models]
    _require(torch.equal(state, torch.random.get_rng_state()), "scoring draws no global random numbers")
    _require(all(len(s) == len(items) for s in scores), "there is one score per item")
    _require(all(math.isfinite(v) for s in scores for v in s), "scores are finite")
    for model, weights in zip(models, before, strict=True):
        _require(not model.training, "the model stays in eval mode")
        same = all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
        _require(same, "the model's weights stay as they were")
    again = list(task.score(models[0], tokenizer, items))
    _require(again == scores[0], "nothing is kept from one model to the next: the first model scores as before")
    single = [task.score(models[0], tokenizer, [item])[0] for item in items]
    close = all(abs(a - b) <= 1e-4 * max(1.0, abs(a)) for a, b in zip(scores[0], single, strict=True))
    _require(close, "a score does not depend on which other items are asked")
    back = list(task.score(models[0], tokenizer, items[::-1]))[::-1]
    turned = all(abs(a - b) <= 1e-4 * max(1.0, abs(a)) for a, b in zip(scores[0], back, strict=True))
    _require(turned, "scores stand in the order of the items")

"""Do gains search better than input scales? Both look for planted gains of one real model, with equal budgets.

A small model of eight layers that needs every one of them is trained (or read from `--model`), and what its layers add
is multiplied by known factors. A search that finds their inverses restores it. Three ways to do harm: every layer by a
factor of its own; two layers by a large one; and all layers from some depth on by one factor, for which a single input
scale would do. Three genotypes over the plain path: gains on a log scale, the paper's input scales on a linear grid,
and input scales on a log grid with the gains' range (the last tells the scale from the accumulation).

The loss is the cross-entropy of the right answers on a fixed set of items; accuracy is told on other items.

    python benchmarks/gains.py --model FILE.safetensors     # trained into FILE when it does not exist
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_model, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from evomerge.optimizers.base import Problem, Told
from evomerge.optimizers.registry import make_optimizer
from evomerge.seeds import generator
from evomerge.space.dimensions import Real
from evomerge.space.gains import Gains, PlaceGains, PlaceScales
from evomerge.space.space import SearchSpace
from evomerge.space.steps import Step, StepPlace
from evomerge.testing.planted_paths import DEEP, train_deep
from evomerge.types import Vector
from evomerge.zoo.model import make_model
from evomerge.zoo.problems import draw_distinct
from evomerge.zoo.scoring import IGNORED, exact_match, make_batch

LAYERS: Final = DEEP.size.layers
REACHED: Final = 0.1
"""A search has arrived when its loss is above the intact model's by at most this part of the harm."""

LOG: Final = Real("range", 0.25, 4.0, 1 / 64, "log", start=1.0)
PAPER: Final = Real("range", 0.4, 1.5, 0.02, start=1.0)


def genotypes() -> dict[str, Gains]:
    """By name."""
    places = tuple(StepPlace(f"layer{i}", "a", f"layer{i}") for i in range(LAYERS))
    return {
        "gains, log": PlaceGains(places, LOG),
        "scales, linear": PlaceScales(places, PAPER),
        "scales, log": PlaceScales(places, LOG),
    }


def harms(seed: int) -> dict[str, np.ndarray]:
    """By name, what every layer's part is multiplied by."""
    rng = generator(seed, "gains", "harm")
    own = np.exp(rng.uniform(-math.log(2.5), math.log(2.5), LAYERS))
    two = np.ones(LAYERS)
    two[rng.choice(LAYERS, 2, replace=False)] = 3.0, 1 / 3
    late = np.ones(LAYERS)
    late[rng.integers(1, LAYERS - 1) :] = rng.choice([0.4, 2.2])
    return {"every layer": own, "two layers": two, "from a depth on": late}


class Damaged:
    """A model whose layers' parts are multiplied by factors and by gains, in place.

    Args:
        model: is changed and never restored.
        seed: of the items.
    """

    def __init__(self, model: LlamaForCausalLM, seed: int) -> None:
        self.model = model
        outputs = [(layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight) for layer in model.model.layers]
        self.weights: list[list[tuple[Tensor, Tensor]]] = [[(w, w.detach().clone()) for w in pair] for pair in outputs]
        rng = generator(seed, "gains", "items")
        self.ids, self.labels = make_batch(draw_distinct(DEEP.skill, "validation", 48, rng))
        self.held_out = draw_distinct(DEEP.skill, "items", 200, rng)

    def apply(self, factors: Sequence[float]) -> None:
        """Multiply what every layer adds."""
        with torch.no_grad():
            for pair, factor in zip(self.weights, factors, strict=True):
                for weight, original in pair:
                    weight.copy_(original * float(factor))

    @torch.inference_mode()
    def loss(self, factors: Sequence[float]) -> float:
        """Cross-entropy per answer token."""
        self.apply(factors)
        logits = self.model(input_ids=self.ids[:, :-1], use_cache=False).logits
        targets = self.labels[:, 1:]
        total = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        return float(total)

    def accuracy(self, factors: Sequence[float]) -> float:
        """On other items."""
        self.apply(factors)
        return exact_match(self.model, self.held_out)


class Found(NamedTuple):
    """One search.

    Attributes:
        best: the lowest loss.
        arrived: evaluations until it was near the intact model's; infinite when it never was.
        factors: of the best candidate.
    """

    best: float
    arrived: float
    factors: tuple[float, ...]


STEPS: Final = tuple(Step("a", i, f"layer{i}") for i in range(LAYERS))


class Task(NamedTuple):
    """What is searched.

    Attributes:
        loss: of a model with these factors.
        harm: what the layers were multiplied by.
        goal: the loss at which a search has arrived.
    """

    loss: Callable[[Sequence[float]], float]
    harm: np.ndarray
    goal: float


def search(task: Task, gains: Gains, name: str, budget: int, seed: int) -> Found:
    """One search from gains of 1 with the optimizer `name`."""
    space = SearchSpace(tuple(g.dimension for g in gains.genes))
    problem = Problem(space.dim, 1, 0, space.start, space.spread, space.step, budget, seed, kinds=space.kinds)
    optimizer = make_optimizer(name, problem, {})
    found, spent = Found(math.inf, math.inf, ()), 0
    while spent < budget and optimizer.should_stop() is None:
        told = []
        for vector in optimizer.ask():
            factors = _factors(gains, space, vector, task.harm)
            value = task.loss(factors)
            told.append(Told(space.quantise(vector), (value,)))
            spent += 1
            if value < found.best and spent <= budget:
                found = Found(value, found.arrived, factors)
            if value <= task.goal and spent <= budget:
                found = found._replace(arrived=min(found.arrived, spent))
        optimizer.tell(told)
    return found


def _factors(gains: Gains, space: SearchSpace, vector: Vector, harm: np.ndarray) -> tuple[float, ...]:
    return tuple(float(g * h) for g, h in zip(gains.of(STEPS, space.decode(vector)), harm, strict=True))


def read_model(path: Path) -> LlamaForCausalLM:
    """The model of a file, trained into it when it does not exist."""
    if not path.exists():
        save_file({k: v.contiguous().clone() for k, v in train_deep(DEEP).state_dict().items()}, path)
    model = make_model(DEEP.size, 0)
    load_model(model, path)
    return model.eval().requires_grad_(False)


def compare(model: Damaged, optimizers: Sequence[str], budget: int, seeds: int) -> None:
    """Print one row per harm, optimizer and genotype: medians over seeds."""
    intact = model.loss([1.0] * LAYERS)
    print(f"intact: loss {intact:.4f}, accuracy {model.accuracy([1.0] * LAYERS):.3f}")
    print("| harm | optimizer | genotype | loss before | loss after | accuracy after | arrived | evaluations |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in harms(0):
        for name in optimizers:
            rows: Mapping[str, list[tuple[float, Found, float]]] = {g: [] for g in genotypes()}
            for seed in range(seeds):
                harm = harms(seed)[kind]
                before = model.loss(list(harm))
                task = Task(model.loss, harm, intact + REACHED * (before - intact))
                for label, gains in genotypes().items():
                    found = search(task, gains, name, budget, seed)
                    rows[label].append((before, found, model.accuracy(found.factors)))
            for label, results in rows.items():
                print(f"| {kind} | {name} | {label} | {_row(results)} |", flush=True)


def _row(results: Sequence[tuple[float, Found, float]]) -> str:
    middle = partial(np.median, axis=0)
    before, after, right = (
        float(middle([f(r) for r in results])) for f in (lambda r: r[0], lambda r: r[1].best, lambda r: r[2])
    )
    arrived = [r[1].arrived for r in results if math.isfinite(r[1].arrived)]
    median = float(np.median([r[1].arrived for r in results]))
    when = f"{median:.0f}" if math.isfinite(median) else "-"
    return f"{before:.3f} | {after:.4f} | {right:.3f} | {len(arrived)} of {len(results)} | {when}"


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="safetensors file of the model; trained if missing")
    parser.add_argument("--optimizers", default="cma,sep-cma")
    parser.add_argument("--budget", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    model = Damaged(read_model(options.model), 0)
    compare(model, options.optimizers.split(","), options.budget, options.seeds)
    print(f"{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()

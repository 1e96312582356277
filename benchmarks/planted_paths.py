"""Find paths that were planted: optimizers x problems, over seeds.

    python benchmarks/planted_paths.py --seeds 10 --work planted

A model of eight layers is trained once (a minute; kept in the working folder) and hidden in parents
(evomerge/testing/planted_paths.py). A search that asks a path whose held-out accuracy is within two points of the
planted model's has found it. Evaluations are different paths, as in a run; at most 500. A cell says in how many seeds
it was found and, over all seeds, the median of the evaluations to it. `default` is what `optimizer: auto` chooses.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from evomerge.optimizers.auto import choose
from evomerge.optimizers.registry import make_optimizer
from evomerge.testing.deep_model import DEEP, train_deep
from evomerge.testing.planted_paths import PathJudge, Planting, search_planted
from evomerge.testing.plantings import PLANTINGS
from evomerge.zoo.model import make_model

OPTIMIZERS = ("random", "cma", "catcmawm", "nsga2", "tpe", "evolve")
"""`cma` sees gates and choices as the paper does: by thresholds of a Gaussian."""


def deep_model(work: Path) -> LlamaForCausalLM:
    """The trained model, from the working folder if it is there."""
    kept = work / "deep.pt"
    if not kept.exists():
        begun = time.perf_counter()
        torch.save(train_deep(DEEP).state_dict(), kept)
        print(f"trained in {time.perf_counter() - begun:.0f} s", flush=True)
    model = make_model(DEEP.size, 0)
    model.load_state_dict(torch.load(kept, weights_only=True))
    return model.eval().requires_grad_(False)


def cell(judge: PathJudge, planting: Planting, name: str, options: argparse.Namespace) -> tuple[str, list[int | None]]:
    """What the table says about an optimizer on a problem, and the evaluations to success per seed."""
    found: list[int | None] = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        problem = planting.problem(seed=seed, budget=options.evaluations)
        chosen = choose(problem, mixed=True) if name == "default" else None
        optimizer = make_optimizer(chosen.name if chosen else name, problem, chosen.options if chosen else {})
        found.append(search_planted(optimizer, judge, planting, options.evaluations, options.measure).found)
    hits = sum(n is not None for n in found)
    median = statistics.median(options.evaluations + 1 if n is None else n for n in found)
    text = f"{median:.0f}" if median <= options.evaluations else f"> {options.evaluations}"
    return f"{hits}/{options.seeds} ({text})", found


def main() -> None:
    """Print the table, a row per optimizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=100, help="defaults were chosen on seeds below 100")
    parser.add_argument("--evaluations", type=int, default=500)
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--measure", choices=["margin", "right"], default="margin", help="what is maximised")
    parser.add_argument("--problems", nargs="*", default=sorted(PLANTINGS), choices=sorted(PLANTINGS))
    parser.add_argument("--optimizers", nargs="*", default=OPTIMIZERS)
    parser.add_argument("--work", type=Path, default=Path("planted"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    model = deep_model(options.work)
    for problem in options.problems:
        planting = PLANTINGS[problem](model)
        judge = PathJudge(planting, n_items=options.items)
        whole = judge.score(planting.hidden_hops)
        start = judge.score(planting.hops(planting.space.start))
        print(
            f"{problem}: {planting.space.dim} genes, {planting.n_genotypes:.1e} genotypes; "
            f"planted {whole.margin:.2f} nats, {whole.right:.0%} right; start {start.margin:.1f}, {start.right:.0%}",
            flush=True,
        )
        for name in options.optimizers:
            begun = time.perf_counter()
            text, found = cell(judge, planting, name, options)
            with (options.work / "results.jsonl").open("a") as results:
                row = {"problem": problem, "optimizer": name, "measure": options.measure, "found": found}
                results.write(json.dumps(row) + "\n")
            print(f"  {name:<10} {text:<16} {time.perf_counter() - begun:5.0f} s", flush=True)


if __name__ == "__main__":
    main()

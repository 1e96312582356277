"""One job on the CPU and on a GPU: scores beside each other, merge bandwidth, candidates per hour against loading.

    python benchmarks/gpu.py --zoo ZOO                        on a machine with a CUDA device
    python benchmarks/gpu.py --zoo ZOO --device cpu --small   the program itself, where there is none

Three parts. *Scores*: the toy zoo in bf16, the same recipes on both devices, per-item scores compared; bf16 sums in
another order, so that a share of items may differ, which is told. *Merge*: a random model of a billion parameters, its
parents on the device; seconds of one merge as a share of the device's own copy bandwidth. *Candidates per hour*: the
same model, our worker against writing each merge to disk, `from_pretrained`, and lm-eval's HFLM on the same device.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import candidate_material as material
import torch
from candidate_peers import Questions, WarmPeer
from candidates import by_item
from machine import machine_facts

from evomerge.config.workers import worker_spec
from evomerge.execution.scoring import MergeScorer, ScoringSpec, build_scorer
from evomerge.recipe.serialize import recipe_to_json
from evomerge.types import CandidateId, EvalTask

SPACE = "layer-wise-task-arithmetic"
TASKS = ("add", "rev", "srt", "addx")
BILLION = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 18,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
"""1.1 B parameters with the zoo's small vocabulary."""
MODELS_MOVED = 5
"""By one merge: the base, three experts, the result."""


def settle(device: str) -> None:
    """Wait until the device has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def spec_of(job: Path) -> ScoringSpec:
    """What a worker of this job is built from."""
    spec: ScoringSpec = worker_spec(material.assemble_job(job), None, self_check=False).arguments["spec"]
    return spec


def task_of(candidate: material.Candidate) -> EvalTask:
    """The candidate's search set."""
    return EvalTask(CandidateId(candidate.name), recipe_to_json(candidate.recipe), "search")


def scores(zoo: Path, scratch: Path, device: str, n: int, items: int) -> dict[str, Any]:
    """Per-item scores of the same recipes on the CPU and on the device, bf16 on both."""
    job = material.write_job(scratch / "zoo.yaml", zoo, zoo, space=SPACE, tasks=TASKS, items=items)
    drawn = material.draw(material.assemble_job(job), SPACE, n, 0)
    spec = replace(spec_of(job), dtype="bfloat16")
    here, there = build_scorer(spec), build_scorer(replace(spec, device=device))
    equal = total = 0
    gaps = []
    for candidate in drawn:
        ours, theirs = by_item(here(task_of(candidate))), by_item(there(task_of(candidate)))
        equal += sum(ours[key] == theirs[key] for key in ours)
        total += len(ours)
        for task in TASKS:
            means = [statistics.fmean(v for (t, _), v in found.items() if t == task) for found in (ours, theirs)]
            gaps.append(abs(means[0] - means[1]))
    return {"recipes": n, "items equal": equal, "items": total, "largest gap of a task": max(gaps)}


def copy_bandwidth(device: str, n_bytes: int) -> float:
    """Bytes moved per second by a copy on the device (read and written)."""
    source = torch.ones(n_bytes // 2, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        settle(device)
        began = time.perf_counter()
        target.copy_(source)
        settle(device)
        times.append(time.perf_counter() - began)
    return 2 * n_bytes / min(times)


def merge_speed(scorer: MergeScorer, drawn: Sequence[material.Candidate], device: str) -> dict[str, Any]:
    """Seconds of a merge, and its share of the copy bandwidth; all layers change between two candidates."""
    n_bytes = sum(p.numel() * p.element_size() for p in scorer.resident.model.parameters())
    times = []
    for candidate in drawn:
        settle(device)
        began = time.perf_counter()
        scorer.resident.apply(candidate.recipe)
        settle(device)
        times.append(time.perf_counter() - began)
    best, bandwidth = statistics.median(times[2:]), copy_bandwidth(device, min(n_bytes, 2**30))
    return {
        "model GB": n_bytes / 1e9,
        "merge s": best,
        "copy GB/s": bandwidth / 1e9,
        "share of copy bandwidth": MODELS_MOVED * n_bytes / best / bandwidth,
    }


def candidates_per_hour(
    scorer: MergeScorer, drawn: Sequence[material.Candidate], peer: WarmPeer, batch: int, loads: int
) -> dict[str, Any]:
    """Ours and the route over the disk, the same recipes and items."""
    ours, theirs, equal, total = [], [], 0, 0
    scorer(task_of(drawn[0]))
    peer.score(partial(peer.merge, drawn[0].mergekit), batch)
    for i, candidate in enumerate(drawn):
        began = time.perf_counter()
        found = by_item(scorer(task_of(candidate)))
        ours.append(time.perf_counter() - began)
        if i < loads:
            answer = peer.score(partial(peer.merge, candidate.mergekit), batch)
            theirs.append(answer.total_s)
            equal += sum(found[key] == answer.scores[key] for key in found)
            total += len(found)
    mine, others = statistics.median(ours), statistics.median(theirs)
    return {
        "ours per hour": 3600 / mine,
        "load and evaluate per hour": 3600 / others,
        "ratio": others / mine,
        "items equal": equal,
        "items": total,
    }


def main() -> None:
    """Run the three parts and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="0.1 B instead of 1.1 B parameters, fewer candidates")
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=128, help="of lm-eval")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("no CUDA device: run this where there is one, or try the program with --device cpu --small")
    zoo, n = args.zoo.resolve(), 4 if args.small else 16
    items = 10 if args.small else args.items
    material.build_zoo_if_missing(zoo, 0)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        found: dict[str, Any] = {"machine": machine_facts(), "device": args.device}
        if args.device.startswith("cuda"):
            found["device"] = torch.cuda.get_device_name()
        found["scores"] = scores(zoo, scratch, args.device, n, items)
        models, shape = scratch / "models", material.RANDOM_SHAPE if args.small else BILLION
        material.build_random_models(models, zoo, "bfloat16", 0, shape)
        job = material.write_job(
            scratch / "random.yaml", models, zoo, space=SPACE, tasks=TASKS, items=items, device=args.device
        )
        drawn = material.draw(material.assemble_job(job), SPACE, n, 0)
        spec = spec_of(job)
        scorer = build_scorer(spec)
        found["merge"] = merge_speed(scorer, drawn, args.device)
        material.write_asked_tasks(scratch / "tasks", zoo, spec.plan)
        metrics = {t.name: t.metric.name for t in spec.plan.tasks}
        questions = Questions(scratch / "tasks", metrics, models / "base", "bfloat16", 0, args.device)
        peer = WarmPeer(questions, scratch)
        found["candidates"] = candidates_per_hour(scorer, drawn, peer, args.batch_size, loads=2 if args.small else 8)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

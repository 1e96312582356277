"""Paths: layers that sharing saves, and candidates per minute beside the route over a deeper checkpoint.

    python benchmarks/paths.py --zoo ZOO

The parents are the zoo's with nearly idle copies behind each layer, so that they are deep and still know their tasks.
Two tables from one run, one worker with one thread:

Layer executions: populations of offspring, a few edits away from one parent, scored with and without shared prefixes.
An execution is a layer times the tokens it runs on, in all passes of a candidate. A generation comes in the order in
which a worker is given it; the next one, of other offspring of the same parent, finds what is left in memory. Every
score and margin is compared with the one that was found without sharing.

Candidates per minute: `ours` is what a worker of `evomerge search` runs, from recipe JSON to per-item scores, in the
second generation of two edits; `ours alone` is the same without sharing. `warm` writes the deeper checkpoint, loads it
with transformers and asks lm-eval's `evaluate`, in a process that keeps lm-eval and the tasks loaded, at the batch size
that was fastest when tried; `cold` does the same in a fresh process per candidate. Scores are compared item by item.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from machine import machine_facts, run_apart

if TYPE_CHECKING:
    from candidate_material import Candidate, Scores
    from candidate_peers import Questions, WarmPeer
    from candidates import Side

    from evomerge.execution.scoring import MergeScorer, ScoringSpec
    from evomerge.types import Evaluation

EDITS: Final = (1, 2, 4)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True, help="folder of the toy zoo; built when missing")
    parser.add_argument("--copies", type=int, default=2, help="nearly idle copies behind each of the four layers")
    parser.add_argument("--tasks", default="add,rev,srt,addx,add_mc,srt_mc", help="tasks of the zoo")
    parser.add_argument("--items", type=int, default=50, help="items per task")
    parser.add_argument("--offspring", type=int, default=32, help="of one population")
    parser.add_argument(
        "--warm", type=int, default=8, help="candidates beside the warm route; 0 leaves both routes out"
    )
    parser.add_argument("--cold", type=int, default=3, help="candidates beside the cold route")
    parser.add_argument("--batch-size", type=int, help="of lm-eval (default: the fastest of a few)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    arguments = parser.parse_args()
    if min(arguments.items, arguments.offspring) < 1 or min(arguments.copies, arguments.warm, arguments.cold) < 0:
        parser.error("--items and --offspring must be at least 1, --copies, --warm and --cold at least 0")
    if arguments.warm > arguments.offspring:
        parser.error("--warm candidates are taken from one population, so there are at most --offspring")
    return arguments


class Material(NamedTuple):
    """What is scored.

    Attributes:
        models: folder of the deeper parents.
        depth: their layers.
        spec: of our scorer.
        questions: what the routes over checkpoints ask.
    """

    models: Path
    depth: int
    spec: ScoringSpec
    questions: Questions


def _prepare(arguments: argparse.Namespace, scratch: Path) -> Material:
    import candidate_material as material
    from candidate_peers import Questions
    from path_material import deepen

    from evomerge.config.workers import worker_spec

    zoo, models = arguments.zoo.resolve(), scratch / "parents"
    material.build_zoo_if_missing(zoo, 0)
    depth = deepen(zoo, models, arguments.copies)
    job = material.write_job(
        scratch / "job.yaml",
        models,
        zoo,
        space="layer-wise-task-arithmetic",
        tasks=arguments.tasks.split(","),
        items=arguments.items,
    )
    spec = worker_spec(material.assemble_job(job), None, self_check=True).arguments["spec"]
    material.write_asked_tasks(scratch / "tasks", zoo, spec.plan)
    metrics = {t.name: t.metric.name for t in spec.plan.tasks}
    questions = Questions(scratch / "tasks", metrics, models / "base", "float32", arguments.seed)
    return Material(models, depth, spec, questions)


class Generation(NamedTuple):
    """One population on one scorer."""

    executed: int
    seconds: float
    cpu_s: float
    found: list[Evaluation]


def in_order(candidates: Sequence[Candidate]) -> list[Candidate]:
    """As a worker is given them."""
    from evomerge.execution.routes import route_of
    from evomerge.recipe.serialize import recipe_to_json

    return sorted(candidates, key=lambda c: route_of(recipe_to_json(c.recipe)))


def _score(scorer: MergeScorer, candidate: Candidate) -> Evaluation:
    from evomerge.recipe.serialize import recipe_to_json
    from evomerge.types import CandidateId, EvalTask

    return scorer(EvalTask(CandidateId(candidate.name), recipe_to_json(candidate.recipe), "search"))


def generation(scorer: MergeScorer, candidates: Sequence[Candidate]) -> Generation:
    """Score a population."""
    before, started, cpu = scorer.memory.executed, time.perf_counter(), time.process_time()
    found = [_score(scorer, candidate) for candidate in candidates]
    spent = (time.perf_counter() - started, time.process_time() - cpu)
    return Generation(scorer.memory.executed - before, *spent, found)


def compared(plain: Sequence[Evaluation], shared: Sequence[Evaluation]) -> tuple[int, int]:
    """How many numbers (scores and margins) are equal to the bit, and how many there are."""

    def numbers(evaluations: Sequence[Evaluation]) -> list[float]:
        return [x for e in evaluations for a in e.answers.values() for x in (*a.scores, *a.margins)]

    pairs = list(zip(numbers(plain), numbers(shared), strict=True))
    return sum(x.hex() == y.hex() for x, y in pairs), len(pairs)


def executions(material: Material, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The first table: two generations for every number of edits."""
    from dataclasses import replace

    from path_material import offspring

    from evomerge.execution.scoring import build_scorer

    alone = build_scorer(replace(material.spec, prefix_bytes=0, self_check=False))
    sharing = build_scorer(material.spec)
    rows = []
    for n_edits in EDITS:
        sharing.memory.clear()
        for number in (1, 2):
            seed = 2 * arguments.seed + number
            drawn = in_order(offspring(material.models, material.depth, arguments.offspring, n_edits, seed))
            for scorer in (alone, sharing) if number == 1 else ():
                _score(scorer, drawn[0])  # sources are loaded once
                scorer.memory.clear()
            plain, shared = generation(alone, drawn), generation(sharing, drawn)
            equal, total = compared(plain.found, shared.found)
            rows.append(
                {
                    "edits": n_edits,
                    "generation": number,
                    "alone": plain.executed,
                    "shared": shared.executed,
                    "saved": 1 - shared.executed / plain.executed,
                    "alone_s": plain.seconds,
                    "shared_s": shared.seconds,
                    "alone_cpu_s": plain.cpu_s,
                    "shared_cpu_s": shared.cpu_s,
                    "equal": equal,
                    "numbers": total,
                    "kept_MiB": sharing.memory.n_bytes / 2**20,
                }
            )
            print(f"{n_edits} edits, generation {number}: {rows[-1]['saved']:.1%} saved", file=sys.stderr, flush=True)
    return rows


def _ours(name: str, spec: ScoringSpec, before: Sequence[Candidate], population: Sequence[Candidate], n: int) -> Side:
    """Our worker in the middle of a search: behind one generation, and each candidate behind those that come first."""
    from candidates import Side, by_item

    from evomerge.execution.scoring import build_scorer

    scorer = build_scorer(spec)
    for candidate in before:
        _score(scorer, candidate)
    waiting = list(population)

    def prepare(candidate: Candidate) -> None:
        while (first := waiting.pop(0)) is not candidate:
            _score(scorer, first)

    def score(candidate: Candidate) -> tuple[float, Mapping[str, float], Scores]:
        begun = time.perf_counter()
        evaluation = _score(scorer, candidate)
        return time.perf_counter() - begun, evaluation.timing_s, by_item(evaluation)

    return Side(name, n, score, prepare)


def _routes(
    material: Material, peer: WarmPeer, scratch: Path, *, batch_size: int, n_warm: int, n_cold: int
) -> list[Side]:
    """The warm and the cold route over a deeper checkpoint."""
    from candidates import Side
    from path_material import materialise, open_parents, score_cold

    pool = open_parents(material.models)

    def warm(candidate: Candidate) -> tuple[float, Mapping[str, float], Scores]:
        found = peer.score(partial(materialise, candidate.recipe, pool, scratch), batch_size)
        return found.total_s, found.timing_s, found.scores

    def cold(candidate: Candidate) -> tuple[float, Mapping[str, float], Scores]:
        found = score_cold(candidate.recipe, material.models, material.questions, scratch, batch_size)
        return found.total_s, found.timing_s, found.scores

    return [Side("warm", n_warm, warm), Side("cold", n_cold, cold)]


def per_minute(material: Material, arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """The second table."""
    from dataclasses import replace

    from candidate_peers import WarmPeer
    from candidates import BATCH_SIZES, agreement, measure, ratios, speed
    from path_material import materialise, offspring, open_parents

    before, population = (
        in_order(offspring(material.models, material.depth, arguments.offspring, 2, 2 * arguments.seed + number))
        for number in (1, 2)
    )
    candidates = population[:: arguments.offspring // arguments.warm][: arguments.warm]
    peer = WarmPeer(material.questions, scratch)
    make = partial(materialise, before[0].recipe, open_parents(material.models), scratch)
    n_items = material.spec.plan.n_questions("search")
    chosen = arguments.batch_size or peer.best_batch_size(make, [s for s in BATCH_SIZES if s < 2 * n_items])
    alone = replace(material.spec, prefix_bytes=0, self_check=False)
    sides = [
        _ours("ours", material.spec, before, population, len(candidates)),
        _ours("ours alone", alone, before[:1], candidates, len(candidates)),
        *_routes(material, peer, scratch, batch_size=chosen, n_warm=len(candidates), n_cold=arguments.cold),
    ]
    measured = measure(candidates, sides, lambda text: print(text, file=sys.stderr, flush=True))
    return {
        "batch size": chosen,
        "speed": speed(measured),
        "ratios": ratios(measured),
        "agreement": agreement(measured),
    }


def run(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """The whole benchmark."""
    facts = machine_facts()
    material = _prepare(arguments, scratch)
    asked = {
        "layers": material.depth,
        "tasks": arguments.tasks,
        "items per task": arguments.items,
        "offspring": arguments.offspring,
    }
    found: dict[str, Any] = {"machine": facts, "asked": asked, "executions": executions(material, arguments)}
    if arguments.warm:
        found["per minute"] = per_minute(material, arguments, scratch)
    return found


def _print(result: Mapping[str, Any]) -> None:
    from candidates import print_speed

    print("; ".join(f"{k} {v}" for k, v in result["machine"].items()))
    print("; ".join(f"{k} {v}" for k, v in result["asked"].items()))
    print("\nlayer executions, in millions of layers times tokens")
    heads = ("edits  generation     alone    shared     saved", "CPU s alone  shared", "s alone  shared")
    print(*heads, "MiB kept   scores and margins equal", sep="   ")
    for row in result["executions"]:
        counts = f"{row['alone'] / 1e6:>10.2f}{row['shared'] / 1e6:>10.2f}{row['saved']:>10.1%}"
        times = f"{row['alone_cpu_s']:>14.2f}{row['shared_cpu_s']:>8.2f}{row['alone_s']:>10.2f}{row['shared_s']:>8.2f}"
        equal = f"{row['equal']} of {row['numbers']}"
        print(f"{row['edits']:>5}{row['generation']:>12}{counts}{times}{row['kept_MiB']:>11.0f}   {equal}")
    if "per minute" not in result:
        return
    table = result["per minute"]
    print_speed(f"candidates; lm-eval's batch size {table['batch size']}", table["speed"], table["ratios"])
    ours = table["speed"]["ours"]["cpu_s"]
    cpu = {side: row["cpu_s"] / ours for side, row in table["speed"].items() if side != "ours"}
    print("in processor seconds: " + ", ".join(f"{side} takes {ratio:.1f} times ours" for side, ratio in cpu.items()))
    for side, row in table["agreement"].items():
        share = f"{row['equal']} of {row['compared']} per-item scores equal ({row['right_in_ours']} are not 0)"
        print(f"agreement with {side}: {share}")
        for difference in row["differences"]:
            print(f"  {difference}")


def main() -> None:
    """Command line."""
    run_apart(run, _print, _arguments())


if __name__ == "__main__":
    main()

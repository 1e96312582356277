"""Candidates per minute: evomerge, mergekit with lm-eval in one warm process, and their commands one by one.

The same genomes are merged and asked the same items by all three, one worker with one thread each, interleaved in one
run; the per-item scores are compared. A figure counts only beside the agreement. The full runs:

    python benchmarks/candidates.py --zoo ZOO
    python benchmarks/candidates.py --zoo ZOO --tasks add,rev,srt,addx
    python benchmarks/candidates.py --zoo ZOO --model-size 0.1B --genomes 4 --ties 2 --cold 2 --items 25

The first two take about 2 minutes each (and half a minute more when ZOO must be built), the third about 6.
`ours` is what a worker of `evomerge search` runs, from recipe JSON to per-item scores. `warm` goes from the text of a
mergekit file through `run_merge`, a folder on disk, `from_pretrained` and lm-eval's `evaluate` with task objects that
were loaded before, at the batch size that was fastest when tried. `cold` is `mergekit-yaml` and then `lm_eval` as
processes, at that batch size. Setting up is not counted for ours and warm, and is told.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from machine import machine_facts, run_apart

if TYPE_CHECKING:
    from candidate_material import Candidate, Scores
    from candidate_peers import Questions, WarmPeer

    from evomerge.types import Evaluation

SPACES: Final = ("layer-wise-task-arithmetic", "layer-wise-ties")
ALL_TASKS: Final = "add,rev,srt,addx,add_mc,srt_mc"
WARM_UP: Final = 8
BATCH_SIZES: Final = (32, 128, 512)


class Measured(NamedTuple):
    """One candidate on one side.

    Attributes:
        side: `ours`, `warm` or `cold`.
        candidate: its name.
        space: the preset.
        seconds: of the whole candidate.
        cpu_s: processor seconds of this process and its children meanwhile.
        timing_s: by stage.
        scores: per item.
    """

    side: str
    candidate: str
    space: str
    seconds: float
    cpu_s: float
    timing_s: Mapping[str, float]
    scores: Scores


class Side(NamedTuple):
    """One way to score a candidate.

    Attributes:
        name: `ours`, `warm` or `cold`.
        most: how many candidates it is given.
        score: candidate -> total seconds, seconds by stage, scores.
        prepare: called before with the same candidate; not measured.
    """

    name: str
    most: int
    score: Callable[[Candidate], tuple[float, Mapping[str, float], Scores]]
    prepare: Callable[[Candidate], None] = lambda _: None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True, help="folder of the toy zoo; built when missing")
    parser.add_argument("--model-size", choices=("zoo", "0.1B"), default="zoo", help="the zoo's models or random ones")
    parser.add_argument("--models", type=Path, help="where random models are kept (default: a temporary folder)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of random models")
    parser.add_argument("--tasks", default=ALL_TASKS, help="tasks of the zoo, separated by commas (default: all)")
    parser.add_argument("--items", type=int, default=100, help="items per task")
    parser.add_argument("--genomes", type=int, default=12, help=f"random genomes of {SPACES[0]}")
    parser.add_argument("--ties", type=int, default=4, help=f"random genomes of {SPACES[1]}")
    parser.add_argument("--cold", type=int, default=3, help="genomes for the cold path")
    parser.add_argument("--batch-size", type=int, help="of lm-eval (default: the fastest of a few)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    arguments = parser.parse_args()
    if arguments.items < 1 or arguments.genomes < 1 or min(arguments.ties, arguments.cold) < 0:
        parser.error("--items and --genomes must be at least 1, --ties and --cold at least 0")
    return arguments


class Material(NamedTuple):
    """What is scored.

    Attributes:
        candidates: in the order in which they are scored, spaces mixed.
        warm_up: more genomes of every space, never measured: rare kernels are compiled on first use.
        scorers: space -> our scorer's spec.
        questions: what the peers ask.
        n_items: items of all tasks.
    """

    candidates: list[Candidate]
    warm_up: list[Candidate]
    scorers: dict[str, Any]
    questions: Questions
    n_items: int


def _prepare(arguments: argparse.Namespace, scratch: Path) -> Material:
    import candidate_material as material
    from candidate_peers import Questions

    from evomerge.config.workers import worker_spec

    zoo = arguments.zoo.resolve()
    material.build_zoo_if_missing(zoo, 0)
    models, dtype = zoo, "float32"
    if arguments.model_size != "zoo":
        dtype = arguments.dtype
        models = (arguments.models or scratch).resolve() / f"random-{dtype}-{arguments.seed}"
        if not models.exists():
            material.build_random_models(models, zoo, dtype, arguments.seed)
    tasks = arguments.tasks.split(",")
    candidates: list[Candidate] = []
    warm_up, scorers = [], {}
    for space, n in zip(SPACES, (arguments.genomes, arguments.ties), strict=True):
        if n:
            path = scratch / f"{space}.yaml"
            material.write_job(path, models, zoo, space=space, tasks=tasks, items=arguments.items)
            assembled = material.assemble_job(path)
            drawn = material.draw(assembled, space, n + WARM_UP, arguments.seed)
            candidates += drawn[:n]
            warm_up += drawn[n:]
            scorers[space] = worker_spec(assembled, None, self_check=True).arguments["spec"]
    candidates.sort(key=lambda c: int(c.name.rsplit("-", 1)[1]))
    plan = scorers[SPACES[0]].plan
    material.write_asked_tasks(scratch / "tasks", zoo, plan)
    metrics = {t.name: t.metric.name for t in plan.tasks}
    questions = Questions(scratch / "tasks", metrics, models / "base", dtype, arguments.seed)
    return Material(candidates, warm_up, scorers, questions, plan.n_questions("search"))


def by_item(evaluation: Evaluation) -> Scores:
    """Our answers in the peers' form."""
    return {
        (name, str(item)): value
        for name, answers in evaluation.answers.items()
        for item, value in zip(answers.items, answers.scores, strict=True)
    }


def _ours(material: Material) -> tuple[Side, float]:
    """Our worker, warm, and the seconds of setting it up (self-check included) per space."""
    from evomerge.execution.scoring import build_scorer
    from evomerge.recipe.serialize import recipe_to_json
    from evomerge.types import CandidateId, EvalTask

    started = time.perf_counter()
    scorers = {space: build_scorer(spec) for space, spec in material.scorers.items()}
    setup_s = (time.perf_counter() - started) / len(scorers)

    def score(candidate: Candidate) -> tuple[float, Mapping[str, float], Scores]:
        task = EvalTask(CandidateId(candidate.name), recipe_to_json(candidate.recipe), "search")
        begun = time.perf_counter()
        evaluation = scorers[candidate.space](task)
        seconds = time.perf_counter() - begun
        return seconds, evaluation.timing_s, by_item(evaluation)

    for candidate in material.warm_up:
        score(candidate)
    return Side("ours", len(material.candidates), score), setup_s


def _warm(material: Material, peer: WarmPeer, batch_size: int | None) -> tuple[Side, int]:
    """The warm peer and the batch size it uses."""
    chosen = batch_size or peer.best_batch_size(
        partial(peer.merge, material.warm_up[0].mergekit), [s for s in BATCH_SIZES if s < 2 * material.n_items]
    )

    def score(candidate: Candidate) -> tuple[float, Mapping[str, float], Scores]:
        found = peer.score(partial(peer.merge, candidate.mergekit), chosen)
        return found.total_s, found.timing_s, found.scores

    score(material.warm_up[-1])
    return Side("warm", len(material.candidates), score), chosen


def _cold(material: Material, scratch: Path, batch_size: int, most: int) -> Side:
    from candidate_peers import score_cold

    def score(candidate: Candidate) -> tuple[float, Mapping[str, float], Scores]:
        found = score_cold(candidate.mergekit, material.questions, scratch, batch_size)
        return found.total_s, found.timing_s, found.scores

    return Side("cold", most, score)


def _processor_s() -> float:
    """Processor seconds of this process and of its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def measure(candidates: Sequence[Candidate], sides: Sequence[Side], told: Callable[[str], None]) -> list[Measured]:
    """Every candidate on every side, one after the other; the side that begins alternates."""
    found = []
    for i, candidate in enumerate(candidates):
        for side in sides if i % 2 == 0 else list(reversed(sides)):
            if i < side.most:
                side.prepare(candidate)
                begun = _processor_s()
                seconds, timing_s, scores = side.score(candidate)
                about = (side.name, candidate.name, candidate.space, seconds, _processor_s() - begun)
                found.append(Measured(*about, dict(timing_s), scores))
                told(f"{candidate.name}: {side.name} {seconds:.3f} s")
    return found


def speed(measured: Sequence[Measured]) -> dict[str, dict[str, Any]]:
    """Per side: seconds and candidates per minute, median with extremes, and the share of each stage."""
    rows: dict[str, dict[str, Any]] = {}
    for side in dict.fromkeys(m.side for m in measured):
        mine = [m for m in measured if m.side == side]
        seconds = sorted(m.seconds for m in mine)
        stages = {stage: median(m.timing_s[stage] for m in mine) for stage in mine[0].timing_s}
        shares = {stage: median(m.timing_s[stage] / m.seconds for m in mine) for stage in mine[0].timing_s}
        rows[side] = {
            "n": len(mine),
            "median_s": median(seconds),
            "min_s": seconds[0],
            "max_s": seconds[-1],
            "per_minute": 60 / median(seconds),
            "cpu_s": median(m.cpu_s for m in mine),
            "stages_s": stages,
            "shares": shares,
        }
    return rows


def ratios(measured: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Per peer: how much faster we are on the same candidate; median with extremes."""
    ours = {m.candidate: m.seconds for m in measured if m.side == "ours"}
    found = {}
    for side in dict.fromkeys(m.side for m in measured if m.side != "ours"):
        each = sorted(m.seconds / ours[m.candidate] for m in measured if m.side == side)
        found[side] = {"median": median(each), "min": each[0], "max": each[-1]}
    return found


def agreement(measured: Sequence[Measured]) -> dict[str, dict[str, Any]]:
    """Per peer: how many per-item scores were compared with ours, how many are equal, and every other one."""
    ours = {m.candidate: m.scores for m in measured if m.side == "ours"}
    found: dict[str, dict[str, Any]] = {}
    for m in measured:
        if m.side == "ours":
            continue
        row = found.setdefault(m.side, {"compared": 0, "equal": 0, "right_in_ours": 0, "differences": []})
        mine = ours[m.candidate]
        if mine.keys() != m.scores.keys():
            raise SystemExit(f"{m.side} was asked other items than we were: {len(mine)} and {len(m.scores)}")
        for key, value in mine.items():
            row["compared"] += 1
            row["equal"] += value == m.scores[key]
            row["right_in_ours"] += value > 0
            if value != m.scores[key]:
                item = {"candidate": m.candidate, "task": key[0], "item": key[1]}
                row["differences"].append({**item, "ours": value, m.side: m.scores[key]})
    return found


def explain(found: Mapping[str, Mapping[str, Any]], material: Material, peer: WarmPeer) -> None:
    """Adds to every difference what we say of mergekit's own merged weights.

    Where that is the peer's score, the merges differ and not the scoring.
    """
    from evomerge.checkpoints.reader import open_checkpoint
    from evomerge.execution.scoring import ScoringSpec, build_scorer
    from evomerge.merging.kernels import Kernels
    from evomerge.recipe.baselines import parent_recipe
    from evomerge.recipe.recipe import ParentRef
    from evomerge.recipe.serialize import recipe_to_json
    from evomerge.types import CandidateId, EvalTask

    plan = material.scorers[SPACES[0]].plan
    differences = [d for row in found.values() for d in row["differences"]]
    for candidate in material.candidates:
        mine = [d for d in differences if d["candidate"] == candidate.name]
        if mine:
            merged = open_checkpoint(peer.merge(candidate.mergekit))
            spec = ScoringSpec({"merged": merged}, "merged", plan, Kernels(), device="cpu", self_check=False)
            recipe = recipe_to_json(parent_recipe(ParentRef("merged", merged.source)))
            scores = by_item(build_scorer(spec)(EvalTask(CandidateId("merged"), recipe, "search")))
            for difference in mine:
                difference["ours_of_its_weights"] = scores[(difference["task"], difference["item"])]


def print_speed(title: str, rows: Mapping[str, Mapping[str, Any]], against: Mapping[str, Mapping[str, float]]) -> None:
    """A table of `speed` and `ratios`."""
    print(f"\n{title}")
    heads = (f"{'n':>10}", f"{'per minute':>12}", f"{'seconds: median (min to max)':>34}", f"{'ours is faster by':>26}")
    print(*heads, f"{'CPU s':>9}   stages, s", sep="")
    for side, row in rows.items():
        spread = f"{row['median_s']:.4f} ({row['min_s']:.4f} to {row['max_s']:.4f})"
        ratio = against.get(side)
        times = f"{ratio['median']:.1f} ({ratio['min']:.1f} to {ratio['max']:.1f})" if ratio else ""
        stages = ", ".join(f"{k} {v:.4f}" for k, v in row["stages_s"].items())
        print(f"{side:6}{row['n']:>4}{row['per_minute']:>12.1f}{spread:>34}{times:>26}{row['cpu_s']:>9.3f}   {stages}")
    shares = ", ".join(f"{stage} {share:.1%}" for stage, share in rows["ours"]["shares"].items())
    print(f"shares of our time per candidate: {shares}")


def _print(result: Mapping[str, Any]) -> None:
    print("; ".join(f"{k} {v}" for k, v in result["machine"].items()))
    print("; ".join(f"{k} {v}" for k, v in result["asked"].items()))
    for title, table in result["speed"].items():
        print_speed(title, table["sides"], table["ratios"])
    print()
    for side, row in result["agreement"].items():
        share = f"{row['equal']} of {row['compared']} per-item scores equal ({row['right_in_ours']} are not 0)"
        print(f"agreement with {side}: {share}")
        for difference in row["differences"]:
            print(f"  {difference}")


def run(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """The whole benchmark."""

    def told(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    from candidate_peers import WarmPeer

    facts = machine_facts()
    material = _prepare(arguments, scratch)
    ours, setup_s = _ours(material)
    peer = WarmPeer(material.questions, scratch)
    warm, batch_size = _warm(material, peer, arguments.batch_size)
    sides = [ours, warm, _cold(material, scratch, batch_size, arguments.cold)]
    measured = measure(material.candidates, sides, told)
    compared = agreement(measured)
    explain(compared, material, peer)
    tables = {"all candidates": measured}
    if len(material.scorers) > 1:
        tables |= {space: [m for m in measured if m.space == space] for space in material.scorers}
    spec = material.scorers[SPACES[0]]
    n_parameters = sum(p.numel() for p in _parameters(spec))
    return {
        "machine": facts,
        "asked": {
            "model": arguments.model_size,
            "parameters": n_parameters,
            "dtype": material.questions.dtype,
            "tasks": arguments.tasks,
            "items per task": arguments.items,
            "compiled kernels": [space for space, s in material.scorers.items() if s.kernels.compiled] or "none",
            "our set-up and self-check, s": round(setup_s, 2),
            "lm-eval's batch size": batch_size,
        },
        "speed": {title: {"sides": speed(part), "ratios": ratios(part)} for title, part in tables.items()},
        "agreement": compared,
    }


def _parameters(spec: Any) -> list[Any]:
    template = spec.checkpoints[spec.template]
    return [template.tensor(t.name) for t in template.layout.tensors]


def main() -> None:
    """Command line."""
    run_apart(run, _print, _arguments())


if __name__ == "__main__":
    main()

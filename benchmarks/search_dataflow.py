"""Parameter space alone, data flow alone, and both in stages, at equal question budgets, on two kinds of toy zoo.

    python benchmarks/search_dataflow.py --zoos DIR --work DIR

`skills` is the zoo of the demo; in `steps` two tasks need a block of layers to run twice, which no merge at the stored
depth can do. One objective, the mean of the zoo's tasks but one; the one left out shows what a search harms that does
not look at it. Every arm scores equally many candidates on the same items; everything is compared on the report set,
which neither the search nor the choice among its finalists has seen. Gains are paired by zoo: their 95 % intervals are
Student's over the seeds. The best parent is the best on the report set itself, which favours the parents.

Zoos are built in DIR unless they are there: `seedN` and `steps-seedN`. Runs stay in the folder of `--work`: what is
finished there is not run again, what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from machine import machine_facts, one_thread

if TYPE_CHECKING:
    from evomerge.recipe.recipe import Recipe
    from evomerge.report.summary import Entry

OBJECTIVE: Final = "mean"
WEIGHTS: Final = "layer-wise-task-arithmetic"
PATHS: Final = "layer-path-free"


class Zoo(NamedTuple):
    """One kind of zoo: the objective's tasks, and the one that is only watched."""

    variant: str
    folder: str
    tasks: tuple[str, ...]
    watched: str


ZOOS: Final = {
    "skills": Zoo("skills", "seed{}", ("add", "rev", "srt", "addx"), "add_mc"),
    "steps": Zoo("steps", "steps-seed{}", ("shift", "mirror", "back", "steps", "stepsback"), "shiftback"),
}
ARMS: Final = ("weights", "path", "hybrid")


class Scored(NamedTuple):
    """Report-set scores of one model: the objective, and every task of the suite."""

    value: float
    tasks: Mapping[str, float]


class StageEnd(NamedTuple):
    """The best model behind one stage of a hybrid search."""

    name: str
    evaluations: int
    scored: Scored
    path: str
    worse: tuple[str, ...]


class Found(NamedTuple):
    """What one search found."""

    best: Scored
    path: str
    parent: Scored
    evaluations: int
    questions: int
    wall_s: float
    stages: tuple[StageEnd, ...]


Results = Mapping[tuple[str, int, str], Found]
"""(zoo, seed, arm) -> what was found."""


def main() -> int:
    """Run what is missing and print the tables."""
    arguments = _arguments()
    one_thread()
    results = {}
    for zoo in arguments.variants:
        for seed in arguments.seeds:
            for arm in arguments.arms:
                start = time.perf_counter()
                found = results[zoo, seed, arm] = _search(ZOOS[zoo], seed, arm, arguments)
                took = f"{found.wall_s:.0f} s, of which {time.perf_counter() - start:.0f} now"
                print(f"{zoo} {seed} {arm}: {found.best.value:.3f} ({took})", file=sys.stderr, flush=True)
    if arguments.json:
        rows = [{"zoo": z, "seed": s, "arm": a, "found": _plain(f)} for (z, s, a), f in results.items()]
        print(json.dumps({"machine": machine_facts(), "runs": rows}, indent=1))
    else:
        print("\n".join(_pages(results, arguments)))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoos", type=Path, default=Path(".cache/zoos"), help="folder of the zoos")
    parser.add_argument("--work", type=Path, default=Path(".cache/search-dataflow"), help="folder of the runs")
    parser.add_argument("--variants", nargs="+", choices=tuple(ZOOS), default=list(ZOOS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--evaluations", type=int, default=240, help="of every arm; of hybrid a third per stage")
    parser.add_argument("--search-items", type=int, default=100, help="per task")
    parser.add_argument("--select-items", type=int, default=200, help="per task")
    parser.add_argument("--report-items", type=int, default=800, help="per task")
    parser.add_argument("--path-space", default=PATHS, help="of the arm `path`, over the parents as they are")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _search(zoo: Zoo, seed: int, arm: str, arguments: argparse.Namespace) -> Found:
    from evomerge.api import search
    from evomerge.config.recipes_of import run_recipes
    from evomerge.report.book import Book
    from evomerge.report.collect import summary_of
    from evomerge.report.stage_values import StageReport
    from evomerge.report.stages import stage_report
    from evomerge.types import CandidateId
    from evomerge.zoo.build import build_zoo
    from evomerge.zoo.spec import full_spec

    spec = full_spec(seed, zoo.variant)
    folder = build_zoo((arguments.zoos / zoo.folder.format(seed)).resolve(), spec).folder
    job = {**_job(zoo, seed, folder, arguments), **_arm(zoo, seed, arm, arguments)}
    run = arguments.work / f"{job['name']}-{_size(arguments)}"
    search(job, run_dir=run, resume="auto")
    book = Book(run)
    summary = summary_of(book)
    recipe_of = run_recipes(run)
    report = stage_report(book) or StageReport((), (), ())
    if summary.chosen is None:
        raise SystemExit(f"{run} has no result")
    parents = [_scored(e) for e in summary.baselines if e.kind == "parent" and e.report is not None]
    stages = []
    for result in report.results:
        if result.winner is None:
            raise SystemExit(f"{run}: stage {result.name} has no winner")
        worse = tuple(g.difference.what for g in report.regressions if g.stage in (result.title, result.name))
        path = _path(recipe_of(book.models[CandidateId(result.winner.id)]))
        stages.append(StageEnd(result.name, result.evaluations, _scored(result.winner), path, worse))
    counts = summary.counts
    return Found(
        _scored(summary.chosen),
        _path(recipe_of(book.models[CandidateId(summary.chosen.id)])),
        max(parents, key=lambda p: p.value),
        counts.asked - counts.reused,
        counts.candidate_questions,
        summary.timing.wall_s,
        tuple(stages),
    )


def _size(arguments: argparse.Namespace) -> str:
    items = f"{arguments.search_items}-{arguments.select_items}-{arguments.report_items}"
    return f"{arguments.evaluations}-{items}"


def _scored(entry: Entry) -> Scored:
    if entry.report is None:
        raise SystemExit(f"{entry.id} was not scored on the report set")
    return Scored(entry.report.objectives[OBJECTIVE].value, {t: s.value for t, s in entry.report.tasks.items()})


def _path(recipe: Recipe | None) -> str:
    """Layers in the order in which they run, with the parent where a layer is not a merged one."""
    if recipe is None:
        return "?"
    if recipe.path is None:
        return "as stored"
    return " ".join(f"{hop.parent or ''}{hop.layer}" for hop in recipe.path)


def _job(zoo: Zoo, seed: int, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """What all arms share."""
    from evomerge.zoo.variants import VARIANTS

    experts = VARIANTS[zoo.variant].experts
    items = {"search": arguments.search_items, "select": arguments.select_items, "report": arguments.report_items}
    return {
        "parents": {"base": str(folder / "base"), "models": {name: str(folder / name) for name in experts}},
        "suite": {
            "include": [str(folder / "tasks")],
            "tasks": [*zoo.tasks, zoo.watched],
            "questions": "all",  # so that equally many candidates are equally many questions
            "split": items,
        },
        "objectives": [{"name": OBJECTIVE, "tasks": list(zoo.tasks), "aggregate": "mean"}],
        "cluster": {"backend": "local", "workers": arguments.workers},
        "seed": seed,
    }


def _arm(zoo: Zoo, seed: int, arm: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What an arm searches, and what its run is called."""
    n = arguments.evaluations
    name = f"{zoo.variant}{seed}-{arm}"
    if arm == "weights":
        return {"name": name, "space": WEIGHTS, "budget": {"evaluations": n}}
    if arm == "path":
        space = arguments.path_space
        return {"name": f"{name}-{Path(space).stem}", "space": space, "budget": {"evaluations": n}}
    third = n // 3
    stages = [
        {"name": "weights", "space": WEIGHTS, "evaluations": n - 2 * third},
        {"name": "path", "space": "repeat-windows", "evaluations": third},
        {"name": "both", "space": "weights-and-path", "evaluations": third},
    ]
    return {"name": name, "stages": stages}


def _plain(found: Found) -> dict[str, Any]:
    stages = [{**s._asdict(), "scored": s.scored._asdict()} for s in found.stages]
    return {**found._asdict(), "best": found.best._asdict(), "parent": found.parent._asdict(), "stages": stages}


def _over_seeds(values: Sequence[float]) -> str:
    """Mean in percentage points, with Student's 95 % interval over the seeds."""
    from scipy.stats import t

    mean = 100 * fmean(values)
    if len(values) < 2:
        return f"{mean:+.1f}"
    half = 100 * float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def _pages(results: Results, arguments: argparse.Namespace) -> Iterator[str]:
    yield f"`python benchmarks/search_dataflow.py {shlex.join(sys.argv[1:])}`"
    for name in arguments.variants:
        rows = {(s, a): f for (z, s, a), f in results.items() if z == name}
        yield f"\n## {name}: mean of {', '.join(ZOOS[name].tasks)}\n"
        yield from _by_seed(rows, arguments)
        yield from ("", "Means over the seeds; the last task is in no objective.", "")
        yield from _by_task(rows, ZOOS[name], arguments)
        if "hybrid" in arguments.arms:
            yield from ("", "What the stages of `hybrid` added on the report set, in points:", "")
            yield from _by_stage([rows[s, "hybrid"] for s in arguments.seeds], ZOOS[name])
        yield from ("", "Layers of the winners (a number alone: merged):", "")
        yield from _table(
            ["seed", "arm", "path"], [[str(s), a, f.path] for (s, a), f in sorted(rows.items()) if a != "weights"]
        )
    yield ""
    yield from (f"{key}: {value}" for key, value in machine_facts().items())


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _by_seed(rows: Mapping[tuple[int, str], Found], arguments: argparse.Namespace) -> Iterator[str]:
    arms, seeds = list(arguments.arms), list(arguments.seeds)
    columns: dict[str, Callable[[int], float]] = {"best parent": lambda s: rows[s, arms[0]].parent.value}
    columns |= {arm: lambda s, arm=arm: rows[s, arm].best.value for arm in arms}
    pairs = [(arm, "best parent") for arm in arms[:1]] + [(b, a) for i, a in enumerate(arms) for b in arms[i + 1 :]]
    gains = {f"{b} - {a}": (columns[b], columns[a]) for b, a in pairs}
    body = []
    for seed in seeds:
        values = [f"{value(seed):.3f}" for value in columns.values()]
        differences = [f"{100 * (b(seed) - a(seed)):+.1f}" for b, a in gains.values()]
        seconds = "/".join(f"{rows[seed, arm].wall_s:.0f}" for arm in arms)
        questions = "/".join(f"{rows[seed, arm].questions / 1000:.0f}k" for arm in arms)
        body.append([str(seed), *values, *differences, questions, seconds])
    means = [f"{fmean(map(value, seeds)):.3f}" for value in columns.values()]
    intervals = [_over_seeds([b(s) - a(s) for s in seeds]) for b, a in gains.values()]
    yield from _table(["seed", *columns, *gains, "questions", "seconds"], [*body, ["all", *means, *intervals, "", ""]])


def _by_task(rows: Mapping[tuple[int, str], Found], zoo: Zoo, arguments: argparse.Namespace) -> Iterator[str]:
    tasks = (*zoo.tasks, zoo.watched)
    models = [("best parent", [rows[s, arguments.arms[0]].parent for s in arguments.seeds])]
    models += [(arm, [rows[s, arm].best for s in arguments.seeds]) for arm in arguments.arms]
    body = [[name, *(f"{fmean(m.tasks[t] for m in found):.3f}" for t in tasks)] for name, found in models]
    yield from _table(["", *tasks], body)


def _by_stage(found: Sequence[Found], zoo: Zoo) -> Iterator[str]:
    before = [f.parent for f in found]
    body = []
    for ends in zip(*(f.stages for f in found), strict=True):
        after = [end.scored for end in ends]
        gained = _over_seeds([b.value - a.value for a, b in zip(before, after, strict=True)])
        watched = _over_seeds([b.tasks[zoo.watched] - a.tasks[zoo.watched] for a, b in zip(before, after, strict=True)])
        evaluations = "/".join(str(end.evaluations) for end in ends)
        paths = f"{sum(end.path != 'as stored' for end in ends)} of {len(ends)}"
        worse = sum(zoo.watched in end.worse for end in ends)
        value = f"{fmean(a.value for a in after):.3f}"
        body.append([ends[0].name, evaluations, value, gained, paths, watched, f"{worse} of {len(ends)}"])
        before = after
    yield from _table(
        ["stage", "models asked", "best", "gained", "with a path", f"{zoo.watched} (outside)", "separably worse"], body
    )


if __name__ == "__main__":
    sys.exit(main())

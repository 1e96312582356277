"""What few questions cost and save: whole search sets, `questions: auto`, and random subsets of equal cost.

    python benchmarks/questions.py --zoos DIR --results questions.jsonl

For every toy zoo and space the same search runs three times: every candidate is asked the whole search set (`all`);
`auto` as a job has it by default; and `random`, where all candidates are asked one fixed random subset, as large as
makes the search-set questions of the whole run equal to those that `auto` asked there. `--arms bank` adds a fourth: an
earlier `auto` search of the same parents with another seed is calibrated (`evomerge calibrate RUN`), and with its banks
candidates are asked 5 % of the search set from the first generation on. One objective (the mean of add,
rev, srt and addx), the default optimizer. The chosen models are compared on the report set, which no search has seen.

Differences are paired over (zoo, space); their intervals, for 95 %, are Student's t and the percentile bootstrap over
the pairs, and Student's t over zoos, which does not take the spaces of one zoo for independent. Finished searches are
appended to the results file at once, and not repeated when the benchmark is started again.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from machine import machine_facts, one_thread
from scipy.stats import t as student

from evomerge.runs.records import Evaluated
from evomerge.runs.replay import read_history
from evomerge.runs.store import RunStore
from evomerge.seeds import generator

Arm = Literal["all", "auto", "random", "bank"]
ARMS: Final[tuple[Arm, ...]] = ("all", "auto", "random")

EXPERTS: Final = ("math", "string", "lang")
TASKS: Final = ("add", "rev", "srt", "addx")
SPACES: Final = ("layer-wise-task-arithmetic", "layer-wise-ties")
OBJECTIVE: Final = "mean"
RESAMPLES: Final = 10_000

COMPARED: Final[tuple[tuple[Arm, Arm], ...]] = (
    ("auto", "all"),
    ("auto", "random"),
    ("random", "all"),
    ("bank", "all"),
    ("bank", "auto"),
)
BANK_SHARE: Final = 0.05
EARLIER: Final = 1000
"""Added to the seed of the search whose answers make the banks."""


@dataclass(frozen=True)
class Setting:
    """What makes two searches comparable.

    Attributes:
        seed: of zoo and search.
        space: name of the preset.
        evaluations: models scored on the search set.
        search: items per task.
        select: items per task.
        report: items per task.
    """

    seed: int
    space: str
    evaluations: int
    search: int
    select: int
    report: int


@dataclass(frozen=True)
class Outcome:
    """One finished search.

    Attributes:
        arm: how it asked.
        setting: what else it was.
        questions: answers to the search set, over all models and increments.
        by_candidates: of these, those of models that the optimizer asked for, baselines and mean excluded.
        models: models scored on the search set.
        candidates: of these, those that the optimizer asked for.
        number: questions per candidate and task that the job asked for; None where it said `all` or `auto`.
        wall_s: seconds of `evomerge search`, start and unseen sets included.
        kind: of the chosen model.
        search: its score on the search set, as the search believed it.
        select: on the select set.
        report: on the report set.
    """

    arm: Arm
    setting: Setting
    questions: int
    by_candidates: int
    models: int
    candidates: int
    number: int | None
    wall_s: float
    kind: str
    search: float
    select: float
    report: float


def main() -> int:
    """Run what is missing and print the tables."""
    arguments = _arguments()
    one_thread()
    outcomes = _read(arguments.results)
    for setting in _settings(arguments):
        for arm in arguments.arms:
            if (arm, setting) not in outcomes:
                found = _search(arm, setting, arguments, outcomes)
                outcomes[(arm, setting)] = found
                _append(arguments.results, found)
                print(_line(found), file=sys.stderr, flush=True)
    chosen = [o for s in _settings(arguments) for a in arguments.arms if (o := outcomes.get((a, s))) is not None]
    facts = machine_facts()
    if arguments.json:
        compared = [_compared(chosen, *pair)._asdict() for pair in COMPARED if set(pair) <= set(arguments.arms)]
        print(json.dumps({"machine": facts, "searches": [asdict(o) for o in chosen], "compared": compared}, indent=1))
    else:
        print(_table(chosen, arguments.arms), "", *(f"{key}: {value}" for key, value in facts.items()), sep="\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoos", type=Path, default=Path(".cache/zoos"), help="folder of the zoos, one per seed")
    parser.add_argument("--results", type=Path, default=Path(".cache/questions.jsonl"), help="finished searches")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--spaces", nargs="+", default=list(SPACES))
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, "bank"], default=list(ARMS), help="random needs auto")
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--search-items", type=int, default=100, help="per task")
    parser.add_argument("--select-items", type=int, default=200, help="per task")
    parser.add_argument("--report-items", type=int, default=800, help="per task")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _settings(arguments: argparse.Namespace) -> Iterator[Setting]:
    sizes = (arguments.evaluations, arguments.search_items, arguments.select_items, arguments.report_items)
    for seed in arguments.seeds:
        for space in arguments.spaces:
            yield Setting(seed, space, *sizes)


# -- searches ----------------------------------------------------------------------------------------------------------

Outcomes = dict[tuple[Arm, Setting], Outcome]


def _read(path: Path) -> Outcomes:
    """Finished searches; a last line that was cut off is ignored."""
    found: Outcomes = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        outcome = Outcome(**{**value, "setting": Setting(**value["setting"])})
        found[(outcome.arm, outcome.setting)] = outcome
    return found


def _append(path: Path, outcome: Outcome) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cut = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as f:
        f.write(("\n" if cut else "") + json.dumps(asdict(outcome)) + "\n")


def _search(arm: Arm, setting: Setting, arguments: argparse.Namespace, outcomes: Outcomes) -> Outcome:
    """Run one search in a folder of its own."""
    zoo = (arguments.zoos / f"seed{setting.seed}").resolve()
    _evomerge("zoo", str(zoo), "--seed", str(setting.seed))
    number = _equal_cost(outcomes, setting) if arm == "random" else None
    with tempfile.TemporaryDirectory() as scratch:
        job, run = Path(scratch) / "job.json", Path(scratch) / "run"
        wanted = _job(zoo, arm, number, setting, arguments.workers)
        if arm == "bank":
            banks = _banks(wanted, Path(scratch))
            wanted["suite"]["questions"] = {"number": BANK_SHARE, "banks": [str(b) for b in banks]}
        job.write_text(json.dumps(wanted), encoding="utf-8")  # JSON is YAML
        start = time.perf_counter()
        _evomerge("search", str(job), "--run-dir", str(run))
        seconds = time.perf_counter() - start
        chosen = json.loads(_evomerge("status", str(run), "--json"))["chosen"]
        asked = _asked(run)
    scores = {name: chosen[name]["objectives"][OBJECTIVE]["value"] for name in ("search", "select", "report")}
    return Outcome(arm, setting, **asked._asdict(), number=number, wall_s=seconds, kind=chosen["kind"], **scores)


def _banks(wanted: dict[str, Any], scratch: Path) -> list[Path]:
    """The banks of an earlier search with another seed."""
    suite = {**wanted["suite"], "questions": "auto"}
    job, run = scratch / "earlier.json", scratch / "earlier"
    job.write_text(json.dumps({**wanted, "suite": suite, "seed": wanted["seed"] + EARLIER}), encoding="utf-8")
    _evomerge("search", str(job), "--run-dir", str(run))
    _evomerge("calibrate", str(run), "--to", str(scratch / "bank.npz"))
    return sorted(scratch.glob("bank-*.npz"))


def _evomerge(*arguments: str) -> str:
    """Standard output of one command; what it says on standard error is shown when it fails."""
    command = [sys.executable, "-m", "evomerge", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {done.returncode}:\n{done.stderr}")
    return done.stdout


def _job(zoo: Path, arm: Arm, number: int | None, setting: Setting, workers: int) -> dict[str, Any]:
    split = {"search": setting.search, "select": setting.select, "report": setting.report}
    questions: Any = arm
    if number is not None:
        questions = {"number": number, "race": "none", "order": "random", "estimator": "mean", "rotate": False}
    return {
        "name": f"zoo{setting.seed}-{arm}",
        "parents": {"base": str(zoo / "base"), "models": {expert: str(zoo / expert) for expert in EXPERTS}},
        "space": setting.space,
        "suite": {
            "include": [str(zoo / "tasks")],
            "tasks": list(TASKS),
            "split": split,
            "questions": questions,
        },
        "objectives": [{"name": OBJECTIVE, "tasks": list(TASKS), "aggregate": "mean"}],
        "budget": {"evaluations": setting.evaluations},
        "cluster": {"workers": workers},
        "seed": setting.seed,
    }


def _equal_cost(outcomes: Outcomes, setting: Setting) -> int:
    """Questions per candidate and task with which a fixed subset costs what `auto` did.

    Raises:
        SystemExit: when `auto` was not run.
    """
    auto = outcomes.get(("auto", setting))
    if auto is None:
        raise SystemExit("the random arm takes its cost from the auto arm: run --arms auto random")
    number = round(auto.by_candidates / (auto.candidates * len(TASKS)))
    return max(1, min(setting.search, number))


class Asked(NamedTuple):
    """What a run asked on the search set; see `Outcome`."""

    questions: int
    by_candidates: int
    models: int
    candidates: int


def _asked(run: Path) -> Asked:
    with RunStore.open(run, write=False) as store:
        entries = tuple(store.entries())
    beside = {b.recipe for b in read_history(entries).baselines.values()}
    records = [e.record for e in entries if isinstance(e.record, Evaluated) and e.record.set_name == "search"]
    sizes = [(r.recipe, sum(task.n for task in r.tasks.values())) for r in records]
    models = {recipe for recipe, _ in sizes}
    by_candidates = sum(n for recipe, n in sizes if recipe not in beside)
    return Asked(sum(n for _, n in sizes), by_candidates, len(models), len(models - beside))


# -- tables ------------------------------------------------------------------------------------------------------------


class Interval(NamedTuple):
    """In points."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:+.2f} to {self.high:+.2f}"


class Compared(NamedTuple):
    """First arm minus second on the report set, in points, over the pairs that both have.

    Attributes:
        arms: `first - second`.
        pairs: how many.
        difference: their mean.
        t: Student's interval over pairs; None with one pair.
        bootstrap: percentile interval over pairs.
        t_zoos: Student's interval over zoos; None with one zoo.
        fewer: questions of the second over those of the first.
        faster: seconds of the second over those of the first.
    """

    arms: str
    pairs: int
    difference: float
    t: Interval | None
    bootstrap: Interval
    t_zoos: Interval | None
    fewer: float
    faster: float


def _compared(outcomes: Sequence[Outcome], first: Arm, second: Arm) -> Compared:
    of = {(o.arm, o.setting): o for o in outcomes}
    both = [(of[(first, s)], of[(second, s)]) for a, s in of if a == first and (second, s) in of]
    values = [100 * (a.report - b.report) for a, b in both]
    seeds = sorted({a.setting.seed for a, _ in both})
    by_zoo = [fmean(v for v, (a, _) in zip(values, both, strict=True) if a.setting.seed == seed) for seed in seeds]
    return Compared(
        arms=f"{first} - {second}",
        pairs=len(values),
        difference=fmean(values),
        t=_t_interval(values),
        bootstrap=_bootstrap(values),
        t_zoos=_t_interval(by_zoo),
        fewer=sum(b.questions for _, b in both) / sum(a.questions for a, _ in both),
        faster=sum(b.wall_s for _, b in both) / sum(a.wall_s for a, _ in both),
    )


def _t_interval(values: Sequence[float]) -> Interval | None:
    if len(values) < 2:
        return None
    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return Interval(fmean(values) - half, fmean(values) + half)


def _bootstrap(values: Sequence[float]) -> Interval:
    rows = generator(0, "bootstrap").integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.array(values)[rows].mean(axis=1), [0.025, 0.975])
    return Interval(float(low), float(high))


def _line(o: Outcome) -> str:
    each = o.by_candidates / max(1, o.candidates * len(TASKS))
    scores = f"search {o.search:.3f} select {o.select:.3f} report {o.report:.3f}"
    return (
        f"zoo {o.setting.seed} {o.setting.space:<27} {o.arm:<7} {o.questions:6d} questions, {each:5.1f} per candidate "
        f"and task, {o.wall_s:5.1f} s, {scores} ({o.kind})"
    )


def _table(outcomes: Sequence[Outcome], arms: Sequence[Arm]) -> str:
    spaces = dict.fromkeys(o.setting.space for o in outcomes)
    lines = [
        "| space | questions asked | searches | questions | per candidate and task | seconds | search | report |",
        "|" + "---|" * 8,
    ]
    for space in (*spaces, None):
        for arm in arms:
            lines.append(_means(space, arm, [o for o in outcomes if o.arm == arm and space in (None, o.setting.space)]))
    head = (
        "| report, points | pairs | difference | t | bootstrap | t over zoos | times fewer questions | times faster |"
    )
    lines += ["", head, "|" + "---|" * 8]
    for first, second in COMPARED:
        if {first, second} <= set(arms):
            c = _compared(outcomes, first, second)
            intervals = f"{c.t} | {c.bootstrap} | {c.t_zoos}"
            lines.append(
                f"| {c.arms} | {c.pairs} | {c.difference:+.2f} | {intervals} | {c.fewer:.2f} | {c.faster:.2f} |"
            )
    return "\n".join(lines)


def _means(space: str | None, arm: Arm, some: Sequence[Outcome]) -> str:
    each = sum(o.by_candidates for o in some) / max(1, sum(o.candidates for o in some) * len(TASKS))
    cells = [
        f"{fmean(o.questions for o in some):.0f}",
        f"{each:.1f}",
        f"{fmean(o.wall_s for o in some):.1f}",
        f"{fmean(o.search for o in some):.4f}",
        f"{fmean(o.report for o in some):.4f}",
    ]
    return f"| {space or 'all spaces'} | {arm} | {len(some)} | {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())

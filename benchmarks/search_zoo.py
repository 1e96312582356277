"""What a search finds, on five toy zoos: best parent, uniform soup, tuned task arithmetic, and the search.

    python benchmarks/search_zoo.py --zoos DIR

One objective (the mean of add, rev, srt and addx), the default optimizer, layer-wise task arithmetic. Everything is
compared on the report set, which neither the search nor the choice among its finalists has seen. Tuned task
arithmetic is one strength for all experts, the best of a grid on the select set. The best parent is the best on the
report set itself, which favours the parents. Zoos are built in DIR unless they are there (half a minute each on two
idle cores); a search takes about as long.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final, NamedTuple

from machine import machine_facts, one_thread

EXPERTS: Final = ("math", "string", "lang")
TASKS: Final = ("add", "rev", "srt", "addx")
STRENGTHS: Final = tuple(round(0.1 * i, 1) for i in range(2, 13))
OBJECTIVE: Final = "mean"


class Scores(NamedTuple):
    """Report-set accuracy per task of one model."""

    name: str
    tasks: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Of the four tasks, in [0, 1]."""
        return fmean(self.tasks[task] for task in TASKS)


class Compared(NamedTuple):
    """One zoo: what each way of merging reaches, and the seconds of the search."""

    seed: int
    parent: Scores
    soup: Scores
    arithmetic: Scores
    search: Scores
    search_s: float


def main() -> int:
    """Run the benchmark and print its table."""
    arguments = _arguments()
    one_thread()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in arguments.seeds:
            rows.append(_compare(seed, arguments, Path(scratch)))
            print(_row(rows[-1]) if arguments.json else _details(rows[-1]), file=sys.stderr, flush=True)
    facts = machine_facts()
    if arguments.json:
        zoos = [{**row._asdict(), **{k: {"mean": s.mean, **s._asdict()} for k, s in _columns(row)}} for row in rows]
        print(json.dumps({"machine": facts, "evaluations": arguments.evaluations, "zoos": zoos}, indent=1))
    else:
        print(_table(rows), "", *(f"{key}: {value}" for key, value in facts.items()), sep="\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoos", type=Path, default=Path(".cache/zoos"), help="folder of the zoos, one per seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--search-items", type=int, default=100, help="per task")
    parser.add_argument("--select-items", type=int, default=200, help="per task")
    parser.add_argument("--report-items", type=int, default=800, help="per task")
    parser.add_argument("--questions", default="all", help="per candidate: all, auto")
    parser.add_argument("--space", default="layer-wise-task-arithmetic")
    parser.add_argument("--optimizer", default="auto")
    parser.add_argument("--steps", choices=("norms", "space"), default="norms", help="first steps of weights")
    parser.add_argument("--backend", choices=("local", "ray"), default="local")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _evomerge(*arguments: str) -> str:
    """Standard output of one command; what it says on standard error is shown."""
    command = [sys.executable, "-m", "evomerge", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _compare(seed: int, arguments: argparse.Namespace, scratch: Path) -> Compared:
    zoo = (arguments.zoos / f"seed{seed}").resolve()
    _evomerge("zoo", str(zoo), "--seed", str(seed))
    job, run = scratch / f"zoo{seed}.json", scratch / f"run{seed}"
    job.write_text(json.dumps(_job(zoo, seed, arguments)), encoding="utf-8")  # JSON is YAML
    start = time.perf_counter()
    _evomerge("search", str(job), "--run-dir", str(run))
    seconds = time.perf_counter() - start
    status = json.loads(_evomerge("status", str(run), "--json"))
    parents = [_scores(expert, str(zoo / expert), job, "report") for expert in EXPERTS]
    soup = _scores("uniform soup", _linear_file(zoo, scratch), job, "report")
    search = Scores(status["chosen"]["kind"], _values(status["chosen"]["report"]["tasks"]))
    best = max(parents, key=lambda scores: scores.mean)
    return Compared(seed, best, soup, _tuned_arithmetic(zoo, job, scratch), search, seconds)


def _job(zoo: Path, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "name": f"zoo{seed}",
        "parents": {"base": str(zoo / "base"), "models": {expert: str(zoo / expert) for expert in EXPERTS}},
        "space": arguments.space,
        "suite": {
            "include": [str(zoo / "tasks")],
            "tasks": list(TASKS),
            "questions": arguments.questions,
            "split": {
                "search": arguments.search_items,
                "select": arguments.select_items,
                "report": arguments.report_items,
            },
        },
        "objectives": [{"name": OBJECTIVE, "tasks": list(TASKS), "aggregate": "mean"}],
        "optimizer": {"name": arguments.optimizer, "steps": arguments.steps},
        "budget": {"evaluations": arguments.evaluations},
        "cluster": {"backend": arguments.backend, "workers": arguments.workers},
        "seed": seed,
    }


def _tuned_arithmetic(zoo: Path, job: Path, scratch: Path) -> Scores:
    """One strength for all experts, chosen on the select set, scored on the report set."""
    files = {strength: _arithmetic_file(zoo, strength, scratch) for strength in STRENGTHS}
    best = max(STRENGTHS, key=lambda strength: _scores("", files[strength], job, "select").mean)
    return _scores(f"strength {best}", files[best], job, "report")


def _arithmetic_file(zoo: Path, strength: float, scratch: Path) -> str:
    return _mergekit_file(
        scratch / f"{zoo.name}-{strength}.yaml",
        {
            "merge_method": "task_arithmetic",
            "base_model": str(zoo / "base"),
            "models": [{"model": str(zoo / expert), "parameters": {"weight": strength}} for expert in EXPERTS],
            "parameters": {"normalize": False},
            "dtype": "float32",
        },
    )


def _linear_file(zoo: Path, scratch: Path) -> str:
    models = [{"model": str(zoo / expert), "parameters": {"weight": 1.0}} for expert in EXPERTS]
    return _mergekit_file(
        scratch / f"{zoo.name}-soup.yaml", {"merge_method": "linear", "models": models, "dtype": "float32"}
    )


def _mergekit_file(path: Path, content: Mapping[str, Any]) -> str:
    import yaml

    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return str(path)


def _scores(name: str, model: str, job: Path, set_name: Any) -> Scores:
    """What `evomerge evaluate MODEL --job JOB --set-name SET` gives, without a process for each."""
    from evomerge.config.evaluate import evaluate_model
    from evomerge.config.load import load_job

    evaluation = evaluate_model(model, load_job(job), set_name)
    return Scores(name, {task: answers.mean for task, answers in evaluation.answers.items()})


def _values(tasks: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {task: tasks[task]["value"] for task in TASKS}


def _columns(row: Compared) -> list[tuple[str, Scores]]:
    return [("parent", row.parent), ("soup", row.soup), ("arithmetic", row.arithmetic), ("search", row.search)]


def _row(row: Compared) -> str:
    search, parent, arithmetic = row.search.mean, row.parent.mean, row.arithmetic.mean
    gains = f"{100 * (search - parent):+.1f} | {100 * (search - arithmetic):+.1f} | {row.search_s:.0f}"
    return f"| {row.seed} | " + " | ".join(f"{scores.mean:.3f}" for _, scores in _columns(row)) + f" | {gains} |"


def _details(row: Compared) -> str:
    lines = [
        f"  {column:<10} {scores.name:<16}" + "".join(f" {task} {scores.tasks[task]:.3f}" for task in TASKS)
        for column, scores in _columns(row)
    ]
    return "\n".join([f"zoo {row.seed}", *lines])


def _table(rows: Sequence[Compared]) -> str:
    head = "| zoo | best parent | uniform soup | tuned task arithmetic | search | over parent | over arithmetic | s |"
    means = [fmean(scores.mean for scores in column) for column in zip(*(row[1:5] for row in rows), strict=True)]
    gains = f"{100 * (means[3] - means[0]):+.1f} | {100 * (means[3] - means[2]):+.1f}"
    average = "| average | " + " | ".join(f"{mean:.3f}" for mean in means) + f" | {gains} | |"
    return "\n".join([head, "|" + "---|" * 8, *map(_row, rows), average])


if __name__ == "__main__":
    sys.exit(main())

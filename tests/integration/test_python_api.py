"""`evomerge.search` in this process: custom objectives survive interruption, and sizes survive a larger budget."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.api import Quiet, run_search
from evomerge.config.assemble import assemble
from evomerge.config.load import job_document, load_run_job, resolve_job
from evomerge.config.run_files import resumed_job
from evomerge.errors import ConfigError, EvaluationError, Interrupted
from evomerge.evaluation.objectives import ObjectiveFunction
from evomerge.execution.ledger import Request
from evomerge.types import Outcome, SetName

pytestmark = pytest.mark.zoo


def job(zoo: Path, **changed: Any) -> dict[str, Any]:
    return {
        "name": "api",
        "parents": {"base": zoo / "base", "models": {n: zoo / n for n in ("math", "string", "lang")}},
        "space": {"method": "task_arithmetic", "depth": "model", "parameters": {"weight": {"low": 0, "high": 1}}},
        "suite": {
            "include": [zoo / "tasks"],
            "tasks": ("add_mc", "srt_mc"),
            "split": {"search": 8, "select": 8, "report": 8},
        },
        "objectives": [{"name": "squared", "direction": "minimize"}],
        "constraints": [{"objective": "squared", "at_most": {"of": "base", "plus": 0.5}}],
        "optimizer": {"name": "cma", "population": 4},
        "budget": {"evaluations": 14},
        "cluster": {"backend": "local", "workers": 1, "compile": "never"},
        **changed,
    }


def squared(evaluation: evomerge.Evaluation) -> float:
    """Mean squared error rate."""
    return sum((1 - a.mean) ** 2 for a in evaluation.answers.values()) / len(evaluation.answers)


FUNCTIONS: Mapping[str, ObjectiveFunction] = {"squared": squared}


class Counter(Quiet):
    """Counts outcomes; asks for a stop after some of them."""

    def __init__(self, stop_after: int) -> None:
        self.left = stop_after

    def outcome(self, request: Request, set_name: SetName, outcome: Outcome) -> None:
        self.left -= 1

    def __call__(self) -> bool:
        return self.left <= 0


def test_an_interrupted_search_with_a_function_ends_as_an_undisturbed_one(small_zoo: Path, tmp_path: Path) -> None:
    whole = evomerge.search(job(small_zoo), run_dir=tmp_path / "whole", objectives=FUNCTIONS)
    for stop_after in (3, 11):
        counter = Counter(stop_after)
        resolved = resolve_job(job_document(job(small_zoo)), tmp_path)
        run = tmp_path / f"parts-{stop_after}"
        with pytest.raises(Interrupted, match=f"evomerge resume {run}"):
            run_search(resolved, run, functions=FUNCTIONS, watcher=counter, stop=counter)
        with pytest.raises(ConfigError, match=r"job \(objectives\.0\).*neither task nor tasks"):
            evomerge.search(job(small_zoo), run_dir=run, resume="must")
        again = evomerge.search(job(small_zoo), run_dir=run, resume="must", objectives=FUNCTIONS)
        assert again.result_digest == whole.result_digest
        assert again.timing.lives == 2
    for line in (tmp_path / "whole" / "journal.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["t"] == "evaluated":
            means = [mean for mean, *_ in record["tasks"].values()]
            assert record["values"]["squared"] == [pytest.approx(sum((1 - m) ** 2 for m in means) / 2), 0.0]


@pytest.mark.parametrize("value", [float("nan"), (0.5, -1.0), (0.5, float("inf"))])
def test_a_function_that_returns_no_value_stops_the_search(small_zoo: Path, tmp_path: Path, value: Any) -> None:
    with pytest.raises(EvaluationError, match="'squared' did not return a usable value"):
        evomerge.search(job(small_zoo), run_dir=tmp_path / "run", objectives={"squared": lambda _: value})


def test_functions_must_belong_to_an_objective(small_zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'sqared' belongs to no objective.*[\s\S]*squared"):
        evomerge.search(job(small_zoo), run_dir=tmp_path / "run", objectives={"sqared": squared})
    assert not (tmp_path / "run").exists()


def test_a_larger_budget_keeps_the_optimizer_that_the_run_began_with(small_zoo: Path, tmp_path: Path) -> None:
    two = [{"name": "sums", "task": "add_mc"}, {"name": "sorting", "task": "srt_mc"}]
    changed = {"objectives": two, "constraints": [], "optimizer": "auto"}
    small = job(small_zoo, **changed, budget={"evaluations": 14})
    first = evomerge.search(small, run_dir=tmp_path / "run")
    large = load_run_job(tmp_path / "run", ["budget.evaluations=4000"])
    begun = assemble(resolve_job(job_document(small), tmp_path))
    kept = assemble(large, sized_for=14)
    assert (kept.optimizer, kept.problem.budget) == (begun.optimizer, begun.problem.budget)
    assert assemble(large).optimizer.name != begun.optimizer.name  # what `auto` would choose afresh
    more = evomerge.search({**small, "budget": {"evaluations": 18}}, run_dir=tmp_path / "run", resume="must")
    assert more.counts.evaluated > first.counts.evaluated
    assert resumed_job(tmp_path / "run").job.budget.evaluations == 18
    assert resumed_job(tmp_path / "run", ["budget.evaluations=30"]).job.budget.evaluations == 30
    with pytest.raises(ConfigError, match=r"evaluations: 14[\s\S]*18, or more"):  # it would choose a second time
        evomerge.search(small, run_dir=tmp_path / "run", resume="must")


def test_the_name_stays_a_function_once_everything_is_loaded() -> None:
    import evomerge.api  # with all that it imports

    assert callable(evomerge.search)
    assert callable(evomerge.merge)

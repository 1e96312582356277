"""Costs as objectives by the command line: told by workers, kept by the journal, shown by status and report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_life import journal

pytestmark = pytest.mark.zoo

GOALS = """\
objectives:
  - {name: skill, task: add}
  - {name: depth, measure: hops}
  - {name: speed, measure: latency}
constraints:
  - {measure: parameters, at_most: {of: best_parent, plus: 1000000}}
"""
SMALL = ("--set", "suite.split={search: 8, select: 6, report: 6}", "--set", "suite.tasks=[add]")
INLINE = ("--set", "cluster={backend: local, workers: 1}", "--set", "suite.questions=all")


def evaluated(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in journal(run).splitlines()]
    return [record for record in found if record["t"] == "evaluated"]


def test_a_search_over_scores_and_costs(home: Any, command: Any) -> None:
    text = home.job.read_text()
    goals = text[text.index("objectives:") : text.index("optimizer:")]
    job = home.job_with("costs.yaml", (goals, GOALS), ("layer-wise-task-arithmetic", "layer-path-slots"))
    run = home.folder / "run"
    options = ("--set", "optimizer={name: nsga2, population: 4}", "--set", "budget.evaluations=12")
    done = command("search", job, "--run-dir", run, *SMALL, *INLINE, *options)
    assert done.code == 0, done.err
    first = evaluated(run)
    assert all(set(record["costs"]) == {"hops", "parameters", "latency"} for record in first)
    assert all(record["costs"]["latency"][0] > 0 for record in first)
    status = json.loads(command("status", run, "--json").out)
    assert [o["direction"] for o in status["objectives"]] == ["maximize", "minimize", "minimize"]
    by_id = {entry["id"]: entry["search"]["objectives"] for entry in (*status["baselines"], *status["front"])}
    recorded = {record["id"]: record["costs"] for record in first if record["set_name"] == "search"}
    assert {i: [o["depth"]["value"], o["depth"]["se"]] for i, o in by_id.items()} == {
        i: recorded[i]["hops"] for i in by_id
    }
    assert {i: o["speed"]["value"] for i, o in by_id.items()} == {i: recorded[i]["latency"][0] for i in by_id}
    assert by_id["parent-math"]["depth"]["value"] == 2
    assert status["constraints"][0]["rule"] == "parameters <= best_parent + 1e+06"
    page = (run / "report.html").read_text()
    assert "speed: seconds per token" in page
    assert "Paths through the layers" in page
    # what was measured stands: a later life measures only what is new
    assert command("resume", run, "--set", "budget.evaluations=16").code == 0
    later = evaluated(run)
    assert later[: len(first)] == first
    assert len({(r["recipe"], r["set_name"]) for r in later}) == len(later) > len(first)


def test_costs_alone_are_refused(home: Any, refused: Any) -> None:
    text = home.job.read_text()
    goals = text[text.index("objectives:") : text.index("optimizer:")]
    job = home.job_with("costs.yaml", (goals, "objectives: [{name: depth, measure: hops}]\n"))
    assert "Every objective of the job is a cost." in refused(2, "validate", job)

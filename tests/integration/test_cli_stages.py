"""A hybrid search by the command line: killed in every stage, resumed, exported, and what is said about bad paths."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_life import Life, begun, journal, recorded

from evomerge.recipe.path import Hop
from evomerge.recipe.serialize import recipe_from_text, recipe_to_json, recipe_to_text

pytestmark = pytest.mark.zoo

STAGES = """\
stages:
  - {name: weights, space: layer-wise-task-arithmetic, evaluations: 14, optimizer: {name: nsga2, population: 6}}
  - {name: path, space: repeat-window, evaluations: 10, optimizer: {name: nsga2, population: 5}}
  - {name: both, space: weights-and-path, evaluations: 10, optimizer: {name: nsga2, population: 5}}"""
SMALL = (
    *("--set", "suite.split={search: 10, select: 6, report: 10}", "--set", "suite.questions=all"),
    *("--set", "cluster={backend: local, workers: 1}", "--set", "constraints=[]", "--set", "budget={}"),
)


@pytest.fixture
def hybrid(home: Any) -> Path:
    """A job in three stages."""
    return home.job_with("hybrid.yaml", ("space: layer-wise-task-arithmetic", STAGES))


def records(run: Path, tag: str) -> list[dict[str, Any]]:
    """The whole lines of a journal with a tag."""
    lines = journal(run).split(b"\n")[:-1]
    return [found for line in lines if (found := json.loads(line))["t"] == tag]


@pytest.mark.kill
def test_kills_in_every_stage_lead_to_the_undisturbed_result(home, command, hybrid):
    search = ("search", hybrid, *SMALL)
    calm, run, log = home.folder / "calm", home.folder / "run", home.folder / "log"
    done = command(*search, "--run-dir", calm)
    assert done.code == 0, done.err
    assert [r["name"] for r in records(calm, "stage")] == ["weights", "path", "both"]
    assert len(records(calm, "stage-won")) == 3
    before = b""
    for n_stages in (1, 2, 3):
        life = Life(*search, "--run-dir", run, "--resume", "auto", log=log)
        assert life.until(lambda n=n_stages: len(records(run, "stage")) >= n), log.read_text()
        at = recorded(run)
        assert life.until(lambda at=at: recorded(run) >= at + 2), log.read_text()
        life.signal(signal.SIGKILL)
        assert life.end() == -signal.SIGKILL
        assert journal(run).startswith(before)
        before = journal(run)
    done = command("resume", run)
    assert done.code == 0, done.err
    assert begun(run) - recorded(run) <= 3
    ours, theirs = (json.loads(command("status", r, "--json").out) for r in (run, calm))
    assert ours["result_digest"] == theirs["result_digest"]
    assert ours["counts"] == theirs["counts"]

    exports_as_a_stock_checkpoint(home, command, calm)


def exports_as_a_stock_checkpoint(home, command, run):
    """A candidate with a path leaves the run as a checkpoint that answers every item as the searched path does."""
    from transformers import AutoModelForCausalLM

    second = records(run, "stage")[1]["first_batch"]
    asked = [row[0] for r in records(run, "asked") if r["batch"] >= second for row in r["rows"]]
    id_, path, recipe_file = next(found for i in asked if (found := a_longer_path(home, command, run, i)) is not None)
    done = command("export", run, "--pick", f"id:{id_}", "--as", "checkpoint", "--to", home.folder / "out")
    assert done.code == 0, done.err
    model = AutoModelForCausalLM.from_pretrained(home.folder / "out")
    assert model.config.num_hidden_layers == len(path)
    told = {}
    for what in (home.folder / "out", recipe_file):
        done = command("evaluate", what, "--job", run / "job.yaml", "--set-name", "report", "--json")
        assert done.code == 0, done.err
        told[what] = json.loads(done.out)["tasks"]
    first, second = told.values()
    assert first == second


def a_longer_path(home, command, run, id_):
    """A candidate's id, path and recipe file, when it has more hops than the parents have layers."""
    file = home.folder / f"{id_}.json"
    done = command("export", run, "--pick", f"id:{id_}", "--as", "recipe", "--to", file)
    assert done.code == 0, done.err
    path = recipe_from_text(file.read_text()).path
    return (id_, path, file) if path is not None and len(path) > 2 else None


def test_bad_paths_are_refused_before_anything_is_loaded(home, command, finished):
    file = home.folder / "good.json"
    assert command("export", finished, "--pick", "id:parent-math", "--as", "recipe", "--to", file).code == 0
    recipe = recipe_from_text(file.read_text())
    bad = {
        "empty": (recipe_to_json(replace(recipe, path=(Hop(0),))) | {"path": []}, 2, "no hops"),
        "unknown layer": (recipe_to_json(replace(recipe, path=(Hop(4),))), 2, "layer 4"),
        "too long": (recipe_to_json(replace(recipe, path=(Hop(0),))) | {"path": [[None, 0, 1]] * 1025}, 2, "1025 hops"),
        "unknown parent": (recipe_to_json(replace(recipe, path=(Hop(0),))) | {"path": [["x", 0, 1]]}, 2, "'x'"),
    }
    for name, (value, code, match) in bad.items():
        file.write_text(json.dumps(value))
        done = command("merge", file, "--to", home.folder / "never")
        assert (done.code, "Fix:" in done.err, match in done.err) == (code, True, True), (name, done.err)
        assert not (home.folder / "never").exists()
    file.write_text(recipe_to_text(replace(recipe, path=(Hop(0), Hop(1, None, -0.5)))))
    assert command("merge", file, "--to", home.folder / "out").code == 0

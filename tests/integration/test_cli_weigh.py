"""`evomerge weigh`: weights found on the small zoo, the recipe files, and searches that start from them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from evomerge.recipe.serialize import recipe_from_text
from evomerge.runs.replay import read_history
from evomerge.runs.store import RunStore

pytestmark = pytest.mark.zoo

MODELS = ("math", "string", "lang")
FEW = ("--prompts", "4", "--set", "steps=6", "--set", "rate=0.05", "--set", "batch=2")


def wide(home: Any, space: str) -> Path:
    return home.job_with(
        "weighed.yaml",
        ("space: layer-wise-task-arithmetic", f"space: {space}"),
        ("{search: 100, select: 200, report: 400}", "{search: 8, select: 8, report: 8}"),
        ("constraints:\n  - {task: rev, at_least: 0.8}\n", "constraints:\n"),
        ("optimizer: {name: nsga2, population: 16}", "optimizer: {name: nsga2, population: 4}"),
        ("evaluations: 160", "evaluations: 12"),
        ("{backend: ray, workers: 2}", "{backend: local, workers: 1, compile: never}"),
    )


LAYERS = (
    "{method: task_arithmetic, depth: each, parameters: {weight: {low: 0, high: 1, step: 0.01}, "
    "lambda: 1.0, normalize: false}}"
)
LINEAR = "{method: linear, depth: model, parameters: {weight: {low: 0, high: 1, step: 0.01}, normalize: true}}"


def energies(zoo: Path) -> list[float]:
    base, *models = (load_file(zoo / n / "model.safetensors") for n in ("base", *MODELS))
    found = [sum(float((m[n].double() - base[n].double()).square().sum()) for n in base) for m in models]
    return [e / sum(found) for e in found]


def test_metagpt_gives_the_deltas_shares(home, command):
    job = wide(home, LINEAR)
    done = command("weigh", job, "--by", "metagpt", "--to", home.folder / "energy.json")
    assert done.code == 0, done.err
    recipe = recipe_from_text((home.folder / "energy.json").read_text())
    (rule,) = recipe.rules
    assert (rule.method, recipe.base) == ("task_arithmetic", "base")
    found = [rule.per_parent[m]["weight"] for m in MODELS]
    assert found == pytest.approx(energies(home.zoo), abs=0.01)
    assert "Rounded to steps of 0.01, the job's space holds it" in done.out
    assert f"inject: [{home.folder.resolve() / 'energy.json'}]" in done.out.replace("\n", "")


@pytest.mark.parametrize(("by", "space", "extra"), [("adamerging", LAYERS, FEW), ("lm_cocktail", LINEAR, FEW[:2])])
def test_a_search_scores_what_was_found_and_starts_with_it(home, command, by, space, extra):
    job, file = wide(home, space), home.folder / "start.json"
    done = command("weigh", job, "--by", by, "--to", file, *extra)
    assert done.code == 0, done.err
    assert "the job's space holds it: the search starts with it" in done.out
    assert re.search(r"about 1 s on one core, .* passes of \d+ tokens", done.err)
    assert all(name in done.out for name in MODELS)
    run = home.folder / "run"
    done = command("search", job, "--set", f"inject=[{file}]", "--run-dir", run)
    assert done.code == 0, done.err
    entries = json.loads(command("status", run, "--json").out)["baselines"]
    (entry,) = [e for e in entries if e["kind"] == "injected"]
    assert entry["search"]["tasks"]["addx"]["n"] == 8
    with RunStore.open(run, write=False) as store:
        first = read_history(store.entries()).batches[0]
    assert entry["recipe_digest"] in [c.recipe for c in first.candidates]


def test_adamerging_moves_from_its_start_and_is_told_layer_by_layer(home, command):
    job, file = wide(home, LAYERS), home.folder / "start.json"
    assert command("weigh", job, "--by", "adamerging", "--to", file, *FEW).code == 0
    recipe = recipe_from_text(file.read_text())
    assert [rule.layers for rule in recipe.rules] == [(0,), (1,), ()]
    weights = [v["weight"] for rule in recipe.rules for v in rule.per_parent.values()]
    assert any(abs(w - 0.3) > 0.04 for w in weights)
    assert all(0 <= w <= 1 for w in weights)
    again = home.folder / "again.json"
    assert command("weigh", job, "--by", "adamerging", "--to", again, *FEW).code == 0
    assert again.read_text() == file.read_text()


def test_a_space_that_cannot_say_it_is_told(home, command):
    job, file = wide(home, LINEAR), home.folder / "start.json"
    done = command("weigh", job, "--by", "adamerging", "--to", file, *FEW)
    assert done.code == 0, done.err
    assert "does not hold it" in done.out
    assert recipe_from_text(file.read_text()).rules[0].method == "task_arithmetic"


def test_what_is_refused_leaves_nothing_behind(home, command):
    job, file = wide(home, LINEAR), home.folder / "start.json"
    bare = home.write("bare.yaml", re.sub(r"  base: .*\n", "", job.read_text()))
    cases = [
        ((bare, "--by", "metagpt", "--to", file), "the job has none"),
        ((job, "--by", "adamerging", "--to", file, "--set", "stepz=3"), "no such setting"),
        ((job, "--by", "adamerging", "--to", file, "--set", "steps=many"), "not understood"),
        ((job, "--by", "metagpt", "--to", home.folder / "no" / "file.json"), "does not exist"),
        ((job, "--by", "metagpt", "--to", job), "exists already"),
    ]
    for arguments, words in cases:
        done = command("weigh", *arguments)
        assert done.code != 0
        assert words in done.err
        assert "Fix: " in done.err
    assert not file.exists()

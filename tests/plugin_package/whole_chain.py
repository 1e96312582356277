"""A search with a plug-in of every kind, run by tests/integration/test_plugins.py where the package is installed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.config.export import export_merge
from evomerge.errors import RecipeError
from evomerge.recipe.serialize import recipe_from_text

ZOO = Path(os.environ["EVOMERGE_TEST_ZOO"])


def job(**changed: Any) -> dict[str, Any]:
    return {
        "name": "plug-ins",
        "parents": {"base": ZOO / "base", "models": {n: ZOO / n for n in ("math", "string", "lang")}},
        "space": "example-median-deep",
        "suite": {
            "include": [ZOO / "tasks"],
            "tasks": ["add", {"evaluator": "example-sums", "options": {"n": 40}}],
            "split": {"search": 8, "select": 8, "report": 8},
        },
        "objectives": [{"name": "sums", "task": "example-sums"}],
        "constraints": [{"task": "add", "at_least": 0.0}],
        "optimizer": {"name": "example-climber", "population": 3},
        "budget": {"evaluations": 12},
        "cluster": {"backend": "local", "workers": 1, "compile": "never"},
        "seed": 3,
        **changed,
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain") / "run"
    summary = evomerge.search(job(), run_dir=folder)
    assert summary.state == "finished"
    assert summary.counts.evaluated == 12
    assert summary.counts.failed == 0
    assert {"example-sums", "add"} == set(summary.baselines[0].search.tasks)
    return folder


def test_the_plug_in_optimizer_replays(run: Path) -> None:
    recorded = [r for r in (run / "journal.jsonl").read_text().splitlines() if '"finished"' in r]
    again = evomerge.search(job(), run_dir=run, resume="must")
    assert len(recorded) == 1
    assert again.result_digest in recorded[0]
    more = evomerge.search(job(budget={"evaluations": 15}), run_dir=run, resume="must")
    assert more.counts.evaluated == 15


def test_candidates_are_medians_that_anybody_can_replay(run: Path, tmp_path: Path) -> None:
    export_merge(run, tmp_path / "recipe.json", pick="id:g0000-i00", form="recipe")
    recipe = recipe_from_text((tmp_path / "recipe.json").read_text())
    assert {rule.method for rule in recipe.rules} == {"example-median"}
    evomerge.merge(tmp_path / "recipe.json", tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    with pytest.raises(RecipeError, match="example-median"):
        export_merge(run, tmp_path / "mergekit.yaml", pick="id:g0000-i00", form="mergekit")

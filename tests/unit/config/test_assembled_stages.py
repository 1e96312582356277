"""What assembling finds out about spaces, stages and injected paths before anything is scored."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evomerge.config.assemble import Assembled, assemble
from evomerge.config.load import job_document, resolve_job
from evomerge.config.run_files import manifest
from evomerge.errors import ConfigError, ModelError, RecipeError, SpaceError
from evomerge.recipe.baselines import parent_recipe, task_arithmetic_recipe
from evomerge.recipe.path import Hop
from evomerge.recipe.recipe import ParentRef
from evomerge.recipe.serialize import recipe_to_text

pytestmark = pytest.mark.zoo

WEIGHTS = {"name": "weights", "space": "layer-wise-task-arithmetic", "evaluations": 10}
PATH = {"kind": "path", "genotype": "windows", "windows": 1, "times": 2}


def assembled(zoo: Path, **changed: Any) -> Assembled:
    job = {
        "parents": {"base": zoo / "base", "models": {"math": zoo / "math", "lang": zoo / "lang"}},
        "suite": {
            "include": [zoo / "tasks"],
            "tasks": ["add_mc"],
            "split": {"search": 6, "select": 6, "report": 6},
        },
        "objectives": [{"name": "sums", "task": "add_mc"}],
        "cluster": {"backend": "local", "workers": 1, "compile": "never"},
        **changed,
    }
    return assemble(resolve_job(job_document(job), zoo))


def staged(zoo: Path, *later: dict[str, Any], **changed: Any) -> Assembled:
    return assembled(zoo, stages=[WEIGHTS, *later], **changed)


def test_a_stage_is_checked_around_a_true_merge(small_zoo: Path) -> None:
    """With `merged` among its sources a space is larger than around a parent: a scan may not fit."""
    path = {**PATH, "windows": 5, "times": 4, "from": "any"}
    last = {"name": "scan", "space": path, "evaluations": 10, "optimizer": "scan"}
    with pytest.raises(ConfigError, match=r"(?s)too many combinations.*stages\.1"):
        staged(small_zoo, last)


def test_the_manifest_tells_every_stage(small_zoo: Path) -> None:
    last = {"name": "path", "space": PATH, "evaluations": 10, "optimizer": "nsga2"}
    stages = manifest(staged(small_zoo, last))["stages"]
    told = [(s["name"], s["evaluations"], s["optimizer"], s["space"]["name"]) for s in stages]
    assert told == [("weights", 10, "gp", "layer-wise-task-arithmetic"), ("path", 10, "nsga2", "inline")]


@pytest.mark.parametrize(("budget", "until"), [(20, [10, 20]), (45, [10, 45])])
def test_the_last_stage_gets_what_the_budget_adds(small_zoo: Path, budget: int, until: list[int]) -> None:
    last = {"name": "path", "space": PATH, "evaluations": 10}
    found = staged(small_zoo, last, budget={"evaluations": budget})
    assert [plan.until for plan in found.setup(accept_history=False).stages] == until


def test_merged_layers_need_a_merge(small_zoo: Path) -> None:
    with pytest.raises(SpaceError, match=r"(?s)nothing has been merged yet.*\(space\)"):
        assembled(small_zoo, space={**PATH, "sources": ["merged", "math"]})


def test_injected_paths_are_checked(small_zoo: Path, tmp_path: Path) -> None:
    file = tmp_path / "injected.json"
    recipe = parent_recipe(ParentRef("math", "math"))
    file.write_text(recipe_to_text(replace(recipe, path=(Hop(0), Hop(2)))))
    with pytest.raises(RecipeError, match=r"(?s)inject\.0.*layer 2"):
        assembled(small_zoo, space="layer-wise-task-arithmetic", inject=[file])
    file.write_text(recipe_to_text(replace(recipe, path=(Hop(0), Hop(1), Hop(1)))))
    found = assembled(small_zoo, space="layer-wise-task-arithmetic", inject=[file])
    assert any(k.kind == "injected" and k.recipe.path is not None for k in found.known)


def test_paths_need_layers_that_are_a_plain_chain(small_zoo: Path, tmp_path: Path) -> None:
    parents = {}
    for name in ("base", "math", "lang"):
        shutil.copytree(small_zoo / name, tmp_path / name)
        config = json.loads((small_zoo / name / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps({**config, "model_type": "mixtral"}))
        parents[name] = tmp_path / name
    models = {"base": parents["base"], "models": {"math": parents["math"], "lang": parents["lang"]}}
    with pytest.raises(ModelError, match=r"(?i)mixtral"):
        assembled(small_zoo, space=PATH, parents=models)


def test_a_stage_opens_around_a_parent_that_leads_a_merge(small_zoo: Path) -> None:
    """A parent may be the best so far, with merges among the elites behind it."""
    found = staged(small_zoo, {"name": "path", "space": {"kind": "path", "genotype": "skips"}, "evaluations": 10})
    refs = found.parents.refs()
    merge = task_arithmetic_recipe(refs[1:], refs[0], 0.5)
    for elites in ((parent_recipe(refs[1]), merge), (merge, parent_recipe(refs[1]))):
        stage = found.makers[1].open(elites)
        assert stage.recipe_of(stage.space.start).parents

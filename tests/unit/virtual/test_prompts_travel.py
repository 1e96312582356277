"""A parent that is made with prompts: searched with, exported with its prompts beside it, and made again elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import evomerge
from evomerge.config.cache import parents_folder
from evomerge.config.export import export_merge
from evomerge.config.recipe_files import prompts_file
from evomerge.errors import RecipeError
from evomerge.recipe.recipe import Recipe
from evomerge.recipe.serialize import recipe_from_text
from evomerge.virtual.prompts import read_prompts

pytestmark = pytest.mark.zoo

PICK = "id:soup"


def tensors(folder: Path) -> dict[str, Any]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


def data_of(recipe: Recipe) -> set[str]:
    return {str(p.made.data) for p in recipe.parents if p.made is not None}


def test_a_search_with_regmean_travels_with_its_prompts(
    tmp_path: Path, small_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "here"))
    job = {
        "parents": {
            "base": small_zoo / "base",
            "models": {
                "math": small_zoo / "math",
                "both": {"make": "regmean", "of": ["math", "lang"], "prompts": 16, "settings": {"off_diagonal": 0.8}},
            },
            "ingredients": {"lang": small_zoo / "lang"},
        },
        "space": {"method": "task_arithmetic", "depth": "model", "parameters": {"weight": {"low": 0.2, "high": 1}}},
        "suite": {"include": [str(small_zoo / "tasks")], "tasks": ["add_mc"], "split": {"search": 20, "select": 6}},
        "objectives": [{"name": "sums", "task": "add_mc"}],
        "optimizer": {"name": "random", "population": 2},
        "budget": {"evaluations": 6},
        "cluster": {"backend": "local", "workers": 1, "compile": "never"},
    }
    run = tmp_path / "run"
    evomerge.search(job, run_dir=run)
    recipe_file = tmp_path / "picked.json"
    export_merge(run, recipe_file, pick=PICK, form="recipe")
    export_merge(run, tmp_path / "written", pick=PICK, form="checkpoint")
    recipe = recipe_from_text(recipe_file.read_text())
    assert any(p.made is not None and p.made.method == "regmean" for p in recipe.parents)
    book = read_prompts(prompts_file(recipe_file))
    assert set(book) == data_of(recipe)
    (prompts,) = book.values()
    assert len(prompts) == 16

    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "there"))
    assert not list(parents_folder().glob("*/model.safetensors"))
    evomerge.merge(recipe_file, tmp_path / "again")
    first, second = tensors(tmp_path / "written"), tensors(tmp_path / "again")
    assert all(second[n].equal(t) for n, t in first.items())
    (made,) = parents_folder().glob("*/model.safetensors")
    assert made.is_file()

    prompts_file(recipe_file).unlink()
    with pytest.raises(RecipeError, match="needs the prompts that it was made with"):
        evomerge.merge(recipe_file, tmp_path / "never")
    assert not (tmp_path / "never").exists()

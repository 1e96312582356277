"""Recipes of a run's models, rebuilt for the report where the parents are still at hand."""

from __future__ import annotations

from pathlib import Path

from evomerge.config.assemble import open_parents, open_space, recipe_of
from evomerge.config.load import load_run_job
from evomerge.errors import EvomergeError
from evomerge.recipe.recipe import ParentRef, Recipe
from evomerge.report.book import Book, Model
from evomerge.report.details import RecipeOf, recorded_recipe


def run_recipes(run: Path) -> RecipeOf:
    """Recipes by model: recorded ones always, candidates' while the parents' headers can be read."""
    book = Book(run)
    known = recorded_recipe(book)
    resolved = load_run_job(run)
    try:
        parents = open_parents(resolved)
        space = open_space(resolved, parents)
    except EvomergeError:
        return known  # parents that are gone must not keep anybody from the report
    refs = tuple(ParentRef(p["name"], p["source"], p["revision"], p["content"]) for p in book.manifest["parents"])
    asked = {c.id: c for b in book.history.batches for c in b.candidates}

    def find(model: Model) -> Recipe | None:
        if model.id not in asked:
            return known(model)
        return recipe_of(space, refs, parents.base, resolved.job.seed, asked[model.id].vector)

    return find

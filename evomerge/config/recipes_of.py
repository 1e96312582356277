"""Recipes of a run's models, rebuilt for the report where the parents are still at hand."""

from __future__ import annotations

from pathlib import Path

from evomerge.config.load import load_run_job
from evomerge.config.parents import open_parents
from evomerge.config.staging import recipe_of, space_at
from evomerge.errors import EvomergeError
from evomerge.recipe.recipe import Recipe
from evomerge.recipe.serialize import parent_from_json
from evomerge.report.book import Book, Model, RecipeOf
from evomerge.report.details import recorded_recipe
from evomerge.runs.damage import damage_is_told
from evomerge.runs.replay import Batch, History


def run_recipes(run: Path) -> RecipeOf:
    """Recipes by model: recorded ones always, candidates' while the parents' headers can be read."""
    with damage_is_told(run):
        book = Book(run)
        known = recorded_recipe(book)
        resolved = load_run_job(run)
        try:
            parents = open_parents(resolved)
            spaces = {
                batch.number: space_at(resolved, parents, book.history, batch.number) for batch in _firsts(book.history)
            }
        except EvomergeError:
            return known  # parents that are gone must not keep anybody from the report
        refs = tuple(parent_from_json(p) for p in book.manifest["parents"])
        asked = {c.id: (c, b.number) for b in book.history.batches for c in b.candidates}

    def find(model: Model) -> Recipe | None:
        if model.id not in asked:
            return known(model)
        candidate, batch = asked[model.id]
        space = spaces[max(first for first in spaces if first <= batch)]
        return recipe_of(space, refs, parents.base, resolved.job.seed, candidate.vector)

    return find


def _firsts(history: History) -> list[Batch]:
    """The first batch of every stage."""
    by_stage: dict[int, Batch] = {}
    for batch in history.batches:
        by_stage.setdefault(history.stage_of(batch.number), batch)
    return list(by_stage.values())

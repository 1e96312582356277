"""The paths of a run: of its choice and its front, how long they are, and what windows of layers scored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, TypedDict

from evomerge.evaluation.objectives import CostObjective, Objective
from evomerge.recipe.recipe import Recipe
from evomerge.report.book import Book, Model, RecipeOf
from evomerge.report.path_values import DrawnPath, drawn_path
from evomerge.report.summary import RunSummary
from evomerge.report.window_values import WindowMap, window_map
from evomerge.space.path_recipes import hops_of
from evomerge.types import CandidateId

_DRAWN: Final = 6
_SAMPLED: Final = 64
"""Models whose recipes tell whether a search is about paths at all."""

_MAPS: Final = 2
"""Objectives whose windows are drawn."""


class SearchedPaths(TypedDict):
    """Fields of `RunDetails`."""

    paths: tuple[DrawnPath, ...]
    hops: dict[str, int]
    windows: tuple[WindowMap, ...]


def runs_merged_layers(recipe: Recipe) -> bool:
    """Whether the rules of a recipe reach a layer that runs."""
    return recipe.path is None or any(hop.parent is None for hop in recipe.path)


def searched_paths(book: Book, summary: RunSummary, recipe_of: RecipeOf) -> SearchedPaths:
    """What a run found out about paths; all empty where it searched none.

    Args:
        book: the run.
        summary: of the same book.
        recipe_of: gives recipes.
    """
    n_layers = book.manifest["n_layers"]
    ids = dict.fromkeys([*([summary.chosen.id] if summary.chosen else []), *summary.entries()])
    recipes = {i: r for i in ids if (r := recipe_of(book.models[CandidateId(i)])) is not None}
    if not _has_paths(book, recipes.values(), recipe_of):
        return {"paths": (), "hops": {}, "windows": ()}
    baselines = {b.id for b in summary.baselines}
    chosen = summary.chosen.id if summary.chosen else ""
    shown = [i for i in recipes if i == chosen or i not in baselines]
    return {
        "paths": tuple(drawn_path(i, recipes[i], n_layers) for i in shown[:_DRAWN]),
        "hops": {i: len(hops_of(r, n_layers)) for i, r in recipes.items()} | _stage_hops(book, recipe_of),
        "windows": tuple(_windows(book, recipe_of)),
    }


def _stage_hops(book: Book, recipe_of: RecipeOf) -> dict[str, int]:
    """Lengths of the winners of stages."""
    found = {}
    for won in book.history.won.values():
        model = next((m for m in book.models.values() if m.recipe == won.recipe), None)
        recipe = None if model is None else recipe_of(model)
        if model is not None and recipe is not None:
            found[str(model.id)] = len(hops_of(recipe, book.manifest["n_layers"]))
    return found


def _has_paths(book: Book, known: Iterable[Recipe], recipe_of: RecipeOf) -> bool:
    if any(recipe.path is not None for recipe in known):
        return True
    models = [m for m in book.models.values() if m.kind == "candidate"]
    some = models[:: max(1, len(models) // _SAMPLED)]
    return any(recipe is not None and recipe.path is not None for recipe in map(recipe_of, some))


def _windows(book: Book, recipe_of: RecipeOf) -> Iterator[WindowMap]:
    """Maps of the windows of all candidates, per objective that is not a cost."""
    n_layers = book.manifest["n_layers"]
    found = [(m, drawn_path(m.id, r, n_layers)) for m in book.models.values() if (r := recipe_of(m)) is not None]
    if not found or window_map("", maximize=True, models=[(p, 0.0) for _, p in found]) is None:
        return
    objectives = [o for o in book.goals.objectives if not isinstance(o, CostObjective)]
    for objective in objectives[:_MAPS]:
        values = [(path, _value(book, objective, model)) for model, path in found]
        drawn = window_map(objective.name, maximize=objective.direction == "maximize", models=values)
        if drawn is not None:
            yield drawn


def _value(book: Book, objective: Objective, model: Model) -> float:
    record = book.record(model.recipe, "search")
    if record is None:
        raise LookupError(f"{model.id} has no score on the search set")
    return book.value(objective, record).value

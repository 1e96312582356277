"""Weights for a job's parents by one of the methods that find some: a recipe file that a search can start from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

from evomerge.checkpoints.finite import check_finite
from evomerge.config.load import ResolvedJob
from evomerge.config.parent_refs import BASE
from evomerge.config.parents import Parents, open_parents
from evomerge.config.prompts import PromptBook
from evomerge.config.recipe_files import check_new_recipe_file, prompts_behind, write_recipe_file
from evomerge.config.staging import open_space
from evomerge.config.surveys import survey_of
from evomerge.errors import ConfigError, suggest
from evomerge.recipe.recipe import Making, Number, ParentRef, Recipe, Rule
from evomerge.types import Vector
from evomerge.virtual.adamerging import ADAMERGING, Coefficients, coefficients, coefficients_recipe
from evomerge.virtual.cocktail import LM_COCKTAIL, cocktail_recipe, cocktail_weights
from evomerge.virtual.maker import Ingredients, Maker, ParentReport, Report, quiet, silent
from evomerge.virtual.opening import complete_settings

Way = Literal["adamerging", "lm_cocktail", "metagpt"]
WAYS: Final[tuple[Way, ...]] = get_args(Way)

_MAKERS: Final[Mapping[str, Maker]] = {"adamerging": ADAMERGING, "lm_cocktail": LM_COCKTAIL}
"""Ways that show the models prompts; each is a maker, too, with the same settings."""
_GRIDS: Final = (1000, 200, 100, 50, 40, 20, 10)
"""Steps from 0 to 1 of the grids that weights are rounded to, the finest first, until the space holds them."""
_MADE: Final = "weighed"


@dataclass(frozen=True)
class Weighing:
    """What is asked for.

    Attributes:
        by: the way.
        prompts: how many the models are shown; None takes the usual number, and must stand where none are shown.
        settings: of the way; the rest has its defaults.
    """

    by: str
    prompts: int | None = None
    settings: Mapping[str, Number] | None = None

    def __post_init__(self) -> None:
        if self.by not in WAYS:
            raise ConfigError(
                f"There is no way {self.by!r} to weigh parents.",
                got=repr(self.by),
                allowed=suggest(self.by, WAYS),
                fix="use one of these names.",
            )
        if self.prompts is not None and (self.prompts < 1 or self.by not in _MAKERS):
            raise ConfigError(
                "The number of prompts does not fit.",
                got=f"{self.prompts} prompts for {self.by}",
                allowed="1 or more" if self.by in _MAKERS else "none: it looks at weights alone",
                fix="correct --prompts, or leave it out.",
            )
        if self.settings and self.by not in _MAKERS:
            raise ConfigError(
                f"{self.by} has no settings.",
                got=", ".join(self.settings),
                allowed="none",
                fix="leave --set out.",
            )


class Weights(NamedTuple):
    """What was found.

    Attributes:
        models: names, in order.
        rows: what each row of numbers is for -> one number per model, as they stand in the recipe.
        recipe: the merge with these weights.
        step: that the numbers are rounded to, so that the space holds them; None where they are as they were found.
        held: whether the job's space (of the first stage) has a candidate that is this merge.
    """

    models: tuple[str, ...]
    rows: Mapping[str, tuple[float, ...]]
    recipe: Recipe
    step: float | None
    held: bool


def weigh(
    resolved: ResolvedJob,
    asked: Weighing,
    to: Path,
    *,
    making: ParentReport = quiet,
    report: Report = silent,
    cost: Callable[[str], None] = lambda _: None,
) -> Weights:
    """Find weights for the models of a job and write the merge with them as a recipe file.

    - `adamerging`: task arithmetic, one weight per model and layer, of the least entropy of next tokens
      (arXiv 2310.02575).
    - `lm_cocktail`: weighted average, `softmax(-loss / temperature)` (arXiv 2311.13534).
    - `metagpt`: task arithmetic, `|delta_i|^2 / sum_j |delta_j|^2` over the whole model (arXiv 2406.11385).

    Where the job's space does not hold the weights as they are found, but holds them rounded to steps between 0.001 and
    0.1, those rounded to the finest such step are written; shares keep their sum.

    Args:
        resolved: the job.
        asked: the way, prompts and settings.
        to: a new file; the prompts behind parents that are made with data are written beside it.
        making: told of parents that have to be made first.
        report: told how many of how many steps are done.
        cost: told, before the models run, about what that takes.

    Raises:
        ConfigError: when `to` is taken, or the job has no base and the way needs one.
        RecipeError: for unknown or illegal settings.
        ModelError: for parents that cannot be used, and for a search set without prompts for them.
        EvaluationError: for a suite that prompts cannot be drawn from.
        SpaceError: for a malformed search space.
        NonFinite: when a model holds or answers NaN or infinity.
    """
    check_new_recipe_file(to)
    if asked.by != "lm_cocktail" and resolved.job.parents.base is None:
        raise ConfigError(
            f"{asked.by} weighs deltas from a base, and the job has none.",
            got="no parents.base",
            allowed="a job with parents.base, or --by lm_cocktail",
            fix="name the common ancestor in parents.base.",
        )
    parents = open_parents(resolved)
    space = open_space(resolved, parents)
    ingredients = _ingredients(resolved, asked, parents)  # all that can be refused before anything is made
    if ingredients is not None:
        cost(_MAKERS[asked.by].cost(ingredients))
    parents.make(making)
    for checkpoint in parents.checkpoints.values():
        check_finite(checkpoint)
    numbers = _found(asked.by, parents, ingredients, report)
    found = _said(asked.by, parents, numbers, lambda recipe: space.encode_recipe(recipe, seed=resolved.job.seed))
    write_recipe_file(to, found.recipe, prompts_behind(found.recipe, parents.opener))
    return found


def _said(
    by: str,
    parents: Parents,
    numbers: Mapping[str, tuple[float, ...]],
    vector_of: Callable[[Recipe], Vector | None],
) -> Weights:
    """The numbers as a recipe: as they are, or on the finest grid on which the space has a vector for it."""
    rounded = ((1 / n, {name: rounded_row(row, n) for name, row in numbers.items()}) for n in _GRIDS)
    found = [(step, rows, _recipe(by, parents, rows)) for step, rows in ((None, numbers), *rounded)]
    held = next((f for f in found if vector_of(f[2]) is not None), None)
    step, rows, recipe = held or found[0]
    return Weights(parents.models, rows, recipe, step, held is not None)


def _ingredients(resolved: ResolvedJob, asked: Weighing, parents: Parents) -> Ingredients | None:
    """What the maker of a way with prompts is given; None for a way without."""
    if asked.by not in _MAKERS:
        return None
    maker = _MAKERS[asked.by]
    book = PromptBook(resolved, lambda: parents.template.tokenizer_folder)
    base = parents.checkpoints[BASE] if maker.spec.needs_base else None
    of = tuple(parents.named[name] for name in parents.models)
    origin = parents.named[BASE] if maker.spec.needs_base else None
    drawn = book.draw(asked.prompts)
    made = Making(maker.spec.name, of, origin, asked.settings or {}, drawn)
    settings = complete_settings(maker.spec, made)
    models = tuple(parents.checkpoints[name] for name in parents.models)
    ingredients = Ingredients(ParentRef(_MADE, _MADE, made=made), models, base, settings, book.drawn[drawn])
    maker.plan(ingredients)
    return ingredients


_EVERYWHERE: Final = "all tensors"
_OUTSIDE: Final = "outside the layers"


def _found(by: str, parents: Parents, ingredients: Ingredients | None, report: Report) -> dict[str, tuple[float, ...]]:
    """The numbers by what they are for, as `Weights.rows`."""
    if ingredients is None:
        return {_EVERYWHERE: _energies(parents, report)}
    if by == "lm_cocktail":
        return {_EVERYWHERE: cocktail_weights(ingredients, report)}
    values = coefficients(ingredients, report)
    return {_OUTSIDE: values.outside} | {f"layer {i}": row for i, row in enumerate(values.layers)}


def _energies(parents: Parents, report: Report) -> tuple[float, ...]:
    """MetaGPT's weights: shares of the deltas' squared norms; equal ones where all models equal the base."""
    survey = survey_of(parents.checkpoints, parents.base, report)
    if survey is None:
        raise ValueError("parents that are made can be measured")
    gram = survey.whole.gram
    energies = [gram[i][i] for i in range(len(gram))]
    total = math.fsum(energies)
    return tuple(e / total if total > 0 else 1 / len(energies) for e in energies)


def _recipe(by: str, parents: Parents, rows: Mapping[str, tuple[float, ...]]) -> Recipe:
    refs = {ref.name: ref for ref in parents.refs()}
    models = [refs[name] for name in parents.models]
    if by == "adamerging":
        outside, *layers = rows.values()
        return coefficients_recipe(refs[BASE], models, Coefficients(outside, tuple(layers)))
    (weights,) = rows.values()
    if by == "lm_cocktail":
        return cocktail_recipe(models, weights)
    per_parent = {m.name: {"weight": w} for m, w in zip(models, weights, strict=True)}
    rule = Rule("task_arithmetic", {"normalize": False, "lambda": 1.0}, per_parent)
    return Recipe((refs[BASE], *models), BASE, (rule,))


def rounded_row(values: Sequence[float], unit: int) -> tuple[float, ...]:
    """Values on a grid; where they add up to 1 the rounded ones do, too (largest remainders are rounded up).

    Args:
        values: not negative.
        unit: steps of the grid from 0 to 1.
    """
    if abs(math.fsum(values) - 1.0) > 1e-9:
        return tuple(round(v * unit) / unit for v in values)
    counts = [math.floor(v * unit + 1e-9) for v in values]
    by_rest = sorted(range(len(values)), key=lambda i: counts[i] - values[i] * unit)
    for i in by_rest[: unit - sum(counts)]:
        counts[i] += 1
    return tuple(c / unit for c in counts)

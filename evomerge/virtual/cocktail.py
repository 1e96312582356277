"""LM-Cocktail: models weighted by how well they foresee the prompts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, final

from evomerge.recipe.method_spec import shared
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.recipe.shares import softmax
from evomerge.virtual.averaged import average, check_models, running_cost
from evomerge.virtual.maker import Ingredients, MadePlan, Maker, MakerSpec, Report, silent
from evomerge.virtual.spectral import one_thread

if TYPE_CHECKING:
    import torch


@final
class LmCocktail(Maker):
    """`sum_i w_i theta_i` with `w = softmax(-loss / temperature)` (LM-Cocktail, arXiv 2311.13534).

    A model's loss is the mean over prompts of the mean negative log-likelihood of the prompt's tokens but the first, in
    nats. `cocktail_weights` gives the weights themselves, `cocktail_recipe` the same merge as a recipe.

    Where it differs from the authors' code: the prompts have no answers, so that they are scored themselves, where
    theirs scores the answers to five examples; sums in fp64.
    """

    spec = MakerSpec(
        name="lm_cocktail",
        needs_base=False,
        min_models=1,
        max_models=None,
        parameters={"temperature": shared(5.0, 1e-3)},
        needs_prompts=True,
        source="LM-Cocktail, Xiao et al. 2024, arXiv 2311.13534",
    )

    def plan(self, ingredients: Ingredients) -> MadePlan:
        """See `Maker.plan`."""
        return check_models(ingredients, shortest=2)

    def tensors(
        self, ingredients: Ingredients, plan: MadePlan, report: Report = silent
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Maker.tensors`."""
        weights = cocktail_weights(ingredients, report)
        for info in plan.changed:
            yield info.name, average(ingredients.of, info.name, weights).float()

    def cost(self, ingredients: Ingredients) -> str:
        """See `Maker.cost`."""
        return running_cost(ingredients, len(ingredients.of), 0, 0, 0)


def cocktail_weights(ingredients: Ingredients, report: Report = silent) -> tuple[float, ...]:
    """The models' weights, in order; they sum to 1.

    Args:
        ingredients: of `LmCocktail`; prompts of one token say nothing.
        report: told how many of how many prompts have been scored.

    Raises:
        NonFinite: when a model holds or answers NaN or infinity.
    """
    return softmax([-loss / float(ingredients.settings["temperature"]) for loss in prompt_losses(ingredients, report)])


def prompt_losses(ingredients: Ingredients, report: Report = silent) -> tuple[float, ...]:
    """Each model's mean over prompts of the mean negative log-likelihood of a prompt's tokens but the first, in nats.

    Raises:
        NonFinite: when a model holds or answers NaN or infinity.
    """
    import torch

    from evomerge.virtual.scaffold import Scaffold

    prompts = [p for p in ingredients.prompts if len(p) > 1]
    steps = len(prompts) * len(ingredients.of)
    losses = []
    with one_thread(), torch.no_grad():
        scaffold = Scaffold(ingredients.of[0])
        for i, model in enumerate(ingredients.of):
            scaffold.hold_all(model)
            found: list[float] = []
            for prompt in prompts:
                report(i * len(prompts) + len(found), steps)
                log = scaffold.logits(prompt[:-1]).double().log_softmax(-1)
                found.append(-float(log.gather(1, torch.tensor(prompt[1:]).unsqueeze(1)).mean()))
            losses.append(math.fsum(found) / len(found))
    return tuple(losses)


def cocktail_recipe(models: Sequence[ParentRef], weights: Sequence[float]) -> Recipe:
    """The weighted average as a recipe, to start a search from.

    Args:
        models: as `ingredients.of`.
        weights: one for each, as `cocktail_weights` gives them.
    """
    per_parent = {m.name: {"weight": w} for m, w in zip(models, weights, strict=True)}
    return Recipe(parents=tuple(models), base=None, rules=(Rule("linear", {"normalize": True}, per_parent),))


LM_COCKTAIL: Final = LmCocktail()

"""AdaMerging: one coefficient per layer and model, chosen so that the merged model is sure of its next tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from evomerge.layout import TensorInfo
from evomerge.recipe.method_spec import count, shared
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.virtual.adam import Adam
from evomerge.virtual.averaged import PASS, check_models, read_model, running_cost
from evomerge.virtual.maker import Ingredients, MadePlan, Maker, MakerSpec, Report, silent
from evomerge.virtual.spectral import one_thread

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Coefficients:
    """How much of each model's delta is added.

    Attributes:
        outside: of the tensors outside the layers, one per model.
        layers: of each layer, one per model.
    """

    outside: tuple[float, ...]
    layers: tuple[tuple[float, ...], ...]

    def of(self, layer: int | None) -> tuple[float, ...]:
        """Those of one layer, None for what stands outside."""
        return self.outside if layer is None else self.layers[layer]


@final
class AdaMerging(Maker):
    """`base_l + sum_i c_li delta_li` with the c that make predictions surest (layer-wise AdaMerging, arXiv 2310.02575).

    The mean entropy of the next token after every token of the prompts is minimised over one coefficient per
    model and layer, and one for what stands outside the layers. All start at `start`; Adam takes `steps` steps at
    `rate` over `batch` prompts at a time, in turn, and what is used is clamped to [0, 1]. `coefficients` gives the
    numbers, `coefficients_recipe` the same merge as task arithmetic by layers, to start a search from.

    Where it differs from the authors' code: entropy of next tokens, not of classes; one coefficient per layer, where
    theirs has one per tensor; batches in the order of the prompts, not drawn; Adam in fp64.
    """

    spec = MakerSpec(
        name="adamerging",
        needs_base=True,
        min_models=1,
        max_models=None,
        parameters={
            "steps": count(500, 0, 100_000),
            "rate": shared(1e-3, 0.0, 1.0),
            "batch": count(16, 1),
            "start": shared(0.3, 0.0, 1.0),
        },
        needs_prompts=True,
        source="AdaMerging, Yang et al. 2024, arXiv 2310.02575",
    )

    def plan(self, ingredients: Ingredients) -> MadePlan:
        """See `Maker.plan`."""
        return check_models(ingredients)

    def tensors(
        self, ingredients: Ingredients, plan: MadePlan, report: Report = silent
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Maker.tensors`."""
        found = coefficients(ingredients, report)
        for info in plan.changed:
            yield info.name, _merged(info, ingredients, found.of(info.layer)).float()

    def cost(self, ingredients: Ingredients) -> str:
        """See `Maker.cost`."""
        settings = ingredients.settings
        share = min(float(settings["batch"]) / len(ingredients.prompts), 1.0) * float(settings["steps"])
        size = sum(math.prod(t.shape) for t in ingredients.origin.layout.tensors)
        passes = 5.0 * len(ingredients.of) * size * float(settings["steps"])
        return running_cost(ingredients, share, share, PASS * passes, 0)


def coefficients(ingredients: Ingredients, report: Report = silent) -> Coefficients:
    """The coefficients that Adam ends with, clamped.

    Args:
        ingredients: of `AdaMerging`.
        report: told how many of how many steps are done.

    Raises:
        NonFinite: when a model holds NaN or infinity, or the merged one answers so.
    """
    import torch

    steps = int(ingredients.settings["steps"])
    shape = (ingredients.origin.layout.n_layers + 1, len(ingredients.of))
    raw = torch.full(shape, float(ingredients.settings["start"]), dtype=torch.float64)
    with one_thread():
        if steps:
            entropy, adam = Entropy(ingredients), Adam(float(ingredients.settings["rate"]))
            prompts = [p for p in ingredients.prompts if p]
            batch = min(int(ingredients.settings["batch"]), len(prompts))
        for step in range(steps):
            report(step, steps)
            turn = [prompts[(step * batch + i) % len(prompts)] for i in range(batch)]
            slope = entropy.slope(raw.clamp(0, 1), turn)
            inside = (raw >= 0) & (raw <= 1)  # outside, clamping lets no gradient through
            raw = adam.moved(raw, slope * inside)
    first, *rest = raw.clamp(0, 1).tolist()
    return Coefficients(tuple(first), tuple(tuple(row) for row in rest))


def coefficients_recipe(base: ParentRef, models: Sequence[ParentRef], found: Coefficients) -> Recipe:
    """Task arithmetic with these coefficients, layer by layer.

    Args:
        base: what deltas are taken from.
        models: as `ingredients.of`.
        found: one number per model and layer.
    """

    def rule(values: Sequence[float], layers: tuple[int, ...]) -> Rule:
        per_parent = {m.name: {"weight": v} for m, v in zip(models, values, strict=True)}
        return Rule("task_arithmetic", {"normalize": False, "lambda": 1.0}, per_parent, layers=layers)

    rules = [rule(values, (layer,)) for layer, values in enumerate(found.layers)]
    return Recipe((base, *models), base.name, (*rules, rule(found.outside, ())))


class Entropy:
    """Mean entropy of next tokens as a function of the coefficients, with its gradient.

    Args:
        ingredients: of `AdaMerging`.
    """

    def __init__(self, ingredients: Ingredients) -> None:
        from evomerge.virtual.gradients import PieceFinder
        from evomerge.virtual.scaffold import Scaffold

        self._ingredients = ingredients
        self._scaffold = Scaffold(ingredients.origin)
        self._finder = PieceFinder(self._scaffold)
        self._changed = check_models(ingredients).changed
        self._names = {info.name for info in self._changed}
        self.value = 0.0

    def slope(self, values: torch.Tensor, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """The gradient at `values`; the entropy itself, in nats, is then in `value`.

        Args:
            values: fp64, shape (1 + layers, models), the tensors outside the layers first.
            prompts: each counts alike, as do the tokens of each.
        """
        import torch

        from evomerge.virtual.gradients import gradients_taken

        for info in self._changed:
            row = 0 if info.layer is None else info.layer + 1
            base = self._ingredients.origin.tensor(info.name).float()
            merged = base.clone()
            for model, value in zip(self._ingredients.of, values[row].tolist(), strict=True):
                merged.add_(model.tensor(info.name).float() - base, alpha=value)
            self._scaffold.put(info.name, merged)
        found = torch.zeros_like(values)

        def project(parameter: torch.nn.Parameter, gradient: torch.Tensor) -> None:
            for piece, own in self._finder.of(parameter, gradient):
                if piece.info.name in self._names:
                    row = 0 if piece.info.layer is None else piece.info.layer + 1
                    base = self._ingredients.origin.tensor(piece.info.name).float()[piece.where]
                    for i, model in enumerate(self._ingredients.of):
                        delta = model.tensor(piece.info.name).float()[piece.where] - base
                        found[row, i] += delta.mul_(own.reshape(delta.shape)).sum(dtype=torch.float64)

        self.value = 0.0
        with gradients_taken(self._scaffold, project):
            for prompt in prompts:
                log = self._scaffold.logits(prompt).log_softmax(-1)
                entropy = -(log.exp() * log).sum(-1).mean() / len(prompts)
                self.value += float(entropy.detach())
                entropy.backward()  # type: ignore[no-untyped-call]
        return found


def _merged(info: TensorInfo, ingredients: Ingredients, values: Sequence[float]) -> torch.Tensor:
    """`base + sum_i values_i delta_i` of one tensor, fp64."""
    base = read_model(ingredients.origin, info.name).double()
    found = base.clone()
    for model, value in zip(ingredients.of, values, strict=True):
        found.add_(read_model(model, info.name).double().sub_(base), alpha=value)
    return found


ADAMERGING: Final = AdaMerging()

"""DAM: a coefficient per model and column of every weight, fitted so that the merge answers as the models do."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from evomerge.checkpoints.architecture import is_input_first
from evomerge.layout import TensorInfo
from evomerge.recipe.method_spec import count, shared
from evomerge.recipe.recipe import Number
from evomerge.virtual.adam import Adam
from evomerge.virtual.averaged import PASS, check_models, read_model, running_cost
from evomerge.virtual.deltas import is_matrix
from evomerge.virtual.maker import Ingredients, MadePlan, Maker, MakerSpec, Report, silent
from evomerge.virtual.scratch import zeros_in_file
from evomerge.virtual.spectral import one_thread

if TYPE_CHECKING:
    import torch

_PENALTIES: Final = ("similarity", "l1", "l2")


@final
class Dam(Maker):
    """`W = sum_i W_i diag(c_i)`, the c fitted to the models' own answers (DAM, arXiv 2410.08371).

    Every linear map and embedding has one coefficient per model and column, every norm one per model and entry, every
    bias one per model; all start at 1 / N. Minimised is the sum over models of the mean Kullback-Leibler divergence of
    the merge's next tokens from the model's, both at `temperature`, times its square; plus, for each tensor but biases,
    `similarity` times the mean cosine of two models' coefficients, `l1` times their sum of absolute values and `l2`
    times their norms. Adam takes `steps` steps at `rate` over `batch` prompts at a time, in turn. No steps give the
    mean.

    Where it differs from the authors' code: every model is heard on all prompts, not each on its own task's; the
    divergence is a mean over tokens, where theirs is divided by their number twice; plain Adam in fp64, where the paper
    uses MoFO-AdamW.
    """

    spec = MakerSpec(
        name="dam",
        needs_base=False,
        min_models=1,
        max_models=None,
        parameters={
            "steps": count(100, 0, 100_000),
            "rate": shared(1e-3, 0.0, 1.0),
            "batch": count(8, 1),
            "temperature": shared(2.0, 1e-2),
            "similarity": shared(0.01, 0.0),
            "l1": shared(1e-6, 0.0),
            "l2": shared(1e-6, 0.0),
        },
        needs_prompts=True,
        source="DAM, Gauthier-Caron et al. 2024, arXiv 2410.08371",
    )

    def plan(self, ingredients: Ingredients) -> MadePlan:
        """See `Maker.plan`."""
        return check_models(ingredients)

    def tensors(
        self, ingredients: Ingredients, plan: MadePlan, report: Report = silent
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Maker.tensors`; the models' answers lie in a temporary file while coefficients are fitted."""
        found = column_coefficients(ingredients, report)
        for info in plan.changed:
            yield info.name, merged_columns(info, ingredients, found[info.name]).float()

    def cost(self, ingredients: Ingredients) -> str:
        """See `Maker.cost`."""
        settings, models = ingredients.settings, len(ingredients.of)
        share = min(float(settings["batch"]) / len(ingredients.prompts), 1.0) * float(settings["steps"])
        tokens = sum(len(p) for p in ingredients.prompts)
        vocabulary = ingredients.of[0].config.get("vocab_size") or 1
        size = sum(math.prod(t.shape) for t in ingredients.of[0].layout.tensors)
        passes = 5.0 * models * size * float(settings["steps"])
        words = running_cost(ingredients, models + share, share, PASS * passes, 0)
        return f"{words}, {4e-9 * tokens * models * vocabulary:.1f} GB of temporary files"


def column_coefficients(ingredients: Ingredients, report: Report = silent) -> dict[str, torch.Tensor]:
    """The coefficients that Adam ends with.

    Args:
        ingredients: of `Dam`.
        report: told how many of how many steps are done.

    Returns:
        Tensor's name -> fp64, shape (models, columns); one column for biases.

    Raises:
        NonFinite: when a model holds NaN or infinity, or one of them or the merge answers so.
        DiskFull: when there is no room for the models' answers.
    """
    import torch

    models, settings = len(ingredients.of), ingredients.settings
    values = {
        info.name: torch.full((models, _columns(info, ingredients)), 1 / models, dtype=torch.float64)
        for info in check_models(ingredients).changed
    }
    steps = int(settings["steps"])
    with tempfile.TemporaryDirectory() as folder, one_thread():
        if steps:
            distance, ways = Distance(ingredients, Path(folder)), {n: Adam(float(settings["rate"])) for n in values}
            numbers = [i for i, p in enumerate(ingredients.prompts) if p]
            batch = min(int(settings["batch"]), len(numbers))
        for step in range(steps):
            report(step, steps)
            turn = [numbers[(step * batch + i) % len(numbers)] for i in range(batch)]
            slopes = distance.slopes(values, turn)
            values = {n: ways[n].moved(v, slopes[n] + _penalty_slope(n, v, settings)) for n, v in values.items()}
    return values


class Distance:
    """How far the merge's answers are from the models', as a function of the coefficients, with its gradient.

    Args:
        ingredients: of `Dam`.
        folder: for a file with the models' answers.
    """

    def __init__(self, ingredients: Ingredients, folder: Path) -> None:
        from evomerge.virtual.gradients import PieceFinder
        from evomerge.virtual.scaffold import Scaffold

        self._ingredients = ingredients
        self._temperature = float(ingredients.settings["temperature"])
        self._changed = {info.name: info for info in check_models(ingredients).changed}
        self._scaffold = Scaffold(ingredients.of[0])
        self._finder = PieceFinder(self._scaffold)
        self._answers = self._listen(folder)
        self.value = 0.0

    def _listen(self, folder: Path) -> list[list[torch.Tensor]]:
        """Log-probabilities at the temperature: one list per model, one tensor per prompt."""
        import torch

        prompts, found = self._ingredients.prompts, []
        for i, model in enumerate(self._ingredients.of):
            self._scaffold.hold_all(model)
            with torch.no_grad():
                width = self._scaffold.logits(next(p for p in prompts if p)).shape[1]
                file = zeros_in_file(folder / str(i), width * sum(len(p) for p in prompts))
                own = [v.view(-1, width) for v in torch.split(file, [width * len(p) for p in prompts])]
                for prompt, answer in zip(prompts, own, strict=True):
                    if prompt:
                        answer.copy_((self._scaffold.logits(prompt) / self._temperature).log_softmax(-1))
            found.append(own)
        return found

    def slopes(self, values: Mapping[str, torch.Tensor], numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """The gradient at `values`; the distance itself, in nats, is then in `value`.

        Args:
            values: name -> fp64, shape (models, columns).
            numbers: of the prompts; each counts alike, as do the tokens of each.
        """
        import torch

        from evomerge.virtual.gradients import gradients_taken

        for name, info in self._changed.items():
            self._scaffold.put(name, merged_columns(info, self._ingredients, values[name].float()))
        found = {name: torch.zeros_like(v) for name, v in values.items()}

        def project(parameter: torch.nn.Parameter, gradient: torch.Tensor) -> None:
            for piece, own in self._finder.of(parameter, gradient):
                info = self._changed.get(piece.info.name)
                if info is not None:
                    whole = torch.zeros(info.shape)
                    section = whole[piece.where]
                    section.copy_(own.reshape(section.shape))
                    for i, model in enumerate(self._ingredients.of):
                        both = whole * model.tensor(info.name)
                        found[info.name][i] += _over_columns(info, self._ingredients, both)

        self.value = 0.0
        with gradients_taken(self._scaffold, project):
            for number in numbers:
                log = (self._scaffold.logits(self._ingredients.prompts[number]) / self._temperature).log_softmax(-1)
                theirs = [answers[number] for answers in self._answers]
                apart = sum(((a.exp() * (a - log)).sum(-1).mean() for a in theirs), torch.zeros(()))
                loss = apart * self._temperature**2 / len(numbers)
                self.value += float(loss.detach())
                loss.backward()  # type: ignore[no-untyped-call]
        return found


def _axis(info: TensorInfo, ingredients: Ingredients) -> int | None:
    """The axis of a tensor whose entries have coefficients of their own; None for biases."""
    if len(info.shape) < 2:
        return None if info.name.endswith("bias") or not info.shape else 0
    flip = is_input_first(ingredients.of[0].config)
    return 0 if flip and is_matrix(info) else len(info.shape) - 1


def _columns(info: TensorInfo, ingredients: Ingredients) -> int:
    axis = _axis(info, ingredients)
    return 1 if axis is None else info.shape[axis]


def _over_columns(info: TensorInfo, ingredients: Ingredients, values: torch.Tensor) -> torch.Tensor:
    """Sums of the entries that share a coefficient, fp64."""
    import torch

    axis = _axis(info, ingredients)
    if axis is None:
        return values.sum(dtype=torch.float64).view(1)
    rest = [i for i in range(values.dim()) if i != axis]
    return values.sum(rest, dtype=torch.float64) if rest else values.double()


def merged_columns(info: TensorInfo, ingredients: Ingredients, values: torch.Tensor) -> torch.Tensor:
    """`sum_i W_i diag(c_i)` of one tensor, in the dtype of `values`.

    Args:
        info: the tensor.
        ingredients: of `Dam`.
        values: shape (models, columns).
    """
    import torch

    axis = _axis(info, ingredients)
    shape = [1] * len(info.shape) if axis is None else [-1 if i == axis else 1 for i in range(len(info.shape))]
    found = torch.zeros(info.shape, dtype=values.dtype)
    for model, own in zip(ingredients.of, values, strict=True):
        found.addcmul_(read_model(model, info.name).to(values.dtype), own.view(shape))
        model.release(info.name)
    return found


def penalty(values: torch.Tensor, settings: Mapping[str, Number]) -> torch.Tensor:
    """What keeps one tensor's coefficients apart and small.

    Args:
        values: shape (models, columns).
        settings: `similarity`, `l1` and `l2`.
    """
    import torch

    similarity, l1, l2 = (float(settings[n]) for n in _PENALTIES)
    unit = values / values.norm(dim=1, keepdim=True).clamp_min(1e-8)
    first, second = torch.triu_indices(len(values), len(values), 1)
    cosines = (unit[first] * unit[second]).sum(1)
    alike = cosines.mean() if len(cosines) else values.new_zeros(())
    found: torch.Tensor = similarity * alike + l1 * values.abs().sum() + l2 * values.norm(dim=1).sum()
    return found


def _penalty_slope(name: str, values: torch.Tensor, settings: Mapping[str, Number]) -> torch.Tensor:
    import torch

    if name.endswith("bias"):
        return torch.zeros_like(values)
    leaf = values.clone().requires_grad_(True)
    penalty(leaf, settings).backward()  # type: ignore[no-untyped-call]
    return torch.zeros_like(values) if leaf.grad is None else leaf.grad


DAM: Final = Dam()

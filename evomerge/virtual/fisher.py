"""Fisher merging: every weight counts as much as the model's answers hang on it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

import numpy as np

from evomerge.layout import TensorInfo
from evomerge.recipe.method_spec import count, shared
from evomerge.recipe.recipe import Number
from evomerge.seeds import generator
from evomerge.virtual.averaged import check_models, read_model, running_cost
from evomerge.virtual.maker import Ingredients, MadePlan, Maker, MakerSpec, Report, silent
from evomerge.virtual.scratch import zeros_in_file
from evomerge.virtual.spectral import one_thread

if TYPE_CHECKING:
    import torch

    from evomerge.virtual.scaffold import Scaffold

Labels = Iterator["torch.Tensor"]
"""What log-probabilities are multiplied by, one backward pass after the other; shape (tokens, vocabulary)."""


@final
class Fisher(Maker):
    """`theta = sum_i F_i theta_i / sum_i F_i`, weight by weight (Fisher merging, arXiv 2111.09832).

    `F_i = E_x E_{y ~ p_i(y|x)} (d log p_i(y|x) / d theta)^2` is the diagonal of model i's Fisher information: x is a
    prompt up to some token, every token of it in turn, y the next one as the model itself foresees it. With `samples`
    of 1 or more y is drawn, so many times for each x, and the squares are taken of the sum over a prompt's tokens: the
    draws are independent and each gradient has mean zero, so that the expectation is the same. `samples: 0` takes the
    expectation over the vocabulary exactly, which needs tokens x vocabulary backward passes. All models get the same
    random numbers, drawn from `seed`.

    Each F_i is divided by its root mean square over the whole model, so that no model outweighs the others because it
    is less sure, and raised by `floor`. Where no model depends on a weight the result is the mean.

    Where it differs from MergeLM's code (Yu et al. 2024): that squares one gradient for all labels and the whole
    batch, which keeps the products of different ones; and it adds the floor before it divides by the norm, so that its
    effect hangs on the gradients' scale.
    """

    spec = MakerSpec(
        name="fisher",
        needs_base=False,
        min_models=1,
        max_models=None,
        parameters={
            "samples": count(1, 0, 10_000),
            "seed": count(0, 0, 2**31 - 1),
            "floor": shared(1e-6, 1e-12, 1.0),
        },
        needs_prompts=True,
        source="Fisher merging, Matena and Raffel 2022, arXiv 2111.09832",
    )

    def plan(self, ingredients: Ingredients) -> MadePlan:
        """See `Maker.plan`."""
        return check_models(ingredients)

    def tensors(
        self, ingredients: Ingredients, plan: MadePlan, report: Report = silent
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Maker.tensors`; the diagonals lie in temporary files until the last tensor is made."""
        from evomerge.virtual.scaffold import Scaffold

        n_prompts = len(ingredients.prompts)
        total = n_prompts * len(ingredients.of)
        with tempfile.TemporaryDirectory() as folder:
            with one_thread():
                scaffold = Scaffold(ingredients.of[0])
                diagonals = []
                for i, model in enumerate(ingredients.of):
                    scaffold.hold_all(model)
                    diagonals.append(zeros_in_file(Path(folder) / str(i), scaffold.arena_size))
                    for number, prompt in enumerate(ingredients.prompts):
                        report(i * n_prompts + number, total)
                        if prompt:
                            add_diagonal(scaffold, prompt, diagonals[i], _labels(ingredients.settings, number))
                found = Diagonals(scaffold, diagonals)
            for info in plan.changed:
                yield info.name, weighted_mean(info, ingredients, found)

    def cost(self, ingredients: Ingredients) -> str:
        """See `Maker.cost`."""
        models, samples = len(ingredients.of), int(ingredients.settings["samples"])
        size = sum(math.prod(t.shape) for t in ingredients.of[0].layout.tensors)
        tokens = sum(len(p) for p in ingredients.prompts) / len(ingredients.prompts)
        vocabulary = ingredients.of[0].config.get("vocab_size") or 1
        passes = samples if samples else tokens * vocabulary
        words = running_cost(ingredients, models, models * passes, 0, 0)
        return f"{words}, {4e-9 * size * models:.1f} GB of temporary files"


def add_diagonal(
    scaffold: Scaffold, prompt: Sequence[int], values: torch.Tensor, labels: Callable[[torch.Tensor], Labels]
) -> None:
    """Add up the squared gradients of a model's own predictions behind every token of a prompt.

    Args:
        scaffold: holds the model.
        prompt: not empty.
        values: what is added to, laid out as the model's block of memory.
        labels: log-probabilities -> what they are multiplied by, see `drawn_labels` and `all_labels`.
    """
    from evomerge.virtual.gradients import gradients_taken
    from evomerge.virtual.scaffold import same_place

    def square(parameter: torch.nn.Parameter, gradient: torch.Tensor) -> None:
        same_place(parameter.data, values).addcmul_(gradient, gradient)

    with gradients_taken(scaffold, square):
        log = scaffold.logits(prompt).log_softmax(-1)
        for weights in labels(log.detach()):
            (log * weights).sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]


def drawn_labels(log: torch.Tensor, samples: int, stream: Callable[[int], np.random.Generator]) -> Labels:
    """One token per row, drawn from the row's distribution, again and again; the squares of all passes have mean 1.

    Args:
        log: log-probabilities, shape (tokens, vocabulary).
        samples: how often.
        stream: number of the draw -> its random numbers.
    """
    import torch

    rows, sums = torch.arange(len(log)), log.double().exp().cumsum(1)
    for sample in range(samples):
        spots = torch.from_numpy(stream(sample).random(len(log)))
        drawn = torch.searchsorted(sums, (spots * sums[:, -1]).unsqueeze(1)).squeeze(1)
        weights = torch.zeros_like(log)
        weights[rows, drawn.clamp_(max=log.shape[1] - 1)] = 1 / math.sqrt(samples)
        yield weights


def all_labels(log: torch.Tensor) -> Labels:
    """Every token of every row by itself, times the root of its probability."""
    import torch

    for row, column in np.ndindex(*log.shape):
        weights = torch.zeros_like(log)
        weights[row, column] = float(log[row, column].double().exp().sqrt())
        yield weights


def _labels(settings: Mapping[str, Number], prompt: int) -> Callable[[torch.Tensor], Labels]:
    samples, seed = int(settings["samples"]), int(settings["seed"])
    if not samples:
        return all_labels
    return partial(drawn_labels, samples=samples, stream=lambda sample: generator(seed, "fisher", prompt, sample))


class Diagonals:
    """The models' diagonals by tensor, each divided by its root mean square."""

    def __init__(self, scaffold: Scaffold, diagonals: Sequence[torch.Tensor]) -> None:
        self._pieces = list(scaffold.pieces())
        self._blocks = {p.untyped_storage().data_ptr() for p in scaffold.model.parameters()}
        self._values = diagonals
        size = sum(p.numel() for p in scaffold.model.parameters())
        norms = [math.sqrt(_sum_of_squares(v) / size) for v in diagonals]
        self._scales = [1 / norm if norm > 0 else 0.0 for norm in norms]

    def of(self, info: TensorInfo, model: int) -> torch.Tensor:
        """One tensor's, fp64, of its shape; zero for what no gradient reaches."""
        import torch

        from evomerge.virtual.scaffold import same_place

        found = torch.zeros(info.shape, dtype=torch.float64)
        for piece in self._pieces:
            if piece.info.name == info.name and piece.memory.untyped_storage().data_ptr() in self._blocks:
                section = found[piece.where]
                section.copy_(same_place(piece.memory, self._values[model]).reshape(section.shape))
        return found.mul_(self._scales[model])


def _sum_of_squares(values: torch.Tensor) -> float:
    import torch

    return sum(float(part.double().square().sum()) for part in torch.split(values, 1 << 24))


def weighted_mean(info: TensorInfo, ingredients: Ingredients, diagonals: Diagonals) -> torch.Tensor:
    """One tensor of the models, each weight by its diagonal and the floor; fp32."""
    import torch

    floor = float(ingredients.settings["floor"])
    first = read_model(ingredients.of[0], info.name).double()
    weight = torch.zeros_like(first)
    pull = torch.zeros_like(first)
    for i, model in enumerate(ingredients.of):
        own = diagonals.of(info, i).add_(floor)
        weight += own
        pull.addcmul_(own, read_model(model, info.name).double().sub_(first))
        model.release(info.name)
    return first.add_(pull.div_(weight)).float()


FISHER: Final = Fisher()

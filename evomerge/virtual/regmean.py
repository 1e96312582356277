"""RegMean: linear maps merged so that they answer each model's inputs as that model did."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, final

from evomerge.checkpoints.architecture import is_input_first
from evomerge.checkpoints.opened import OpenParent
from evomerge.layout import TensorInfo
from evomerge.recipe.method_spec import shared
from evomerge.recipe.recipe import Number
from evomerge.virtual.averaged import average, check_models, read_model, running_cost
from evomerge.virtual.deltas import is_matrix
from evomerge.virtual.maker import Ingredients, MadePlan, Maker, MakerSpec, Report, silent
from evomerge.virtual.spectral import left_basis, one_thread

if TYPE_CHECKING:
    import torch

    from evomerge.virtual.layered import LayeredPass, State
    from evomerge.virtual.scaffold import Scaffold

_LEAST_PIVOT: Final = 1e-10
"""Of a matrix with a diagonal of ones: below it, it counts as singular."""


class Normal:
    """The normal equations of one linear map: `gram @ x = right`, x the merged map less the mean of the models'.

    Args:
        inputs: side of the map.
        outputs: the other side.

    Attributes:
        gram: sum of the models' input moments, fp64, shape (inputs, inputs).
        right: sum of moments times (map - mean map), fp64, shape (inputs, outputs).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        import torch

        self.gram = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.right = torch.zeros(inputs, outputs, dtype=torch.float64)

    def add(self, moment: torch.Tensor, difference: torch.Tensor, off_diagonal: float) -> None:
        """Take one model in.

        Args:
            moment: of its inputs, `X^T X / tokens`, fp64; is written to.
            difference: its map less the mean map, shape (inputs, outputs).
            off_diagonal: what all but the diagonal of `moment` is multiplied by.
        """
        diagonal = moment.diagonal().clone()
        moment.mul_(off_diagonal).diagonal().copy_(diagonal)
        self.gram += moment
        self.right.addmm_(moment, difference)


class MomentMaker(Maker):
    """A maker that merges the linear maps inside the layers by the second moments of what they are given.

    Layer after layer: memory holds one model in fp32, the hidden states of all prompts (of each model), and the moments
    of one layer's linear maps. Everything but these is the mean of the models: embedding, head, biases, norms, and
    experts that transformers stacks.
    """

    follows_merged: bool = False
    """Whether the inputs of a layer come from the merged layers before it, or from each model's own."""

    def plan(self, ingredients: Ingredients) -> MadePlan:
        """See `Maker.plan`."""
        return check_models(ingredients)

    def tensors(
        self, ingredients: Ingredients, plan: MadePlan, report: Report = silent
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Maker.tensors`."""
        with one_thread():
            walk = _Walk(self, ingredients, plan)
        for info in plan.changed:
            if info.layer is None:
                yield info.name, average(ingredients.of, info.name).float()
        for layer in range(walk.run.depth):
            report(layer, walk.run.depth)
            with one_thread():
                made = walk.layer(layer)
            yield from made.items()
        report(walk.run.depth, walk.run.depth)

    @abstractmethod
    def solve(self, normal: Normal, settings: Mapping[str, Number]) -> torch.Tensor:
        """What is added to the mean of the models' maps; fp64, shape (inputs, outputs).

        Args:
            normal: of one linear map.
            settings: complete.
        """

    @abstractmethod
    def solving(self, inputs: int, outputs: int, settings: Mapping[str, Number]) -> float:
        """About how many operations `solve` takes."""

    def cost(self, ingredients: Ingredients) -> str:
        """See `Maker.cost`."""
        first, settings, models = ingredients.of[0], ingredients.settings, len(ingredients.of)
        tokens = sum(len(p) for p in ingredients.prompts)
        flip = is_input_first(first.config)
        work, moments = 0.0, [0.0] * first.layout.n_layers
        for info in first.layout.tensors:
            if is_matrix(info) and info.layer is not None:
                inputs, outputs = info.shape if flip else reversed(info.shape)
                product = inputs**2 * (tokens + outputs)
                work += self.solving(inputs, outputs, settings) + 2.0 * models * product
                moments[info.layer] += 16 * inputs**2 + 16 * inputs * outputs  # with the mean of the models' maps
        width = min((min(t.shape) for t in first.layout.tensors if t.role == "embedding"), default=0)
        streams = 1 if self.follows_merged else models
        held = max(moments) + 4.0 * tokens * width * streams
        return running_cost(ingredients, models + (1 if self.follows_merged else 0), 0, work, held)


class _Walk:
    """The way through the layers; before each, the prompts' states of every model (or of the merged one)."""

    def __init__(self, maker: MomentMaker, ingredients: Ingredients, plan: MadePlan) -> None:
        from evomerge.virtual.layered import LayeredPass
        from evomerge.virtual.scaffold import Scaffold

        self._maker, self._ingredients, self._plan = maker, ingredients, plan
        self._scaffold: Scaffold = Scaffold(ingredients.of[0])
        self.run: LayeredPass = LayeredPass(self._scaffold, ingredients.prompts)
        self._states: list[list[State]] = []
        if maker.follows_merged:
            for info in plan.changed:
                if info.layer is None:
                    self._scaffold.put(info.name, average(ingredients.of, info.name).float())
            self._states.append(self.run.start())
        else:
            for model in ingredients.of:
                self._scaffold.hold(model, None)
                self._states.append(self.run.start())

    def layer(self, layer: int) -> dict[str, torch.Tensor]:
        """The merged tensors of the next layer."""
        ingredients, own = self._ingredients, [t for t in self._plan.changed if t.layer == layer]
        means = {t.name: average(ingredients.of, t.name) for t in own}
        sums = {name: self._normal(layer, name, means[name]) for name in self.run.linears(layer) if name in means}
        for number, model in enumerate(ingredients.of):
            self._scaffold.hold(model, layer)
            states = self._states[0 if self._maker.follows_merged else number]
            after = self._take_in(model, layer, states, means, sums)
            if not self._maker.follows_merged:
                self._states[number] = after
            for info in own:
                model.release(info.name)
        made = {t.name: self._made(layer, t, means.pop(t.name), sums.pop(t.name, None)) for t in own}
        if self._maker.follows_merged:
            for name, values in made.items():
                self._scaffold.put(name, values)
            self._states[0] = self.run.advance(self._states[0], layer)
        return made

    def _take_in(
        self,
        model: OpenParent,
        layer: int,
        states: Sequence[State],
        means: Mapping[str, torch.Tensor],
        sums: Mapping[str, Normal],
    ) -> list[State]:
        import torch

        moments = {name: torch.zeros_like(normal.gram) for name, normal in sums.items()}

        def see(name: str, inputs: torch.Tensor) -> None:
            if name in moments:
                x = inputs.double()
                moments[name].addmm_(x.T, x)

        after = self.run.advance(states, layer, see)
        off_diagonal = float(self._ingredients.settings.get("off_diagonal", 1.0))
        for name, normal in sums.items():
            difference = read_model(model, name).double() - means[name]
            flipped = difference if self.run.stores_inputs_first(layer, name) else difference.T
            normal.add(moments.pop(name).div_(self.run.n_tokens), flipped, off_diagonal)
        return after

    def _normal(self, layer: int, name: str, mean: torch.Tensor) -> Normal:
        shape = mean.shape if self.run.stores_inputs_first(layer, name) else mean.T.shape
        return Normal(*shape)

    def _made(self, layer: int, info: TensorInfo, mean: torch.Tensor, normal: Normal | None) -> torch.Tensor:
        if normal is not None:
            found = self._maker.solve(normal, self._ingredients.settings)
            mean += found if self.run.stores_inputs_first(layer, info.name) else found.T
        return mean.float()


@final
class RegMean(MomentMaker):
    """`W = (sum_i G_i)^-1 sum_i G_i W_i` for every linear map inside the layers (RegMean, arXiv 2212.09849).

    `G_i = X_i^T X_i / tokens` are the moments of what the map is given in model i, W_i is stored as (inputs, outputs).
    All but the diagonal of G_i is multiplied by `off_diagonal` (the paper's alpha). Everything else is the
    mean of the models. With `off_diagonal` 0 it is a mean of rows weighted by the size of their inputs.

    Where it differs from the authors' code: all models are shown the same prompts, not each those of its own task; and
    directions that no prompt shows take the mean of the models, where an inverse fails or invents values. Equal models
    give their bits.
    """

    spec = MakerSpec(
        name="regmean",
        needs_base=False,
        min_models=1,
        max_models=None,
        parameters={"off_diagonal": shared(0.9, 0.0, 1.0)},
        needs_prompts=True,
        source="RegMean, Jin et al. 2023, arXiv 2212.09849",
    )

    def solve(self, normal: Normal, settings: Mapping[str, Number]) -> torch.Tensor:
        """See `MomentMaker.solve`."""
        return solution(normal)

    def solving(self, inputs: int, outputs: int, settings: Mapping[str, Number]) -> float:
        """See `MomentMaker.solving`."""
        return cholesky_work(inputs, outputs)


@final
class RegMeanPlusPlus(MomentMaker):
    """RegMean on what the merged layers before give to a layer (RegMean++, arXiv 2508.03121).

    The prompts go through the merged embedding and the merged layers; in the layer that is merged next each model
    answers these states with its own weights, which gives the moments of its linear maps. See `RegMean` for the rest.
    """

    follows_merged = True
    spec = MakerSpec(
        name="regmean_pp",
        needs_base=False,
        min_models=1,
        max_models=None,
        parameters={"off_diagonal": shared(0.9, 0.0, 1.0)},
        needs_prompts=True,
        source="RegMean++, Nguyen et al. 2025, arXiv 2508.03121",
    )

    def solve(self, normal: Normal, settings: Mapping[str, Number]) -> torch.Tensor:
        """See `MomentMaker.solve`."""
        return solution(normal)

    def solving(self, inputs: int, outputs: int, settings: Mapping[str, Number]) -> float:
        """See `MomentMaker.solving`."""
        return cholesky_work(inputs, outputs)


def solution(normal: Normal) -> torch.Tensor:
    """`gram^-1 right`; where the moments lack rank, the solution of smallest norm.

    Args:
        normal: not changed.
    """
    import torch

    diagonal = normal.gram.diagonal()
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
    unit = normal.gram * scale.unsqueeze(0) * scale.unsqueeze(1)
    unit.diagonal().fill_(1.0)  # an input that is always zero: its row and column are zero, and so is its solution
    factor, failed = torch.linalg.cholesky_ex(unit)
    if not int(failed) and float(factor.diagonal().square().min()) > _LEAST_PIVOT:
        right = normal.right * scale.unsqueeze(1)
        return torch.cholesky_solve(right, factor).mul_(scale.unsqueeze(1))
    basis = left_basis(normal.gram)
    weights = ((normal.gram @ basis) * basis).sum(0)
    return basis @ ((basis.T @ normal.right) / weights.unsqueeze(1))


def cholesky_work(inputs: int, outputs: int) -> float:
    """About how many operations `solution` takes where the moments have full rank."""
    return inputs**3 / 3 + 2.0 * inputs**2 * outputs


REGMEAN: Final = RegMean()
REGMEAN_PP: Final = RegMeanPlusPlus()

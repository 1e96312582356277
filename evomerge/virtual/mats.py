"""MaTS: models matched in the subspaces that their inputs span, by conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, final

from evomerge.recipe.method_spec import count
from evomerge.recipe.recipe import Number
from evomerge.virtual.averaged import PASS
from evomerge.virtual.maker import MakerSpec
from evomerge.virtual.regmean import MomentMaker, Normal

if TYPE_CHECKING:
    import torch

_EIGENVECTORS: Final = 10.0
"""What the eigenvectors of a matrix take, in operations per cubed side."""
_TOLERANCE: Final = 1e-12
"""Of the residual's norm against the first one: where it stops of itself."""


@final
class Mats(MomentMaker):
    """Conjugate gradients on `sum_i G_i (W - W_i) = 0` from the mean of the models (MaTS, arXiv 2312.04339).

    `G_i` are the moments of what a linear map is given in model i, W is stored as (inputs, outputs) and seen as one
    long vector. Few `iterations` stay near the mean in directions that the prompts hardly show; many lead to RegMean's
    solution with `off_diagonal` 1. Everything but the linear maps inside the layers is the mean of the models.

    Where it differs from the authors' code: all models are shown the same prompts; it starts from the mean, where
    theirs may also start from task arithmetic or another merge; fp64 instead of fp32, and it goes on until
    `iterations`, where theirs stops at a residual of 1e-5. Of their covariances this is the one of the inputs.
    """

    spec = MakerSpec(
        name="mats",
        needs_base=False,
        min_models=1,
        max_models=None,
        parameters={"iterations": count(100, 1, 100_000)},
        needs_prompts=True,
        source="MaTS, Tam et al. 2024, arXiv 2312.04339",
    )

    def solve(self, normal: Normal, settings: Mapping[str, Number]) -> torch.Tensor:
        """See `MomentMaker.solve`."""
        return conjugate_gradients(normal, int(settings["iterations"]))

    def solving(self, inputs: int, outputs: int, settings: Mapping[str, Number]) -> float:
        """See `MomentMaker.solving`."""
        iterations, product = float(settings["iterations"]), 2.0 * inputs**2 * outputs
        in_coordinates = _EIGENVECTORS * inputs**3 + 2 * product
        return min(product * iterations, in_coordinates) + PASS * 6 * inputs * outputs * iterations


def conjugate_gradients(normal: Normal, iterations: int) -> torch.Tensor:
    """So many steps towards `gram^-1 right` from zero (Hestenes and Stiefel 1952), all outputs in one system; fp64.

    Where eigenvectors cost less than the steps' products, the steps are taken in their coordinates, which changes
    nothing but the rounding.

    Args:
        normal: not changed.
        iterations: fewer where the residual vanishes.
    """
    import torch

    inputs, outputs = normal.right.shape
    if _EIGENVECTORS * inputs**3 + 4.0 * inputs**2 * outputs < 2.0 * iterations * inputs**2 * outputs:
        roots, basis = torch.linalg.eigh(normal.gram)
        scales = roots.clamp_min(0).unsqueeze(1)
        found: torch.Tensor = basis @ _steps(lambda v: scales * v, basis.T @ normal.right, iterations)
        return found
    return _steps(lambda v: normal.gram @ v, normal.right, iterations)


def _steps(product: Callable[[torch.Tensor], torch.Tensor], right: torch.Tensor, iterations: int) -> torch.Tensor:
    import torch

    found = torch.zeros_like(right)
    residual, direction = right.clone(), right.clone()
    square = first = float(residual.square().sum())
    for _ in range(iterations):
        if square <= _TOLERANCE**2 * first:
            break
        image = product(direction)
        curvature = float((direction * image).sum())
        if not curvature > 0:
            break
        step = square / curvature
        found.add_(direction, alpha=step)
        residual.sub_(image, alpha=step)
        before, square = square, float(residual.square().sum())
        direction.mul_(square / before).add_(residual)
    return found


MATS: Final = Mats()

"""OPCM: models merged one after the other, each without what the ones before it already say."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, NamedTuple, final

from evomerge.files import disk_full_is_told
from evomerge.layout import TensorInfo
from evomerge.recipe.method_spec import shared
from evomerge.virtual.deltas import at_once, check_siblings, cost_of, is_matrix, polar_work, read_delta
from evomerge.virtual.maker import Ingredients, MadePlan, Maker, MakerSpec, Report, silent
from evomerge.virtual.parallel import in_order
from evomerge.virtual.spectral import triplets

if TYPE_CHECKING:
    import torch


@final
class Opcm(Maker):
    """Continual merging by orthogonal projection (OPCM, Tang et al. 2025, arXiv 2501.09522).

    The models are taken in the order of the recipe, which matters. The merged delta D begins as the first model's. Each
    further delta is added without what lies along D's singular vectors: with `D = U S V^T` and `r` the number of
    leading singular values whose sum stays within a share `alpha` of all, of `P = U^T delta V` the diagonal and the
    leading r x r block are dropped, and `U P V^T` is added. At last the whole model's D is rescaled so that its norm is
    the mean of the models' norms. What is no matrix inside a layer is added as it is. One model gives `base + delta`.

    The paper rescales after every model and undoes it before the next; the factors cancel, so that one rescaling at the
    end is the same. Where it differs from the authors' code: embedding and head are added, not projected; directions
    that D lacks are left alone on the diagonal too, where an SVD names vectors of the library's choice; and `alpha: 1`
    drops the whole square block, where theirs drops the diagonal only.

    The sum of all models is kept in a temporary file until its norm is known: as large as the made parent, in TMPDIR,
    gone when the process is.
    """

    spec = MakerSpec(
        name="opcm",
        needs_base=True,
        min_models=1,
        max_models=None,
        parameters={"alpha": shared(0.5, 0.0, 1.0)},
        source="OPCM, Tang et al. 2025, arXiv 2501.09522",
    )

    def plan(self, ingredients: Ingredients) -> MadePlan:
        """See `Maker.plan`."""
        return check_siblings(ingredients)

    def tensors(
        self, ingredients: Ingredients, plan: MadePlan, report: Report = silent
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Maker.tensors`."""
        squares = [0.0] * len(ingredients.of)
        merged_square = 0.0
        with tempfile.TemporaryFile() as scratch:
            jobs = (partial(_merge, info, ingredients) for info in plan.changed)
            for done, found in enumerate(in_order(jobs, at_once(plan))):
                report(done, len(plan.changed))
                squares = [a + b for a, b in zip(squares, found.squares, strict=True)]
                merged_square += found.square
                _put(scratch, found.merged)
            norm = sum(math.sqrt(s) for s in squares) / len(squares)
            factor = norm / math.sqrt(merged_square) if merged_square > 0 else 1.0
            scratch.seek(0)
            for info in plan.changed:
                yield info.name, _take(scratch, info).mul_(factor).add_(ingredients.origin.tensor(info.name).float())
                ingredients.origin.release(info.name)

    def cost(self, ingredients: Ingredients) -> str:
        """See `Maker.cost`."""
        return cost_of(ingredients, lambda m, n: (len(ingredients.of) - 1) * polar_work(m, n))


class _Merged(NamedTuple):
    """One tensor's merged delta before rescaling, fp32, with its squared norm and those of the models' deltas."""

    merged: torch.Tensor
    square: float
    squares: tuple[float, ...]


def _merge(info: TensorInfo, ingredients: Ingredients) -> _Merged:
    base = ingredients.origin.tensor(info.name).float()
    merged = read_delta(ingredients.of[0], base, info.name)
    squares = [_square(merged)]
    for model in ingredients.of[1:]:
        delta = read_delta(model, base, info.name)
        squares.append(_square(delta))
        if is_matrix(info):
            delta = without(delta, merged, float(ingredients.settings["alpha"])).float()
        merged += delta
    return _Merged(merged, _square(merged), tuple(squares))


def without(delta: torch.Tensor, merged: torch.Tensor, alpha: float) -> torch.Tensor:
    """A delta without what lies along the singular vectors of what was merged before; fp64.

    Args:
        delta: shape (m, n).
        merged: the same shape.
        alpha: share of the sum of singular values whose block is dropped whole.
    """
    u, s, vt = triplets(merged)
    r = int((s.cumsum(0) <= alpha * s.sum()).sum())
    x = delta.double()
    left = u.T @ x
    block = u[:, :r] @ ((left[:r] @ vt[:r].T) @ vt[:r])
    diagonal = (left[r:] * vt[r:]).sum(1)
    return x - block - (u[:, r:] * diagonal) @ vt[r:]


def _square(x: torch.Tensor) -> float:
    return float(x.double().square().sum())


def _put(file: IO[bytes], x: torch.Tensor) -> None:
    with disk_full_is_told(Path(tempfile.gettempdir())):
        file.write(x.contiguous().numpy().data)


def _take(file: IO[bytes], info: TensorInfo) -> torch.Tensor:
    import torch

    raw = bytearray(4 * math.prod(info.shape))
    file.readinto(raw)  # type: ignore[attr-defined]
    return torch.frombuffer(raw, dtype=torch.float32).reshape(info.shape) if raw else torch.zeros(info.shape)


OPCM: Final = Opcm()

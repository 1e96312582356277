"""A parent with a base of its own: its delta, carried over to the base of the merge."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, final

from evomerge.checkpoints.compatible import check_compatible
from evomerge.checkpoints.dtypes import FLOATING
from evomerge.layout import TensorInfo
from evomerge.recipe.method_spec import shared
from evomerge.virtual.maker import Ingredients, MadePlan, Maker, MakerSpec, Report, silent

if TYPE_CHECKING:
    import torch


@final
class Transplant(Maker):
    """`base + scale (model - own)`: a chat vector (arXiv 2310.04799, eq. 1) as a parent; in fp32.

    With `own` = the model's pretrained ancestor and `base` the same ancestor trained further, it is the instruction
    residual; with `own` = `base` and a scale above 1 it is ExPO's extrapolation (arXiv 2404.16792, eq. 1).
    """

    spec = MakerSpec(
        name="transplant",
        needs_base=True,
        min_models=2,
        max_models=2,
        parameters={"scale": shared(1.0)},
        source="chat vector, arXiv 2310.04799, eq. 1; ExPO, arXiv 2404.16792, eq. 1",
    )

    def plan(self, ingredients: Ingredients) -> MadePlan:
        """See `Maker.plan`; `of` is the model, then its own base."""
        model, own = ingredients.of
        check_compatible({"base": ingredients.origin, "model": model, "its base": own}, "base")
        changed = tuple(
            TensorInfo(t.name, t.shape, "F32", t.layer, t.role)
            for t in ingredients.origin.layout.tensors
            if t.dtype in FLOATING
        )
        return MadePlan(ingredients.origin, changed)

    def tensors(
        self, ingredients: Ingredients, plan: MadePlan, report: Report = silent
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Maker.tensors`."""
        model, own = ingredients.of
        scale = float(ingredients.settings["scale"])
        for done, info in enumerate(plan.changed):
            report(done, len(plan.changed))
            delta = model.tensor(info.name).float() - own.tensor(info.name).float()
            yield info.name, delta.mul_(scale).add_(ingredients.origin.tensor(info.name).float())


TRANSPLANT: Final = Transplant()

"""A maker of parents: the base plus the part of the matrices' deltas on whose sign all models agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, final

import torch

from evomerge.recipe.method_spec import shared
from evomerge.recipe.recipe import Number
from evomerge.virtual.deltas import DeltaMaker, mean
from evomerge.virtual.maker import MakerSpec


@final
class Agreed(DeltaMaker):
    """`base + scale * mean_i(model_i - base)`, inside the layers only where all differences have one sign."""

    spec = MakerSpec(
        name="example-agreed", needs_base=True, min_models=2, max_models=None, parameters={"scale": shared(1.0)}
    )

    def matrix(self, deltas: Sequence[torch.Tensor], settings: Mapping[str, Number]) -> torch.Tensor:
        """See `DeltaMaker.matrix`."""
        same = torch.stack([d.sign() for d in deltas]).sum(0).abs() == len(deltas)
        return mean(deltas) * same

    def work(self, outputs: int, inputs: int, models: int, settings: Mapping[str, Number]) -> float:
        """See `DeltaMaker.work`."""
        return 3.0 * outputs * inputs * models


EXAMPLE_AGREED: Final = Agreed()

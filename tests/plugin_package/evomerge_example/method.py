"""A merge method: the base plus the element-wise median of what the parents changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

import torch

from evomerge.merging.methods import MergeMethod, Parameters
from evomerge.recipe.method_spec import MethodSpec, ParameterSpec


@final
class Median(MergeMethod):
    """`base + strength * median_i(parent_i - base)`; the median of an even number is the mean of the middle two."""

    spec = MethodSpec(
        name="example-median",
        needs_base=True,
        min_models=2,
        max_models=None,
        parameters={"strength": ParameterSpec(per_parent=False, kind="real", default=None, low=0.0, high=2.0)},
    )

    def merge(self, base: torch.Tensor | None, parents: Sequence[torch.Tensor], parameters: Parameters) -> torch.Tensor:
        """See `MergeMethod.merge`."""
        if base is None:
            raise ValueError("the spec asks for a base")
        deltas = torch.stack([p - base for p in parents]).sort(dim=0).values
        low, high = (len(parents) - 1) // 2, len(parents) // 2
        return base + float(parameters.shared["strength"]) * (deltas[low] + deltas[high]) / 2


EXAMPLE_MEDIAN: Final = Median()

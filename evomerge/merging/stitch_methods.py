"""Localize-and-Stitch without data: each model keeps what it changed most, and overlaps are averaged."""

from __future__ import annotations

from typing import Final, final

from evomerge.merging.elements import tie_salts
from evomerge.merging.gta_methods import mean_of_kept
from evomerge.merging.methods import Facts, KernelMethod, Parameters
from evomerge.merging.settings import Cut, GtaParent, Setting, single
from evomerge.merging.thresholds import density_count
from evomerge.recipe.paper_specs import LOCALIZE_AND_STITCH


@final
class LocalizeAndStitch(KernelMethod):
    """Per element the mean of the deltas that are among the largest of their model (arXiv 2408.13656).

    `model_wide`: the largest share `density` of all entries of the model's tensors with two axes or more, as the
    authors' dataless code takes them; otherwise of each tensor. Tensors with one axis are averaged whole, and do not
    count. Weights and lambda are additions: with their defaults of 1 it is the authors' method.
    """

    spec = LOCALIZE_AND_STITCH

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        wide, parents = bool(parameters.shared["model_wide"]), {}
        for i, (weight, density) in enumerate(
            zip(parameters.column("weight"), parameters.column("density"), strict=True)
        ):
            gain = single(weight)
            if gain == 0.0 or density <= 0.0:
                continue
            low = None if density >= 1.0 or len(facts.shape) <= 1 else _cut(facts, i, density, wide)
            word = tie_salts(parameters.tensor, parameters.parents[i])[1] if low is not None else 0
            parents[i] = GtaParent(gain, abs(gain), low, tie_salt=word)
        return mean_of_kept(parameters, parents)


def _cut(facts: Facts, index: int, density: float, wide: bool) -> Cut | None:
    if wide:
        return facts.model_cut(index, density)
    count = density_count(density, facts.numel)
    return facts.cut(index, count) if count < facts.numel else None


LOCALIZE_AND_STITCH_METHOD: Final = LocalizeAndStitch()

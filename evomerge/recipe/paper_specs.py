"""Merge methods of the literature that mergekit has not: what each asks for."""

from __future__ import annotations

from typing import Final

from evomerge.recipe.element_specs import ELEMENT_SPECS
from evomerge.recipe.method_spec import MethodSpec, ParameterSpec, flag, shared, weight

LINES: Final = MethodSpec(
    "lines",
    True,
    1,
    None,
    {"weight": weight(), "alpha": shared(1.0), "beta": shared(1.0)},
    source="LiNeS, arXiv 2410.17146",
)
"""Task arithmetic times alpha in the first layer, growing linearly to alpha + beta in the last."""

FEDLAW: Final = MethodSpec(
    "fedlaw",
    False,
    1,
    None,
    {"logit": ParameterSpec(per_parent=True, kind="real", default=0.0), "gamma": shared(1.0, 0.0)},
    source="FedLAW, arXiv 2302.10911",
)
"""The mean of the models with the softmax of the logits as weights, shrunk by gamma."""

EXPO: Final = MethodSpec("expo", True, 1, 1, {"alpha": shared(0.3)}, source="ExPO, arXiv 2404.16792")
"""The model, and alpha times its delta further."""

METAGPT: Final = MethodSpec("metagpt", True, 1, None, {"lambda": shared(1.0)}, source="MetaGPT, arXiv 2406.11385")
"""Task arithmetic; each delta's weight is its share of the energy of all, over the whole model."""

LOCALIZE_AND_STITCH: Final = MethodSpec(
    "localize_and_stitch",
    True,
    1,
    None,
    {
        "weight": ParameterSpec(per_parent=True, kind="real", default=1.0),
        "density": ParameterSpec(per_parent=True, kind="real", default=0.1, low=0.0, high=1.0),
        "model_wide": flag(True),
        "lambda": shared(1.0),
    },
    source="Localize-and-Stitch without data, arXiv 2408.13656",
)
"""Each model keeps its largest deltas, of the whole model or per tensor; overlaps are averaged."""

PAPER_SPECS: Final[tuple[MethodSpec, ...]] = (
    LINES, FEDLAW, EXPO, METAGPT, LOCALIZE_AND_STITCH, *ELEMENT_SPECS,
)  # fmt: skip

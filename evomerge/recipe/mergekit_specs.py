"""The twenty merge methods of mergekit 0.1.5: names, parameters, defaults and numbers of models are mergekit's.

Three are counted in another way: of slerp, whose recipe has two parents and no base, the first is what mergekit calls
`base_model`; nearswap and arcee_fusion have a base and one model.
"""

from __future__ import annotations

from typing import Final

from evomerge.recipe.method_spec import MethodSpec, ParameterSpec, count, density, flag, shared, weight

_GAMMA: Final = ParameterSpec(per_parent=True, kind="real", default=0.01, low=0.0, high=1.0)
_EPSILON: Final = ParameterSpec(per_parent=True, kind="real", default=0.15, low=0.0, high=1.0)

LINEAR: Final = MethodSpec("linear", False, 1, None, {"weight": weight(), "normalize": flag(True)})
"""Weighted sum of the models, divided by the sum of the weights when `normalize`."""

SLERP: Final = MethodSpec("slerp", False, 2, 2, {"t": shared(None, 0.0, 1.0)})
"""Along the great circle between two models: t = 0 is the first parent of the recipe, t = 1 the second."""

NUSLERP: Final = MethodSpec(
    "nuslerp",
    False,
    2,
    2,
    {"weight": weight(), "nuslerp_row_wise": flag(False), "nuslerp_flatten": flag(True)},
    takes_base=True,
)
"""SLERP with weights, of whole tensors, of rows or of columns; of deltas where there is a base."""

MULTISLERP: Final = MethodSpec(
    "multislerp",
    False,
    1,
    None,
    {"weight": weight(), "normalize_weights": flag(True), "eps": shared(1e-8, 0.0)},
    takes_base=True,
)
"""Mean direction and mean norm of several models, or of their deltas where there is a base."""

KARCHER: Final = MethodSpec("karcher", False, 1, None, {"max_iter": count(10, 0), "tol": shared(1e-5, 0.0)})
"""The Karcher (Riemannian) mean of the models' directions on the sphere, all of one weight."""

TASK_ARITHMETIC: Final = MethodSpec(
    "task_arithmetic", True, 1, None, {"weight": weight(), "normalize": flag(False), "lambda": shared(1.0)}
)
"""Base plus lambda times the weighted sum of the deltas (arXiv 2212.04089)."""

TIES: Final = MethodSpec(
    "ties",
    True,
    1,
    None,
    {
        "weight": weight(),
        "density": density(),
        "normalize": flag(True),
        "rescale": flag(False),
        "lambda": shared(1.0),
    },
)
"""Trim by magnitude, elect a sign, sum the deltas that agree (arXiv 2306.01708)."""

DARE_LINEAR: Final = MethodSpec(
    "dare_linear",
    True,
    1,
    None,
    {
        "weight": weight(),
        "density": density(),
        "normalize": flag(False),
        "rescale": flag(True),
        "lambda": shared(1.0),
    },
    random=True,
)
"""Drop deltas at random, rescale the rest, then task arithmetic (arXiv 2311.03099)."""

DARE_TIES: Final = MethodSpec("dare_ties", True, 1, None, DARE_LINEAR.parameters, random=True)
"""Drop deltas at random, rescale the rest, then elect signs as TIES does."""

DELLA: Final = MethodSpec(
    "della",
    True,
    1,
    None,
    {
        "weight": weight(),
        "density": density(),
        "epsilon": _EPSILON,
        "normalize": flag(True),
        "rescale": flag(True),
        "lambda": shared(1.0),
    },
    random=True,
)
"""Drop deltas at random, small ones of a row more often, rescale, elect signs (arXiv 2406.11617)."""

DELLA_LINEAR: Final = MethodSpec(
    "della_linear", True, 1, None, {**DELLA.parameters, "normalize": flag(False)}, random=True
)
"""DELLA's drops without the election of signs."""

BREADCRUMBS: Final = MethodSpec(
    "breadcrumbs",
    True,
    1,
    None,
    {
        "weight": weight(),
        "density": density(),
        "gamma": _GAMMA,
        "normalize": flag(False),
        "rescale": flag(False),
        "lambda": shared(1.0),
    },
)
"""Drop the largest share gamma and the smallest deltas, keep what lies between (Davari and Belilovsky 2023)."""

BREADCRUMBS_TIES: Final = MethodSpec("breadcrumbs_ties", True, 1, None, BREADCRUMBS.parameters)
"""Breadcrumbs, then an election of signs."""

SCE: Final = MethodSpec("sce", True, 1, None, {"select_topk": shared(1.0, 0.0, 1.0)})
"""Select the entries that vary most, weigh models by their energy, erase minority signs (arXiv 2408.07990)."""

RAM: Final = MethodSpec("ram", True, 1, None, {"epsilon": shared(1e-5, 0.0)})
"""Keep what one model alone changed, average what several changed (arXiv 2601.13572)."""

RAMPLUS_TL: Final = MethodSpec(
    "ramplus_tl",
    True,
    1,
    None,
    {"epsilon": shared(1e-5, 0.0), "r": shared(0.1), "alpha": shared(0.2, 0.0)},
)
"""RAM with a model's own changes scaled up by its share of common ones, per tensor."""

MODEL_STOCK: Final = MethodSpec("model_stock", True, 2, None, {"filter_wise": flag(False)})
"""Between the base and the mean of the models, by the angle between deltas (arXiv 2403.19522)."""

NEARSWAP: Final = MethodSpec("nearswap", True, 1, 1, {"t": shared(None, 0.0)})
"""Where base and model are nearer than t the model, elsewhere t / distance of the way to it."""

ARCEE_FUSION: Final = MethodSpec("arcee_fusion", True, 1, 1, {})
"""Only the entries that matter, by magnitude times divergence of the row, are taken from the model."""

PASSTHROUGH: Final = MethodSpec(
    "passthrough", False, 1, 1, {"scale": ParameterSpec(per_parent=True, kind="real", default=1.0)}
)
"""One model as it is, or times `scale`."""

MERGEKIT_SPECS: Final = (
    LINEAR, SLERP, NUSLERP, MULTISLERP, KARCHER, TASK_ARITHMETIC, TIES, DARE_LINEAR, DARE_TIES, DELLA, DELLA_LINEAR,
    BREADCRUMBS, BREADCRUMBS_TIES, SCE, RAM, RAMPLUS_TL, MODEL_STOCK, NEARSWAP, ARCEE_FUSION, PASSTHROUGH,
)  # fmt: skip

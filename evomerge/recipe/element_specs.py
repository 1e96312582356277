"""Element-wise merge methods of the literature, and `universal`, which holds many of them: what each asks for."""

from __future__ import annotations

from typing import Final

from evomerge.recipe.method_spec import MethodSpec, ParameterSpec, count, density, flag, shared, weight

_WEIGHT: Final = ParameterSpec(per_parent=True, kind="real", default=1.0)
_SHARE: Final = ParameterSpec(per_parent=True, kind="real", default=0.0, low=0.0, high=1.0)

MAGMAX: Final = MethodSpec(
    "magmax", True, 1, None, {"weight": _WEIGHT, "lambda": shared(0.5)}, source="MagMax, arXiv 2407.06322, eq. 2"
)
"""Of all deltas of an entry the one of the largest magnitude, times lambda."""

EMR: Final = MethodSpec(
    "emr", True, 1, None, {"weight": _WEIGHT, "lambda": shared(1.0)}, source="EMR-Merging, arXiv 2405.17461, eq. 1"
)
"""The unified task vector: the elected sign with the largest magnitude of the deltas that have it."""

CONSENSUS: Final = MethodSpec(
    "consensus",
    True,
    1,
    None,
    {"weight": _WEIGHT, "strength": shared(0.4, 0.0), "votes": count(2, 0), "lambda": shared(1.0)},
    source="Consensus TA with TALL masks, arXiv 2405.07813, eq. 3 to 5",
)
"""Task arithmetic where at least `votes` models find their own delta in the sum."""

PCB: Final = MethodSpec(
    "pcb",
    True,
    1,
    64,
    {
        "weight": _WEIGHT,
        "ratio": shared(0.05, 0.0, 1.0),
        "clip": shared(0.01, 0.0, 0.49),
        "model_wide": flag(False),
    },
    source="PCB-Merging, arXiv 2410.02396",
)
"""Deltas averaged by how well they do in a competition within and between the models; the weights are its lambdas."""

TERNARY: Final = MethodSpec(
    "ternary",
    True,
    1,
    None,
    {
        "weight": weight(),
        "density": ParameterSpec(per_parent=True, kind="real", default=0.2, low=0.0, high=1.0),
        "alpha": ParameterSpec(per_parent=True, kind="real", default=1.0, low=0.0),
    },
    source="ComPEFT, arXiv 2311.13171, algorithm 1",
)
"""Task arithmetic of compressed deltas: the signs of the largest entries times alpha standard deviations."""

BINARY: Final = MethodSpec(
    "binary", True, 1, None, {"weight": weight()}, source="1bit-Merging, arXiv 2502.10743, as BitDelta starts"
)
"""Task arithmetic of compressed deltas: the signs of all entries times their mean magnitude."""

WIDEN: Final = MethodSpec(
    "widen",
    True,
    1,
    None,
    {"weight": _WEIGHT, "above_average": shared(1.0, 0.0), "score": shared(1.0, 0.0)},
    source="WIDEN, arXiv 2408.03092",
)
"""Deltas weighed by column, by the ranks of how much its magnitude and its direction changed."""

UNIVERSAL: Final = MethodSpec(
    "universal",
    True,
    1,
    None,
    {
        "weight": weight(),
        "density": density(),
        "dropout": _SHARE,
        "epsilon": ParameterSpec(per_parent=True, kind="real", default=0.0, low=0.0, high=0.5),
        "election": shared(0.0, 0.0, 1.0),
        "sharpness": shared(0.0, 0.0, 16.0),
        "norm": shared(0.0, 0.0, 1.0),
        "lambda": shared(1.0),
    },
    random=True,
    source="evomerge; TIES, DARE, DELLA, MagMax and OPCM's norm at its ends",
)
"""Task arithmetic with trimming, dropout, election, sharpening and a norm rule, each of which fades in from nothing."""

ELEMENT_SPECS: Final = (MAGMAX, EMR, CONSENSUS, PCB, TERNARY, BINARY, WIDEN, UNIVERSAL)

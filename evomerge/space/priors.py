"""First step sizes from the parents' task vectors: a weight that moves much of the model begins with smaller steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Final

from evomerge.space.base import CandidateSpace
from evomerge.space.both import BothSpace
from evomerge.space.depth import Site
from evomerge.space.merge_space import MergeSpace

LARGEST: Final = 2.0
"""Steps change at most by this factor: a norm says how far a weight moves a model, not how much that helps."""

Norm = Callable[[Site, str], float]
"""Norm of a model's delta over the tensors of a site; 0 where it is not known."""


def step_factors(space: CandidateSpace, norm: Norm) -> dict[str, float]:
    """Factors of the first standard deviations of weight genes, by gene; genes without an entry keep theirs.

    A step of a weight moves the model by the norm of the deltas that it scales, so equal moves in the space of weights
    are steps inversely proportional to that norm. Factors are relative to the median gene, and lie in [1/2, 2].

    Args:
        space: of merges, alone or together with paths; other spaces have no weights.
        norm: of the deltas.
    """
    merge = space.merge if isinstance(space, BothSpace) else space
    if not isinstance(merge, MergeSpace):
        return {}
    moves: dict[str, float] = {}
    for site in merge.sites:
        for slot, shares in merge.controls(site):
            if slot.parameter == "weight" and slot.parent is not None:
                for share in shares:
                    moves[share.control] = moves.get(share.control, 0.0) + (share.part * norm(site, slot.parent)) ** 2
    known = {name: math.sqrt(square) for name, square in moves.items() if square > 0 and math.isfinite(square)}
    if not known:
        return {}
    typical = statistics.median(known.values())
    return {name: round(min(LARGEST, max(1 / LARGEST, typical / move)), 3) for name, move in known.items()}

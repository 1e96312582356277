"""The estimators that stand by themselves, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from evomerge.irt.estimators.ability_based import GpIrt, PIrt
from evomerge.irt.estimators.anchors import Anchors
from evomerge.irt.estimators.base import Calibration, Estimator
from evomerge.irt.estimators.design import Mean, Ppi, Stratified
from evomerge.irt.estimators.parental import GmpIrt, GmpIrtSimplex, MpIrt, MpIrtSimplex, ParentsMap
from evomerge.irt.estimators.ridge import Ridge

WITHOUT_PARENTS: Final[tuple[type[Estimator], ...]] = (Mean, Stratified, Anchors, PIrt, GpIrt, Ridge)
WITH_PARENTS: Final[tuple[type[Estimator], ...]] = (MpIrt, GmpIrt, MpIrtSimplex, GmpIrtSimplex, ParentsMap, Ppi)

CLASSES: Final[Mapping[str, type[Estimator]]] = {kind.name: kind for kind in (*WITHOUT_PARENTS, *WITH_PARENTS)}
"""Name -> class, the constructor takes a calibration."""

NEED_PARENTS: Final[frozenset[str]] = frozenset(kind.name for kind in WITH_PARENTS)
"""Those that refuse a calibration without parents."""

BLENDED: Final[frozenset[str]] = frozenset({"gp-irt", "mp-irt", "gmp-irt", "gmp-irt-simplex"})
"""Blends of others, and what has a better version: `auto` blends by itself and needs none of them."""


def members(calibration: Calibration) -> tuple[str, ...]:
    """The estimators that `auto` considers for this calibration."""
    return tuple(n for n in CLASSES if n not in BLENDED and (calibration.parents or n not in NEED_PARENTS))

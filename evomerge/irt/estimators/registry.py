"""The estimators by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from evomerge.errors import ConfigError, suggest
from evomerge.irt.estimators.ability_based import GpIrt, PIrt
from evomerge.irt.estimators.anchors import Anchors
from evomerge.irt.estimators.base import Calibration, Estimator
from evomerge.irt.estimators.design import Mean, Ppi, Stratified
from evomerge.irt.estimators.parental import GmpIrt, GmpIrtSimplex, MpIrt, MpIrtSimplex, ParentsMap
from evomerge.irt.estimators.ridge import Ridge

_CLASSES: Final[Mapping[str, type[Estimator]]] = {
    kind.name: kind
    for kind in (
        Mean,
        Stratified,
        Anchors,
        PIrt,
        GpIrt,
        MpIrt,
        GmpIrt,
        MpIrtSimplex,
        GmpIrtSimplex,
        ParentsMap,
        Ridge,
        Ppi,
    )
}

ESTIMATORS: Final[tuple[str, ...]] = tuple(_CLASSES)
"""Names for `make_estimator`."""

NEED_PARENTS: Final[frozenset[str]] = frozenset(
    {"mp-irt", "gmp-irt", "mp-irt-simplex", "gmp-irt-simplex", "parents-map", "ppi"}
)
"""Those that refuse a calibration without parents."""


def make_estimator(name: str, calibration: Calibration) -> Estimator:
    """An estimator by its name.

    Raises:
        ConfigError: there is no such estimator, or it needs parents and the calibration has none.
    """
    if name not in _CLASSES:
        raise ConfigError(
            "there is no such estimator",
            got=repr(name),
            allowed=suggest(name, ESTIMATORS),
            fix="name one of these, or leave the choice to `auto`",
        )
    return _CLASSES[name](calibration)


def possible(calibration: Calibration) -> tuple[str, ...]:
    """The estimators that this calibration has enough for."""
    return tuple(name for name in ESTIMATORS if calibration.parents or name not in NEED_PARENTS)

"""Estimators by name, `auto` among them."""

from __future__ import annotations

from typing import Final

from evomerge.errors import ConfigError, suggest
from evomerge.irt.estimators.base import Calibration, Estimator
from evomerge.irt.estimators.choice import Auto
from evomerge.irt.estimators.table import CLASSES, NEED_PARENTS

__all__ = ["ESTIMATORS", "NEED_PARENTS", "make_estimator"]

ESTIMATORS: Final[tuple[str, ...]] = tuple(CLASSES)
"""Names of the single estimators; `make_estimator` takes `auto`, too."""


def make_estimator(name: str, calibration: Calibration) -> Estimator:
    """An estimator by its name.

    Raises:
        ConfigError: there is no such estimator, or it needs parents and the calibration has none.
    """
    if name == Auto.name:
        return Auto(calibration)
    if name not in CLASSES:
        raise ConfigError(
            "there is no such estimator",
            got=repr(name),
            allowed=suggest(name, [Auto.name, *ESTIMATORS]),
            fix="name one of these, or leave the choice to `auto`",
        )
    return CLASSES[name](calibration)

"""Rules that mergekit 0.1.5 would stop at, or answer with NaN, found before any tensor is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.errors import RecipeError
from evomerge.recipe.recipe import Number

_NORMALISED = {"linear": "normalize", "multislerp": "normalize_weights"}


def check_compat_rule(
    method: str, shared: Mapping[str, Number], per_parent: Sequence[Mapping[str, Number]], parents: Sequence[str]
) -> None:
    """Refuse what `compat: mergekit` cannot merge.

    Args:
        method: a method of mergekit.
        shared: complete.
        per_parent: complete, aligned with `parents`.
        parents: the merged models.

    Raises:
        RecipeError: for weights that are normalised and sum to zero (in fp32), where mergekit divides by zero, and
            for della's probabilities outside (0, 1), where it stops.
    """
    flag = _NORMALISED.get(method)
    if flag is not None and shared[flag]:
        _check_sum(method, flag, [float(row["weight"]) for row in per_parent])
    if method in {"della", "della_linear"}:
        for row, parent in zip(per_parent, parents, strict=True):
            _check_probabilities(method, float(row["density"]), float(row["epsilon"]), parent)


def _check_sum(method: str, flag: str, weights: Sequence[float]) -> None:
    single = len(weights) == 1 and method == "multislerp"  # returned as it is
    if not single and np.sum(np.array(weights, dtype=np.float32)) == 0:
        raise RecipeError(
            f"Method {method!r} cannot normalise weights that sum to zero; mergekit would write NaN.",
            got=f"weights {weights}",
            allowed=f"weights of another sum, or {flag}: false",
            fix="change a weight.",
        )


def _check_probabilities(method: str, density: float, epsilon: float, parent: str) -> None:
    dropped = 0 < density < 1
    if dropped and not 0 < density - epsilon <= density + epsilon < 1:
        raise RecipeError(
            f"Method {method!r} draws with probabilities from density - epsilon to density + epsilon.",
            got=f"density = {density}, epsilon = {epsilon} of parent {parent}",
            allowed="both strictly between 0 and 1, or a density of 0 or 1",
            fix="use a smaller epsilon.",
        )

"""Methods that are one linear combination per tensor: linear, SLERP, task arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal, final

import numpy as np
import numpy.typing as npt

from evomerge.merging.methods import Facts, KernelMethod, Parameters
from evomerge.merging.settings import LinearSetting, Setting, VectorSetting, single
from evomerge.recipe.mergekit_specs import LINEAR, PASSTHROUGH, SLERP, TASK_ARITHMETIC

_SMALLEST_SHARE: Final = 0.1
_SMALLEST_SINE: Final = 1e-4


def guarded_sum(weights: Sequence[float]) -> float:
    """The divisor of normalised sums: the sum of the weights, kept away from zero.

    Weights of both signs may cancel, and dividing by next to nothing blows a model up. The divisor's magnitude is
    therefore at least a tenth of the sum of magnitudes, with the sum's sign. (mergekit divides by the bare sum.)

    Returns:
        A number that is not zero; 1 when all weights are.
    """
    total, magnitude = math.fsum(weights), math.fsum(abs(w) for w in weights)
    if magnitude == 0.0:
        return 1.0
    return math.copysign(max(abs(total), _SMALLEST_SHARE * magnitude), total)


def linear_setting(coefficients: Sequence[float], *, deltas: bool) -> LinearSetting:
    """A linear setting without its zero coefficients.

    A lone delta with coefficient 1 is the input itself, so the base is not subtracted and added again: the result is
    that input bit for bit in every dtype.
    """
    rounded = [single(c) for c in coefficients]
    live = tuple(i for i, c in enumerate(rounded) if c != 0.0)
    values = tuple(rounded[i] for i in live)
    return LinearSetting(live, values, deltas and values != (1.0,))


def vector_setting(coefficients: npt.NDArray[np.float64], length: int, *, columns: bool, deltas: bool) -> Setting:
    """A linear setting with coefficients for every row or column.

    Args:
        coefficients: shape `(n, vectors)`; inputs whose coefficients are all zero are left out.
        length: elements per vector.
        columns: vectors run along the first axis, else along the last.
        deltas: whether the base's differences are summed.
    """
    rounded = coefficients.astype(np.float32)
    live = tuple(i for i, row in enumerate(rounded) if row.any())
    if not live:
        return LinearSetting((), (), deltas)
    by: Literal["rows", "columns"] = "columns" if columns else "rows"
    return VectorSetting(live, rounded[list(live)].tobytes(), rounded.shape[1], length, by, deltas)


@final
class Passthrough(KernelMethod):
    """`scale x`: one model as it is, or scaled; the base plays no part."""

    spec = PASSTHROUGH

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        del facts
        return linear_setting(parameters.column("scale"), deltas=False)


@final
class Linear(KernelMethod):
    """`sum_i w_i x_i`, divided by the sum of the weights when `normalize` (model soups, arXiv 2203.05482).

    All weights zero: the plain mean when `normalize`, zeros otherwise.
    """

    spec = LINEAR

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        weights = parameters.column("weight")
        if parameters.shared["normalize"]:
            weights = weights if any(weights) else (1.0,) * len(weights)
            divisor = guarded_sum(weights)
            weights = tuple(w / divisor for w in weights)
        return linear_setting(weights, deltas=False)


def slerp_coefficients(t: float, aa: float, ab: float, bb: float) -> tuple[float, float]:
    """Coefficients of two tensors on the great circle between their directions (Shoemake 1985).

    Args:
        t: 0 is the first, 1 the second tensor.
        aa: squared norm of the first.
        ab: inner product.
        bb: squared norm of the second.

    Returns:
        `sin((1-t) theta)/sin(theta)` and `sin(t theta)/sin(theta)`; those of the straight line where a tensor
        vanishes or the two are parallel or opposite (sine below 1e-4; mergekit gives up at |cosine| > 0.9995).
    """
    if t in (0.0, 1.0) or aa <= 0.0 or bb <= 0.0:
        return 1.0 - t, t
    cosine = max(-1.0, min(1.0, ab / (math.sqrt(aa) * math.sqrt(bb))))
    theta = math.acos(cosine)
    sine = math.sin(theta)
    if sine < _SMALLEST_SINE:
        return 1.0 - t, t
    return math.sin((1.0 - t) * theta) / sine, math.sin(t * theta) / sine


@final
class Slerp(KernelMethod):
    """Spherical interpolation of two models, the whole tensor as one vector; t = 0 is the first (Shoemake 1985).

    `(sin((1 - t) theta) x_0 + sin(t theta) x_1) / sin(theta)` with theta the angle between the two.
    """

    spec = SLERP

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        t = float(parameters.shared["t"])
        if t in (0.0, 1.0):
            return linear_setting((1.0 - t, t), deltas=False)
        gram = facts.gram()
        coefficients = slerp_coefficients(t, float(gram[0, 0]), float(gram[0, 1]), float(gram[1, 1]))
        return linear_setting(coefficients, deltas=False)


def delta_coefficients(parameters: Parameters) -> tuple[float, ...]:
    """`lambda w_i`, over the guarded sum of the weights when `normalize`: coefficients of deltas, in fp64."""
    weights = parameters.column("weight")
    divisor = guarded_sum(weights) if parameters.shared["normalize"] else 1.0
    scale = float(parameters.shared["lambda"])
    return tuple(scale * (w / divisor) for w in weights)


@final
class TaskArithmetic(KernelMethod):
    """`base + lambda sum_i w_i (x_i - base)` (arXiv 2212.04089)."""

    spec = TASK_ARITHMETIC

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        return linear_setting(delta_coefficients(parameters), deltas=True)


LINEAR_METHOD: Final = Linear()
SLERP_METHOD: Final = Slerp()
TASK_ARITHMETIC_METHOD: Final = TaskArithmetic()
PASSTHROUGH_METHOD: Final = Passthrough()

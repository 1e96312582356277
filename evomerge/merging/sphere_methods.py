"""Means on the sphere: NuSLERP, multi-SLERP, the Karcher mean. All are sums whose coefficients come from Gram matrices.

Norms and angles are fp64 (mergekit computes them in the stored dtype), the sums themselves are the linear kernel's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, final

import numpy as np
import numpy.typing as npt

from evomerge.merging.gram import vector_length
from evomerge.merging.linear_methods import guarded_sum, linear_setting, slerp_coefficients, vector_setting
from evomerge.merging.methods import Facts, KernelMethod, Parameters
from evomerge.merging.settings import Setting
from evomerge.recipe.mergekit_specs import KARCHER, MULTISLERP, NUSLERP

Gram = npt.NDArray[np.float64]

_VANISHING: Final = 1e-7
"""A mean of unit vectors that is shorter has no direction: its square, from inner products, is rounding."""


@final
class NuSlerp(KernelMethod):
    """SLERP (Shoemake 1985) to the share `w_1 / (w_0 + w_1)` of the second model, or of its delta if there is a base.

    `nuslerp_flatten`: the tensor is one vector. Otherwise every vector has an angle of its own: along the last axis, or
    along the first with `nuslerp_row_wise` (the name is mergekit's). Vectors that are parallel, opposite (sine below
    1e-4) or zero take the straight line. The weights' sum is kept away from zero as in `linear`; both zero is half way.
    """

    spec = NUSLERP

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        weights = parameters.column("weight")
        t = weights[1] / guarded_sum(weights) if any(weights) else 0.5
        if t in (0.0, 1.0) or facts.numel == 0:
            return linear_setting((1.0 - t, t), deltas=facts.has_base)
        if parameters.shared["nuslerp_flatten"]:
            gram = facts.gram(deltas=facts.has_base)
            return linear_setting(_pair(t, gram), deltas=facts.has_base)
        columns = bool(parameters.shared["nuslerp_row_wise"])
        grams = facts.vector_grams(deltas=facts.has_base, columns=columns)
        products_of = (grams[:, i, j].tolist() for i, j in ((0, 0), (0, 1), (1, 1)))
        coefficients = np.array([slerp_coefficients(t, *products) for products in zip(*products_of, strict=True)]).T
        length = vector_length(facts.shape, columns=columns)
        return vector_setting(coefficients, length, columns=columns, deltas=facts.has_base)


def _pair(t: float, gram: Gram) -> tuple[float, float]:
    return slerp_coefficients(t, float(gram[0, 0]), float(gram[0, 1]), float(gram[1, 1]))


@final
class MultiSlerp(KernelMethod):
    """The weighted mean direction of several models, or of their deltas, times the weighted mean of their norms.

    With unit vectors `u_i = x_i / (|x_i| + eps)` and `m = sum w_i u_i` the result is `m / |m|` times the mean norm.
    (mergekit, whose method this is, adds a step in the tangent space at m, which is zero by construction.) Weights of
    one sign give mergekit's norm `|sum w_i |x_i||`; where signs differ, norms are averaged by magnitudes of weights, so
    that a negative weight turns the direction and never the sign of the whole. Where m vanishes there is no direction:
    the plain weighted sum is taken (mergekit refuses that for more than two models).
    """

    spec = MULTISLERP

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        weights = parameters.column("weight")
        if parameters.shared["normalize_weights"]:
            weights = weights if any(weights) else (1.0,) * len(weights)
            weights = tuple(w / guarded_sum(weights) for w in weights)
        if sum(w != 0.0 for w in weights) <= 1:
            return linear_setting(weights, deltas=facts.has_base)
        gram = facts.gram(deltas=facts.has_base)
        return linear_setting(
            multislerp_coefficients(weights, gram, float(parameters.shared["eps"])), deltas=facts.has_base
        )


def multislerp_coefficients(weights: Sequence[float], gram: Gram, eps: float) -> tuple[float, ...]:
    """Coefficients of multi-SLERP, from the inner products of the vectors; the weights where there is no direction."""
    norms = [math.sqrt(max(float(gram[i, i]), 0.0)) for i in range(len(weights))]
    shares = [w / (n + eps) if n > 0.0 else 0.0 for w, n in zip(weights, norms, strict=True)]
    length = math.sqrt(max(_form(shares, gram), 0.0))
    size = math.fsum(abs(w) for w in weights)
    if size == 0.0 or length <= max(eps, _VANISHING * size):
        return tuple(weights)
    norm = abs(math.fsum(weights)) * math.fsum(abs(w) * n for w, n in zip(weights, norms, strict=True)) / size
    return tuple(s * norm / length for s in shares)


def _form(c: Sequence[float], gram: Gram) -> float:
    """`c' G c`, in a fixed order."""
    return math.fsum(a * b * float(gram[i, j]) for i, a in enumerate(c) for j, b in enumerate(c))


@final
class Karcher(KernelMethod):
    """The Karcher mean of the models' directions on the sphere, times the mean of their norms; all models alike.

    Iterates `m <- exp_m(mean_i log_m(u_i))` from the normalised mean until the step is shorter than `tol`, on the
    coefficients of m: every vector is a sum of the u_i, so inner products suffice. Tensors of zeros have no direction
    and count in the mean norm. Directions that cancel from the start have no mean: the plain mean is taken (mergekit,
    whose method this is, starts from the first model).
    """

    spec = KARCHER

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        n = len(parameters.parents)
        if n == 1:
            return linear_setting((1.0,), deltas=False)
        shared = parameters.shared
        coefficients = karcher_coefficients(facts.gram(), int(shared["max_iter"]), float(shared["tol"]))
        return linear_setting(coefficients, deltas=False)


def karcher_coefficients(gram: Gram, max_iter: int, tol: float) -> tuple[float, ...]:
    """Coefficients of the Karcher mean, from the inner products of n vectors; 1 / n where there is none."""
    n = len(gram)
    norms = [math.sqrt(max(float(gram[i, i]), 0.0)) for i in range(n)]
    live = [i for i in range(n) if norms[i] > 0.0]
    cosines = np.array([[float(gram[i, j]) / (norms[i] * norms[j]) for j in live] for i in live])
    shares = _scaled([1.0 / max(len(live), 1)] * len(live), cosines) if live else None
    if shares is None:
        return (1.0 / n,) * n
    for _ in range(max_iter):
        tangent = _log_mean(shares, cosines)
        step = math.sqrt(max(_form(tangent, cosines), 0.0))
        if step < tol:
            break
        moved = [math.cos(step) * s + math.sin(step) / step * t for s, t in zip(shares, tangent, strict=True)]
        shares = _scaled(moved, cosines) or shares
    norm, coefficients = math.fsum(norms) / n, [0.0] * n
    for i, share in zip(live, shares, strict=True):
        coefficients[i] = norm * share / norms[i]
    return tuple(coefficients)


def _scaled(shares: list[float], cosines: Gram) -> list[float] | None:
    """The shares of the unit vector in the same direction; None without one."""
    length = math.sqrt(max(_form(shares, cosines), 0.0))
    return [s / length for s in shares] if length > _VANISHING else None


def _log_mean(shares: Sequence[float], cosines: Gram) -> list[float]:
    """The shares of the mean of the logarithms of the unit vectors at the mean."""
    n = len(shares)
    tangent = [0.0] * n
    for i in range(n):
        dot = math.fsum(s * float(cosines[i, j]) for j, s in enumerate(shares))
        theta = math.acos(max(-1.0, min(1.0, dot)))
        # opposite to the mean every direction is as near: it pulls nowhere
        factor = theta / math.sin(theta) / n if 1e-12 < theta < math.pi - 1e-9 else 0.0
        tangent[i] += factor
        tangent = [t - factor * dot * s for t, s in zip(tangent, shares, strict=True)]
    return tangent


NUSLERP_METHOD: Final = NuSlerp()
MULTISLERP_METHOD: Final = MultiSlerp()
KARCHER_METHOD: Final = Karcher()

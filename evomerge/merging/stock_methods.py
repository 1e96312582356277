"""Model Stock: how far to go from the base to the mean of the models, by the angle between their deltas."""

from __future__ import annotations

from typing import Final, final

import numpy as np
import numpy.typing as npt

from evomerge.merging.gram import vector_length
from evomerge.merging.linear_methods import linear_setting, vector_setting
from evomerge.merging.methods import Facts, KernelMethod, Parameters
from evomerge.merging.settings import Setting
from evomerge.recipe.mergekit_specs import MODEL_STOCK


def stock_share(grams: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """`t = N c / (1 + (N - 1) c)` with c the mean cosine of all pairs of deltas, kept within [0, 1].

    Args:
        grams: inner products of the N deltas, shape `(vectors, N, N)`; a delta of zeros has the cosine 0 with all.

    Returns:
        Shape `(vectors,)`.
    """
    n = grams.shape[1]
    norms = np.sqrt(np.maximum(np.einsum("vii->vi", grams), 0.0))
    total = np.zeros(len(grams))
    for i in range(n):
        for j in range(i + 1, n):
            product = norms[:, i] * norms[:, j]
            total += np.clip(np.divide(grams[:, i, j], product, out=np.zeros(len(grams)), where=product > 0.0), -1, 1)
    cosine = np.maximum(total / (n * (n - 1) / 2), 0.0)
    share: npt.NDArray[np.float64] = np.clip(n * cosine / (1.0 + (n - 1) * cosine), 0.0, 1.0)
    return share


@final
class ModelStock(KernelMethod):
    """`base + t (mean of the models - base)` with t from the angle between the deltas (arXiv 2403.19522).

    One t per tensor, or per row (last axis) with `filter_wise`. t stays within [0, 1]: deltas that point apart on
    average (c < 0) leave the base, where mergekit goes away from the models, without bound near c = -1 / (N - 1).
    Norms are not held above 1e-6, which in mergekit switches the method off for small tensors.
    """

    spec = MODEL_STOCK

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        n = len(parameters.parents)
        if not parameters.shared["filter_wise"] or facts.numel == 0:
            share = float(stock_share(facts.gram(deltas=True)[None])[0])
            return linear_setting((share / n,) * n, deltas=True)
        shares = stock_share(facts.vector_grams(deltas=True, columns=False)) / n
        length = vector_length(facts.shape, columns=False)
        return vector_setting(np.broadcast_to(shares, (n, len(shares))), length, columns=False, deltas=True)


MODEL_STOCK_METHOD: Final = ModelStock()

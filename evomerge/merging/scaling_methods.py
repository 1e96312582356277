"""Sums of models whose coefficients the papers choose: LiNeS, FedLAW, ExPO, MetaGPT."""

from __future__ import annotations

import math
from typing import Final, final

from evomerge.merging.linear_methods import linear_setting
from evomerge.merging.methods import Facts, KernelMethod, Parameters
from evomerge.merging.settings import Setting
from evomerge.recipe.paper_specs import EXPO, FEDLAW, LINES, METAGPT
from evomerge.recipe.shares import softmax


@final
class Lines(KernelMethod):
    """Task arithmetic whose strength grows linearly over the layers (LiNeS, Wang et al. 2024, arXiv 2410.17146).

    `base + (alpha + beta l / (L - 1)) sum_i w_i (x_i - base)` in layer l of L; what stands outside the layers, and a
    model of one layer, take alpha. With all weights 1 the authors set `alpha = 1 / N` and search beta; with weights
    1 / N that is alpha = 1.
    """

    spec = LINES

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        del facts
        layer, last = parameters.layer, parameters.n_layers - 1
        depth = layer / last if layer is not None and last > 0 else 0.0
        strength = float(parameters.shared["alpha"]) + float(parameters.shared["beta"]) * depth
        return linear_setting([strength * w for w in parameters.column("weight")], deltas=True)


@final
class FedLaw(KernelMethod):
    """`gamma sum_i softmax(logit)_i x_i`: shares that add up to one, and a shrinking factor (arXiv 2302.10911).

    The paper learns the numbers on proxy data; here they are parameters, and gamma below 1 decays the weights.
    """

    spec = FEDLAW

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        del facts
        gamma = float(parameters.shared["gamma"])
        return linear_setting([gamma * s for s in softmax(parameters.column("logit"))], deltas=False)


@final
class Expo(KernelMethod):
    """`x + alpha (x - base)`: further along the way that training went (ExPO, Zheng et al. 2024, arXiv 2404.16792)."""

    spec = EXPO

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        del facts
        return linear_setting((1.0 + float(parameters.shared["alpha"]),), deltas=True)


@final
class MetaGpt(KernelMethod):
    """Task arithmetic with `w_i = |delta_i|^2 / sum_j |delta_j|^2` over the whole model (arXiv 2406.11385).

    Lambda is an addition; 1 is the paper's method. Models that all equal the base leave it.
    """

    spec = METAGPT

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        gram = facts.model_gram()
        energies = [float(gram[i, i]) for i in range(len(gram))]
        total = math.fsum(energies)
        scale = float(parameters.shared["lambda"])
        return linear_setting([scale * (e / total) if total > 0.0 else 0.0 for e in energies], deltas=True)


LINES_METHOD: Final = Lines()
FEDLAW_METHOD: Final = FedLaw()
EXPO_METHOD: Final = Expo()
METAGPT_METHOD: Final = MetaGpt()

"""The optimizers by name. `auto` is not one of them: `auto.choose` picks one of these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from evomerge.errors import PluginError
from evomerge.optimizers.base import Optimizer, Problem
from evomerge.registry import GROUP_OPTIMIZERS, Registry

OPTIMIZERS: Final = Registry(
    group=GROUP_OPTIMIZERS,
    noun="optimizer",
    taken=("auto",),
    builtin={
        "cma": "evomerge.optimizers.pycma:full_cma",
        "sep-cma": "evomerge.optimizers.pycma:separable_cma",
        "lra-cma": "evomerge.optimizers.lra:lra_cma",
        "catcmawm": "evomerge.optimizers.catcmawm:catcmawm",
        "como-catcmawm": "evomerge.optimizers.como:como_catcmawm",
        "nsga2": "evomerge.optimizers.optuna_methods:nsga2",
        "nsga3": "evomerge.optimizers.optuna_methods:nsga3",
        "tpe": "evomerge.optimizers.optuna_methods:tpe",
        "gp": "evomerge.optimizers.optuna_methods:gp",
        "evolve": "evomerge.optimizers.evolve:evolve",
        "scan": "evomerge.optimizers.scan:scan",
        "random": "evomerge.optimizers.random_search:random_search",
    },
)
"""Every entry is a factory `(problem, options) -> Optimizer`."""


def make_optimizer(name: str, problem: Problem, options: Mapping[str, Any]) -> Optimizer:
    """The optimizer `name` for `problem`.

    Args:
        name: a name of `OPTIMIZERS`.
        problem: what is optimised.
        options: what the job says beside the name.

    Raises:
        ConfigError: for an unknown name, then for options that the optimizer does not accept.
        PluginError: when a plug-in does not load, or its factory returns something else.
    """
    factory = OPTIMIZERS.load(name)
    optimizer = factory(problem, options) if callable(factory) else factory
    if not isinstance(optimizer, Optimizer):
        raise PluginError(
            f"The factory of the optimizer {name!r} did not return an optimizer.",
            got=type(optimizer).__name__,
            allowed="an instance of evomerge.optimizers.base.Optimizer",
            fix=f"repair the plug-in that brings {name!r}.",
        )
    return optimizer

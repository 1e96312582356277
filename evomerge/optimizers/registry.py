"""The optimizers by name. `auto` is not one of them: `auto.choose` picks one of these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from evomerge.errors import ConfigError, PluginError
from evomerge.optimizers.base import Optimizer, Problem, Stream
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


ASYNCHRONOUS: Final = (
    "cma",
    "sep-cma",
    "lra-cma",
    "catcmawm",
    "nsga2",
    "nsga3",
    "tpe",
    "gp",
    "evolve",
    "scan",
    "random",
)
"""Those of the package that can do without generations; a plug-in's own word counts (`Optimizer.stream`)."""


def stream_of(name: str, optimizer: Optimizer) -> Stream:
    """A fresh optimizer as one that can do without generations.

    Args:
        name: of the optimizer, for the message.
        optimizer: fresh; it is not to be used besides.

    Raises:
        ConfigError: when it needs generations.
    """
    stream = optimizer.stream()
    if stream is None:
        raise ConfigError(
            f"The optimizer {name!r} needs whole generations.",
            got=f"optimizer: {{name: {name}, asynchronous: true}}",
            allowed=f"asynchronous: false, or one of {', '.join(ASYNCHRONOUS)}",
            fix="leave optimizer.asynchronous out, or choose another optimizer.",
        )
    return stream


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

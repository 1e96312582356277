"""The methods of Optuna (NSGA-II, NSGA-III, TPE, GP) as factories with checked options."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from evomerge.optimizers.base import Optimizer, Problem
from evomerge.optimizers.options import Option, read_options
from evomerge.optimizers.optuna_strategy import MakeSampler, OptunaStrategy
from evomerge.optimizers.protocol import AskTell
from evomerge.optimizers.variation import variation

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


def default_population(budget: int) -> int:
    """About twenty generations within the budget, between 16 and 50 candidates each."""
    return min(50, max(16, budget // 20))


def _genetic_options(problem: Problem) -> dict[str, Option]:
    return {
        "population": Option(default_population(problem.budget), 4, 10_000, "candidates per generation"),
        "spread": Option(1.0, 1e-3, 10.0, "multiplies the space's spreads in the first generation"),
    }


def _model_options(batch: int) -> dict[str, Option]:
    return {
        "population": Option(batch, 1, 64, "candidates per batch"),
        "startup": Option(10, 2, 10_000, "candidates around the start before the model is asked"),
        "spread": Option(1.0, 1e-3, 10.0, "multiplies the space's spreads in the first batch"),
    }


def nsga2(problem: Problem, options: Mapping[str, Any]) -> Optimizer:
    """NSGA-II (Deb et al. 2002) with constrained domination.

    Raises:
        ConfigError: for an option that is unknown or out of range.
    """
    chosen = read_options("nsga2", options, _genetic_options(problem))

    def sampler(seed: int) -> BaseSampler:
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(population_size=chosen["population"], seed=seed, **variation(problem))

    return _optimizer(problem, sampler, chosen["population"], chosen["population"], chosen["spread"])


def reference_divisions(n_objectives: int, population: int) -> int:
    """Largest p for which the simplex lattice, of `C(m + p - 1, p)` points, is not larger than the population."""
    p = 1
    while n_objectives > 1 and math.comb(n_objectives + p, p + 1) <= population:
        p += 1
    return p


def nsga3(problem: Problem, options: Mapping[str, Any]) -> Optimizer:
    """NSGA-III (Deb and Jain 2014), for more than three objectives.

    Raises:
        ConfigError: for an option that is unknown or out of range.
    """
    chosen = read_options("nsga3", options, _genetic_options(problem))
    divisions = reference_divisions(problem.n_objectives, chosen["population"])

    def sampler(seed: int) -> BaseSampler:
        from optuna.exceptions import ExperimentalWarning
        from optuna.samplers import NSGAIIISampler

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return NSGAIIISampler(
                population_size=chosen["population"],
                seed=seed,
                dividing_parameter=divisions,
                **variation(problem),
            )

    return _optimizer(problem, sampler, chosen["population"], chosen["population"], chosen["spread"])


def tpe(problem: Problem, options: Mapping[str, Any]) -> Optimizer:
    """Tree-structured Parzen estimator (Bergstra et al. 2011), multivariate, several objectives.

    Raises:
        ConfigError: for an option that is unknown or out of range.
    """
    chosen = read_options("tpe", options, _model_options(4))

    def sampler(seed: int) -> BaseSampler:
        from optuna.samplers import TPESampler

        return TPESampler(n_startup_trials=chosen["startup"], seed=seed)

    return _optimizer(problem, sampler, chosen["population"], chosen["startup"], chosen["spread"])


def gp(problem: Problem, options: Mapping[str, Any]) -> Optimizer:
    """Bayesian optimisation with a Gaussian process, for budgets of tens of evaluations.

    Raises:
        ConfigError: for an option that is unknown or out of range.
    """
    chosen = read_options("gp", options, _model_options(2))

    def sampler(seed: int) -> BaseSampler:
        from optuna.samplers import GPSampler

        return GPSampler(n_startup_trials=chosen["startup"], seed=seed)

    return _optimizer(problem, sampler, chosen["population"], chosen["startup"], chosen["spread"], mark_failures=False)


def _optimizer(
    problem: Problem, sampler: MakeSampler, batch: int, first: int, spread: float, *, mark_failures: bool = True
) -> Optimizer:
    strategy = OptunaStrategy(problem, sampler, batch=batch, first=first, spread=spread, mark_failures=mark_failures)
    return AskTell(problem, strategy)

"""Options and names: what is accepted, what is refused, and what is said."""

from dataclasses import replace

import numpy as np
import pytest

from evomerge.errors import ConfigError, PluginError
from evomerge.optimizers import registry
from evomerge.optimizers.auto import choose
from evomerge.optimizers.base import Problem
from evomerge.optimizers.cmaes import default_population
from evomerge.optimizers.options import Option, read_options
from evomerge.optimizers.optuna_methods import default_population as generation_size
from evomerge.optimizers.optuna_methods import reference_divisions
from evomerge.optimizers.registry import OPTIMIZERS, make_optimizer
from evomerge.registry import GROUP_OPTIMIZERS, Registry
from evomerge.testing.problems import sphere, two_spheres
from evomerge.types import GeneKind

KNOWN = {"population": Option(12, 4, 100), "spread": Option(1.0, 0.1)}


def problem(dim: int = 4, n_objectives: int = 1, budget: int = 200) -> Problem:
    flat = np.full(dim, 0.5)
    return Problem(dim, n_objectives, 0, flat, flat, flat, budget, 0)


def test_defaults_fill_what_is_not_given() -> None:
    assert read_options("x", {}, KNOWN) == {"population": 12, "spread": 1.0}
    assert read_options("x", {"population": 20.0, "spread": 2}, KNOWN) == {"population": 20, "spread": 2.0}
    assert read_options("x", {"population": None}, KNOWN)["population"] == 12
    assert isinstance(read_options("x", {"spread": 2}, KNOWN)["spread"], float)


@pytest.mark.parametrize("value", [3, 101, 12.5, "12", True, float("nan"), [12]])
def test_bad_values_are_named_with_their_range(value: object) -> None:
    with pytest.raises(ConfigError, match="a whole number of at least 4 and at most 100") as error:
        read_options("cma", {"population": value}, KNOWN)
    assert repr(value) in error.value.got
    assert "the default (12)" in error.value.fix


def test_an_unknown_option_gets_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'spread'"):
        read_options("cma", {"spred": 1.0}, KNOWN)


@pytest.mark.parametrize("name", ["cma", "sep-cma", "lra-cma", "catcmawm"])
def test_one_objective_methods_name_the_others(name: str) -> None:
    with pytest.raises(ConfigError, match="nsga2, nsga3, evolve, tpe, gp and random take several"):
        make_optimizer(name, two_spheres(3).problem(), {})


def test_como_searches_two_objectives_and_no_other_number() -> None:
    with pytest.raises(ConfigError, match="searches two objectives") as error:
        make_optimizer("como-catcmawm", sphere(3).problem(), {})
    assert error.value.got == "1 objective"
    assert "catcmawm takes one" in error.value.allowed


def test_the_population_option_sets_the_batch() -> None:
    for name in ("cma", "sep-cma", "lra-cma", "catcmawm", "nsga2", "nsga3", "random"):
        assert len(make_optimizer(name, sphere(3).problem(), {"population": 7}).ask()) == 7


def test_evolve_begins_with_startup_and_goes_on_with_population() -> None:
    known = sphere(3)
    optimizer = make_optimizer("evolve", known.problem(), {"startup": 12, "population": 7})
    sizes = []
    for _ in range(3):
        asked = optimizer.ask()
        sizes.append(len(asked))
        optimizer.tell([known.told(v) for v in asked])
    assert sizes == [12, 7, 7]


def test_spread_scales_the_first_batch() -> None:
    for name in ("cma", "sep-cma", "lra-cma", "nsga2"):
        wide, narrow = (
            np.std(make_optimizer(name, sphere(6).problem(), {"population": 40, "spread": s}).ask(), axis=0).mean()
            for s in (1.0, 0.1)
        )
        assert narrow < 0.2 * wide


def test_an_unknown_optimizer_gets_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'nsga2'"):
        make_optimizer("nsag2", sphere(3).problem(), {})


def test_a_factory_that_returns_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = Registry(GROUP_OPTIMIZERS, "optimizer", {"odd": "evomerge.testing.problems:mixed_kinds"})
    monkeypatch.setattr(registry, "OPTIMIZERS", odd)
    monkeypatch.setattr("evomerge.testing.problems.mixed_kinds", lambda _problem, _options: 3)
    with pytest.raises(PluginError, match="int"):
        make_optimizer("odd", sphere(3).problem(), {})


@pytest.mark.parametrize(
    ("dim", "n_objectives", "budget", "mixed", "name"),
    [
        (10, 1, 60, False, "gp"),
        (10, 2, 60, True, "gp"),
        (20, 1, 61, False, "cma"),
        (21, 1, 200, False, "sep-cma"),
        (10, 1, 200, True, "evolve"),
        (10, 2, 200, False, "nsga2"),
        (10, 3, 200, True, "evolve"),
        (10, 4, 200, False, "nsga3"),
    ],
)
def test_auto_chooses_by_the_table(dim: int, n_objectives: int, budget: int, mixed: bool, name: str) -> None:
    choice = choose(problem(dim, n_objectives, budget), mixed)
    assert choice.name == name
    assert name in OPTIMIZERS.builtin
    assert len(choice.why) > 30
    assert len(make_optimizer(choice.name, problem(dim, n_objectives, budget), choice.options).ask()) >= 2


@pytest.mark.parametrize(
    ("n_discrete", "n_real", "name"),
    [(24, 0, "evolve"), (12, 12, "evolve"), (11, 12, "catcmawm"), (1, 18, "catcmawm"), (1, 400, "evolve")],
)
def test_auto_minds_the_share_of_discrete_genes(n_discrete: int, n_real: int, name: str) -> None:
    kinds = (*[GeneKind("choice", 3)] * n_discrete, *[GeneKind("real", 101)] * n_real)
    chosen = choose(replace(problem(len(kinds)), kinds=kinds), True)
    assert chosen.name == name
    assert f"{n_discrete} of {len(kinds)} genes are discrete" in chosen.why
    several = choose(replace(problem(len(kinds), 2), kinds=kinds), True)
    assert several.name == ("evolve" if n_discrete >= n_real else "nsga2")


@pytest.mark.parametrize(("dim", "questions", "name"), [(20, 49, "lra-cma"), (20, 50, "cma"), (21, 40, "sep-cma")])
def test_auto_minds_the_noise_of_few_questions(dim: int, questions: int, name: str) -> None:
    choice = choose(problem(dim, 1, 200), False, questions)
    assert choice.name == name
    assert name != "lra-cma" or str(questions) in choice.why


def test_default_sizes() -> None:
    assert [default_population(d) for d in (1, 6, 10, 30, 64)] == [6, 9, 10, 14, 16]
    assert [generation_size(b) for b in (40, 200, 400, 3000)] == [16, 16, 20, 50]


@pytest.mark.parametrize(("m", "population", "points"), [(2, 12, 12), (3, 50, 45), (4, 20, 20), (1, 10, 1)])
def test_reference_points_fill_the_population(m: int, population: int, points: int) -> None:
    from math import comb

    p = reference_divisions(m, population)
    assert comb(m + p - 1, p) == points <= population

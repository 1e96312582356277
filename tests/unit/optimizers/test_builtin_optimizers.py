"""Every built-in optimizer keeps the contract, and replays bit for bit in another process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import pytest

from evomerge.optimizers.base import Optimizer, Problem
from evomerge.optimizers.registry import OPTIMIZERS
from evomerge.testing.optimizer_suite import OptimizerSuite, load_factory, trace_digest


class TestCma(OptimizerSuite):
    factory = OPTIMIZERS.builtin["cma"]


class TestSeparableCma(OptimizerSuite):
    factory = OPTIMIZERS.builtin["sep-cma"]


class TestLraCma(OptimizerSuite):
    factory = OPTIMIZERS.builtin["lra-cma"]


class TestNsga2(OptimizerSuite):
    factory = OPTIMIZERS.builtin["nsga2"]
    options: ClassVar = {"population": 12}
    objectives = (1, 2)


class TestNsga3(OptimizerSuite):
    factory = OPTIMIZERS.builtin["nsga3"]
    options: ClassVar = {"population": 12}
    objectives = (1, 2)


class TestTpe(OptimizerSuite):
    factory = OPTIMIZERS.builtin["tpe"]
    objectives = (1, 2)
    budget = 120


class TestGp(OptimizerSuite):
    factory = OPTIMIZERS.builtin["gp"]
    options: ClassVar = {"startup": 8, "population": 1}
    objectives = (1, 2)
    budget = 20
    n_driven = 12


class TestCatCmawm(OptimizerSuite):
    factory = OPTIMIZERS.builtin["catcmawm"]


class TestComoCatCmawm(OptimizerSuite):
    factory = OPTIMIZERS.builtin["como-catcmawm"]
    objectives = (2,)
    budget = 300


class TestEvolve(OptimizerSuite):
    factory = OPTIMIZERS.builtin["evolve"]
    objectives = (1, 2)
    budget = 300


class TestScan(OptimizerSuite):
    factory = OPTIMIZERS.builtin["scan"]
    objectives = (1, 2)
    options: ClassVar = {"population": 6}
    kinds = ("mixed",)
    learns = False
    seeded = False
    n_driven = 40
    budget = 48


class TestRandom(OptimizerSuite):
    factory = OPTIMIZERS.builtin["random"]
    objectives = (1, 2)
    learns = False


OPTIONS = {
    OPTIMIZERS.builtin["gp"]: {"startup": 4, "population": 1},
    OPTIMIZERS.builtin["nsga2"]: {"population": 8},
    OPTIMIZERS.builtin["nsga3"]: {"population": 8},
}

SCRIPT = """
import json, sys
from evomerge.testing.optimizer_suite import load_factory, trace_digest
out = []
for spec, options, m, kinds in json.loads(sys.argv[1]):
    make = load_factory(spec)
    out.append(trace_digest(lambda problem: make(problem, options), m, 6, kinds))
print(json.dumps(out))
"""


Make = Callable[[Problem, dict[str, int]], Optimizer]


def _cases() -> list[tuple[str, dict[str, int], int, str]]:
    return [
        (cls.factory, OPTIONS.get(cls.factory, {}), m, kinds)
        for cls in OptimizerSuite.__subclasses__()
        for m in cls.objectives
        for kinds in cls.kinds
        if cls is not TestGp or (m == 1 and kinds == "real")  # it takes seconds
    ]


def _made(factory: Make, options: dict[str, int], problem: Problem) -> Optimizer:
    return factory(problem, options)


@pytest.fixture(scope="module")
def here() -> dict[str, str]:
    """What this process asks, in every case."""
    found = {}
    for case in _cases():
        spec, options, n_objectives, kinds = case
        make = partial(_made, load_factory(spec), options)
        found[str(case)] = trace_digest(make, n_objectives, 6, kinds)
    return found


@pytest.mark.parametrize("threads", ["1", "2"])
def test_replay_in_another_process_is_bit_identical(here: dict[str, str], threads: str) -> None:
    cases = _cases()
    env = {**os.environ, "PYTHONHASHSEED": "123", "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    command = [sys.executable, "-W", "error", "-c", SCRIPT, json.dumps(cases)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout)
    assert dict(zip(map(str, cases), there, strict=True)) == {str(case): here[str(case)] for case in cases}


def test_every_builtin_is_under_test() -> None:
    tested = {cls.factory for cls in OptimizerSuite.__subclasses__()}
    assert tested == set(OPTIMIZERS.builtin.values())

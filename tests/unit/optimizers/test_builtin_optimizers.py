"""Every built-in optimizer keeps the contract, and replays bit for bit in another process."""

import json
import os
import subprocess
import sys
from typing import ClassVar

import pytest

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


class TestRandom(OptimizerSuite):
    factory = OPTIMIZERS.builtin["random"]
    objectives = (1, 2)
    learns = False


OPTIONS = {"gp": {"startup": 4, "population": 1}, "nsga2": {"population": 8}, "nsga3": {"population": 8}}
MULTI = ("nsga2", "nsga3", "tpe", "random")

SCRIPT = """
import json, sys
from evomerge.testing.optimizer_suite import load_factory, trace_digest
out = []
for spec, options, m in json.loads(sys.argv[1]):
    make = load_factory(spec)
    out.append(trace_digest(lambda problem: make(problem, options), m))
print(json.dumps(out))
"""


def _cases() -> list[tuple[str, dict[str, int], int]]:
    single = [(OPTIMIZERS.builtin[name], OPTIONS.get(name, {}), 1) for name in sorted(OPTIMIZERS.builtin)]
    return [*single, *[(OPTIMIZERS.builtin[name], OPTIONS.get(name, {}), 2) for name in MULTI]]


@pytest.fixture(scope="module")
def here() -> list[str]:
    """What this process asks, in every case."""
    return [trace_digest(lambda p, s=s, o=o: load_factory(s)(p, o), m) for s, o, m in _cases()]


@pytest.mark.parametrize("threads", ["1", "2"])
def test_replay_in_another_process_is_bit_identical(here: list[str], threads: str) -> None:
    cases = _cases()
    env = {**os.environ, "PYTHONHASHSEED": "123", "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    command = [sys.executable, "-W", "error", "-c", SCRIPT, json.dumps(cases)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout)
    assert dict(zip(map(str, cases), there, strict=True)) == dict(zip(map(str, cases), here, strict=True))


def test_every_builtin_is_under_test() -> None:
    tested = {cls.factory for cls in OptimizerSuite.__subclasses__()}
    assert tested == set(OPTIMIZERS.builtin.values())

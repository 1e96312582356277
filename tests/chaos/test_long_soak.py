"""Thousands of small candidates: memory, open files, journal and the driver's time stay where they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]

JOBS = {
    "cma": [],
    "sep-cma": [],
    "nsga2": [],
    "raced": ["--optimizer", "sep-cma", "--questions", "{number: 10, race: halving, estimator: mean}"],
}


@pytest.mark.parametrize("name", JOBS)
def test_two_thousand_candidates(name: str) -> None:
    program = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--candidates", "2000", "--items", "50"]
    options = JOBS[name] or ["--optimizer", name]
    done = subprocess.run([*program, "--loaded", *options], capture_output=True, text=True, check=False)
    print(done.stdout)  # noqa: T201 - the figures, with `pytest -s`
    assert done.returncode == 0, done.stdout + done.stderr

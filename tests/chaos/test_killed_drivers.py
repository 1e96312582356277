"""Drivers that are killed, in full measure: every named place at three of its passes, and 300 random moments."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]


def run(program: str, *options: object) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / program), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)  # noqa: T201 - the figures, with `pytest -s`
    return done.stdout


@pytest.mark.parametrize("job", ["plain", "raced", "stages", "asynchronous", "auto"])
def test_three_hundred_random_kills_and_all_named_ones(job: str) -> None:
    told = run("failpoints.py", "--job", job, "--named", 3, "--random", 300)
    counts = [int(n) for n in re.findall(r"(\d+) kills in \d+ runs, all results equal, nothing recorded twice", told)]
    assert len(counts) == 2
    assert counts[0] >= 60
    assert counts[1] == 300


def test_the_command_on_real_models_is_killed_at_every_named_place(tmp_path: Path, small_zoo: Path) -> None:
    told = run("kills.py", "--zoo", small_zoo, "--kills", 10, "--points", "--evaluations", 60, "--work", tmp_path / "k")
    assert "(equal)" in told

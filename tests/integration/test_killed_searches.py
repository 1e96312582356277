"""Searches that are killed at every named place and at random moments; `tests/chaos` has the full measure."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def killed(*options: str) -> str:
    """What `benchmarks/failpoints.py` prints; it ends with an error unless everything holds."""
    command = [sys.executable, str(ROOT / "benchmarks" / "failpoints.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.kill
@pytest.mark.parametrize("job", ["raced", "asynchronous"])
def test_a_kill_at_every_named_place_changes_nothing(job: str) -> None:
    told = killed("--job", job, "--chained", "--random", "5")
    found = re.search(r"(\d+) named places\n.*: (\d+) kills in (\d+) runs, all results equal, nothing recorded", told)
    assert found, told
    assert int(found[1]) >= 30
    assert int(found[2]) == int(found[1])

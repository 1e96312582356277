"""A bounded soak: 200 small candidates; `tests/chaos/test_long_soak.py` has thousands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_two_hundred_candidates_leave_no_traces_in_the_driver() -> None:
    program = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--json"]
    options = ["--candidates", "200", "--items", "25", "--optimizer", "sep-cma"]
    done = subprocess.run([*program, *options], capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["searched"] >= 200
    assert found["growth"] < 0.05
    assert found["files"][0] == found["files"][1]
    assert found["journal"] <= found["journal_limit"]
    assert found["driver_cpu_ms"] < 20

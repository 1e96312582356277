"""Chaos on a Ray cluster of several nodes, in full measure: `benchmarks/cluster_chaos.py` and what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.zoo, pytest.mark.timeout(1800)]

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "cluster_chaos.py"
BACK_S = 60.0


def figures(zoo: Path, *more: str) -> dict[str, Any]:
    command = [sys.executable, str(PROGRAM), "--zoo", str(zoo), "--items", "900", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("{"), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["as_promised"], found
    assert done.returncode == 0
    return found


@pytest.mark.parametrize("how", [("--nodes", "2"), ("--nodes", "4", "--no-replace")])
def test_workers_and_nodes_are_killed_under_a_search(small_zoo: Path, how: tuple[str, ...]) -> None:
    found = figures(small_zoo, *how)
    assert found["equal_digests"]
    assert found["extra_evaluations"] <= found["kills"]
    assert found["of_raylets"] == 2
    assert found["longest_s_to_next_outcome"] <= BACK_S
    assert found["terminal_chatter"] == []


def test_a_search_outlives_its_driver_and_its_cluster(small_zoo: Path) -> None:
    found = figures(small_zoo, "--lose", "driver,head")
    assert found["equal_digests"]
    assert found["driver"]["actors_left"] == 0
    assert found["head"]["exit_code"] == 75
    assert found["head"]["s_to_exit"] <= BACK_S
    assert any("evomerge resume" in line for line in found["head"]["terminal"])

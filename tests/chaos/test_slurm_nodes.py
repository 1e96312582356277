"""Batch scripts for SLURM with Ray itself on two nodes: namespaces of this machine, each with its own network."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evomerge.launching.command import SearchCommand
from evomerge.launching.slurm import SlurmJob, slurm_script
from evomerge.testing.fake_slurm import FakeSlurm, stop

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.chaos,
    pytest.mark.ray,
    pytest.mark.skipif(
        os.geteuid() != 0 or any(shutil.which(c) is None for c in ("ip", "nsenter", "unshare")),
        reason="makes network namespaces: needs root, iproute2 and util-linux",
    ),
]

JOB = """\
name: first
parents:
  base: zoo/base
  models: {math: zoo/math, string: zoo/string, lang: zoo/lang}
space: layer-wise-task-arithmetic
suite:
  include: [zoo/tasks]
  tasks: [add, rev, srt]
  split: {search: 100, select: 100, report: 100}
  questions: all
objectives: [{name: skills, tasks: [add, rev, srt], aggregate: mean}]
optimizer: {name: nsga2, population: 16}
budget: {evaluations: 20000}
seed: 7
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[FakeSlurm]:
    """Two nodes with a wire between them; neither sees the other's processes, nor anybody else's."""
    number = os.getpid() % 250
    names = [f"evo{number}a", f"evo{number}b"]
    addresses = [f"10.77.{number}.{i}" for i in (1, 2)]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", f"v{names[0]}", "type", "veth", "peer", "name", f"v{names[1]}")
        for name, address in zip(names, addresses, strict=True):
            ip("link", "set", f"v{name}", "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", f"v{name}")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", f"v{name}", "up")
        enter = [f"nsenter --net=/run/netns/{name} unshare --pid --fork --mount-proc --kill-child" for name in names]
        yield FakeSlurm(
            tmp_path / "slurm",
            names,
            {},
            {"BATCH": enter[0], "NODE_1": enter[1], "EVOMERGE_HEAD_IP": addresses[0], "OMP_NUM_THREADS": "1"},
        )
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    path = run / "journal.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [r for r in (json.loads(line) for line in lines if line.endswith("}")) if r["t"] == kind]


def batch_shell(process: subprocess.Popen[str]) -> int:
    """The shell that SLURM would signal: it stands behind nsenter and unshare."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


@pytest.mark.parametrize("share_nodes", [False, True])
def test_a_search_over_two_nodes_is_drained_and_goes_on(
    nodes: FakeSlurm, tmp_path: Path, small_zoo: Path, share_nodes: bool
) -> None:
    (tmp_path / "zoo").symlink_to(small_zoo)
    (tmp_path / "job.yaml").write_text(JOB)
    run = tmp_path / "runs" / "first"

    def script(*settings: str) -> Path:
        search = SearchCommand("first", str(tmp_path / "job.yaml"), str(run), on_gpus=False, settings=settings)
        venv = str(Path(sys.executable).parent.parent)
        job = SlurmJob(
            search, nodes=2, gpus_per_node=0, cpus_per_node=1, venv=venv, min_nodes=2, share_nodes=share_nodes
        )
        path = tmp_path / "job.sh"
        path.write_text(slurm_script(job))
        return path

    process = nodes.start(script())
    try:
        end = time.monotonic() + 180
        while len(records(run, "evaluated")) < 40 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
        if process.poll() is None:
            os.kill(batch_shell(process), signal.SIGTERM)
        output, _ = process.communicate(timeout=180)
    finally:
        stop(process)
    assert process.returncode == 75, output
    assert nodes.requeues == 1
    assert len(records(run, "interrupted")) == 1
    assert not list(run.parent.glob("*.slurm-*")), "the token is gone"
    asked = sum(len(r["rows"]) for r in records(run, "asked"))
    again = nodes.start(script(f"budget.evaluations={asked + 32}"), restarts=1)
    try:
        output, _ = again.communicate(timeout=240)
    finally:
        stop(again)
    assert again.returncode == 0, output
    assert len(records(run, "opened")) == 2
    assert len(records(run, "finished")) == 1
    if not share_nodes:
        assert "Stopped all" in output, "ray symmetric-run ends with ray stop"

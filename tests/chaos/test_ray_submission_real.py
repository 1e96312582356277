"""A search submitted to a Ray cluster of this machine: with its token, ended by `ray job stop`, submitted again."""

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

import pytest

from evomerge.launching.command import SearchCommand
from evomerge.launching.submission import Submission, submission_script

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.chaos,
    pytest.mark.ray,
    pytest.mark.skipif(
        os.geteuid() != 0 or any(shutil.which(c) is None for c in ("ip", "nsenter", "unshare")),
        reason="makes namespaces, so that nobody else's cluster is met: needs root, iproute2 and util-linux",
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

HEAD = """
ip link set lo up
export RAY_AUTH_MODE=token OMP_NUM_THREADS=1
ray start --head --port=6399 --node-ip-address=127.0.0.1 --num-cpus=2 --temp-dir="$RAY_TMPDIR" \
  --disable-usage-stats --dashboard-host=127.0.0.1 --dashboard-port=8265
touch "$READY"
sleep 600
"""


class Cluster:
    """A head in namespaces of its own, and commands beside it."""

    def __init__(self, folder: Path) -> None:
        self.token = folder / "token"
        self.token.write_text(os.urandom(16).hex())
        self.token.chmod(0o600)
        self.tmp = Path(f"/tmp/emj-{os.getpid()}")
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        mine = {"PATH": path, "HOME": str(folder), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}
        self.environment = {**kept, **mine}
        own = {**self.environment, "RAY_TMPDIR": str(self.tmp), "READY": str(folder / "ready")}
        self.head = subprocess.Popen(
            ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-c", HEAD],
            env=own,
            stdout=subprocess.DEVNULL,
        )
        end = time.monotonic() + 90
        while not (folder / "ready").exists() and self.head.poll() is None and time.monotonic() < end:
            time.sleep(0.2)

    def start(self, *command: str, token: bool = True) -> subprocess.Popen[str]:
        """Begin a command in the network of the head."""
        inner = Path(f"/proc/{self.head.pid}/task/{self.head.pid}/children").read_text().split()[0]
        environment = {k: v for k, v in self.environment.items() if token or k != "RAY_AUTH_TOKEN_PATH"}
        return subprocess.Popen(
            ["nsenter", f"--net=/proc/{inner}/ns/net", *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        made.head.send_signal(signal.SIGKILL)
        made.head.wait()
        shutil.rmtree(made.tmp, ignore_errors=True)


def test_a_submitted_search_is_drained_by_a_stop_and_goes_on(cluster: Cluster, tmp_path: Path, small_zoo: Path) -> None:
    (tmp_path / "zoo").symlink_to(small_zoo)
    (tmp_path / "job.yaml").write_text(JOB)
    run = tmp_path / "runs" / "first"
    journal = run / "journal.jsonl"

    def records(kind: str) -> list[str]:
        lines = journal.read_text().splitlines() if journal.exists() else []
        return [line for line in lines if line.endswith("}") and json.loads(line)["t"] == kind]

    def script(name: str, *settings: str) -> str:
        search = SearchCommand("first", str(tmp_path / "job.yaml"), str(run), on_gpus=False, settings=settings)
        return submission_script(Submission(search, "http://127.0.0.1:8265", submission_id=name))

    stranger = cluster.start("ray", "job", "list", "--address", "http://127.0.0.1:8265", token=False)
    output, _ = stranger.communicate(timeout=60)
    assert stranger.returncode != 0
    assert "uthentication token" in output

    first = cluster.start("bash", "-c", script("one"))
    end = time.monotonic() + 120
    while len(records("evaluated")) < 40 and first.poll() is None and time.monotonic() < end:
        time.sleep(0.2)
    stopped = cluster.start("ray", "job", "stop", "--address", "http://127.0.0.1:8265", "one")
    told, _ = stopped.communicate(timeout=120)
    assert stopped.returncode == 0, told
    output, _ = first.communicate(timeout=120)
    assert len(records("interrupted")) == 1, output
    n_asked = sum(len(json.loads(line)["rows"]) for line in records("asked"))
    second = cluster.start("bash", "-c", script("two", f"budget.evaluations={n_asked + 32}"))
    output, _ = second.communicate(timeout=240)
    assert second.returncode == 0, output
    assert len(records("finished")) == 1

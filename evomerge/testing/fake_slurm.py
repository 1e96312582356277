"""A SLURM of shell scripts: enough of sbatch, srun and scontrol to run a batch script on this machine."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SRUN = r"""
# one task per node, TERM is passed on, the worst exit code wins; NODE_i is a command that enters node i
printf '%s\n' "$@" >"$FAKE_SLURM/srun"
while [ $# -gt 0 ]; do case $1 in --nodes=*) nodes=${1#*=}; shift;; -*) shift;; *) break;; esac; done
pids=()
for ((i = 0; i < nodes; i++)); do
  enter=NODE_$i
  SLURM_PROCID=$i setsid ${!enter-} "$@" & pids+=($!)
done
trap 'for pid in "${pids[@]}"; do kill -TERM -- "-$pid" 2>/dev/null; done' TERM
worst=0
for pid in "${pids[@]}"; do
  code=0; wait "$pid" || code=$?
  while kill -0 "$pid" 2>/dev/null; do code=0; wait "$pid" || code=$?; done
  [ "$code" -le "$worst" ] || worst=$code
done
exit "$worst"
"""

SCONTROL = r"""
case "$1 $2" in
  "show hostnames") tr , '\n' <<<"$3";;
  requeue*) echo "$2" >>"$FAKE_SLURM/requeued";;
  *) exit 1;;
esac
"""


@dataclass(frozen=True)
class FakeSlurm:
    """A folder with the three commands, and what they were asked.

    Attributes:
        folder: its own; `bin` in it stands first in PATH.
        hosts: names of the nodes; the first is where the batch script runs.
        commands: further commands: name -> text of a bash script.
        environment: variables that every batch script gets; `BATCH` is a command that runs the script elsewhere,
            `NODE_0`, `NODE_1`, ... run the tasks elsewhere.
    """

    folder: Path
    hosts: Sequence[str]
    commands: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "bin").mkdir(parents=True)
        for name, text in {"srun": SRUN, "scontrol": SCONTROL, **self.commands}.items():
            path = self.folder / "bin" / name
            path.write_text(text if text.startswith("#!") else f"#!/bin/bash\n{text}")
            path.chmod(0o755)

    @property
    def requeues(self) -> int:
        """How often the script asked to be queued again."""
        path = self.folder / "requeued"
        return len(path.read_text().split()) if path.exists() else 0

    def start(self, script: Path, *, restarts: int = 0, job: int | None = None) -> subprocess.Popen[str]:
        """Begin the batch script, as sbatch would on the first node."""
        path = f"{self.folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_"))}
        slurm = {
            "SLURM_JOB_ID": str(os.getpid() if job is None else job),
            "SLURM_JOB_NODELIST": ",".join(self.hosts),
            "SLURM_RESTART_COUNT": str(restarts),
            "FAKE_SLURM": str(self.folder),
        }
        enter = shlex.split(self.environment.get("BATCH", ""))
        return subprocess.Popen(
            [*enter, "bash", str(script)],
            env={**kept, **slurm, **self.environment, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def wait_for(path: Path, process: subprocess.Popen[str], limit_s: float = 60) -> None:
    """Wait until `path` exists while the process runs."""
    end = time.monotonic() + limit_s
    while not path.exists():
        if process.poll() is not None or time.monotonic() > end:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            raise AssertionError(f"{path.name} did not come; exit code {process.returncode}\n{output}")
        time.sleep(0.05)


def stop(process: subprocess.Popen[str]) -> None:
    """End a batch script and what it began."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()

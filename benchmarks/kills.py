"""Kill a search again and again, resume it, and compare what comes out with an undisturbed run.

    python benchmarks/kills.py --zoo zoo --kills 20              # local workers
    python benchmarks/kills.py --zoo zoo --kills 20 --backend ray
    python benchmarks/kills.py --zoo zoo --kills 20 --optimizer evolve
    python benchmarks/kills.py --zoo zoo --kills 20 --points     # and once at every named place

The job has two objectives (one where the optimizer takes no more), mixed genes, races, a constraint relative to a
parent, and candidates that fail (a gene that overflows the weights). Each life is killed with SIGKILL, alternately the
driver alone and its whole process group: one in four at a random moment of its start, the others when the journal has
grown by a random number of records, spread over the run. A life that ended before its kill is told and not counted.
With `--points` as many lives before them are killed by every failpoint (`evomerge/failpoints.py`) that the undisturbed
run passes, one after the other in the same run; the same in far greater numbers on simulated models:
`benchmarks/failpoints.py`. After every kill the journal must begin with the bytes that it had before. At the end the
result digests must be equal, and the evaluations that were begun but not recorded are at most workers x kills.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from evomerge.failpoints import VARIABLE

JOB = """\
name: kills
parents:
  base: {zoo}/base
  models: {{math: {zoo}/math, string: {zoo}/string, lang: {zoo}/lang}}
space:
  kind: merge
  method: task_arithmetic
  depth: each
  parameters:
    weight: {{low: 0.0, high: 1.5, step: 0.05, start: 0.5}}
    lambda: {{choices: [1.0, 1.0e+30]}}
suite:
  include: [{zoo}/tasks]
  tasks: [add, rev, srt, addx]
  split: {{search: 60, select: 60, report: 60}}
  questions: {questions}
objectives:
  - {{name: skills, tasks: [add, rev, srt]}}
{second}constraints:
  - {{objective: skills, at_least: {{of: best_parent, minus: 0.05}}}}
optimizer: {{name: {optimizer}, population: 12}}
budget: {{evaluations: {evaluations}, failures: 0.9}}
cluster: {{backend: {backend}, workers: {workers}}}
seed: 11
"""


SECOND = "  - {name: cross, task: addx}\n"
"""The second objective, for optimizers that take two."""

SINGLE = ("catcmawm", "cma", "sep-cma", "lra-cma")
"""Optimizers of one objective."""


def command(*arguments: str) -> list[str]:
    """The command line of this Python's evomerge."""
    return [sys.executable, "-m", "evomerge", *arguments]


class Kill(NamedTuple):
    """When a life is killed.

    Attributes:
        records: after so many new lines in its journal; 0 for a moment of its start.
        delay_s: so long after that line, or after the start.
        group: the whole process group, not the driver alone.
    """

    records: int
    delay_s: float
    group: bool


def lines(run: Path) -> int:
    """Lines of the journal, 0 before there is one."""
    journal = run / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def life(job: Path, run: Path, kill: Kill | None, failpoint: str = "") -> bool:
    """One life of the run; True when it ended by itself, with exit code 0."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", VARIABLE: failpoint}
    before = lines(run)
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command("search", str(job), "--run-dir", str(run), "--resume", "auto"),
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
            start_new_session=True,
        )
        while kill is not None and process.poll() is None and lines(run) < before + kill.records:
            time.sleep(0.002)
        try:
            process.wait(timeout=None if kill is None else kill.delay_s)
        except subprocess.TimeoutExpired:
            if kill is not None and kill.group:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()
            return False
        if failpoint and process.returncode == -signal.SIGKILL:
            return False
        if process.returncode != 0:
            errors.seek(0)
            raise SystemExit(f"a life ended with exit code {process.returncode}:\n{errors.read().decode()}")
    return True


def summary(run: Path) -> dict[str, object]:
    """`evomerge status --json`."""
    done = subprocess.run(command("status", str(run), "--json"), check=True, capture_output=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def evaluations_begun(run: Path) -> int:
    """How many evaluations the workers of all lives have begun."""
    return sum(log.read_text().count(" begins ") for log in (run / "logs").glob("*.log"))


def evaluations_recorded(run: Path) -> int:
    """How many outcomes the journal holds."""
    lines = (run / "journal.jsonl").read_bytes().splitlines()
    return sum(b'"t":"evaluated"' in line or b'"t":"failed"' in line for line in lines)


def kills_of(number: int, share: int, rng: random.Random) -> Kill:
    """The kill of one life: one in four at its start, the others after up to twice `share` new records."""
    group = number % 2 == 1
    if number % 4 == 0:
        return Kill(0, rng.uniform(0.1, 8.0), group)
    return Kill(rng.randint(2, 2 * share), rng.uniform(0.0, 0.15), group)


def disturbed(job: Path, run: Path, kills: int, calm_lines: int, rng: random.Random) -> int:
    """Kill `kills` lives, then let the run end; returns how many were really killed."""
    killed = 0
    for number in range(kills):
        journal = run / "journal.jsonl"
        before = journal.read_bytes() if journal.exists() else b""
        ended = life(job, run, kills_of(number, max(2, calm_lines // (2 * kills)), rng))
        after = journal.read_bytes() if journal.exists() else b""
        if not after.startswith(before):
            raise SystemExit(f"kill {number + 1}: the journal does not begin with its earlier bytes")
        killed += not ended
        new = after[len(before) :].count(b"\n")
        print(f"  kill {number + 1:2d}: {new:4d} new records{', had ended' if ended else ''}", flush=True)
    life(job, run, None)
    return killed


def at_points(job: Path, run: Path, names: list[str]) -> int:
    """Kill one life at every place that it still passes; returns how many were killed."""
    killed = 0
    for name in names:
        before = (run / "journal.jsonl").read_bytes() if lines(run) else b""
        ended = life(job, run, None, name)
        if lines(run) and not (run / "journal.jsonl").read_bytes().startswith(before):
            raise SystemExit(f"{name}: the journal does not begin with its earlier bytes")
        print(f"  {name}: {'not passed' if ended else 'killed'}", flush=True)
        killed += not ended
    return killed


def main() -> None:
    """Run the comparison and print what was counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--points", action="store_true", help="kill at every named place first")
    parser.add_argument("--evaluations", type=int, default=120)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--backend", choices=["local", "ray"], default="local")
    parser.add_argument("--optimizer", default="nsga2", help="any that takes mixed genes and a population")
    parser.add_argument("--questions", default="{race: halving}", help="suite.questions: races are killed, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("kills"))
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    job = options.work / "job.yaml"
    values = {k: getattr(options, k) for k in ("evaluations", "workers", "backend", "questions", "optimizer")}
    values["second"] = "" if options.optimizer in SINGLE else SECOND
    job.write_text(JOB.format(zoo=options.zoo.resolve(), **values), encoding="utf-8")
    started = time.perf_counter()
    places = options.work.resolve() / "places"
    life(job, options.work / "calm", None, f"list:{places}" if options.points else "")
    calm_s = time.perf_counter() - started
    calm = summary(options.work / "calm")
    print(f"undisturbed: {calm_s:.1f} s, digest {calm['result_digest']}", flush=True)
    run = options.work / "killed"
    hit = at_points(job, run, list(dict.fromkeys(places.read_text().splitlines()))) if options.points else 0
    hit += disturbed(job, run, options.kills, lines(options.work / "calm"), random.Random(options.seed))
    killed = summary(run)
    recorded = evaluations_recorded(run)
    repeated = evaluations_begun(run) - recorded
    equal = killed["result_digest"] == calm["result_digest"]
    print(f"killed {hit} times: digest {killed['result_digest']} ({'equal' if equal else 'DIFFERENT'})")
    print(f"evaluations recorded {recorded}, begun but lost {repeated}, allowed {options.workers * hit}")
    if not equal or repeated > options.workers * hit:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

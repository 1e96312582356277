"""Kill workers and nodes of a Ray cluster under a search, and compare what comes out with a calm run.

    python benchmarks/cluster_chaos.py --zoo zoo
    python benchmarks/cluster_chaos.py --zoo zoo --evaluations 200 --nodes 4 --no-replace
    python benchmarks/cluster_chaos.py --zoo zoo --lose driver,head

A cluster of several nodes on this machine: a head that offers nothing, and nodes with one fake GPU each (workers
reserve one and compute on the CPU, so that Ray schedules by GPU). `evomerge search` runs twice on it, with as many
workers as there are: once calm, once while one busy worker is killed with SIGKILL per ten recorded evaluations and a
raylet twice, at a third and at two thirds of the budget; a new node joins ten seconds after each unless `--no-replace`.

With `--lose driver,head` the second run loses its driver to SIGKILL at a third of the budget, is resumed, loses the
head of its cluster at two thirds (the store and the raylet, both with SIGKILL), and is resumed on a new cluster.

Told at the end, as one JSON object: whether the result digests are equal; evaluations that were begun beyond those
recorded, against kills; the seconds from each kill to the next recorded outcome, and to the next worker that joins; and
whatever the driver wrote on its terminal that sounds like Ray. The exit code is 0 when all of it is as promised.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, final

JOB: Final = """\
name: chaos
parents:
  base: {zoo}/base
  models: {{math: {zoo}/math, string: {zoo}/string, lang: {zoo}/lang}}
space:
  kind: merge
  method: task_arithmetic
  depth: each
  parameters:
    weight: {{low: 0.0, high: 1.5, step: 0.05, start: 0.5}}
suite:
  include: [{zoo}/tasks]
  tasks: [add, rev, srt]
  split: {{search: {items}, select: 30, report: 30}}
objectives:
  - {{name: skills, tasks: [add, rev, srt]}}
optimizer: {{name: cma, population: 12}}
budget: {{evaluations: {evaluations}}}
cluster: {{backend: ray, address: "{address}", device: cpu, gpus_per_worker: 1, cpus_per_worker: 1}}
seed: 11
"""
BACK_S: Final = 60.0
_STORE_BYTES: Final = 80 * 1024**2
_TICK_S: Final = 0.02
_NEW_NODE_S: Final = 10.0
_CHATTER: Final = ("raylet", "(pid=", "gcs_", "RayActor", "ray::", "core_worker", "[2026", "node_manager")


class Kill(NamedTuple):
    """One kill: what, when (unix seconds), and how many workers it took."""

    what: str
    at: float
    workers: int


@final
class Nodes:
    """The cluster: a head and some nodes that can be killed."""

    def __init__(self, n_nodes: int, health: dict[str, Any] | None = None) -> None:
        from ray.cluster_utils import Cluster

        head: dict[str, Any] = {
            "num_cpus": 0,
            "num_gpus": 0,
            "object_store_memory": _STORE_BYTES,
            "include_dashboard": False,
        }
        head |= {"_system_config": health} if health else {}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self._add() for _ in range(n_nodes)]
        self._is_closed = False

    @property
    def address(self) -> str:
        """HOST:PORT of the head."""
        return str(self.cluster.address)

    def _add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=_STORE_BYTES)

    def add(self) -> None:
        """Another node joins."""
        self.nodes.append(self._add())

    def raylets(self) -> list[int]:
        """Process ids of the nodes' raylets, the head's left out."""
        return [raylet(node) for node in self.nodes]

    def kill_raylet(self, rng: random.Random) -> int:
        """Kill a node's raylet as a power cut would; returns how many workers it had."""
        busy = [node for node in self.nodes if workers_of([raylet(node)])]
        node = rng.choice(busy or self.nodes)
        n = len(workers_of([raylet(node)]))
        os.kill(raylet(node), signal.SIGKILL)
        self.nodes.remove(node)
        return n

    def close(self) -> None:
        """Stop everything; a cluster without its head can only be killed."""
        if self._is_closed:
            return
        self._is_closed = True
        head = self.cluster.head_node
        if head.all_processes["gcs_server"][0].process.poll() is None:
            self.cluster.shutdown()
            return
        for node in (*self.nodes, head):
            node.kill_all_processes(check_alive=False, allow_graceful=False)


def raylet(node: Any) -> int:
    """Process id of a node's raylet."""
    return int(node.all_processes["raylet"][0].process.pid)


def workers_of(raylets: list[int], doing: str = "ray::RayWorker.run") -> list[int]:
    """Process ids of workers that score a candidate now."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent in raylets and (folder / "cmdline").read_text().startswith(doing):
                found.append(int(folder.name))
    return found


class Line(NamedTuple):
    """One record of the journal: its kind, unix time, and content."""

    tag: str
    at: float
    content: dict[str, Any]


def journal(run: Path) -> list[Line]:
    """The records of a run; [] before there is one."""
    path = run / "journal.jsonl"
    if not path.exists():
        return []
    from evomerge.runs.store import RunStore

    return [Line(e.record.tag, e.time_s, e.record.to_json()) for e in RunStore.open(run, write=False).entries()]


def n_recorded(run: Path) -> int:
    """How many outcomes a journal holds; cheap."""
    path = run / "journal.jsonl"
    text = path.read_bytes() if path.exists() else b""
    return text.count(b'"t":"evaluated"') + text.count(b'"t":"failed"')


def n_begun(run: Path) -> int:
    """How many evaluations the workers of a run have begun."""
    return sum(log.read_text().count(" begins ") for log in (run / "logs").glob("*.log"))


@contextlib.contextmanager
def searching(job: Path, run: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """`evomerge search` as a process of its own, and the file with all it writes on its terminal."""
    said = run.parent / f"{run.name}.terminal"
    command = [sys.executable, "-m", "evomerge", "search", str(job), "--run-dir", str(run)]
    command += ["--resume", "auto"]
    with said.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            yield process, said
        finally:
            process.kill()
            process.wait()


def until_recorded(process: subprocess.Popen[bytes], run: Path, number: int) -> None:
    """Wait until a run has recorded so many outcomes."""
    while n_recorded(run) < number:
        if process.poll() is not None:
            raise SystemExit(f"the run ended with exit code {process.returncode} before it should be disturbed")
        time.sleep(_TICK_S)


def lose_driver(job: Path, run: Path, nodes: Nodes, at: int) -> dict[str, Any]:
    """Kill the driver; seconds until its last actor is gone."""
    with searching(job, run) as (process, _):
        until_recorded(process, run, at)
        process.kill()
        started = time.monotonic()
        while workers_of(nodes.raylets(), "ray::RayWorker") and time.monotonic() - started < BACK_S:
            time.sleep(_TICK_S)
    left = len(workers_of(nodes.raylets(), "ray::RayWorker"))
    return {"s_to_last_actor": round(time.monotonic() - started, 1), "actors_left": left}


def lose_head(job: Path, run: Path, nodes: Nodes, at: int) -> dict[str, Any]:
    """Kill the head; exit code and last words of the driver, and the seconds to them."""
    head = nodes.cluster.head_node.all_processes
    with searching(job, run) as (process, said):
        until_recorded(process, run, at)
        for kind in ("gcs_server", "raylet"):
            os.kill(head[kind][0].process.pid, signal.SIGKILL)
        started = time.monotonic()
        try:
            code = process.wait(timeout=3 * BACK_S)
        except subprocess.TimeoutExpired:
            code = -1
        seconds = round(time.monotonic() - started, 1)
    return {"exit_code": code, "s_to_exit": seconds, "terminal": said.read_text().splitlines()[-6:]}


def losing(options: argparse.Namespace, folder: Path, nodes: Nodes) -> dict[str, Any]:
    """A run that loses driver and head, as `--lose` says, against a calm one."""
    numbers = {"zoo": options.zoo.resolve(), "evaluations": options.evaluations, "items": options.items}
    job, run, found = folder / "chaos.yaml", folder / "disturbed", {}
    calm(job, folder / "calm")
    if "driver" in options.lose:
        found["driver"] = lose_driver(job, run, nodes, options.evaluations // 3)
    if "head" in options.lose:
        found["head"] = lose_head(job, run, nodes, options.evaluations * 2 // 3)
        print(found, file=sys.stderr, flush=True)
        nodes.close()
        fresh = Nodes(options.nodes)
        with contextlib.closing(fresh):
            job.write_text(JOB.format(address=fresh.address, **numbers))
            calm(job, run)
    else:
        calm(job, run)
    equal = digest(folder / "calm") == digest(run)
    extra = n_begun(run) - n_recorded(run)
    kept = found.get("driver", {}).get("actors_left", 0) == 0 and found.get("head", {}).get("exit_code", 75) == 75
    kept = kept and found.get("head", {}).get("s_to_exit", 0.0) <= BACK_S
    return {**found, "equal_digests": equal, "extra_evaluations": extra, "as_promised": kept and equal}


def calm(job: Path, run: Path) -> None:
    """A run that nobody disturbs."""
    with searching(job, run) as (process, said):
        if process.wait() != 0:
            raise SystemExit(f"the calm run ended with exit code {process.returncode}:\n{said.read_text()}")


def disturbed(job: Path, run: Path, nodes: Nodes, options: argparse.Namespace, rng: random.Random) -> list[Kill]:
    """A run under kills; returns them."""
    kills: list[Kill] = []
    at_raylets = [options.evaluations * (k + 1) // (options.raylets + 1) for k in range(options.raylets)]
    next_worker, new_node_at = options.every, float("inf")
    with searching(job, run) as (process, said):
        while process.poll() is None:
            time.sleep(_TICK_S)
            if time.time() >= new_node_at:
                nodes.add()
                new_node_at = float("inf")
            done = n_recorded(run)
            if at_raylets and done >= at_raylets[0]:
                at_raylets.pop(0)
                kills.append(Kill("raylet", time.time(), nodes.kill_raylet(rng)))
                new_node_at = time.time() + _NEW_NODE_S if options.replace else float("inf")
            elif done >= next_worker and (victims := workers_of(nodes.raylets())):
                time.sleep(rng.uniform(0.0, 0.1))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(victims), signal.SIGKILL)
                    kills.append(Kill("worker", time.time(), 1))
                    next_worker = done + options.every
        if process.returncode != 0:
            raise SystemExit(f"the disturbed run ended with exit code {process.returncode}:\n{said.read_text()}")
    return kills


def digest(run: Path) -> str:
    """Of what a finished run has found."""
    command = [sys.executable, "-m", "evomerge", "status", str(run), "--json"]
    done = subprocess.run(command, check=True, capture_output=True)
    return str(json.loads(done.stdout)["result_digest"])


def back_after(kills: list[Kill], run: Path) -> dict[str, list[float]]:
    """Seconds from each kill to the next recorded outcome, and to the next worker that joins."""
    lines = journal(run)
    outcomes = [line.at for line in lines if line.tag in {"evaluated", "failed"}]
    joined = [line.at for line in lines if line.tag == "worker" and line.content.get("kind") == "joined"]

    def waits(times: list[float]) -> list[float]:
        return [round(min(t - kill.at for t in times if t > kill.at), 1) for kill in kills if times[-1] > kill.at]

    return {"outcome": waits(outcomes), "joined": waits(joined)}


def compare(kills: list[Kill], calm_run: Path, chaos_run: Path) -> dict[str, Any]:
    """The figures."""
    found = back_after(kills, chaos_run)
    lines = journal(chaos_run)
    news = [line.content["kind"] for line in lines if line.tag == "worker"]
    terminal = (chaos_run.parent / f"{chaos_run.name}.terminal").read_text().splitlines()
    extra = n_begun(chaos_run) - n_recorded(chaos_run)
    lost = sum(kill.workers for kill in kills)
    waits = found["outcome"]
    figures: dict[str, Any] = {
        "evaluations": n_recorded(chaos_run),
        "kills": len(kills),
        "of_raylets": sum(kill.what == "raylet" for kill in kills),
        "equal_digests": digest(calm_run) == digest(chaos_run),
        "extra_evaluations": extra,
        "workers_lost_by_kills": lost,
        "longest_s_to_next_outcome": max(waits, default=0.0),
        "s_to_next_outcome": waits,
        "longest_s_to_next_worker": max(found["joined"], default=0.0),
        "s_to_next_worker": found["joined"],
        "workers_joined": news.count("joined"),
        "workers_told_lost": news.count("lost"),
        "failed": sum(line.tag == "failed" for line in lines),
        "terminal_chatter": [line for line in terminal if any(word in line for word in _CHATTER)],
    }
    kept = figures["equal_digests"] and extra <= len(kills) and figures["longest_s_to_next_outcome"] <= BACK_S
    return {**figures, "as_promised": bool(kept and len(waits) == len(kills) and not figures["terminal_chatter"])}


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True, help="a toy zoo, see `evomerge zoo`")
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--items", type=int, default=120, help="questions of the search set, per task")
    parser.add_argument("--every", type=int, default=10, help="evaluations per killed worker")
    parser.add_argument("--raylets", type=int, default=2, help="raylets to kill")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--replace", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--lose", type=lambda text: text.split(","), default=[], help="driver, head, or driver,head")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")
    nodes = Nodes(options.nodes)
    with tempfile.TemporaryDirectory() as scratch, contextlib.closing(nodes):
        folder = Path(scratch)
        job = folder / "chaos.yaml"
        numbers = {"evaluations": options.evaluations, "items": options.items}
        job.write_text(JOB.format(zoo=options.zoo.resolve(), address=nodes.address, **numbers))
        if options.lose:
            figures = losing(options, folder, nodes)
        else:
            calm(job, folder / "calm")
            kills = disturbed(job, folder / "disturbed", nodes, options, random.Random(options.seed))
            figures = compare(kills, folder / "calm", folder / "disturbed")
    print(json.dumps(figures, indent=1))
    raise SystemExit(0 if figures["as_promised"] else 1)


if __name__ == "__main__":
    main()

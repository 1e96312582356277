"""Thousands of small candidates through the real loop: memory, open files, journal and the driver's own time.

    python benchmarks/soak.py --candidates 2000
    python benchmarks/soak.py --candidates 2000 --optimizer cma --questions "{number: 10, race: halving}"

Candidates are simulated models (`evomerge/testing/simulated_jobs.py`), scored inside the driver. What is told:

- resident memory after a warm-up of a tenth of the candidates, and its growth from there to the last batch;
- open files at the same two moments;
- bytes of the journal per candidate, against 2 KB and 24 bytes per gene, and those of the answers;
- wall and processor time per candidate of the driver, without scoring and without the optimizer's ask and tell, which
  are told apart; of the wall time also what the file system's syncs took.

It ends with exit code 1 when a limit is not kept; of the driver's time the processor's counts, because the wall's
depends on who else is busy. `--loaded` loads what the driver of a real job has loaded: growth is a share of the whole.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from evomerge.execution import inline
from evomerge.optimizers import protocol
from evomerge.runs.store import JOURNAL
from evomerge.testing.simulated_jobs import Quiet, SimulatedJob, run_simulated, search_setup
from evomerge.types import Outcome

GROWTH = 0.05
DRIVER_MS = 20.0
JOURNAL_BYTES = 2048
GENE_BYTES = 24


def resident_bytes() -> int:
    """Of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    """Descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


class Moment(NamedTuple):
    """The process at one moment: candidates scored, resident bytes, open files."""

    candidates: int
    resident: int
    files: int


@dataclass
class Clock:
    """Wall and processor seconds spent in some calls."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    depth: int = field(default=0, repr=False)

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, timed; calls inside a timed one count once."""

        def timed(*arguments: Any, **options: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            self.depth += 1
            try:
                return call(*arguments, **options)
            finally:
                self.depth -= 1
                if not self.depth:
                    self.wall_s += time.perf_counter() - wall
                    self.cpu_s += time.process_time() - cpu

        return timed


class Clocks(NamedTuple):
    """Of scoring, of the optimizer, of syncs."""

    scoring: Clock
    optimizer: Clock
    syncs: Clock


@contextmanager
def clocks() -> Iterator[Clocks]:
    """Time the worker, the optimizers' protocol and `os.fsync` inside the block."""
    found = Clocks(Clock(), Clock(), Clock())
    places = [
        (inline.Worker, "run", found.scoring),
        (protocol.AskTell, "ask", found.optimizer),
        (protocol.AskTell, "tell", found.optimizer),
        (os, "fsync", found.syncs),
    ]
    before = [getattr(owner, name) for owner, name, _ in places]
    for (owner, name, clock), call in zip(places, before, strict=True):
        setattr(owner, name, clock.wrap(call))
    try:
        yield found
    finally:
        for (owner, name, _), call in zip(places, before, strict=True):
            setattr(owner, name, call)


class Watcher(Quiet):
    """Looks at the process when a tenth of the candidates are scored, and after every batch from there on.

    Args:
        candidates: how many there will be.
    """

    def __init__(self, candidates: int) -> None:
        self.scored = 0
        self.searched = 0
        self.moments: list[Moment] = []
        self._warm = candidates // 10

    def outcome(self, request: object, set_name: str, outcome: Outcome) -> None:
        """Count."""
        self.scored += 1
        self.searched += set_name == "search"

    def batch(self, number: int) -> None:
        """Look."""
        if self.searched >= self._warm:
            gc.collect()
            self.moments.append(Moment(self.searched, resident_bytes(), open_files()))


class Soaked(NamedTuple):
    """What came of it.

    Attributes:
        scored: models scored on all sets.
        searched: models scored on the search set.
        growth: of resident memory from the warm-up to the end, as a share.
        resident: bytes at the end.
        files: open files after the warm-up and at the end.
        journal: bytes of the journal per candidate.
        journal_limit: of that.
        answers: bytes of the answers per candidate.
        driver_ms: wall milliseconds of the driver per candidate, without scoring and optimizer.
        driver_cpu_ms: the same of its processor.
        sync_ms: wall milliseconds in syncs, part of `driver_ms`.
        optimizer_ms: wall milliseconds of ask and tell per candidate.
    """

    scored: int
    searched: int
    growth: float
    resident: int
    files: tuple[int, int]
    journal: float
    journal_limit: float
    answers: float
    driver_ms: float
    driver_cpu_ms: float
    sync_ms: float
    optimizer_ms: float

    def broken(self) -> list[str]:
        """The limits that were not kept."""
        found = []
        if self.growth >= GROWTH:
            found.append(f"memory grew by {self.growth:.1%}")
        if self.files[0] != self.files[1]:
            found.append(f"open files went from {self.files[0]} to {self.files[1]}")
        if self.journal > self.journal_limit:
            found.append(f"the journal has {self.journal:.0f} bytes a candidate")
        if self.driver_cpu_ms > DRIVER_MS:
            found.append(f"the driver took {self.driver_cpu_ms:.1f} ms a candidate")
        return found


def soak(job: SimulatedJob, folder: Path) -> Soaked:
    """Run the job in `folder` and measure."""
    warm = replace(job, candidates=24)  # everything is loaded once
    run_simulated(warm, folder / "warm")
    watcher = Watcher(job.candidates)
    with clocks() as spent:
        wall, cpu = time.perf_counter(), time.process_time()
        run_simulated(job, folder / "run", watcher)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    first, last = watcher.moments[0], watcher.moments[-1]
    dim = search_setup(job).space.dim
    n = watcher.scored
    others = (spent.scoring, spent.optimizer)
    answers = sum(p.stat().st_size for p in (folder / "run" / "responses").iterdir())
    return Soaked(
        scored=n,
        searched=watcher.searched,
        growth=last.resident / first.resident - 1,
        resident=last.resident,
        files=(first.files, last.files),
        journal=(folder / "run" / JOURNAL).stat().st_size / n,
        journal_limit=JOURNAL_BYTES + GENE_BYTES * dim,
        answers=answers / n,
        driver_ms=1e3 * (wall - sum(c.wall_s for c in others)) / n,
        driver_cpu_ms=1e3 * (cpu - sum(c.cpu_s for c in others)) / n,
        sync_ms=1e3 * spent.syncs.wall_s / n,
        optimizer_ms=1e3 * spent.optimizer.wall_s / n,
    )


def told(found: Soaked) -> str:
    """One line."""
    return (
        f"{found.searched} candidates searched, {found.scored} scored: memory {found.resident / 2**20:.0f} MiB, "
        f"{found.growth:+.2%}; open files {found.files[0]} -> {found.files[1]}; journal {found.journal:.0f} of "
        f"{found.journal_limit:.0f} B, answers {found.answers:.0f} B a candidate; driver {found.driver_ms:.2f} ms a "
        f"candidate ({found.sync_ms:.2f} of it syncs; processor {found.driver_cpu_ms:.2f}), optimizer "
        f"{found.optimizer_ms:.2f} ms"
    )


def main() -> None:
    """Soak as asked and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=2000)
    parser.add_argument("--optimizer", default="cma")
    parser.add_argument("--depth", default="each", help="of the search space: model or each")
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--items", type=int, default=100, help="of the search set, per task")
    parser.add_argument("--questions", default="all", help="suite.questions, as YAML")
    parser.add_argument("--loaded", action="store_true", help="with torch, transformers and lm-eval in memory")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.loaded:
        for module in ("torch", "transformers", "lm_eval.tasks", "evomerge.api", "ray"):
            importlib.import_module(module)
    job = SimulatedJob(
        1,
        gain=0.1,
        candidates=options.candidates,
        tasks=options.tasks,
        search=options.items,
        depth=options.depth,
        questions=yaml.safe_load(options.questions),
        optimizer=options.optimizer,
    )
    folder = Path(tempfile.mkdtemp(prefix="evomerge-soak-"))
    try:
        found = soak(job, folder)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(found._asdict()) if options.json else f"{options.optimizer}: {told(found)}")
    if found.broken():
        raise SystemExit("; ".join(found.broken()))


if __name__ == "__main__":
    main()

"""Small whole searches that are killed and resumed in quick succession: the real loop, journal, report and export.

Every life is forked from this process, so that it is up within milliseconds; its models are simulated. A life is
killed by a failpoint (`evomerge.failpoints`) or by SIGKILL at a random moment. After every kill the journal must begin
with the bytes that it had before; at the end of a run its result must be that of an undisturbed one, nothing may be
recorded twice, and at most one evaluation per kill may have been begun and lost.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from evomerge import failpoints
from evomerge.execution.inline import InlinePool
from evomerge.execution.ledger import Ledger, recorded_outcomes
from evomerge.execution.worker import Scorer, WorkerSpec
from evomerge.files import lost_storage_is_told, write_atomic
from evomerge.loop import Search, SearchSetup, StagePlan
from evomerge.report.collect import summarise
from evomerge.report.write import write_report
from evomerge.runs.records import Finished, Note, Opened
from evomerge.runs.replay import read_history
from evomerge.runs.store import JOURNAL, RunStore
from evomerge.runs.study import write_study
from evomerge.testing.simulated_jobs import Quiet, SimulatedJob, build_scorer, run_files, search_setup
from evomerge.types import SET_NAMES, EvalTask, Evaluation

SMALL: Final = SimulatedJob(3, gain=0.1, candidates=16, tasks=2, search=24, select=24, report=24, optimizer="cma")
RACED: Final = replace(SMALL, questions={"number": 8, "race": "halving", "calibrate": 8})
JOBS: Final[Mapping[str, SimulatedJob]] = {
    "plain": SMALL,
    "auto": replace(SMALL, optimizer="auto"),
    "raced": RACED,
    "stages": SMALL,
    "asynchronous": SMALL,
}
EXPORTED: Final = "chosen.json"


class Disturbed(NamedTuple):
    """What came of one run that was killed.

    Attributes:
        kills: lives that were killed.
        missed: places that no life passed.
        digest: of its result.
        repeated: evaluations that were begun and not recorded.
    """

    kills: int
    missed: tuple[str, ...]
    digest: str
    repeated: int


def setup_of(name: str) -> SearchSetup:
    """What the loop is given for the job `name` of `JOBS`."""
    setup = search_setup(JOBS[name])
    if name == "stages":
        first = setup.first
        plans = [StagePlan(f"s{i}", budget, lambda _elites: first) for i, budget in enumerate((16, setup.budget))]
        return replace(setup, stages=tuple(plans))
    return replace(setup, asynchronous=name == "asynchronous")


def counting_scorer(job: SimulatedJob, begun: Path) -> Scorer:
    """The job's scorer; writes a line to `begun` before every evaluation."""
    score = build_scorer(job)

    def counted(task: EvalTask) -> Evaluation:
        with begun.open("a", encoding="utf-8") as out:
            out.write(f"{task.id} {task.set_name}\n")
        return score(task)

    return counted


def live(name: str, folder: Path) -> None:
    """One life of the job's run in `folder`, to its end: search, choice, study, report, export."""
    job, quiet = JOBS[name], Quiet()
    setup = setup_of(name)
    arguments = {"job": job, "begun": folder.with_name(folder.name + ".begun")}
    spec = WorkerSpec(scorer=f"{__name__}:counting_scorer", arguments=arguments)
    exists = (folder / JOURNAL).exists()
    opened = RunStore.open(folder, write=True) if exists else RunStore.create(folder, run_files(job))
    with opened as store, InlinePool(spec) as pool:
        history = read_history(store.entries())
        life = len(history.lives) + 1
        store.append(Opened(life, life > 1, "simulated", os.getpid(), epoch=store.epoch))
        ledger = Ledger(
            store,
            pool,
            known=recorded_outcomes(store, history),
            reused=history.reused,
            stop=quiet,
            drain_s=0.0,
            failure_share=0.5,
            watcher=quiet,
            order={set_name: job.responders.items(set_name) for set_name in SET_NAMES},
        )
        why = Search(setup, store, history, ledger, quiet).run()
        summary = summarise(folder)
        if history.finished is None:
            store.append(Finished(why, summary.result_digest))
        problem = write_study(store, name, [setup.space] * max(1, len(setup.stages)), setup.goals)
        if problem is not None:
            store.append(Note("study", problem))
        with lost_storage_is_told(folder):
            write_report(folder)
        chosen = summary.chosen
        failpoints.reach("before-export")
        write_atomic(folder.with_name(folder.name + "." + EXPORTED), json.dumps(chosen and chosen.id))
        failpoints.reach("after-export")


def _child(name: str, folder: Path, failpoint: str) -> int:
    """Fork a life; returns its process id."""
    child = os.fork()
    if child:
        return child
    os.environ[failpoints.VARIABLE] = failpoint
    failpoints.read_again()
    code = 1
    try:
        live(name, folder)
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def _end(child: int) -> bool:
    """Wait for a life; whether it was killed.

    Raises:
        RuntimeError: when it ended with an error.
    """
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if not killed and os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"a life ended with {os.waitstatus_to_exitcode(status)}")
    return killed


class Calm(NamedTuple):
    """An undisturbed run: its result, the places that it passed in order, and how long it took in seconds."""

    digest: str
    places: tuple[str, ...]
    took_s: float


def calm(name: str, work: Path) -> Calm:
    """Run the job undisturbed; once in this process, which loads everything that lives will need."""
    live(name, work / "warm")
    places = work / "places"
    _end(_child(name, work / "listed", f"list:{places}"))
    started = time.perf_counter()
    _end(_child(name, work / "calm", ""))
    took = time.perf_counter() - started
    digest = digest_of(work / "calm")
    if digest != digest_of(work / "listed"):
        raise RuntimeError("two undisturbed runs end differently")
    return Calm(digest, tuple(places.read_text().splitlines()), took)


def digest_of(run: Path) -> str:
    """Over the result and every told outcome, so that equal results by chance do not hide a difference."""
    history = read_history(RunStore.open(run, write=False).entries())
    if history.counts.repeated or history.finished is None:
        raise RuntimeError(f"{run}: {history.counts.repeated} records twice, finished: {history.finished}")
    told = sorted((*key, repr(getattr(record, "tasks", "failed"))) for key, record in history.outcomes.items())
    asked = [(c.id, c.genes) for batch in history.batches for c in batch.candidates]
    facts = [summarise(run).result_digest, told, asked, history.chosen and history.chosen.id]
    return json.dumps(facts, sort_keys=True)


def _journal(run: Path) -> bytes:
    return (run / JOURNAL).read_bytes() if (run / JOURNAL).exists() else b""


def _killed_at(name: str, run: Path, failpoint: str) -> bool:
    """One life up to a failpoint; whether it got there. Checks what must hold of the journal behind a kill."""
    before = _journal(run)
    killed = _end(_child(name, run, failpoint))
    _check_grown(run, before)
    point = failpoint.partition(":")[0]
    last = _last_tag(run)
    if killed and point.startswith("after-") and point.removeprefix("after-") in _TAGS and last != point[6:]:
        raise RuntimeError(f"killed {point}, the journal ends with {last!r}")
    return killed


_TAGS: Final = {"opened", "phase", "asked", "baseline", "evaluated", "told", "chosen", "finished", "turn", "rung"}


def _last_tag(run: Path) -> str:
    records = list(RunStore.open(run, write=False).records()) if _journal(run) else []
    return records[-1].tag if records else ""


def _check_grown(run: Path, before: bytes) -> None:
    if not _journal(run).startswith(before):
        raise RuntimeError(f"{run}: the journal does not begin with its earlier bytes")


def _finish(name: str, run: Path, kills: int, missed: Sequence[str]) -> Disturbed:
    before = _journal(run)
    if _end(_child(name, run, "")):
        raise RuntimeError("the last life was killed")
    _check_grown(run, before)
    begun = len(run.with_name(run.name + ".begun").read_text().splitlines())
    recorded = sum(r.tag in {"evaluated", "failed"} for r in RunStore.open(run, write=False).records())
    found = Disturbed(kills, tuple(missed), digest_of(run), begun - recorded)
    if not 0 <= found.repeated <= kills:
        raise RuntimeError(f"{run}: {found.repeated} evaluations were lost by {kills} kills")
    left = [p.name for p in run.parent.glob(f".{run.name}*") if p.suffix not in {".new", ".tmp"}]
    if left or not (run / "report.html").exists() or not (run / "optuna.db").exists():
        raise RuntimeError(f"{run}: {left} left over, or projections missing")
    return found


def chain(name: str, run: Path, places: Sequence[str]) -> Disturbed:
    """One run, a life of which is killed at every one of `places` (NAME or NAME:K) that it still passes, in order."""
    missed = [place for place in places if not _killed_at(name, run, place)]
    return _finish(name, run, len(places) - len(missed), missed)


def at_random(name: str, run: Path, kills: int, span_s: float, rng: random.Random) -> Disturbed:
    """One run whose lives are killed at random moments, `kills` times or until it ends."""
    done = 0
    for _ in range(kills):
        before = _journal(run)
        child = _child(name, run, "")
        time.sleep(rng.uniform(0, span_s))
        os.kill(child, signal.SIGKILL)
        killed = _end(child)
        _check_grown(run, before)
        done += killed
        if not killed or b'"t":"finished"' in _journal(run):
            break
    return _finish(name, run, done, ())


def spread(places: Sequence[str], times: int) -> Iterator[str]:
    """Every name once with up to `times` of its passes, first, last and between."""
    for name, n in Counter(places).items():
        for k in sorted({1 + round(i * (n - 1) / max(1, times - 1)) for i in range(times)}):
            yield f"{name}:{k}"


def named(name: str, work: Path, quiet: Calm, times: int, *, chained: bool) -> Iterator[Disturbed]:
    """Kills at all named places: in one run after the other, or each in a run of its own."""
    wanted = list(spread(quiet.places, times)) if not chained else list(dict.fromkeys(quiet.places))
    n = 0
    while wanted:
        found = chain(name, work / f"named-{n}", wanted if chained else wanted[:1])
        check(found, quiet)
        yield found
        shutil.rmtree(work / f"named-{n}")
        n += 1
        if found.kills == 0:
            raise RuntimeError(f"never passed: {found.missed}")
        wanted = list(found.missed) if chained else wanted[1:]


def check(found: Disturbed, quiet: Calm) -> None:
    """Raise RuntimeError unless a run that was killed ended as the undisturbed one."""
    if found.digest != quiet.digest:
        raise RuntimeError(f"another result after {found.kills} kills")

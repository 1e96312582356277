"""From a job's `track` to the trackers of one life of its run."""

from __future__ import annotations

from functools import partial

from evomerge.config.assemble import Assembled
from evomerge.digest import digest_json
from evomerge.runs.records import Note, Opened
from evomerge.runs.store import RunStore
from evomerge.tracking.tracker import TrackedRun
from evomerge.tracking.trackers import TRACKERS
from evomerge.tracking.watcher import Trackers, Warn


def open_trackers(assembled: Assembled, store: RunStore, warn: Warn) -> Trackers:
    """The trackers that the job names, of a run whose first record is written.

    Args:
        assembled: the search.
        store: open for writing; a tracker that fails is noted there.
        warn: told besides.
    """
    names = dict.fromkeys(assembled.resolved.job.track)

    def told(text: str) -> None:
        warn(text)
        if store.writes:  # a disk that is full ends the run and fails a tracker's last words; the former is what counts
            store.append(Note("tracking", text))

    run = _tracked_run(assembled, store) if names else None
    return Trackers({name: partial(TRACKERS[name], run) for name in names if run is not None}, told)


def _tracked_run(assembled: Assembled, store: RunStore) -> TrackedRun:
    job = assembled.resolved.job
    settings: dict[str, str | float] = {
        "optimizer": assembled.optimizer.name,
        "genes": assembled.problem.dim,
        "budget": job.budget.evaluations,
        "seed": job.seed,
        "parents": ", ".join(ref.name for ref in assembled.parents.refs()),
        "tasks": ", ".join(task.name for task in assembled.plan.tasks),
    }
    return TrackedRun(job.name, store.folder, _identity(store), settings)


def _identity(store: RunStore) -> str:
    """From the record that began the run: no other run has the same moment, host and process."""
    moments = ((e.time_s, e.record.host, e.record.pid) for e in store.entries() if isinstance(e.record, Opened))
    return digest_json(list(next(moments)))[:16]

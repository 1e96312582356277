"""Every question is asked once: scores requests through a pool, and writes each outcome to the journal as it comes.

The ledger remembers outcomes by (recipe digest, item set). A request whose outcome is known, from this life or an
earlier one, costs nothing. Requests are handed to the pool a few at a time, so that an interrupted run has little
to wait for, and results may come back in any order; `score` returns them in the order of the requests.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol, final

from evomerge.errors import Interrupted, StoreError, TooManyFailures
from evomerge.evaluation.objectives import CustomObjective, objective_values
from evomerge.execution.pool import Completed, EvaluationPool
from evomerge.runs.records import Evaluated, Failed, Reused, task_scores
from evomerge.runs.replay import History
from evomerge.runs.store import RunStore
from evomerge.types import CandidateId, Digest, EvalTask, Evaluation, Failure, Outcome, SetName

FAILURES_JUDGED_AFTER: Final = 20
_TICK_S: Final = 0.2

Key = tuple[Digest, SetName]


def recorded_outcomes(store: RunStore, history: History) -> dict[Key, Outcome]:
    """What earlier lives have found out, with every answer; an outcome whose answers are lost is asked again."""
    outcomes: dict[Key, Outcome] = {}
    for key, record in history.outcomes.items():
        if isinstance(record, Failed):
            outcomes[key] = record.failure
            continue
        with suppress(StoreError):
            evaluation: Evaluation = store.load_responses(record)
            outcomes[key] = evaluation
    return outcomes


@dataclass(frozen=True)
class Request:
    """One model to be scored.

    Attributes:
        id: the candidate or baseline.
        digest: of its recipe.
        recipe: the recipe's JSON object.
    """

    id: CandidateId
    digest: Digest
    recipe: Mapping[str, Any]


class Watcher(Protocol):
    """Told what happens while it happens; must not raise and must not take long."""

    def phase(self, name: str, total: int, done: int) -> None:
        """A phase begins, of `total` evaluations, `done` of them in an earlier life."""

    def outcome(self, request: Request, set_name: SetName, outcome: Outcome) -> None:
        """A model was scored or failed, just now."""

    def batch(self, number: int) -> None:
        """The optimizer has learnt batch `number`."""


class StopSignal(Protocol):
    """Whether the user asked the run to stop."""

    def __call__(self) -> bool:
        """True from the first SIGINT or SIGTERM on."""


@final
class Ledger:
    """See the module docstring.

    Args:
        store: where outcomes are recorded before they are used.
        pool: where models are scored.
        known: outcomes of earlier lives.
        reused: ids whose reuse earlier lives have recorded.
        stop: asked between results.
        drain_s: how long running candidates may take after a stop.
        failure_share: of the models scored in this run, above which it ends.
        watcher: told of every fresh outcome.
        custom: objectives that a Python function computes; their values are recorded, because nothing else knows them.
    """

    def __init__(
        self,
        store: RunStore,
        pool: EvaluationPool,
        *,
        known: Mapping[Key, Outcome],
        reused: frozenset[tuple[CandidateId, SetName]],
        stop: StopSignal,
        drain_s: float,
        failure_share: float,
        watcher: Watcher,
        custom: Sequence[CustomObjective] = (),
    ) -> None:
        self._store = store
        self._pool = pool
        self._outcomes = dict(known)
        self._reused = set(reused)
        self._touched: set[Key] = set()
        self._stop = stop
        self._drain_s = drain_s
        self._failure_share = failure_share
        self._watcher = watcher
        self._custom = tuple(custom)

    @property
    def spent(self) -> int:
        """Distinct models requested on the search set so far, as this life has walked through the run."""
        return sum(set_name == "search" for _, set_name in self._touched)

    def known(self, digest: Digest, set_name: SetName) -> bool:
        """Whether the outcome needs no work."""
        return (digest, set_name) in self._outcomes

    def score(
        self, requests: Sequence[Request], set_name: SetName, limit: int | None = None
    ) -> tuple[Outcome | None, ...]:
        """The outcomes of `requests`, aligned with them; None behind the point where `limit` models were new.

        A model is new when it was not requested on this set before in this walk through the run, whether or not an
        earlier life has scored it: so a resumed run spends its budget as an undisturbed one does.

        Raises:
            Interrupted: when a stop was asked for; finished results are recorded.
            TooManyFailures: when the share of failures is above the budget's.
            DiskFull: when a result cannot be recorded.
        """
        accepted: list[Request] = []
        due: deque[Request] = deque()
        fresh = 0
        for request in requests:
            key = (request.digest, set_name)
            if key in self._touched:
                self._record_reuse(request, set_name)
            else:
                if fresh == limit:
                    break
                fresh += 1
                self._touched.add(key)
                if key not in self._outcomes:
                    due.append(request)
            accepted.append(request)
        self._work(due, set_name)
        outcomes = [self._outcomes[(r.digest, set_name)] for r in accepted]
        self._judge_failures()
        return (*outcomes, *[None] * (len(requests) - len(accepted)))

    def _record_reuse(self, request: Request, set_name: SetName) -> None:
        if (request.id, set_name) not in self._reused:
            self._reused.add((request.id, set_name))
            self._store.append(Reused(request.id, request.digest, set_name))

    def _work(self, due: deque[Request], set_name: SetName) -> None:
        """Feed the pool and record what comes back, until nothing is due."""
        running: dict[CandidateId, Request] = {}
        while due or running:
            if self._stop():
                self._drain(running, set_name)
            while due and len(running) < 2 * self._pool.n_workers:
                request = due.popleft()
                running[request.id] = request
                self._pool.submit(EvalTask(request.id, request.recipe, set_name))
            self._take(running, set_name, _TICK_S)

    def _take(self, running: dict[CandidateId, Request], set_name: SetName, timeout_s: float) -> None:
        """Wait for one result and record it: first on disk, then in memory."""
        result = self._pool.next_outcome(timeout_s)
        if result is None:
            return
        request = running.pop(result.task.id)
        self._record(request, set_name, result)
        self._outcomes[(request.digest, set_name)] = result.outcome
        self._watcher.outcome(request, set_name, result.outcome)

    def _record(self, request: Request, set_name: SetName, result: Completed) -> None:
        """Answers first, then the journal's line: a recorded evaluation always has its answers."""
        who = (request.id, request.digest, set_name)
        outcome, by = result.outcome, (result.worker, result.attempt)
        if isinstance(outcome, Failure):
            self._store.append(Failed(*who, outcome, *by))
            return
        responses = self._store.save_responses(request.digest, outcome)
        values = {o.name: (e.value, e.se) for o in self._custom for e in (objective_values(o, outcome),)}
        timing = {stage: round(seconds, 4) for stage, seconds in outcome.timing_s.items()}
        self._store.append(Evaluated(*who, task_scores(outcome), responses, timing, *by, values))

    def _drain(self, running: dict[CandidateId, Request], set_name: SetName) -> None:
        """Give running candidates their time, then stop the run."""
        for task in self._pool.drop_waiting():
            del running[task.id]
        deadline = time.monotonic() + self._drain_s
        while running and time.monotonic() < deadline:
            self._take(running, set_name, _TICK_S)
        left = f"; {len(running)} candidates had not finished after {self._drain_s:g} s" if running else ""
        raise Interrupted(
            "The run was interrupted.",
            got=f"a stop signal{left}; every finished candidate is recorded",
            allowed="resuming at any time",
            fix=f"evomerge resume {self._store.folder}",
        )

    def _judge_failures(self) -> None:
        outcomes = [self._outcomes[key] for key in self._touched if key in self._outcomes]
        failures = [o for o in outcomes if isinstance(o, Failure)]
        if len(outcomes) >= FAILURES_JUDGED_AFTER and len(failures) > self._failure_share * len(outcomes):
            first = failures[0]
            raise TooManyFailures(
                "Too many candidates fail.",
                got=f"{len(failures)} of {len(outcomes)}, one by {first.kind}: {first.message}\n{first.traceback}",
                allowed=f"a share of {self._failure_share:g} (budget.failures)",
                fix="mend the cause (`logs/` has every traceback) and start a new run. What has failed stays failed: "
                f"`evomerge resume {self._store.folder} --set budget.failures=1` goes on without it.",
            )

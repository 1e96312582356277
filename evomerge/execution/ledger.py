"""Every question is asked once: scores requests through a pool, and writes each outcome to the journal as it comes.

The ledger remembers answers by (recipe digest, item set, item). A request whose answers are known, from this life or an
earlier one, costs nothing; one for some items asks those that are missing. Requests are handed to the pool a few at a
time, so that an interrupted run has little to wait for; those with a path all at once and sorted by it, so that workers
can be given what begins alike. Results may come back in any order; `score` returns them in the order of the requests.

`begin` and `next_known` do the same without waiting: an asynchronous search begins a request whenever a worker is
about to be free, and is told which model has become known whenever one has.

A resumed run walks through the same requests as an undisturbed one, but its store may know more than the walk has
asked for. Therefore a request is told the answers that this walk has requested so far, and no others.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, Protocol, final, runtime_checkable

from evomerge.errors import Interrupted, TooManyFailures
from evomerge.evaluation.objectives import CustomObjective, objective_values
from evomerge.execution.keeping import PackedRecipe, shared
from evomerge.execution.known import Known, load_known
from evomerge.execution.pool import Completed, EvaluationPool
from evomerge.execution.routes import Route, route_of
from evomerge.execution.waiting import Waiting
from evomerge.execution.walks import Key, Walks
from evomerge.failpoints import reach
from evomerge.runs.partial import Items, restrict
from evomerge.runs.records import Evaluated, Failed, Reused, task_scores
from evomerge.runs.replay import History
from evomerge.runs.store import RunStore
from evomerge.runs.worker_records import WorkerNews
from evomerge.types import CandidateId, Digest, EvalTask, Failure, Outcome, SetName

FAILURES_JUDGED_AFTER: Final = 20
_TICK_S: Final = 0.2


def recorded_outcomes(store: RunStore, history: History) -> dict[Key, Known]:
    """What earlier lives have found out, with every answer; answers that are lost are asked again when needed."""
    return {key: load_known(store, parts) for key, parts in history.parts.items()}


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

    def packed(self) -> Request:
        """The same in little memory, to be kept."""
        return self if isinstance(self.recipe, PackedRecipe) else replace(self, recipe=PackedRecipe(self.recipe))

    def unpacked(self) -> Request:
        """The same, to be asked."""
        return replace(self, recipe=self.recipe.unpacked()) if isinstance(self.recipe, PackedRecipe) else self


class _Due(NamedTuple):
    """Work for the pool: what is missing of a request; `items` is None for a whole set."""

    request: Request
    items: Items | None
    route: Route


class Watcher(Protocol):
    """Told what happens while it happens; must not raise and must not take long."""

    def phase(self, name: str, total: int, done: int) -> None:
        """A phase begins, of `total` evaluations, `done` of them in an earlier life."""

    def outcome(self, request: Request, set_name: SetName, outcome: Outcome) -> None:
        """A model was scored or failed, just now: once per model and set, also when it is asked in increments."""

    def batch(self, number: int) -> None:
        """The optimizer has learnt batch `number`."""


@runtime_checkable
class NewsWatcher(Protocol):
    """What a watcher may have besides: it is then also told of workers that were turned away."""

    def note(self, text: str) -> None:
        """A sentence for the user; must not raise."""


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
        known: what earlier lives have found out, see `recorded_outcomes`.
        reused: ids whose reuse earlier lives have recorded.
        stop: asked between results.
        drain_s: how long running candidates may take after a stop.
        failure_share: of the models scored in this run, above which it ends.
        watcher: told of every model that is scored afresh.
        custom: objectives that a Python function computes; their values are recorded, because nothing else knows them.
        order: set -> task -> item hashes in plan order (`EvalPlan.items`); needed where a part of a set is requested.
    """

    def __init__(
        self,
        store: RunStore,
        pool: EvaluationPool,
        *,
        known: Mapping[Key, Known],
        reused: frozenset[tuple[CandidateId, SetName]],
        stop: StopSignal,
        drain_s: float,
        failure_share: float,
        watcher: Watcher,
        custom: Sequence[CustomObjective] = (),
        order: Mapping[SetName, Items] | None = None,
    ) -> None:
        self._store = store
        self._pool = pool
        self._order = dict(order or {})
        self._known = {key: found.ordered(self._order.get(key[1])) for key, found in known.items()}
        self._reused = set(reused)
        self._walks = Walks()
        self._stop = stop
        self._drain_s = drain_s
        self._failure_share = failure_share
        self._watcher = watcher
        self._waiting = Waiting(watcher)
        self._custom = tuple(custom)
        self._begun: dict[CandidateId, _Due] = {}

    @property
    def spent(self) -> int:
        """Distinct models requested on the search set so far, as this life has walked through the run."""
        return self._walks.n_begun("search")

    def known(self, digest: Digest, set_name: SetName, items: Items | None = None) -> bool:
        """Whether a request needs no work."""
        wanted = None if items is None else self._planned(items, set_name)
        return self._is_answered((digest, set_name), wanted) or self._is_failed((digest, set_name))

    def score(
        self, requests: Sequence[Request], set_name: SetName, limit: int | None = None, items: Items | None = None
    ) -> tuple[Outcome | None, ...]:
        """The outcomes of `requests`, aligned with them; None behind the point where `limit` models were new.

        A model is new when it was not requested on this set before in this walk through the run, whether or not an
        earlier life has scored it: so a resumed run spends its budget as an undisturbed one does.

        What is told is all that this walk has requested so far of a model on this set, in plan order. A model that
        fails keeps what it had answered: a later request whose items all have answers is told them, one that needs
        more is told the failure.

        Args:
            requests: the models.
            set_name: the set.
            limit: on new models.
            items: task -> item hashes, in any order; tasks may be left out. None is the whole set.

        Raises:
            ValueError: for items that are none, or that the plan's order does not have.
            Interrupted: when a stop was asked for; finished results are recorded.
            TooManyFailures: when the share of failures is above the budget's.
            DiskFull: when a result cannot be recorded.
        """
        wanted = None if items is None else self._planned(items, set_name)
        accepted: list[Request] = []
        due: dict[Key, _Due] = {}
        fresh = 0
        for request in requests:
            key = (request.digest, set_name)
            if key not in self._walks:
                if fresh == limit:
                    break
                fresh += 1
                self._walks.begin(key, request.id)
            elif self._walks[key].owner != request.id:
                self._record_reuse(request, set_name)
            self._walks[key].want(wanted)
            if not (key in due or self._is_answered(key, wanted) or self._is_failed(key)):
                due[key] = _Due(request, self._missing(key, wanted), route_of(request.recipe))
            accepted.append(request)
        # those without a route come first, in the order of the requests
        self._work(deque(sorted(due.values(), key=lambda d: d.route)), set_name)
        outcomes = [self._told((r.digest, set_name), wanted) for r in accepted]
        self.judge_failures()
        return (*outcomes, *[None] * (len(requests) - len(accepted)))

    # -- without waiting --------------------------------------------------------------------------------------------

    @property
    def n_workers(self) -> int:
        """How many workers there are, now."""
        return self._pool.n_workers

    @property
    def n_begun(self) -> int:
        """Requests that the pool works at, those that wait for a worker included."""
        return len(self._begun)

    def begin(self, request: Request, set_name: SetName) -> Outcome | None:
        """Request a whole set without waiting for it.

        Returns:
            The outcome where it is known; None when the pool works at it, for this request or an earlier one of the
            same recipe.
        """
        key = (request.digest, set_name)
        walk = self._walks.begin(key, request.id)
        if walk.owner != request.id:
            self._record_reuse(request, set_name)
        walk.want(None)
        if self._is_answered(key, None) or self._is_failed(key):
            return self._told(key, None)
        if not any(due.request.digest == request.digest for due in self._begun.values()):
            self._submit(_Due(request, self._missing(key, None), route_of(request.recipe)), self._begun, set_name)
        return None

    def next_known(self, set_name: SetName, timeout_s: float | None = None) -> tuple[Digest, Outcome] | None:
        """The next model that has become known since it was begun, recorded; None when none has in time.

        Args:
            set_name: of everything that was begun.
            timeout_s: how long to wait, seconds; a fifth of one if None.

        Raises:
            Interrupted, TooManyFailures, DiskFull: as `score`.
        """
        if self._stop():
            self._drain(self._begun, set_name)
        due = self._take(self._begun, set_name, _TICK_S if timeout_s is None else timeout_s)
        if due is None:
            return None
        outcome = self._told((due.request.digest, set_name), None)
        self.judge_failures()
        return due.request.digest, outcome

    def _planned(self, items: Items, set_name: SetName) -> Items:
        """A choice of items in plan order."""
        order = self._order.get(set_name, {})
        alien = [i for name, hashes in items.items() for i in set(hashes).difference(order.get(name, ()))]
        chosen = {name: set(items.get(name, ())) for name in order}
        planned = {name: tuple(i for i in order[name] if i in wanted) for name, wanted in chosen.items() if wanted}
        if alien or not planned:
            raise ValueError(
                f"a choice of {set_name} items: {len(alien)} are not in the plan, {len(planned)} tasks are"
            )
        return planned

    def _missing(self, key: Key, wanted: Items | None) -> Items | None:
        """What is to be asked; None for a whole set of which nothing is known."""
        found = self._known.get(key, Known())
        if wanted is None:
            wanted = self._order.get(key[1]) if found.evaluation is not None else None
        return None if wanted is None else found.missing(wanted)

    def _is_answered(self, key: Key, wanted: Items | None) -> bool:
        """Whether every wanted item has its answer; a whole set may be complete in parts."""
        return self._known.get(key, Known()).whole or self._missing(key, wanted) == {}

    def _is_failed(self, key: Key) -> bool:
        """Whether the model has failed, so that nothing more is asked; lost answers are from before it did."""
        found = self._known.get(key, Known())
        return found.failure is not None and not found.lost

    def _told(self, key: Key, wanted: Items | None) -> Outcome:
        """What a request is told once everything is known that there is to know."""
        found, walk = self._known[key], self._walks[key]
        if found.evaluation is not None and self._is_answered(key, wanted):
            self._walks.tell(key, None)
            return found.evaluation if walk.whole else restrict(found.evaluation, walk.items)
        if found.failure is None:
            raise ValueError(f"{walk.owner} was scored on the {key[1]} set and has neither answers nor a failure")
        self._walks.tell(key, found.failure)
        return found.failure

    def _record_reuse(self, request: Request, set_name: SetName) -> None:
        if (request.id, set_name) not in self._reused:
            self._reused.add((request.id, set_name))
            self._store.append(Reused(request.id, request.digest, set_name))

    def _work(self, due: deque[_Due], set_name: SetName) -> None:
        """Feed the pool and record what comes back, until nothing is due."""
        running: dict[CandidateId, _Due] = {}
        while due or running:
            if self._stop():
                self._drain(running, set_name)
            # the pool sees all paths at once, to choose those that suit a worker
            while due and (due[0].route or len(running) < 2 * self._pool.n_workers):
                self._submit(due.popleft(), running, set_name)
            self._take(running, set_name, _TICK_S)

    def _submit(self, due: _Due, running: dict[CandidateId, _Due], set_name: SetName) -> None:
        request, items, route = due
        running[request.id] = due
        costed = bool(self._known.get((request.digest, set_name), Known()).costs)
        reach("before-dispatch")
        self._pool.submit(EvalTask(request.id, request.recipe, set_name, items, not costed, route))
        reach("after-dispatch")

    def _take(self, running: dict[CandidateId, _Due], set_name: SetName, timeout_s: float) -> _Due | None:
        """Wait for one result and record it: first on disk, then in memory; what it was asked for."""
        result = self._pool.next_outcome(timeout_s)
        self._record_news()
        self._waiting.ask(self._pool)
        if result is None:
            return None
        request, items, _ = due = running.pop(result.task.id)
        before = self._known.get((request.digest, set_name), Known())
        result = result._replace(outcome=_asked_for(result.outcome, items))
        self._known[(request.digest, set_name)] = self._record(request, set_name, result, before)
        if before.evaluation is None and before.failure is None:
            self._watcher.outcome(request, set_name, result.outcome)
        return due

    def _record_news(self) -> None:
        """What happened to workers: in the journal, and what was refused also to whoever watches."""
        for event in self._pool.news():
            self._store.append(WorkerNews(**vars(event)))
            if event.kind == "refused" and isinstance(self._watcher, NewsWatcher):
                self._watcher.note(f"{event.worker} on {event.host} is left idle: {event.detail}")

    def _record(self, request: Request, set_name: SetName, result: Completed, before: Known) -> Known:
        """Answers first, then the journal's line: a recorded evaluation always has its answers."""
        who = (request.id, request.digest, set_name)
        outcome, by = result.outcome, (result.worker, result.attempt)
        if isinstance(outcome, Failure):
            self._store.append(Failed(*who, outcome, *by))
            return before.with_failure(outcome)
        outcome = shared(before.with_costs(outcome), self._order.get(set_name, {}))
        responses = self._store.save_responses(request.digest, outcome)
        part = 0 if result.task.items is None else before.part_number(responses)
        after = before.with_part(part, outcome, self._order[set_name]) if part else before.with_whole(outcome)
        known = after.evaluation or outcome
        values = {o.name: (e.value, e.se) for o in self._custom for e in (objective_values(o, known),)}
        timing = {stage: round(seconds, 4) for stage, seconds in outcome.timing_s.items()}
        self._store.append(Evaluated(*who, task_scores(outcome), responses, timing, *by, values, part, outcome.costs))
        return after

    def _drain(self, running: dict[CandidateId, _Due], set_name: SetName) -> None:
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

    def judge_failures(self) -> None:
        """End the run when too many of the models that were told so far have failed.

        Raises:
            TooManyFailures: with the first traceback.
        """
        n, failures = self._walks.n_told, len(self._walks.failures)
        if n >= FAILURES_JUDGED_AFTER and failures > self._failure_share * n:
            first = self._walks.failures[0]
            raise TooManyFailures(
                "Too many candidates fail.",
                got=f"{failures} of {n}, one by {first.kind}: {first.message}\n{first.traceback}",
                allowed=f"a share of {self._failure_share:g} (budget.failures)",
                fix="mend the cause (`logs/` has every traceback) and start a new run. What has failed stays failed: "
                f"`evomerge resume {self._store.folder} --set budget.failures=1` goes on without it.",
            )


def _asked_for(outcome: Outcome, items: Items | None) -> Outcome:
    """The answers to what was asked, no others; a failure when some are missing."""
    if items is None or isinstance(outcome, Failure):
        return outcome
    found = restrict(outcome, items)
    n = sum(map(len, items.values()))
    return found if found.n_questions == n else Failure("evaluate", f"{found.n_questions} of {n} items were answered")

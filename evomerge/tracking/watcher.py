"""A watcher that also tells trackers; what a tracker raises is told once and never ends a search."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, final

from evomerge.errors import EvaluationError, without_secrets
from evomerge.evaluation.goals import Goals
from evomerge.evaluation.objectives import objective_values
from evomerge.execution.ledger import NewsWatcher, Request, Watcher
from evomerge.execution.waiting import WaitingWatcher
from evomerge.report.summary import RunSummary
from evomerge.tracking.tracker import Tracker
from evomerge.types import Evaluation, Failure, Outcome, SetName

Warn = Callable[[str], None]
"""Takes one sentence for people."""


@final
class Trackers:
    """Several trackers as one that cannot fail.

    Args:
        makers: name -> what makes the tracker.
        warn: told once of each tracker that failed, and which is left out from then on.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Tracker]], warn: Warn) -> None:
        self._warn = warn
        self._trackers: dict[str, Tracker] = {}
        for name, make in makers.items():
            with self._guarded(name):
                self._trackers[name] = make()

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # other people's libraries, and their networks: no reason to end a search
            self._trackers.pop(name, None)
            first = without_secrets(str(error).partition("\n")[0])  # addresses from the environment have logins
            self._warn(f"{name} is left out from here on: {type(error).__name__}: {first}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show what is finite of `values` everywhere; see `Tracker.log`."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        for name, tracker in list(self._trackers.items()):
            with self._guarded(name):
                tracker.log(step, finite)

    def finish(self, summary: RunSummary) -> None:
        """Show what was chosen, and its scores on the report set."""
        chosen = summary.chosen
        notes: dict[str, str] = {"state": summary.state, "result_digest": summary.result_digest}
        values: dict[str, float] = {"front/size": len(summary.front)}
        if chosen is not None:
            notes |= {"chosen": chosen.id, "recipe": chosen.recipe_digest}
            scored = {} if chosen.report is None else chosen.report.objectives
            values |= {f"report/{name}": score.value for name, score in scored.items()}
        self.log(summary.counts.evaluated + summary.counts.failed, values)
        for name, tracker in list(self._trackers.items()):
            with self._guarded(name):
                tracker.finish(notes)

    def close(self) -> None:
        """Close every tracker that is left."""
        for name, tracker in list(self._trackers.items()):
            with self._guarded(name):
                tracker.close()


BEST: Final[Mapping[str, Callable[[float, float], float]]] = {"maximize": max, "minimize": min}


@final
class TrackedWatcher:
    """Tells a watcher, then the trackers.

    Of every model that is scored afresh on the search set: its objectives over the questions it was asked
    (`search/NAME`), the best so far among those that were asked everything (`best/NAME`), how many questions it was
    asked, and how many models have failed.

    Args:
        watcher: told first, as if nobody else listened.
        trackers: told second.
        goals: the job's.
        n_items: questions of the whole search set.
    """

    def __init__(self, watcher: Watcher, trackers: Trackers, goals: Goals, n_items: int) -> None:
        self._watcher = watcher
        self._trackers = trackers
        self._goals = goals
        self._n_items = n_items
        self._step = self._failed = 0
        self._best: dict[str, float] = {}

    def phase(self, name: str, total: int, done: int) -> None:
        """See `Watcher.phase`."""
        self._watcher.phase(name, total, done)
        if name == "search":
            self._step = done

    def outcome(self, request: Request, set_name: SetName, outcome: Outcome) -> None:
        """See `Watcher.outcome`."""
        self._watcher.outcome(request, set_name, outcome)
        if set_name != "search":
            return
        self._step += 1
        self._failed += isinstance(outcome, Failure)
        scores = {} if isinstance(outcome, Failure) else self._scores(outcome)
        self._trackers.log(self._step, {**scores, "search/failed": float(self._failed)})

    def batch(self, number: int) -> None:
        """See `Watcher.batch`."""
        self._watcher.batch(number)
        self._trackers.log(self._step, {"search/generation": float(number)})

    def note(self, text: str) -> None:
        """See `NewsWatcher.note`."""
        if isinstance(self._watcher, NewsWatcher):
            self._watcher.note(text)

    def waiting(self, why: str) -> None:
        """See `WaitingWatcher.waiting`; a watcher that only takes notes is told by one."""
        if isinstance(self._watcher, WaitingWatcher):
            self._watcher.waiting(why)
        elif why:
            self.note(f"Waiting for workers: {why}.")

    def _scores(self, evaluation: Evaluation) -> dict[str, float]:
        found = {"search/questions": float(evaluation.n_questions)}
        for objective in self._goals.objectives:
            try:
                value = objective_values(objective, evaluation).value
            except EvaluationError:  # it needs the parents' answers, or items that were not asked
                continue
            found[f"search/{objective.name}"] = value
            if evaluation.n_questions == self._n_items:
                better = BEST[objective.direction]
                self._best[objective.name] = better(value, self._best.get(objective.name, value))
        return found | {f"best/{name}": value for name, value in self._best.items()}

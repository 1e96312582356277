"""One stage of an asynchronous search: a candidate whenever a worker is about to be free, a result when it arrives.

Nothing waits for a generation. What the optimizer hears and when decides what it asks, so every ask is journaled with
the results that were told before it (a *turn*), before the candidate is begun. A resumed run takes the same turns and
must be asked for the same genes; candidates that were asked and have no outcome are begun first; results that had come
but were not told yet are told next, in the order in which they were recorded.

The pool is given as many candidates as it has workers and a few more: those that a worker begins while the optimizer
thinks. A worker gets its next task when its last outcome has been recorded, as ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, final

from evomerge.errors import CorruptJournal, ResumeMismatch
from evomerge.evaluation.beliefs import Beliefs, believed, losses, violations
from evomerge.evaluation.goals import BoundGoals
from evomerge.execution.ledger import Ledger, Request, Watcher
from evomerge.failpoints import reach
from evomerge.optimizers.base import Stream, Told
from evomerge.recipe.recipe import Recipe
from evomerge.recipe.serialize import recipe_digest, recipe_to_json
from evomerge.runs.records import Candidate
from evomerge.runs.replay import Batch, History, compare_genes
from evomerge.runs.store import RunStore
from evomerge.runs.stream_records import Turn
from evomerge.space.space import SearchSpace
from evomerge.types import CandidateId, Digest, Evaluation, Outcome, Vector

WORKERS_PER_SPARE: Final = 8
"""For so many workers one more candidate waits for whoever is free next, and one in any case."""

IDLE_BLOCKS: Final = 25
"""So many blocks of asks in a row that ask nothing new end the search (see `loop.IDLE_BATCHES`)."""


def wanted_ahead(n_workers: int) -> int:
    """Candidates that the pool is to have: one per worker, and those that wait; a single worker has none ahead."""
    return n_workers + 1 + n_workers // WORKERS_PER_SPARE if n_workers > 1 else 1


class Place(NamedTuple):
    """Where a stage stands in the search.

    Attributes:
        space: the genes.
        recipe_of: quantised genes -> recipe.
        first_batch: number of its first block.
        first_ask: number of its first ask.
        turns: that earlier lives have recorded.
    """

    space: SearchSpace
    recipe_of: Callable[[Vector], Recipe]
    first_batch: int
    first_ask: int
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Hooks:
    """What the stage tells the search.

    Attributes:
        settle: outcomes of the known models, None behind the end of the budget -> the goals with their bounds.
        keep: a candidate's outcome, and its block; called in the order of telling.
        accept: genes differ from the recorded ones: the error, to be raised or to be noted.
    """

    settle: Callable[[tuple[Outcome | None, ...]], BoundGoals]
    keep: Callable[[Request, Outcome, int], None]
    accept: Callable[[ResumeMismatch], None]


class Ended(NamedTuple):
    """What a stage leaves behind.

    Attributes:
        why: it ended.
        goals: with bounds.
        next_batch: number of the next stage's first block.
        next_ask: number of the next stage's first ask.
    """

    why: str
    goals: BoundGoals
    next_batch: int
    next_ask: int


class _Ask(NamedTuple):
    request: Request
    vector: Vector
    batch: int


@final
class Flow:
    """See the module docstring.

    Args:
        place: of the stage.
        optimizer: fresh.
        ledger: whom to ask.
        store: where turns are recorded.
        history: what earlier lives have recorded.
        watcher: told of every block that was told whole.
        hooks: of the search.
    """

    def __init__(
        self,
        place: Place,
        optimizer: Stream,
        *,
        ledger: Ledger,
        store: RunStore,
        history: History,
        watcher: Watcher,
        hooks: Hooks,
    ) -> None:
        self._place = place
        self._optimizer = optimizer
        self._ledger = ledger
        self._store = store
        self._history = history
        self._watcher = watcher
        self._hooks = hooks
        self._goals: BoundGoals | None = None
        self._known: tuple[Request, ...] = ()
        self._asks: dict[int, _Ask] = {}
        self._outcomes: dict[Digest, Outcome] = {}
        self._waiting: dict[Digest, list[int]] = {}
        self._arrived: deque[int] = deque()
        self._unheard: list[int] = []
        self._n_asked = self._n_told = self._idle = 0

    def run(self, known: Sequence[Request], goals: BoundGoals | None, until: int) -> Ended:
        """Search until `until` evaluations are spent or nothing more is to be gained.

        Args:
            known: models to be scored first; empty in later stages.
            goals: with bounds; None when these follow from the known models.
            until: evaluations of all stages up to the end of this one.

        Raises:
            Interrupted, TooManyFailures, DiskFull: see `Ledger.next_known`.
            ResumeMismatch: when the replayed optimizer asks for other genes than the recorded ones.
        """
        self._goals = goals
        self._begin_known(known, until)
        self._replay()
        self._ledger.judge_failures()
        while True:
            self._tell_arrived()
            why = self._ask_ahead(until)
            if why is not None and not self._ledger.n_begun and not self._arrived:
                break
            self._receive()
        settled = self._settled()
        if self._unheard:
            self._turn(None)
        blocks = -(-self._n_asked // self._optimizer.population)
        return Ended(why, settled, self._place.first_batch + blocks, self._place.first_ask + self._n_asked)

    # -- known models -----------------------------------------------------------------------------------------------

    def _begin_known(self, known: Sequence[Request], limit: int) -> None:
        """Begin the known models, as many as the budget holds."""
        self._known = tuple(known)
        for request in self._known:
            if self._ledger.spent < limit or request.digest in self._outcomes or request.digest in self._waiting:
                self._begin(request)

    def _settled(self) -> BoundGoals:
        """The goals; waits for the known models when these have yet to say where bounds lie."""
        while (goals := self._settle_now()) is None:
            self._receive()
        return goals

    def _settle_now(self) -> BoundGoals | None:
        """The goals, None while a known model is yet to be scored."""
        if self._goals is None and not any(request.digest in self._waiting for request in self._known):
            self._goals = self._hooks.settle(tuple(self._outcomes.get(r.digest) for r in self._known))
        return self._goals

    # -- asking -----------------------------------------------------------------------------------------------------

    def _ask_ahead(self, until: int) -> str | None:
        """Ask until the pool has enough to do, or the search is over: then why."""
        while True:
            why = self._why_stop(until)
            if why is not None or self._ledger.n_begun >= wanted_ahead(self._ledger.n_workers):
                return why
            self._ask()
            self._tell_arrived()

    def _why_stop(self, until: int) -> str | None:
        if self._ledger.spent >= until:
            return f"the budget of {until} evaluations is spent"
        if self._idle >= IDLE_BLOCKS * self._optimizer.population:
            return f"{self._idle} candidates in a row were known"
        return self._optimizer.should_stop()

    def _ask(self) -> None:
        """Ask for one candidate, journal the turn, begin it."""
        vector = self._place.space.quantise(self._optimizer.ask())
        number = self._place.first_ask + self._n_asked
        candidate = Candidate(
            CandidateId(f"a{number:05d}"),
            "candidate",
            recipe_digest(self._place.recipe_of(vector)),
            tuple(float(gene) for gene in vector),
        )
        self._turn(candidate)
        self._begin_candidate(candidate)

    def _turn(self, candidate: Candidate | None) -> None:
        """Journal what was told since the last turn, and the candidate that is asked now."""
        told, self._unheard = tuple(self._unheard), []
        if candidate is not None:
            self._store.append(Turn(told, self._batch, self._place.first_ask + self._n_asked, candidate))
        else:  # nothing is told before something was asked
            self._store.append(Turn(told, self._place.first_batch + (self._n_asked - 1) // self._optimizer.population))

    @property
    def _batch(self) -> int:
        """The block of the next ask."""
        return self._place.first_batch + self._n_asked // self._optimizer.population

    def _begin_candidate(self, candidate: Candidate) -> None:
        recipe = recipe_to_json(self._place.recipe_of(candidate.vector))
        request = Request(candidate.id, candidate.recipe, recipe)
        number, spent = self._place.first_ask + self._n_asked, self._ledger.spent
        self._asks[number] = _Ask(request, candidate.vector, self._batch)
        self._n_asked += 1
        self._begin(request)
        self._idle = self._idle + 1 if self._ledger.spent == spent else 0
        if request.digest in self._outcomes:
            self._arrived.append(number)
        else:
            self._waiting[request.digest].append(number)

    def _begin(self, request: Request) -> None:
        outcome = self._ledger.begin(request, "search")
        if outcome is None:
            self._waiting.setdefault(request.digest, [])
        else:
            self._outcomes[request.digest] = outcome

    # -- results ----------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Wait for a result; then take those that have come besides, so that no worker waits for the optimizer."""
        for i in range(self._ledger.n_workers):
            found = self._ledger.next_known("search", None if i == 0 else 0.0)
            if found is None:
                return
            digest, outcome = found
            self._outcomes[digest] = outcome
            self._arrived.extend(self._waiting.pop(digest, ()))

    def _tell_arrived(self) -> None:
        """Tell the optimizer what has come in; what came before the bounds are known waits for them."""
        goals = self._settle_now()
        while goals is not None and self._arrived:
            self._tell(self._arrived.popleft(), goals)

    def _tell(self, number: int, goals: BoundGoals) -> None:
        ask = self._asks.pop(number)
        outcome = self._outcomes[ask.request.digest]
        self._hooks.keep(ask.request, outcome, ask.batch)
        beliefs = believed(goals, outcome) if isinstance(outcome, Evaluation) else None
        reach("before-tell")
        self._optimizer.tell(number - self._place.first_ask, as_told(ask.vector, beliefs, goals))
        reach("after-tell")
        if not any(self._asks[n].request.digest == ask.request.digest for n in self._arrived):
            del self._outcomes[ask.request.digest]  # the ledger has it, should it be asked for again
        self._unheard.append(number)
        self._n_told += 1
        if self._n_told % self._optimizer.population == 0:
            self._watcher.batch(self._place.first_batch + self._n_told // self._optimizer.population - 1)

    # -- replay -----------------------------------------------------------------------------------------------------

    def _replay(self) -> None:
        """Take the recorded turns again; then queue what came in and was not told, in the order of recording."""
        for turn in self._place.turns:
            for number in turn.told:
                self._tell_again(number)
            self._unheard = []
            if turn.candidate is not None:
                self._ask_again(turn, turn.candidate)
        order = {digest: i for i, (digest, set_name) in enumerate(self._history.parts) if set_name == "search"}
        came = sorted(self._arrived, key=lambda number: order.get(self._asks[number].request.digest, len(order)))
        self._arrived = deque(came)

    def _tell_again(self, number: int) -> None:
        if number not in self._asks:
            raise CorruptJournal(
                "The journal tells of a result of something that was not asked.",
                got=f"a turn that was told of ask {number}",
                allowed="results of earlier asks, each once",
                fix="restore the run directory, or start a new run.",
            )
        goals = self._settled()
        while number not in self._arrived:  # its answers were lost, and are asked again
            self._receive()
        self._arrived.remove(number)
        self._tell(number, goals)

    def _ask_again(self, turn: Turn, candidate: Candidate) -> None:
        asked = self._place.space.quantise(self._optimizer.ask())
        recorded = Batch(turn.batch, (candidate,), told=False)
        mismatch = compare_genes([asked], recorded, self._place.space.names)
        if mismatch is not None:
            self._hooks.accept(mismatch)
        self._begin_candidate(candidate)


def as_told(vector: Vector, beliefs: Beliefs | None, goals: BoundGoals) -> Told:
    """What an optimizer is told of a candidate.

    Args:
        vector: its genes.
        beliefs: what is believed of it; None when it failed.
        goals: bound on the search set.
    """
    if beliefs is None:
        return Told(vector, None)
    return Told(vector, losses(goals, beliefs), violations(goals, beliefs))

"""One generation's race: rungs of questions, who goes on, and what is believed in the end.

What a race decides (who is asked what) is journaled before anything is asked, and what it came to believe before the
optimizer learns it. A resumed run takes both from the journal, so that another numeric library cannot turn the race
another way; what is not recorded yet is decided afresh from the same answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np

from evomerge.evaluation.beliefs import Belief, Beliefs, errors, feasibility, losses
from evomerge.evaluation.goals import BoundGoals
from evomerge.evaluation.objectives import Estimate, ObjectiveSpec
from evomerge.execution.ledger import Ledger, Request
from evomerge.irt.elimination import EliminationRule, eliminated
from evomerge.irt.race import Rung, halving_schedule, survivors
from evomerge.irt.ranks import expected_ranks
from evomerge.irt.responses import Bools, Floats
from evomerge.racing.asking import Asked
from evomerge.racing.questioner import Questioner
from evomerge.racing.spec import QuestionsSpec
from evomerge.runs.race_records import BankFitted, Estimated, EstimateRow
from evomerge.runs.race_records import Rung as RungRecord
from evomerge.runs.records import TaskScore
from evomerge.runs.replay import History
from evomerge.runs.store import RunStore
from evomerge.seeds import generator
from evomerge.types import Digest, Evaluation, Failure, Outcome

SHARED: Final = 0.5
"""Correlation of two siblings' errors under common questions: their variance of a difference was measured to be .44 to
.54 of that under separate ones."""

FEWEST_RUNNERS: Final = 4
"""Fewer candidates do not race."""

LOOKS: Final = 5
"""Rungs of paired elimination; it looks between them."""


@dataclass(frozen=True)
class Result:
    """A generation after its race.

    Attributes:
        outcomes: aligned with the requests: all answers given, a failure, or None behind the end of the budget.
        beliefs: recipe -> what is believed of it, for those that did not fail.
    """

    outcomes: tuple[Outcome | None, ...]
    beliefs: Mapping[Digest, Beliefs]


@final
class Race:
    """Asks generations in rungs; see the module docstring.

    Args:
        spec: how many questions, and how they are chosen.
        questioner: what is asked, and what answers mean.
        store: where decisions are recorded.
        history: what earlier lives have recorded.
        ledger: whom to ask.
        items: task -> item hashes of the search set, in plan order.
        seed: of the run.
    """

    def __init__(
        self,
        *,
        spec: QuestionsSpec,
        questioner: Questioner,
        store: RunStore,
        history: History,
        ledger: Ledger,
        items: Mapping[str, tuple[str, ...]],
        seed: int,
    ) -> None:
        self._spec = spec
        self._questioner = questioner
        self._store = store
        self._history = history
        self._ledger = ledger
        self._items = items
        self._seed = seed
        self._failed: dict[Digest, Failure] = {}

    def descend_from(self, parents: Sequence[Request]) -> None:
        """Name the models that all candidates are merged from, scored before."""
        self._questioner.descend_from([request.digest for request in parents])

    def learn(self, requests: Sequence[Request], outcomes: Sequence[Outcome | None]) -> None:
        """Enter answers, and who failed; also of models that were asked beside the races."""
        for request, outcome in zip(requests, outcomes, strict=True):
            if isinstance(outcome, Evaluation):
                self._questioner.learn(request.digest, outcome)
            elif isinstance(outcome, Failure):
                self._failed.setdefault(request.digest, outcome)

    def run(self, batch: int, requests: Sequence[Request], goals: BoundGoals, limit: int) -> Result:
        """Ask one generation.

        Args:
            batch: its number.
            requests: its candidates, in ask order.
            goals: bound on the search set.
            limit: how many new models may be asked.

        Raises:
            Interrupted, TooManyFailures, DiskFull: see `Ledger.score`.
        """
        self._refit(batch)
        partial = self._questioner.ready(batch) or (batch, 0) in self._history.rungs
        if partial:
            outcomes, asked = self._rungs(batch, requests, goals, limit)
        else:
            outcomes, asked = self._ledger.score(requests, "search", limit=limit), {}
        self.learn(requests, outcomes)
        scored = {r.digest: o for r, o in zip(requests, outcomes, strict=True) if isinstance(o, Evaluation)}
        # a batch that the budget cut is raced again, whole, should the run go on with a larger one
        beliefs = self._believe(-2 - batch if None in outcomes else batch, scored, goals, asked)
        self._questioner.generation(tuple(scored))
        return Result(outcomes, beliefs)

    # -- rungs ------------------------------------------------------------------------------------------------------

    def _rungs(
        self, batch: int, requests: Sequence[Request], goals: BoundGoals, limit: int
    ) -> tuple[tuple[Outcome | None, ...], Mapping[Digest, Asked]]:
        """Ask rung after rung; who drops out keeps the answers that it gave. Also what each was asked.

        Candidates with equal recipes are one runner: they stay and go together, and take one place.
        """
        asking = self._questioner.asking(batch)
        schedule = self._schedule(_runners(requests), several=len(goals.objectives) > 1)
        alive, asked = list(requests), Asked({}, {})
        told: dict[Digest, Outcome | None] = {}
        asked_of: dict[Digest, Asked] = {}
        spent = questions = 0
        for number, rung in enumerate(schedule):
            record = self._history.rungs.get((batch, number))
            if record is not None:
                alive = [r for r in requests if r.id in record.alive]
            elif number:
                alive = self._survivors(rung.keep, alive, told, goals, asked)
            if not alive:
                break
            runners, before = _runners(alive), questions
            questions = rung.questions
            if self._spec.race == "elimination" and number:
                left = schedule[0].keep * self._questioner.mean_questions - spent
                questions = min(self._questioner.n_items, before + left // (runners * (len(schedule) - number)))
            spent += runners * (questions - before)
            asked = self._asked(record, asking.upto(questions))
            if record is None:
                self._store.append(RungRecord(batch, number, tuple(r.id for r in alive), dict(asked.items)))
            told |= self._told(alive, asked, limit)
            asked_of |= dict.fromkeys((r.digest for r in alive), asked)
            if None in told.values():
                break
            alive = [r for r in alive if isinstance(told[r.digest], Evaluation)]
        return tuple(told.get(r.digest) for r in requests), asked_of

    def _told(self, alive: Sequence[Request], asked: Asked, limit: int) -> dict[Digest, Outcome | None]:
        """Ask one rung. Who has failed once does not get a score from the answers that it gave before."""
        wanted = {t: tuple(self._items[t][i] for i in index) for t, index in asked.items.items() if index}
        found = self._ledger.score(alive, "search", limit=limit, items=wanted)
        outcomes = [None if o is None else self._failed.get(r.digest, o) for r, o in zip(alive, found, strict=True)]
        self.learn(alive, outcomes)
        told: dict[Digest, Outcome | None] = {}
        for request, outcome in zip(alive, outcomes, strict=True):
            told[request.digest] = told.get(request.digest) or outcome
        return told

    @staticmethod
    def _asked(record: RungRecord | None, asked: Asked) -> Asked:
        """What everybody is asked, as the journal has it; how it came to be chosen is not recorded."""
        if record is None:
            return asked
        return Asked({t: record.items.get(t, ()) for t in asked.items}, asked.inclusion)

    def _schedule(self, n: int, *, several: bool) -> tuple[Rung, ...]:
        """Questions per candidate, cumulative, and how many go on. With several objectives the default is no race.

        Where points of a front are sought, most candidates are worth the same attention, and optimizers that compare
        generations suffer from those that left early: the unlucky ones, whose estimates are too low.

        Paired elimination asks half of the mean at first; what later rungs ask depends on how many are left.
        """
        mean, pool = self._questioner.mean_questions, self._questioner.n_items
        if self._spec.race == "none" or (self._spec.race == "auto" and several) or n < FEWEST_RUNNERS:
            return (Rung(mean, n),)
        if self._spec.race == "elimination":
            return (Rung(-(-mean // 2), n),) * LOOKS
        # CMA-ES learns from the better half: `auto` asks it twice as much as the rest, and sends a candidate out once
        final = -(-n // 2) if self._spec.race == "auto" else -(-n // 4)
        return halving_schedule(n, pool, mean_questions=mean, final=max(2, final))

    def _survivors(
        self,
        keep: int,
        alive: Sequence[Request],
        told: Mapping[Digest, Outcome | None],
        goals: BoundGoals,
        asked: Asked,
    ) -> list[Request]:
        """Who is asked the next rung, `keep` recipes at most."""
        scored = {r.digest: e for r in alive if isinstance(e := told[r.digest], Evaluation)}
        if self._spec.race == "elimination":
            out = self._eliminated(scored, keep, goals, asked)
            left = [r for r in alive if r.digest not in out]
            return left if _runners(left) > 1 else []
        beliefs = self._questioner.believe(scored, goals, asked)
        found = [beliefs[recipe] for recipe in scored]
        ranks = expected_ranks(
            np.array([losses(goals, b) for b in found]),
            np.array([errors(goals, b) for b in found]),
            generator(self._seed, "ranks"),
            shared=SHARED,
            feasible_p=np.array([feasibility(goals, b) for b in found]),
        )
        recipes = list(scored)
        kept = {recipes[i] for i in survivors(ranks, keep)}
        return [r for r in alive if r.digest in kept]

    def _eliminated(
        self, scored: Mapping[Digest, Evaluation], started: int, goals: BoundGoals, asked: Asked
    ) -> frozenset[Digest]:
        """Those shown to be worse than the better half of those left, in every objective; nobody under constraints.

        The best candidate goes out only when one of its `started - 1` rivals is falsely shown to be better at one of
        the looks; the level of a test is `alpha` divided among these.
        """
        if len(scored) < 2 or goals.constraints:
            return frozenset()  # the best may be worse than rivals that break a bound
        keep = len(scored) // 2
        out: Bools = np.ones(len(scored), dtype=np.bool_)
        for objective in goals.objectives:
            summed = isinstance(objective, ObjectiveSpec) and objective.aggregate != "min"
            if not isinstance(objective, ObjectiveSpec) or not objective.measure.plain or not summed:
                return frozenset()
            weights = objective.weights or (1.0,) * len(objective.tasks)
            blocks, shares = [], []
            for task, weight in zip(objective.tasks, weights, strict=True):
                # a recipe that was asked before has answered more: only what all were asked can be paired
                items = [self._items[task][i] for i in asked.items[task]]
                block = np.array([_scores(e, task, items) for e in scored.values()])
                sign = 1.0 if (weight > 0) == (objective.direction == "maximize") else -1.0
                blocks.append(sign * block)
                shares.append(np.full(len(items), abs(weight) / len(items)))
            pool = sum(len(self._items[task]) for task in objective.tasks)
            rule = EliminationRule(started - 1 + keep, LOOKS - 1, self._spec.alpha, keep=keep, pool=pool)
            share: Floats = np.concatenate(shares)
            alike = bool(np.ptp(share) <= 0.1 * share.max())  # tasks may differ by a question
            out &= eliminated(np.concatenate(blocks, axis=1), rule, weights=None if alike else share)
        return frozenset(r for r, gone in zip(scored, out, strict=True) if gone)

    # -- banks and beliefs ------------------------------------------------------------------------------------------

    def _refit(self, batch: int) -> None:
        """Fit what is due; the journal hears of it once."""
        if not self._questioner.partial:
            return
        for task, report in self._questioner.refit(batch).items():
            bank = self._questioner.bank(task)
            file = "" if bank is None else self._store.save_bank(task, bank)
            if (batch - 1, task) not in self._history.banks:
                source = "imported" if task in self._questioner.imported else "run"
                found = (report.n_models, report.dimensions, source, report.estimator, dict(report.errors))
                self._store.append(BankFitted(batch - 1, task, file, *found))

    def _believe(
        self, batch: int, scored: Mapping[Digest, Evaluation], goals: BoundGoals, asked: Mapping[Digest, Asked]
    ) -> Mapping[Digest, Beliefs]:
        """What is believed of a generation: recorded, or estimated now and then recorded."""
        record = self._history.estimated.get(batch)
        if record is not None and {row.recipe for row in record.rows}.issuperset(scored):
            return {row.recipe: _beliefs(row) for row in record.rows if row.recipe in scored}
        beliefs: dict[Digest, Beliefs] = {}
        for choice in {id(a): a for a in asked.values()}.values():  # one group per rung at which somebody left
            group = {r: e for r, e in scored.items() if asked.get(r) is choice}
            beliefs |= self._questioner.believe(group, goals, choice)
        beliefs |= self._questioner.believe({r: e for r, e in scored.items() if r not in asked}, goals, None)
        if asked and beliefs:
            rows = tuple(_row(recipe, beliefs[recipe]) for recipe in scored)
            self._store.append(Estimated(batch, "search", rows, self._questioner.estimators))
        return beliefs


def _runners(requests: Sequence[Request]) -> int:
    """How many different recipes."""
    return len({r.digest for r in requests})


def _scores(evaluation: Evaluation, task: str, items: Sequence[str]) -> list[float]:
    """The scores of some items, all of which were answered."""
    answers = evaluation.answers[task]
    known = dict(zip(answers.items, answers.scores, strict=True))
    return [known[item] for item in items]


def _row(recipe: Digest, beliefs: Beliefs) -> EstimateRow:
    tasks = {t: TaskScore(b.value, b.se, b.n) for t, b in beliefs.tasks.items()}
    return EstimateRow(recipe, tasks, {name: (e.value, e.se) for name, e in beliefs.values.items()})


def _beliefs(row: EstimateRow) -> Beliefs:
    tasks = {t: Belief(s.mean, s.se, s.n) for t, s in row.tasks.items()}
    return Beliefs(tasks, {name: Estimate(*v) for name, v in row.values.items()})

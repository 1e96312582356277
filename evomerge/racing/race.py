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
from evomerge.types import CandidateId, Digest, Evaluation, Outcome

SHARED: Final = 0.5
"""Correlation of two siblings' errors under common questions: their variance of a difference was measured to be .44 to
.54 of that under separate ones."""

LOOKS: Final = 5
"""How often paired elimination looks."""


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

    def learn(self, requests: Sequence[Request], outcomes: Sequence[Outcome | None]) -> None:
        """Enter answers of models that were asked beside the races."""
        for request, outcome in zip(requests, outcomes, strict=True):
            if isinstance(outcome, Evaluation):
                self._questioner.learn(request.digest, outcome)

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
        outcomes, asked = self._rungs(batch, requests, goals, limit) if partial else self._whole(requests, limit)
        self.learn(requests, outcomes)
        scored = {r.digest: o for r, o in zip(requests, outcomes, strict=True) if isinstance(o, Evaluation)}
        # a batch that the budget cut is raced again, whole, should the run go on with a larger one
        beliefs = self._believe(-2 - batch if None in outcomes else batch, scored, goals, asked)
        self._questioner.generation(tuple(scored))
        return Result(outcomes, beliefs)

    def _whole(
        self, requests: Sequence[Request], limit: int
    ) -> tuple[tuple[Outcome | None, ...], Mapping[Digest, Asked]]:
        return self._ledger.score(requests, "search", limit=limit), {}

    # -- rungs ------------------------------------------------------------------------------------------------------

    def _rungs(
        self, batch: int, requests: Sequence[Request], goals: BoundGoals, limit: int
    ) -> tuple[tuple[Outcome | None, ...], Mapping[Digest, Asked]]:
        """Ask rung after rung; who drops out keeps the answers that it gave. Also what each was asked."""
        asking = self._questioner.asking(batch)
        schedule = self._schedule(len(requests), several=len(goals.objectives) > 1)
        alive = list(range(len(requests)))
        outcomes: list[Outcome | None] = [None] * len(requests)
        asked_of: dict[Digest, Asked] = {}
        asked = asking.upto(schedule[0].questions)
        for number, rung in enumerate(schedule):
            if number:
                alive = self._survivors(rung.keep, {i: requests[i] for i in alive}, outcomes, goals, asked)
            asked = asking.upto(rung.questions)
            alive, asked = self._recorded(batch, number, requests, alive, asked)
            if not alive:
                break
            wanted = {t: tuple(self._items[t][i] for i in index) for t, index in asked.items.items() if index}
            found = self._ledger.score([requests[i] for i in alive], "search", limit=limit, items=wanted)
            for i, outcome in zip(alive, found, strict=True):
                outcomes[i] = outcome
                asked_of[requests[i].digest] = asked
            self.learn(requests, outcomes)
            alive = [i for i in alive if isinstance(outcomes[i], Evaluation)]
            if None in outcomes:
                break
        return tuple(outcomes), asked_of

    def _recorded(
        self, batch: int, number: int, requests: Sequence[Request], alive: list[int], asked: Asked
    ) -> tuple[list[int], Asked]:
        """The rung as the journal has it; a new one is journaled."""
        record = self._history.rungs.get((batch, number))
        if record is not None:
            ids = set(record.alive)
            items = {t: record.items.get(t, ()) for t in asked.items}
            return [i for i, r in enumerate(requests) if r.id in ids], Asked(items, asked.inclusion)
        if alive:
            names = tuple(CandidateId(requests[i].id) for i in alive)
            self._store.append(RungRecord(batch, number, names, dict(asked.items)))
        return alive, asked

    def _schedule(self, n: int, *, several: bool) -> tuple[Rung, ...]:
        """Questions per candidate, cumulative, and how many go on. With several objectives the default is no race.

        Where points of a front are sought, most candidates are worth the same attention, and optimizers that compare
        generations suffer from those that left early: the unlucky ones, whose estimates are too low.
        """
        mean, pool = self._questioner.mean_questions, self._questioner.n_items
        if self._spec.race == "none" or (self._spec.race == "auto" and several) or n < 4:
            return (Rung(mean, n),)
        if self._spec.race == "elimination":
            steps = np.unique(np.linspace(mean / 2, min(pool, 2 * mean), LOOKS).round().astype(int))
            return tuple(Rung(int(q), n) for q in steps)
        return halving_schedule(n, pool, mean_questions=mean, final=max(2, -(-n // 4)))

    def _survivors(
        self,
        keep: int,
        alive: Mapping[int, Request],
        outcomes: Sequence[Outcome | None],
        goals: BoundGoals,
        asked: Asked,
    ) -> list[int]:
        """Who is asked the next rung: places in the generation."""
        scored = {r.digest: o for i, r in alive.items() if isinstance(o := outcomes[i], Evaluation)}
        if self._spec.race == "elimination":
            out = self._eliminated(scored, goals)
            left = [i for i, r in alive.items() if r.digest not in out]
            return left if len(left) > 1 else []
        beliefs = self._questioner.believe(scored, goals, asked)
        found = [beliefs[r.digest] for r in alive.values()]
        ranks = expected_ranks(
            np.array([losses(goals, b) for b in found]),
            np.array([errors(goals, b) for b in found]),
            generator(self._seed, "ranks"),
            shared=SHARED,
            feasible_p=np.array([feasibility(goals, b) for b in found]),
        )
        places = list(alive)
        return [places[i] for i in survivors(ranks, keep)]

    def _eliminated(self, scored: Mapping[Digest, Evaluation], goals: BoundGoals) -> frozenset[Digest]:
        """Those shown to be worse than the better half in every objective."""
        recipes = tuple(scored)
        rule = EliminationRule(max(2, len(recipes)), LOOKS, self._spec.alpha, keep=max(1, len(recipes) // 2))
        out: Bools = np.ones(len(recipes), dtype=np.bool_)
        for objective in goals.objectives:
            if not isinstance(objective, ObjectiveSpec) or not objective.measure.plain:
                return frozenset()
            weights = objective.weights or (1.0,) * len(objective.tasks)
            blocks, shares = [], []
            for task, weight in zip(objective.tasks, weights, strict=True):
                block = np.array([scored[r].answers[task].scores for r in recipes])
                sign = 1.0 if (weight > 0) == (objective.direction == "maximize") else -1.0
                blocks.append(sign * block)
                shares.append(np.full(block.shape[1], abs(weight) / block.shape[1]))
            scores: Floats = np.concatenate(blocks, axis=1)
            out &= eliminated(scores, rule, weights=np.concatenate(shares))
        return frozenset(r for r, gone in zip(recipes, out, strict=True) if gone)

    # -- banks and beliefs ------------------------------------------------------------------------------------------

    def _refit(self, batch: int) -> None:
        """Fit what is due; the journal hears of it once."""
        if not self._questioner.partial:
            return
        for task, report in self._questioner.refit(batch).items():
            if (batch - 1, task) not in self._history.banks:
                source = "imported" if task in self._questioner.imported else "run"
                found = (report.n_models, report.dimensions, source, report.estimator, dict(report.errors))
                self._store.append(BankFitted(batch - 1, task, "", *found))

    def _believe(
        self, batch: int, scored: Mapping[Digest, Evaluation], goals: BoundGoals, asked: Mapping[Digest, Asked]
    ) -> Mapping[Digest, Beliefs]:
        """What is believed of a generation: recorded, or estimated now and then recorded."""
        record = self._history.estimated.get(batch)
        if record is not None:
            return {row.recipe: _beliefs(row) for row in record.rows}
        beliefs: dict[Digest, Beliefs] = {}
        for choice in {id(a): a for a in asked.values()}.values():  # one group per rung at which somebody left
            group = {r: e for r, e in scored.items() if asked.get(r) is choice}
            beliefs |= self._questioner.believe(group, goals, choice)
        beliefs |= self._questioner.believe({r: e for r, e in scored.items() if r not in asked}, goals, None)
        if asked and beliefs:
            rows = tuple(_row(recipe, beliefs[recipe]) for recipe in scored)
            self._store.append(Estimated(batch, "search", rows, self._questioner.estimators))
        return beliefs


def _row(recipe: Digest, beliefs: Beliefs) -> EstimateRow:
    tasks = {t: TaskScore(b.value, b.se, b.n) for t, b in beliefs.tasks.items()}
    return EstimateRow(recipe, tasks, {name: (e.value, e.se) for name, e in beliefs.values.items()})


def _beliefs(row: EstimateRow) -> Beliefs:
    tasks = {t: Belief(s.mean, s.se, s.n) for t, s in row.tasks.items()}
    return Beliefs(tasks, {name: Estimate(*v) for name, v in row.values.items()})

"""The search loop: ask, decode, score, tell; then choose on one unseen item set and report on another.

Everything that decides is in the arguments; everything that happens is in the journal. A resumed run walks through
the same steps with the same optimizer and finds the recorded outcomes in the ledger, so it ends as an undisturbed
run ends: resume is replay. (The module is not called `search`: that name of the package is the public function.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple, final

from evomerge.choosing import Scored, choose, compared_with, elites, finalists, rule
from evomerge.errors import ResumeMismatch
from evomerge.evaluation.beliefs import Beliefs, believed
from evomerge.evaluation.goals import BoundGoals, Goals
from evomerge.execution.ledger import Ledger, Request, Watcher
from evomerge.failpoints import reach
from evomerge.flow import Flow, Hooks, Place, as_told
from evomerge.optimizers.base import Optimizer
from evomerge.optimizers.registry import stream_of
from evomerge.racing.questioner import Pool, Questioner
from evomerge.racing.race import Race
from evomerge.racing.spec import ALL, QuestionsSpec
from evomerge.recipe.recipe import Recipe
from evomerge.recipe.serialize import recipe_digest, recipe_from_json, recipe_to_json
from evomerge.runs.records import Asked, Baseline, Candidate, Chosen, Kind, Note, Phase, PhaseBegun
from evomerge.runs.records import Told as ToldRecord
from evomerge.runs.replay import Batch, History, compare_genes
from evomerge.runs.stage_records import StageBegun, StageWon
from evomerge.runs.store import RunStore
from evomerge.space.space import SearchSpace
from evomerge.types import CandidateId, Digest, Evaluation, Failure, Outcome, Vector

IDLE_BATCHES: Final = 25
"""So many batches in a row that ask nothing new end the search: the optimizer has converged on the grid."""


class Known(NamedTuple):
    """A model that is scored beside the optimizer's candidates.

    Attributes:
        id: unique in the run.
        kind: parent, soup, task-arithmetic or injected.
        name: for people; of parents their own, `base` for the base.
        recipe: what makes it.
        vector: its genes when it is a point of the space, else None.
    """

    id: CandidateId
    kind: Kind
    name: str
    recipe: Recipe
    vector: Vector | None

    @property
    def request(self) -> Request:
        """What the ledger is asked."""
        return Request(self.id, recipe_digest(self.recipe), recipe_to_json(self.recipe))


class Stage(NamedTuple):
    """One space under one optimizer.

    Attributes:
        space: the genes.
        recipe_of: quantised genes -> recipe.
        make_optimizer: a fresh optimizer; called once per life.
        asynchronous: ask for a candidate whenever a worker is free (see `flow`), not for a batch at a time.
    """

    space: SearchSpace
    recipe_of: Callable[[Vector], Recipe]
    make_optimizer: Callable[[], Optimizer]
    asynchronous: bool = False


class StagePlan(NamedTuple):
    """A stage that is yet to come.

    Attributes:
        name: as the job calls it.
        until: the budget of all stages up to the end of this one.
        open: from the best merges so far, the best first, to the stage; a pure function.
    """

    name: str
    until: int
    open: Callable[[tuple[Recipe, ...]], Stage]


@dataclass(frozen=True)
class SearchSetup:
    """What is searched, and by which rules.

    Attributes:
        space: the genes.
        recipe_of: quantised genes -> recipe.
        known: baselines and injected recipes, scored first.
        goals: objectives and constraints.
        make_optimizer: a fresh optimizer; called once per life.
        budget: models scored on the search set, the distribution's mean included.
        accept_history: learn from recorded genes that this installation would not have asked.
        questions: how many questions candidates are asked, and which.
        pool: the search set's items, for `questions`; needed unless every candidate is asked everything.
        seed: of the run, for the choice of questions.
        stages: all stages of a search in stages, the first of which is opened without elites; `space`, `recipe_of` and
            `make_optimizer` are then those of the first stage. Empty for a search without stages.
        asynchronous: of the first stage, see `Stage`; candidates of such a stage are asked everything.
    """

    space: SearchSpace
    recipe_of: Callable[[Vector], Recipe]
    known: tuple[Known, ...]
    goals: Goals
    make_optimizer: Callable[[], Optimizer]
    budget: int
    accept_history: bool = False
    questions: QuestionsSpec = field(default_factory=lambda: QuestionsSpec(number=ALL))
    pool: Pool = field(default_factory=lambda: Pool({}, {}))
    seed: int = 0
    stages: tuple[StagePlan, ...] = ()
    asynchronous: bool = False

    @property
    def first(self) -> Stage:
        """The stage that the search begins with."""
        return Stage(self.space, self.recipe_of, self.make_optimizer, self.asynchronous)


PHASES: Final[tuple[Phase, ...]] = ("search", "select", "report")


@final
class Search:
    """One walk through a run, from the baselines to the report set; see the module docstring."""

    def __init__(self, setup: SearchSetup, store: RunStore, history: History, ledger: Ledger, watcher: Watcher) -> None:
        self._setup = setup
        self._store = store
        self._history = history
        self._ledger = ledger
        self._watcher = watcher
        self._batches = {batch.number: batch for batch in history.batches}
        self._scored: dict[Digest, Scored] = {}
        questioner = Questioner(setup.questions, setup.pool, setup.seed)
        self._race = Race(
            spec=setup.questions,
            questioner=questioner,
            store=store,
            history=history,
            ledger=ledger,
            items=setup.pool.items,
            seed=setup.seed,
        )
        self._drift_noted = False
        self._stage = setup.first
        self._stage_number = 0
        self._next_batch = self._next_ask = 0
        self._goals: BoundGoals | None = None

    def run(self) -> str:
        """Search, choose, report; returns why the search ended.

        Raises:
            Interrupted, TooManyFailures, DiskFull: see `Ledger.score`.
            ResumeMismatch: when the replayed optimizer asks for other genes than the recorded ones.
        """
        recorded = sum(set_name == "search" for _, set_name in self._history.outcomes)
        self._begin("search", self._setup.budget, min(recorded, self._setup.budget))
        why, goals = self._search_stages()
        selected, again = self._select(finalists(list(self._scored.values()), goals))
        chosen = choose(selected, self._scored, goals, again)
        if chosen is not None:
            rivals = compared_with(selected, again)
            if self._history.chosen is None or self._history.chosen.recipe != chosen.request.digest:
                compared = tuple(r.request.id for r in rivals)
                self._store.append(Chosen(chosen.request.id, chosen.request.digest, rule(goals), compared))
            winners = self._stage_winners(selected, goals, again)
            self._compare({s.request.digest: s for s in (chosen, *rivals, *winners)}.values(), "report")
        return why

    # -- stages -----------------------------------------------------------------------------------------------------

    def _only_stage(self) -> StagePlan:
        return StagePlan("search", self._setup.budget, lambda _elites: self._setup.first)

    def _search_stages(self) -> tuple[str, BoundGoals]:
        """Search all stages: why the last one ended, and the goals."""
        known = self._introduce_known()
        goals = None if self._setup.asynchronous else self._score_known(known)
        why = ""
        for number, plan in enumerate(self._setup.stages or (self._only_stage(),)):
            self._enter(number, plan, goals)
            why, goals, mean = self._search_stage(known, goals, plan.until)
            self._score_mean(mean, goals, plan.until)
        return why, self._score_known(known) if goals is None else goals

    def _search_stage(
        self, known: Sequence[Request], goals: BoundGoals | None, until: int
    ) -> tuple[str, BoundGoals, Vector | None]:
        """Search the present stage (without goals, score the known models, too): why it ended, goals, last centre."""
        optimizer = self._stage.make_optimizer()
        if goals is not None and not self._stage.asynchronous:
            return self._generations(optimizer, goals, until), goals, optimizer.mean()
        stream = stream_of(type(optimizer).__name__, optimizer)
        space, recipe_of, turns = self._stage.space, self._stage.recipe_of, self._history.turns_of(self._stage_number)
        flow = Flow(
            Place(space, recipe_of, self._next_batch, self._next_ask, turns),
            stream,
            ledger=self._ledger,
            store=self._store,
            history=self._history,
            watcher=self._watcher,
            hooks=Hooks(partial(self._settle, known), self._keep_outcome, self._accept),
        )
        ended = flow.run(known if goals is None else (), goals, until - (stream.mean() is not None))
        self._next_batch, self._next_ask = ended.next_batch, ended.next_ask
        return ended.why, ended.goals, stream.mean()

    def _enter(self, number: int, plan: StagePlan, goals: BoundGoals | None) -> None:
        """Open a stage around the best merges so far; a resumed run takes the recorded ones."""
        self._stage_number = number
        if not self._setup.stages:
            return
        begun = self._history.stages.get(number)
        if begun is None:
            best = elites(list(self._scored.values()), goals) if number and goals is not None else []
            recipes = tuple(dict(e.request.unpacked().recipe) for e in best)
            begun = StageBegun(number, plan.name, self._next_batch, recipes)
            self._store.append(begun)
        self._stage = plan.open(tuple(recipe_from_json(dict(recipe)) for recipe in begun.elites))

    def _stage_winners(self, selected: Sequence[Scored], goals: BoundGoals, again: BoundGoals) -> list[Scored]:
        """For every stage the best, on the select set, of what it and earlier ones found; journaled."""
        found = []
        for number, _ in enumerate(self._setup.stages):
            until = [s for s in selected if s.stage <= number]
            winner = choose(until, self._scored, goals, again)
            if winner is None:
                continue
            found.append(winner)
            before = self._history.won.get(number)
            if before is None or before.recipe != winner.request.digest:
                self._store.append(StageWon(number, winner.request.id, winner.request.digest))
        return found

    # -- the search set ---------------------------------------------------------------------------------------------

    def _begin(self, phase: Phase, total: int, done: int) -> None:
        reached = self._history.phase
        if reached is None or PHASES.index(phase) > PHASES.index(reached):
            self._store.append(PhaseBegun(phase))
        self._watcher.phase(phase, total, done)

    def _introduce_known(self) -> list[Request]:
        """Journal parents, soup, task arithmetic and injected recipes; how they are asked for."""
        requests = [model.request for model in self._setup.known]
        for model, request in zip(self._setup.known, requests, strict=True):
            self._introduce(request, model.kind, model.name, model.vector)
        return requests

    def _score_known(self, requests: Sequence[Request]) -> BoundGoals:
        """Score the known models, before anything else is asked."""
        return self._settle(requests, self._ledger.score(requests, "search", limit=self._setup.budget))

    def _settle(self, requests: Sequence[Request], outcomes: Sequence[Outcome | None]) -> BoundGoals:
        """Learn the scores of the known models, which make the bounds numbers."""
        known = self._setup.known
        self._race.learn(requests, outcomes)
        scored = {r.digest: o for r, o in zip(requests, outcomes, strict=True) if isinstance(o, Evaluation)}
        self._race.descend_from([m.request for m in known if m.kind == "parent" and m.request.digest in scored])
        goals = self._bound(scored)
        for model, request in zip(known, requests, strict=True):
            if request.digest in scored:
                self._keep(request, model.kind, believed(goals, scored[request.digest]))
        self._goals = goals
        return goals

    def _keep_outcome(self, request: Request, outcome: Outcome, batch: int) -> None:
        """Remember what became of a candidate of an asynchronous stage."""
        if isinstance(outcome, Evaluation) and self._goals is not None:
            self._keep(request, "candidate", believed(self._goals, outcome), batch)
        elif isinstance(outcome, Failure):  # perhaps after it had been scored in part
            self._scored.pop(request.digest, None)

    def _bound(self, scored: Mapping[Digest, Evaluation]) -> BoundGoals:
        """The goals with bounds taken from the parents' scores on one item set."""
        parents = {m.name: m.request.digest for m in self._setup.known if m.kind == "parent"}
        return self._setup.goals.bound({name: scored[digest] for name, digest in parents.items() if digest in scored})

    def _generations(self, optimizer: Optimizer, goals: BoundGoals, until: int) -> str:
        """Ask, score and tell until `until` evaluations are spent or nothing more is to be gained; returns why."""
        budget = until - (optimizer.mean() is not None)  # one evaluation is the mean's
        spent_up = f"the budget of {until} evaluations is spent"
        idle = 0
        while idle < IDLE_BATCHES:
            spent = self._ledger.spent
            stop = spent_up if spent >= budget else optimizer.should_stop()
            if stop is not None:
                return stop
            number = self._next_batch
            self._next_batch += 1
            batch = self._ask(optimizer, number)
            requests = [self._request(candidate) for candidate in batch.candidates]
            result = self._race.run(number, requests, goals, limit=budget - spent)
            for request, outcome in zip(requests, result.outcomes, strict=True):
                if request.digest in result.beliefs:
                    self._keep(request, "candidate", result.beliefs[request.digest], number)
                elif isinstance(outcome, Failure):  # perhaps after it had been scored in part
                    self._scored.pop(request.digest, None)
            if None in result.outcomes:
                return spent_up
            reach("before-tell")
            optimizer.tell([as_told(c.vector, result.beliefs.get(c.recipe), goals) for c in batch.candidates])
            reach("after-tell")
            if not batch.told:
                self._store.append(ToldRecord(number))
            self._watcher.batch(number)
            idle = idle + 1 if self._ledger.spent == spent else 0
        return f"{IDLE_BATCHES} generations in a row asked nothing new"

    def _ask(self, optimizer: Optimizer, number: int) -> Batch:
        """The optimizer's next batch; while an earlier life is replayed, the recorded one, checked."""
        space, recipe_of = self._stage.space, self._stage.recipe_of
        asked = [space.quantise(vector) for vector in optimizer.ask()]
        recorded = self._batches.get(number)
        if recorded is not None:
            mismatch = compare_genes(asked, recorded, space.names)
            if mismatch is not None:
                self._accept(mismatch)
            return recorded
        candidates = tuple(
            Candidate(
                CandidateId(f"g{number:04d}-i{i:02d}"),
                "candidate",
                recipe_digest(recipe_of(vector)),
                tuple(float(gene) for gene in vector),
            )
            for i, vector in enumerate(asked)
        )
        self._store.append(Asked(number, candidates))
        return Batch(number, candidates, told=False)

    def _accept(self, mismatch: ResumeMismatch) -> None:
        """Go on with recorded genes that this installation would not have asked for, if that was allowed."""
        if not self._setup.accept_history:
            raise mismatch
        if not self._drift_noted:
            self._drift_noted = True
            self._store.append(Note("accepted-drift", f"Recorded candidates were accepted: {mismatch.got}."))

    def _request(self, candidate: Candidate) -> Request:
        return Request(candidate.id, candidate.recipe, recipe_to_json(self._stage.recipe_of(candidate.vector)))

    def _score_mean(self, mean: Vector | None, goals: BoundGoals, until: int) -> None:
        """Score the centre of the last distribution: under noise a better pick than the luckiest sample."""
        if mean is None or self._ledger.spent >= until:
            return
        vector = self._stage.space.quantise(mean)
        stage = f"s{self._stage_number}-" if self._setup.stages else ""  # a stage may spend nothing
        id_ = CandidateId(f"mean-{stage}{self._ledger.spent}")
        model = Known(id_, "mean", "mean", self._stage.recipe_of(vector), vector)
        self._introduce(model.request, "mean", model.name, vector)
        (outcome,) = self._ledger.score([model.request], "search")
        if isinstance(outcome, Evaluation):
            self._keep(model.request, "mean", believed(goals, outcome))
        else:  # perhaps after it had been scored in part
            self._scored.pop(model.request.digest, None)

    def _introduce(self, request: Request, kind: Kind, name: str, vector: Vector | None) -> None:
        """Journal a model that no optimizer asked for."""
        if request.id not in self._history.baselines:
            genes = () if vector is None else tuple(float(gene) for gene in vector)
            self._store.append(Baseline(request.id, kind, request.digest, request.recipe, genes, name))

    def _keep(self, request: Request, kind: Kind, beliefs: Beliefs, batch: int = -1) -> None:
        """Remember a success: the first to ask for a recipe gives it its id, the last answers decide its scores."""
        first = self._scored.get(request.digest)
        if first is None:
            first = Scored(request.packed(), kind, beliefs, batch, self._stage_number)
        self._scored[request.digest] = first._replace(beliefs=beliefs)

    # -- the two unseen sets ----------------------------------------------------------------------------------------

    def _select(self, models: Sequence[Scored]) -> tuple[list[Scored], BoundGoals]:
        """The finalists on the select set, and the goals with that set's bounds."""
        answers = self._compare(models, "select")
        again = self._bound(answers)
        found = [s for s in models if s.request.digest in answers]
        return [s._replace(beliefs=believed(again, answers[s.request.digest])) for s in found], again

    def _compare(self, models: Iterable[Scored], set_name: Phase) -> dict[Digest, Evaluation]:
        """Score models on an unseen set; those that fail drop out."""
        requests = [s.request.unpacked() for s in models]
        self._begin(set_name, len(requests), sum(self._ledger.known(r.digest, set_name) for r in requests))
        outcomes = self._ledger.score(requests, set_name)
        return {r.digest: o for r, o in zip(requests, outcomes, strict=True) if isinstance(o, Evaluation)}

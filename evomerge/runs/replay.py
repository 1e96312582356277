"""A journal as one value: what was asked, what came of it, and how far the run got. Pure reading, no files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from evomerge.errors import ResumeMismatch
from evomerge.runs.entries import Entry
from evomerge.runs.partial import merged_record
from evomerge.runs.race_records import BankFitted, Estimated, EstimateRow, Rung
from evomerge.runs.records import (
    Asked,
    Baseline,
    Candidate,
    Chosen,
    Evaluated,
    Failed,
    Finished,
    Interrupted,
    Note,
    Opened,
    Phase,
    PhaseBegun,
    Record,
    Reused,
    TaskScore,
    Told,
)
from evomerge.runs.stage_records import StageBegun, StageWon
from evomerge.runs.stream_records import Turn
from evomerge.runs.worker_records import WorkerNews
from evomerge.types import CandidateId, Digest, SetName, Vector

State = Literal["running", "finished", "interrupted", "failed"]
Scored = Evaluated | Failed
Key = tuple[Digest, SetName]


@dataclass(frozen=True)
class Batch:
    """One batch of the optimizer: its number from 0, its candidates in ask order, and whether it was told.

    Of an asynchronous search it is a block of candidates that were asked one after the other.
    """

    number: int
    candidates: tuple[Candidate, ...]
    told: bool


@dataclass(frozen=True)
class Counts:
    """How much happened.

    Attributes:
        asked: candidates asked by the optimizer.
        evaluated: outcomes with a score on the search set; recipes, however many increments they were asked in.
        reused: candidates whose recipe was scored before.
        failed: outcomes without a score on the search set.
        questions: items scored on all sets.
        repeated: outcomes or increments that were recorded twice for one recipe and set (0 unless something is wrong).
    """

    asked: int = 0
    evaluated: int = 0
    reused: int = 0
    failed: int = 0
    questions: int = 0
    repeated: int = 0


@dataclass(frozen=True)
class History:
    """Everything that a journal says.

    Attributes:
        batches: in order; only the last ones may be untold.
        baselines: models beside the batches, by id, in order.
        outcomes: by recipe digest and set. A set that was asked as a whole: the first recorded one counts. A set that
            was asked in increments: the failure if there is one, else the increments merged into one record (whose
            answers `RunStore.load_answers` gives from `parts`).
        parts: by recipe digest and set, what `outcomes` is made of: one record per increment and one per failure, in
            order, each once.
        reused: candidates told an earlier outcome, per set.
        phase: the last one entered, None before the search begins.
        chosen: the final pick.
        finished: the last record of a run that is done; None again once a life has more evaluations to spend.
        decided: the evaluations that had been granted when last a choice was made, 0 before.
        interrupted: how the last life ended, None when it runs, was killed, or is done.
        lives: the beginnings of all lives.
        notes: in order.
        counts: totals over all lives.
        life_times: per life its first and last record's unix time in seconds.
        rungs: by batch and rung; the last recorded one counts, as in what follows.
        estimates: by recipe digest and set, what the search believed last.
        estimated: by batch.
        banks: by the batch after which they were fitted, and task.
        sizes: by set, how many items each task has, as the first model shows that was asked the whole set.
        stages: by number; empty for a search without stages.
        won: what each stage won, by its number.
        turns: of an asynchronous search, in order.
        workers: what happened to them, in order, over all lives.
    """

    batches: tuple[Batch, ...]
    baselines: Mapping[CandidateId, Baseline]
    outcomes: Mapping[Key, Scored]
    parts: Mapping[Key, tuple[Scored, ...]]
    reused: frozenset[tuple[CandidateId, SetName]]
    phase: Phase | None
    chosen: Chosen | None
    finished: Finished | None
    decided: int
    interrupted: Interrupted | None
    lives: tuple[Opened, ...]
    notes: tuple[Note, ...]
    counts: Counts
    life_times: tuple[tuple[float, float], ...]
    rungs: Mapping[tuple[int, int], Rung]
    estimates: Mapping[Key, EstimateRow]
    estimated: Mapping[int, Estimated]
    banks: Mapping[tuple[int, str], BankFitted]
    sizes: Mapping[SetName, Mapping[str, int]]
    stages: Mapping[int, StageBegun] = field(default_factory=dict)
    won: Mapping[int, StageWon] = field(default_factory=dict)
    turns: tuple[Turn, ...] = ()
    workers: tuple[WorkerNews, ...] = ()

    def stage_of(self, batch: int) -> int:
        """The number of the stage that a batch belongs to; 0 for a search without stages."""
        return max((n for n, stage in self.stages.items() if stage.first_batch <= batch), default=0)

    def turns_of(self, stage: int) -> tuple[Turn, ...]:
        """The turns of one stage; all of them for a search without stages."""
        if stage and stage not in self.stages:
            return ()
        return tuple(turn for turn in self.turns if self.stage_of(turn.batch) == stage)

    @property
    def wall_s(self) -> float:
        """Seconds spent in all lives."""
        return sum(last - first for first, last in self.life_times)

    def state(self, *, writing: bool) -> State:
        """The run's state; `writing` says whether a live process holds its lock."""
        if self.finished is not None:
            return "finished"
        if writing:
            return "running"
        return "failed" if self.interrupted is not None and self.interrupted.exit_code == 4 else "interrupted"

    def outcome(self, candidate: Candidate | Baseline, set_name: SetName) -> Scored | None:
        """What came of a candidate on a set, None when it was not scored there."""
        return self.outcomes.get((candidate.recipe, set_name))

    def estimate(self, recipe: Digest, set_name: SetName) -> EstimateRow | None:
        """What the search believed last of a model, None without an estimate, or where it knows every answer since."""
        row, found = self.estimates.get((recipe, set_name)), self.outcomes.get((recipe, set_name))
        if row is None or not isinstance(found, Evaluated):
            return row
        return None if self._is_whole(found.tasks, set_name) and not self._is_whole(row.tasks, set_name) else row

    def _is_whole(self, tasks: Mapping[str, TaskScore], set_name: SetName) -> bool:
        """Whether scores are of every item of a set."""
        sizes = self.sizes.get(set_name, {})
        return bool(sizes) and all(task in tasks and tasks[task].n >= n for task, n in sizes.items())

    def record(self, recipe: Digest, set_name: SetName) -> Evaluated | None:
        """A model's scores on a set as the search knew them, None without a score.

        Where the search has recorded an estimate, its task scores (over the whole set, with the number of items that
        were asked) and its values stand in place of what the answered items alone would say. A model in a race that
        goes on has no score: what it was asked so far says little, and would look as sure as the scores of others.
        """
        found = self.outcomes.get((recipe, set_name))
        if not isinstance(found, Evaluated):
            return None
        row = self.estimate(recipe, set_name)
        if row is not None:
            return replace(found, tasks={**found.tasks, **row.tasks}, values={**found.values, **row.values})
        is_scored = found.part == 0 or set_name not in self.sizes or self._is_whole(found.tasks, set_name)
        return found if is_scored else None


def _life_times(entries: Sequence[Entry]) -> tuple[tuple[float, float], ...]:
    spans: list[tuple[float, float]] = []
    for entry in entries:
        if isinstance(entry.record, Opened):
            spans.append((entry.time_s, entry.time_s))
        elif spans and entry.time_s:
            spans[-1] = (spans[-1][0], max(spans[-1][1], entry.time_s))
    return tuple(spans)


def read_history(entries: Iterable[Entry]) -> History:
    """Fold a journal into one value."""
    lines = list(entries)
    records = [entry.record for entry in lines]
    asked = [r for r in records if isinstance(r, Asked)]
    turns = tuple(r for r in records if isinstance(r, Turn))
    scored = [r for r in records if isinstance(r, Evaluated | Failed)]
    parts = _parts(scored)
    outcomes = {key: _outcome(found) for key, found in parts.items()}
    estimated = [r for r in records if isinstance(r, Estimated)]
    reused = [r for r in records if isinstance(r, Reused)]
    phases = [r.phase for r in records if isinstance(r, PhaseBegun)]
    last_opened = max((i for i, r in enumerate(records) if isinstance(r, Opened)), default=0)
    endings = [r for r in records[last_opened:] if isinstance(r, Interrupted)]
    finished, decided = _ending(records)
    return History(
        batches=_batches(records),
        baselines={r.id: r for r in records if isinstance(r, Baseline)},
        outcomes=outcomes,
        parts=parts,
        reused=frozenset((r.id, r.set_name) for r in reused),
        phase=phases[-1] if phases else None,
        chosen=next((r for r in reversed(records) if isinstance(r, Chosen)), None),
        finished=finished,
        decided=decided,
        interrupted=endings[-1] if endings else None,
        lives=tuple(r for r in records if isinstance(r, Opened)),
        notes=tuple(r for r in records if isinstance(r, Note)),
        counts=Counts(
            asked=sum(len(a.candidates) for a in asked) + sum(t.candidate is not None for t in turns),
            evaluated=sum(isinstance(r, Evaluated) and r.set_name == "search" for r in outcomes.values()),
            reused=sum(r.set_name == "search" for r in reused),
            failed=sum(isinstance(r, Failed) and r.set_name == "search" for r in outcomes.values()),
            questions=sum(r.n_questions for r in scored if isinstance(r, Evaluated)),
            repeated=len(scored) - sum(len(found) for found in parts.values()),
        ),
        life_times=_life_times(lines),
        rungs={(r.batch, r.rung): r for r in records if isinstance(r, Rung)},
        estimates={(row.recipe, e.set_name): row for e in estimated for row in e.rows},
        estimated={r.batch: r for r in estimated},
        banks={(r.after_batch, r.task): r for r in records if isinstance(r, BankFitted)},
        sizes=_sizes(scored),
        stages={r.number: r for r in reversed(records) if isinstance(r, StageBegun)},
        won={r.number: r for r in records if isinstance(r, StageWon)},
        turns=turns,
        workers=tuple(r for r in records if isinstance(r, WorkerNews)),
    )


def _batches(records: Sequence[Record]) -> tuple[Batch, ...]:
    """`History.batches`: whole batches, and the blocks of asynchronous stages."""
    told = {r.batch for r in records if isinstance(r, Told)}
    heard = {number for r in records if isinstance(r, Turn) for number in r.told}
    found: dict[int, Batch] = {}
    for r in records:
        if isinstance(r, Asked):
            found[r.batch] = Batch(r.batch, r.candidates, r.batch in told)
        elif isinstance(r, Turn) and r.candidate is not None:
            before = found.get(r.batch, Batch(r.batch, (), told=True))
            found[r.batch] = Batch(r.batch, (*before.candidates, r.candidate), before.told and r.number in heard)
    return tuple(found.values())


def _sizes(scored: Sequence[Scored]) -> dict[SetName, dict[str, int]]:
    """`History.sizes`."""
    found: dict[SetName, dict[str, int]] = {}
    for record in scored:
        if isinstance(record, Evaluated) and record.part == 0 and record.set_name not in found:
            found[record.set_name] = {task: score.n for task, score in record.tasks.items()}
    return found


def _parts(scored: Sequence[Scored]) -> dict[Key, tuple[Scored, ...]]:
    """`History.parts`: what adds nothing to earlier records of the same recipe and set is left out."""
    found: dict[Key, tuple[Scored, ...]] = {}
    for record in scored:
        key = (record.recipe, record.set_name)
        before = found.get(key, ())
        if not _is_told_again(record, before):
            found[key] = (*before, record)
    return found


def _is_told_again(record: Scored, before: Sequence[Scored]) -> bool:
    """Whether earlier records make this one superfluous: a lost file's answers, or a whole set asked twice."""
    numbers = {r.part for r in before if isinstance(r, Evaluated)}
    has_failed = any(isinstance(r, Failed) for r in before)
    if isinstance(record, Failed):
        return has_failed or 0 in numbers
    return record.part in numbers or (record.part == 0 and has_failed)


def _outcome(parts: Sequence[Scored]) -> Scored:
    """What a complete reader takes for the outcome; see `History.outcomes`."""
    scored = [r for r in parts if isinstance(r, Evaluated)]
    failed = [r for r in parts if isinstance(r, Failed)]
    whole = any(r.part == 0 for r in scored)
    return failed[0] if failed and not whole else merged_record(scored)


def _ending(records: Sequence[Record]) -> tuple[Finished | None, int]:
    """`History.finished` and `History.decided`."""
    finished, decided, granted = None, 0, 0
    for record in records:
        if isinstance(record, Opened):
            granted = record.settings.get("budget", {}).get("evaluations", 0)
            finished = finished if granted <= decided else None
        elif isinstance(record, Chosen | Finished):
            decided = granted
            finished = record if isinstance(record, Finished) else finished
    return finished, decided


def compare_genes(asked: Sequence[Vector], recorded: Batch, names: Sequence[str]) -> ResumeMismatch | None:
    """Whether the optimizer asked again what the journal says it asked.

    Args:
        asked: quantised genes per candidate, each of shape `(d,)`, in ask order.
        recorded: the batch of the journal.
        names: the genes' names, `d` of them.

    Returns:
        None when all are equal, else the error for the caller to raise (or to accept and journal).
    """
    if len(asked) != len(recorded.candidates):
        got = f"batch {recorded.number} has {len(asked)} candidates, the journal {len(recorded.candidates)}"
        return _mismatch(got)
    for vector, candidate in zip(asked, recorded.candidates, strict=True):
        if vector.shape != (len(candidate.genes),):
            return _mismatch(f"{candidate.id} has {vector.size} genes, the journal {len(candidate.genes)}")
        differing = np.flatnonzero(vector != candidate.vector)
        if differing.size:
            i = int(differing[0])
            got = (
                f"{candidate.id} in batch {recorded.number} differs in {differing.size} of {vector.size} genes, "
                f"first in {names[i]}: {float(vector[i])!r} instead of {candidate.genes[i]!r}"
            )
            return _mismatch(got)
    return None


def _mismatch(got: str) -> ResumeMismatch:
    return ResumeMismatch(
        "Replaying the journal asks for other candidates than the recorded ones.",
        got=got,
        allowed="the same candidates, gene by gene",
        fix="use the package versions of the first life (they are in the journal), or continue from the recorded "
        "history with --accept-history, which is noted in the journal.",
    )

"""A job's questions against its plan: which tasks are asked in part, how much each matters, which banks fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from evomerge.digest import digest_file
from evomerge.errors import ConfigError
from evomerge.evaluation.goals import Goals
from evomerge.evaluation.objectives import CustomObjective
from evomerge.evaluation.plan import EvalPlan, TaskPlan
from evomerge.irt.bank import ItemBank
from evomerge.irt.bank_files import bank_for, read_bank
from evomerge.irt.responses import Link
from evomerge.racing.importance import importance_of, margin_tasks
from evomerge.racing.questioner import Pool
from evomerge.racing.spec import ALL, AUTO, QuestionsSpec
from evomerge.resources import bank_files


@dataclass(frozen=True)
class Questions:
    """What the search is told about questions.

    Attributes:
        spec: as wanted, or `all` where less is not possible.
        pool: the search set.
        notes: sentences for people: banks that were used or ignored, why everything is asked.
        digests: task -> sha256 of the bank file in use; a resumed run must find the same.
    """

    spec: QuestionsSpec
    pool: Pool
    notes: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)

    def per_candidate(self, tasks: Sequence[str]) -> int:
        """Mean questions per candidate over some tasks."""
        return sum(self.spec.per_task(len(self.pool.items[t])) for t in tasks)

    @property
    def partial(self) -> bool:
        """Whether candidates are asked less than the whole search set."""
        return any(self.spec.per_task(len(items)) < len(items) for items in self.pool.items.values())


def choose_questions(spec: QuestionsSpec, plan: EvalPlan, goals: Goals, *, asynchronous: bool = False) -> Questions:
    """The spec against a plan.

    Args:
        spec: of the job.
        plan: the compiled questions.
        goals: what the search is after.
        asynchronous: whether a stage of the search has no generations; then everybody is asked everything.

    Raises:
        ConfigError: for a spec that needs generations where there are none, then for a bank file that is named in the
            job and cannot be read.
    """
    notes = []
    if asynchronous and not spec.whole:
        spec = _without_generations(spec)
        notes.append("Every candidate is asked everything: an asynchronous search has no generations that could race.")
    custom = any(isinstance(o, CustomObjective) for o in goals.objectives)
    if custom and spec.number == AUTO:
        spec = replace(spec, number=ALL)
        notes.append("Every candidate is asked everything: an objective is a Python function of all answers.")
    items = plan.items("search")
    banks: dict[str, ItemBank] = {}
    digests: dict[str, str] = {}
    if not spec.whole:
        found = _banks(spec.banks, plan, notes)
        banks = {task: bank for task, (bank, _) in found.items()}
        digests = {task: digest for task, (_, digest) in found.items()}
    pool = Pool(items, importance_of(goals, tuple(items)), margin_tasks(goals), banks)
    return Questions(spec, pool, tuple(notes), digests)


def _without_generations(spec: QuestionsSpec) -> QuestionsSpec:
    """What an asynchronous search makes of `auto`.

    Raises:
        ConfigError: for anything that chooses or compares within a generation.
    """
    default = QuestionsSpec()
    changed = [f.name for f in fields(spec) if getattr(spec, f.name) != getattr(default, f.name)]
    if not changed:
        return replace(spec, number=ALL)
    raise ConfigError(
        "An asynchronous search cannot ask candidates in part.",
        got=", ".join(f"suite.questions.{name}: {getattr(spec, name)!r}" for name in changed),
        allowed="suite.questions: all or auto (which is all here): questions are chosen for a generation at a time, "
        "and candidates race within theirs",
        fix="leave suite.questions out and lower suite.split.search, which asks every candidate the same fewer "
        "questions; or leave optimizer.asynchronous out.",
    )


def _banks(named: Iterable[Path], plan: EvalPlan, notes: list[str]) -> dict[str, tuple[ItemBank, str]]:
    """Task -> the first bank that holds all of its search items; the job's own before shipped ones."""
    items = plan.items("search")
    found: dict[str, tuple[ItemBank, str]] = {}
    own = list(named)
    for path in [*own, *bank_files()]:
        bank, digest = read_bank(path), digest_file(path)
        matches = {task: bank_for(bank, hashes) for task, hashes in items.items()}
        fits = [task for task, match in matches.items() if match.bank is not None]
        for task in fits:
            expected = _expected_link(plan.task(task))
            if expected not in (None, bank.link):
                notes.append(
                    f"The bank {path.name} is ignored for {task}: it is of {bank.link} items, not {expected} ones."
                )
                continue
            match = matches[task].bank
            if match is not None and task not in found:
                found[task] = (match, digest)
                notes.append(f"The bank {path.name} ({bank.n_models} models) is used for {task}.")
        if not fits and path in own:
            best = max(matches.values(), key=lambda m: m.n_found)
            notes.append(
                f"The bank {path.name} is ignored: it holds {best.n_found} of {best.n_wanted} search items of a task, "
                "so it was made from other questions, or from another version of the task's data."
            )
    return found


def _expected_link(task: TaskPlan) -> Link | None:
    """Which kind of bank describes a task's scores; None where a plug-in scores as it likes."""
    if task.kind == "plugin":
        return None
    return "logistic" if task.metric.aggregation == "mean" else "normal"

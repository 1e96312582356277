"""The stages of a job: each with its space, its optimizer and its part of the budget; a plain job is one stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from evomerge.config.schema import Job, OptimizerChoice
from evomerge.config.schema import Stage as StageSchema
from evomerge.config.space_files import SpaceText, read_space
from evomerge.errors import ConfigError
from evomerge.strict_yaml import Document

ONLY: Final = "search"
"""What the one stage of a job without stages is called."""


@dataclass(frozen=True)
class ResolvedStage:
    """One stage, with everything that it names inlined.

    Attributes:
        name: unique in the job.
        space: its search space.
        optimizer: as a mapping.
        evaluations: its part of the budget that the run began with.
        place: where its space stands in the job.
    """

    name: str
    space: SpaceText
    optimizer: OptimizerChoice
    evaluations: int
    place: tuple[str | int, ...]

    @property
    def optimizer_place(self) -> tuple[str | int, ...]:
        """Where its optimizer stands in the job, if the job names one for this stage alone."""
        return ("optimizer",) if len(self.place) == 1 else (*self.place[:2], "optimizer")


def resolve_stages(job: Job, document: Document, folder: Path) -> tuple[ResolvedStage, ...]:
    """The stages of a job, at least one.

    Raises:
        ConfigError: when the job has both a space and stages or neither, when names repeat, when the parts of the
            budget do not fit it, and for spaces that cannot be read.
    """
    if (job.space is None) == (job.stages is None):
        with document.placing("space"):
            raise _one_of_two(has_both=job.space is not None)
    if job.space is not None:
        space = read_space(job.space, document, ("space",), folder)
        return (ResolvedStage(ONLY, space, _optimizer(job.optimizer), job.budget.evaluations, ("space",)),)
    stages = job.stages or []
    _check_names([s.name for s in stages], document)
    parts = _parts_of_budget(job, stages, document)
    return tuple(
        ResolvedStage(
            stage.name,
            read_space(stage.space, document, ("stages", i, "space"), folder),
            _optimizer(job.optimizer if stage.optimizer is None else stage.optimizer),
            part,
            ("stages", i, "space"),
        )
        for i, (stage, part) in enumerate(zip(stages, parts, strict=True))
    )


def _one_of_two(*, has_both: bool) -> ConfigError:
    return ConfigError(
        "A job searches one space, or several in stages.",
        got="both `space` and `stages`" if has_both else "neither `space` nor `stages`",
        allowed="one of them",
        fix="remove one." if has_both else "`evomerge ls spaces` shows the presets.",
    )


def resolved_fields(job: Job, stages: Sequence[ResolvedStage]) -> dict[str, Any]:
    """What resolving changes in the job: spaces inline, optimizers as mappings, every part of the budget a number."""
    optimizer = _optimizer(job.optimizer)
    if job.stages is None:
        return {"space": stages[0].space.mapping, "optimizer": optimizer}
    inline = [
        StageSchema(name=s.name, space=s.space.mapping, optimizer=s.optimizer, evaluations=s.evaluations)
        for s in stages
    ]
    total = sum(s.evaluations for s in stages)
    granted = job.budget.evaluations if "evaluations" in job.budget.model_fields_set else total
    budget = job.budget.model_copy(update={"evaluations": granted})
    return {"stages": inline, "optimizer": optimizer, "budget": budget}


def _optimizer(named: str | OptimizerChoice) -> OptimizerChoice:
    return OptimizerChoice(name=named) if isinstance(named, str) else named


def _check_names(names: list[str], document: Document) -> None:
    for i, name in enumerate(names):
        if name in names[:i]:
            with document.placing("stages", i, "name"):
                raise ConfigError(
                    "Two stages have one name.", got=repr(name), allowed="unique names", fix="rename one of them."
                )


def _parts_of_budget(job: Job, stages: Sequence[StageSchema], document: Document) -> list[int]:
    """Evaluations per stage: what is stated, and an equal part of the rest for the others."""
    stated = sum(s.evaluations or 0 for s in stages)
    n_open = sum(s.evaluations is None for s in stages)
    # what the command line says of the budget, as on resume, cuts the stages short; a file must add up
    must_fit = "evaluations" in job.budget.model_fields_set and ("budget", "evaluations") not in document.laid_over
    rest = job.budget.evaluations - stated
    if (n_open and rest < n_open) or (must_fit and rest < 0):
        with document.placing("stages"):
            raise ConfigError(
                "The stages need more evaluations than the budget has.",
                got=f"{stated} in stages that state theirs, {n_open} more stages, budget {job.budget.evaluations}",
                allowed="at least one evaluation for every stage, together at most budget.evaluations",
                fix="raise budget.evaluations, or lower those of the stages.",
            )
    open_parts = iter([rest // n_open + (i < rest % n_open) for i in range(n_open)])
    return [s.evaluations if s.evaluations is not None else next(open_parts) for s in stages]

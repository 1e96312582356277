"""Looking at parents before a search: opened as far as they fit, measured, and what stands out in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from evomerge.checkpoints.compatible import differences
from evomerge.checkpoints.opened import OpenParent
from evomerge.config.cache import parents_folder
from evomerge.config.load import load_job
from evomerge.config.parent_refs import BASE, source_ref
from evomerge.config.parents import job_refs
from evomerge.config.surveys import survey_of
from evomerge.errors import ConfigError, ModelError
from evomerge.recipe.recipe import ParentRef
from evomerge.survey.hazards import Hazard, hazards_of
from evomerge.survey.values import Survey
from evomerge.virtual.fitting import fit_parents
from evomerge.virtual.opening import ParentOpener

Report = Callable[[int, int], None]


class Inspection(NamedTuple):
    """What was found out about some parents.

    Attributes:
        survey: of those whose tensors line up.
        hazards: warnings first.
    """

    survey: Survey
    hazards: tuple[Hazard, ...]


def inspect_parents(targets: Sequence[str], base: str | None, report: Report | None = None) -> Inspection:
    """Survey the parents of a job, or some checkpoints.

    Args:
        targets: one job file, or folders and hub ids of models.
        base: folder or hub id of the base; a job names its own.
        report: told how many of how many tensors are measured.

    Raises:
        ConfigError: for a job that cannot be read, and for no models.
        ModelError: for a parent that cannot be opened, or when no model has the reference's tensors.
    """
    opener = ParentOpener(parents_folder())
    refs = _refs(targets, base, opener)
    opened = {name: opener.open(ref) for name, ref in refs.items()}
    reference_name = next(iter(opened))
    odd, fitting = _compared(opened, reference_name)
    opener.make()
    survey = survey_of(fitting, BASE if BASE in fitting else None, report)
    if survey is None or len(fitting) < 2:
        raise ModelError(
            "There is nothing to compare.",
            got="; ".join(h.text for h in odd) or "no models",
            allowed=f"a base and models with its tensors, or several models with those of {reference_name}",
            fix="name fine-tuned versions of one base model, and the base with --base.",
        )
    return Inspection(survey, (*odd, *hazards_of(survey)))


def _refs(targets: Sequence[str], base: str | None, opener: ParentOpener) -> dict[str, ParentRef]:
    if len(targets) == 1 and Path(targets[0]).is_file():
        if base is not None:
            raise ConfigError(
                "A job names its own base.",
                got=f"--base {base} beside {targets[0]}",
                allowed="a job file alone, or models with --base",
                fix="leave --base out.",
            )
        resolved = load_job(Path(targets[0]))
        given = job_refs(resolved, opener)
        return fit_parents(given, BASE if BASE in given else None, opener, tokens=resolved.job.parents.tokens)
    refs = {} if base is None else {BASE: source_ref(BASE, base)}
    for target in targets:
        stem = Path(target).name.partition("@")[0] or "model"
        name, count = stem, 2
        while name in refs or name == BASE:  # a folder called base is not the base unless --base says so
            name, count = f"{stem}-{count}", count + 1
        refs[name] = source_ref(name, target)
    return refs


def _compared(opened: dict[str, OpenParent], reference: str) -> tuple[list[Hazard], dict[str, OpenParent]]:
    """What does not fit the reference, and the parents whose tensors line up with it."""
    wanted = {t.name: t.shape for t in opened[reference].layout.tensors}
    hazards, fitting = [], {}
    for name, parent in opened.items():
        faults = differences(opened[reference], parent) if name != reference else []
        if {t.name: t.shape for t in parent.layout.tensors} == wanted:
            fitting[name] = parent
        else:
            faults = [*faults[:3], f"and {len(faults) - 3} more" if len(faults) > 3 else ""]
            faults.append("left out of the survey")
        told = "; ".join(f for f in faults if f)
        if told:
            hazards.append(Hazard("warning", f"{name} does not fit {reference}: {told}."))
    return hazards, fitting

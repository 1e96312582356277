"""The survey of a job's parents: measured once, kept in the cache under what it was measured on, and in the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from evomerge.checkpoints.opened import OpenParent
from evomerge.config.cache import surveys_folder
from evomerge.digest import canonical_json, digest_json
from evomerge.files import write_atomic
from evomerge.layout import ROLES, Role
from evomerge.merging.measure import VERSION, measure_survey
from evomerge.space.depth import Site
from evomerge.space.priors import Norm
from evomerge.survey.files import read_survey
from evomerge.survey.values import Survey, SurveyError


def survey_text(survey: Survey) -> str:
    """The text of a survey's file."""
    return canonical_json(survey.to_json()) + "\n"


def survey_of(
    parents: Mapping[str, OpenParent], base: str | None, report: Callable[[int, int], None] | None = None
) -> Survey | None:
    """The survey of the parents that can be read now; None when there are no models among them.

    Args:
        parents: name -> parent, compatible with each other.
        base: origin of the deltas, or None.
        report: told how many of how many tensors are done, when it is measured anew.
    """
    ready = {name: parent for name, parent in parents.items() if parent.is_ready}  # all of them, in a search
    if not set(ready) - {base} or (base is not None and base not in ready):
        return None
    key = digest_json([VERSION, {name: parent.content for name, parent in ready.items()}, list(ready), base])
    file = surveys_folder() / f"{key}.json"
    try:
        known = read_survey(file)
    except SurveyError:
        known = None  # a damaged cache is measured again
    if known is not None:
        return known
    survey = measure_survey(ready, base, report)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(file, survey_text(survey))
    return survey


def norms_of(survey: Survey) -> Norm:
    """How far each model is from the origin at each site of a space."""
    rank = {name: i for i, name in enumerate(survey.models)}
    outside: dict[str, tuple[Role, ...]] = {
        "embedding": ("embedding",),
        "head": tuple(role for role in ROLES if role != "embedding"),
    }
    known: dict[tuple[Site, str], float] = {}

    def norm(site: Site, model: str) -> float:
        if model not in rank:
            return 0.0
        if (site, model) not in known:
            inside = isinstance(site.place, int)
            layer = site.place if isinstance(site.place, int) else None
            roles = (site.module,) if inside else outside[str(site.place)]
            section = survey.select(layer=layer, roles=roles, inside=inside)
            known[(site, model)] = 0.0 if section is None else section.norm(rank[model])
        return known[(site, model)]

    return norm

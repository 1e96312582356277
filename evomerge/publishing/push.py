"""Publish an exported merge: everything is judged before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from evomerge.config.export import CARD_FILE, RECIPE_FILE
from evomerge.config.results import read_results
from evomerge.errors import ConfigError
from evomerge.publishing.bundle import (
    EVAL_RESULTS_FILE,
    Bundle,
    card_for_hub,
    check_as_exported,
    eval_results,
    files_of,
    licence_files,
    local_parents,
)
from evomerge.publishing.hub import Hub
from evomerge.publishing.licences import Verdict, check_publishable, judge
from evomerge.recipe.serialize import recipe_digest, recipe_from_text

_REPO: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True)
class Plan:
    """A push that passed every check of this machine.

    Attributes:
        repo: `OWNER/NAME`.
        bundle: what is sent.
        verdict: on the licence.
        message: of the commit.
        warnings: sentences that the publisher should read.
    """

    repo: str
    bundle: Bundle
    verdict: Verdict
    message: str
    warnings: tuple[str, ...]


def plan_push(folder: Path, repo: str, accepted: Sequence[str] = ()) -> Plan:
    """Judge an exported folder; nothing is sent.

    Args:
        folder: what `evomerge export --as checkpoint` or `--as adapter` wrote.
        repo: `OWNER/NAME`.
        accepted: licences that the publisher accepts by name.

    Raises:
        ConfigError: for a malformed name, a folder that is no export or holds other things, results that belong to
            another recipe, as `check_publishable`, and for files that were changed since the export.
        RecipeError: when the recipe is damaged.
    """
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise ConfigError(
            "This is no name of a repository.",
            got=repr(repo),
            allowed="OWNER/NAME of letters, digits, '-', '_' and '.'",
            fix="name the account or organisation, and the model.",
        )
    if not (folder / RECIPE_FILE).is_file() or not (folder / CARD_FILE).is_file():
        raise ConfigError(
            "This folder is no export.",
            got=str(folder),
            allowed=f"a folder with {RECIPE_FILE} and {CARD_FILE}",
            fix="write one with `evomerge export RUN --to DIR`.",
        )
    files = files_of(folder)
    recipe = recipe_from_text((folder / RECIPE_FILE).read_text(encoding="utf-8"))
    results = read_results(folder)
    if results["recipe"] != recipe_digest(recipe):
        raise ConfigError(
            "The results in this folder belong to another merge.",
            got=f"recipe {results['recipe']}",
            allowed=recipe_digest(recipe),
            fix="export the merge again: evomerge export RUN --to DIR.",
        )
    verdict = judge(results["licences"])
    check_publishable(verdict, repo.partition("/")[2], accepted, licence_files(files))
    check_as_exported(files, results["files"])
    texts = {CARD_FILE: card_for_hub((folder / CARD_FILE).read_text(encoding="utf-8"), recipe, verdict)}
    measured = eval_results(results)
    if measured is not None:
        texts[EVAL_RESULTS_FILE] = measured
    local = local_parents(recipe.parents)
    warnings = [f"Folders of this machine stand in the recipe and the card: {', '.join(local)}."] if local else []
    if not results["tasks"]:
        warnings.append("This merge has no scores on the report set: it was not the run's choice.")
    message = f"{results['id']} of {results['run']}, recipe {results['recipe'][:12]}"
    return Plan(repo, Bundle(files, texts), verdict, message, tuple(warnings))


def send(plan: Plan, *, public: bool, replace: bool, endpoint: str | None = None) -> str:
    """Send what was planned, in one commit; returns its address.

    Args:
        plan: of `plan_push`.
        public: of a new repository: whether everybody may read it.
        replace: allow a repository that holds files already; those of other names stay.
        endpoint: of the hub; huggingface_hub's own if None.

    Raises:
        ConfigError: when the repository holds files and `replace` is False, when the hub refuses or cannot be reached.
    """
    hub = Hub(plan.repo, endpoint)
    present = hub.files()
    held = [name for name in present or () if name != ".gitattributes"]
    if held and not replace:
        raise ConfigError(
            "The repository holds files already.",
            got=f"{plan.repo}: {', '.join(held[:5])}",
            allowed="a repository that does not exist or is empty",
            fix="choose another name, or add --replace.",
        )
    return hub.push(plan.bundle, plan.message, create=present is None, public=public)

"""What a run directory is born with: the resolved job and the manifest; and the check that both still hold."""

from __future__ import annotations

import difflib
import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import evomerge
from evomerge.config.assemble import Assembled
from evomerge.config.engines import engine_versions
from evomerge.config.load import JOB_FILE, ResolvedJob, load_run_job, present_text
from evomerge.config.space_files import Origin
from evomerge.errors import ConfigError
from evomerge.evaluation.engine_names import REFERENCE
from evomerge.evaluation.goals_json import goals_to_json
from evomerge.recipe.serialize import parent_to_json
from evomerge.registry import plugin_versions
from evomerge.runs.damage import damage_is_told
from evomerge.runs.manifest import FORMAT, MANIFEST_FILE, VERSION, read_manifest
from evomerge.runs.replay import read_history
from evomerge.runs.store import RunStore
from evomerge.types import SET_NAMES

PACKAGES: Final = ("cma", "cmaes", "lm_eval", "numpy", "optuna", "ray", "scipy", "tokenizers", "torch", "transformers")

_HEADER: Final = """\
# The resolved job of this run: paths are absolute, the space and the suite stand inline.
# Do not edit it: `evomerge resume` compares it. To change something, start a new run from a copy.
"""


def package_versions() -> dict[str, str]:
    """Versions of what decides numbers: evomerge, Python, the libraries and every installed plug-in."""
    own = {"evomerge": evomerge.__version__, "python": platform.python_version()}
    return plugin_versions() | own | {p: version(p) for p in PACKAGES}


def manifest(assembled: Assembled) -> dict[str, Any]:
    """What the run was made of, as JSON values."""
    resolved, plan = assembled.resolved, assembled.plan
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": resolved.job.name,
        "seed": resolved.job.seed,
        "job": _fixed(resolved),
        "versions": package_versions() | engine_versions(plan),
        "parents": [parent_to_json(ref) for ref in assembled.parents.refs()],
        "base": assembled.parents.base,
        "made": assembled.parents.made_files(),
        "n_layers": assembled.parents.template.layout.n_layers,
        **_spaces(assembled),
        "suite": {
            **_origin(resolved, "suite"),
            "plan": plan.digest,
            "engine": plan.suite.engine if plan.generates else REFERENCE,
            "splits": {t.name: {s: len(t.sets[s]) for s in SET_NAMES} for t in plan.tasks},
            "metrics": {t.name: t.metric.name for t in plan.tasks},
            "datasets": {t.name: t.sources[0].dataset for t in plan.tasks if len({s.dataset for s in t.sources}) == 1},
            "public_test_tasks": list(plan.public_test_tasks)
            or (list(assembled.suite.names) if assembled.suite.public_test_split else []),
        },
        "banks": dict(assembled.questions.digests),
        **goals_to_json(assembled.goals),
        "survey": None if assembled.survey is None else assembled.survey.to_json(),
        "genes": list(assembled.space.space.names),
        "optimizer": {
            "name": assembled.optimizer.name,
            "options": dict(assembled.optimizer.options),
            "why": assembled.optimizer.why,
        },
    }


def _spaces(assembled: Assembled) -> dict[str, Any]:
    """The search space, and of a job in stages every stage's."""
    resolved = assembled.resolved
    if not resolved.in_stages:
        return {"space": {"digest": assembled.space.digest, **_origin(resolved, "space")}}
    stages = [
        {
            "name": maker.resolved.name,
            "evaluations": maker.resolved.evaluations,
            "optimizer": assembled.likely_optimizer(number).name,
            "space": {"digest": maker.space.digest, **_origin(resolved, f"stages.{maker.resolved.name}")},
        }
        for number, maker in enumerate(assembled.makers)
    ]
    return {"space": stages[0]["space"], "stages": stages}


def _origin(resolved: ResolvedJob, part: str) -> dict[str, str]:
    origin = resolved.origins[part]
    return {"name": origin.name, "text": origin.text}


def run_files(assembled: Assembled) -> dict[str, str]:
    """File name -> text of what a new run directory holds."""
    return {
        JOB_FILE: _HEADER + assembled.resolved.to_yaml(),
        MANIFEST_FILE: json.dumps(manifest(assembled), indent=1, ensure_ascii=False) + "\n",
    }


def resumed_job(run: Path, overrides: Sequence[str] = ()) -> ResolvedJob:
    """The job of a run with the budget of its last life, which need not be the one that it began with.

    Args:
        run: the run directory.
        overrides: `a.b=value` from the command line, laid over both.

    Raises:
        ConfigError: when there is no run, and as `load_job`.
        CorruptJournal: when the journal is damaged.
    """
    begun = load_run_job(run)
    with damage_is_told(run), RunStore.open(run, write=False) as store:
        lives = read_history(store.entries()).lives
        budget = dict(lives[-1].settings.get("budget", {})) if lives else {}
    kept = [f"budget.{key}={value}" for key, value in budget.items() if value != getattr(begun.job.budget, key, value)]
    return load_run_job(run, [*kept, *overrides])


def check_unchanged(run: Path, assembled: Assembled) -> None:
    """A resumed run must be made of what it was made of; budget and cluster may change.

    Raises:
        ConfigError: with a diff, when job, parents, tasks, space or a preset differ from the recorded ones.
    """
    with damage_is_told(run):
        _check_unchanged(run, assembled, read_manifest(run))


def _check_unchanged(run: Path, assembled: Assembled, recorded: Mapping[str, Any]) -> None:
    for resolved in (load_run_job(run), assembled.resolved):  # the run's own copy may have been edited, too
        _compare("job", _lines(recorded["job"]), _lines(_fixed(resolved)))
    _compare("manifest", _facts(recorded), _facts(manifest(assembled)))
    named = [("space", stage["space"]) for stage in recorded.get("stages", [recorded])]
    for part, found in (*named, ("suite", recorded["suite"])):
        origin = Origin(found["name"], found["text"])
        present = present_text(part, origin)
        if present is not None:
            _compare(f"{part} {origin.name}", origin.text.splitlines(), present.splitlines())


def _fixed(resolved: ResolvedJob) -> dict[str, Any]:
    """What of a job may not change: of the cluster, only what the search set's scores depend on."""
    kept = {k: v for k, v in resolved.to_mapping().items() if k not in ("budget", "cluster", "track")}
    packing = resolved.job.cluster.task_vectors
    return kept if packing == "exact" else {**kept, "cluster": {"task_vectors": packing}}


def _lines(value: Mapping[str, Any]) -> list[str]:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).splitlines()


def _facts(found: Mapping[str, Any]) -> list[str]:
    """What may not change: contents and digests; versions may, the replay judges them."""
    facts = {
        "parents": {p["name"]: p["content"] for p in found["parents"]},
        "made parents": found.get("made", {}),
        "space": [stage["space"]["digest"] for stage in found.get("stages", [found])],
        "questions": found["suite"]["plan"],
        "banks": found.get("banks", {}),
        "objectives": found["objectives"],
        "constraints": found["constraints"],
    }
    return _lines(facts)


def _compare(what: str, recorded: list[str], present: list[str]) -> None:
    if recorded == present:
        return
    diff = list(difflib.unified_diff(recorded, present, "recorded", "now", lineterm="", n=1))
    shown = "\n    ".join(diff[:40]) + ("\n    ..." if len(diff) > 40 else "")
    raise ConfigError(
        f"The run cannot go on: its {what} has changed.",
        got=f"\n    {shown}",
        allowed="the same job, parents, tasks and presets; other settings only of budget.* and cluster.*",
        fix="restore what changed, or start a new run with `evomerge search`.",
    )

"""A small run directory with known answers: what readers of runs are tried on. Nothing was merged for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from evomerge.evaluation.goals import Goals
from evomerge.evaluation.goals_json import goals_to_json
from evomerge.evaluation.objectives import ConstraintSpec, ObjectiveSpec, Relative
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.recipe.serialize import recipe_digest, recipe_to_json
from evomerge.runs.records import (
    Asked,
    Baseline,
    Candidate,
    Chosen,
    Evaluated,
    Failed,
    Finished,
    Kind,
    Note,
    Opened,
    PhaseBegun,
    Record,
    Reused,
    Told,
    task_scores,
)
from evomerge.runs.store import RunStore
from evomerge.types import CandidateId, Digest, Evaluation, Failure, SetName, TaskAnswers

TASKS: Final = ("add", "rev")
N_ITEMS: Final[Mapping[SetName, int]] = {"search": 20, "select": 20, "report": 100}
PARENTS: Final = (ParentRef("math", "zoo/math"), ParentRef("lang", "zoo/lang", "v1"))

SKILLS: Final[Mapping[str, tuple[float, float]]] = {
    "parent-math": (0.6, 0.2),
    "parent-lang": (0.2, 0.6),
    "soup": (0.5, 0.5),
    "g0000-i00": (0.55, 0.7),
    "g0001-i00": (0.9, 0.6),
    "g0001-i01": (0.05, 0.95),
}
"""Model -> share of right answers per task, on every set. `g0000-i01` has the soup's recipe, `g0000-i02` fails."""

GOALS: Final = Goals(
    tuple(ObjectiveSpec(t, (t,)) for t in TASKS),
    (ConstraintSpec("task", "add", "at_least", Relative("best_parent", -0.1)),),
)
"""Feasible from add = 0.5 on, which leaves the front to the two candidates in the middle."""

FRONT: Final = ("g0000-i00", "g0001-i00")
CHOSEN: Final = "g0001-i00"
_BASELINES: Final[tuple[tuple[str, Kind], ...]] = (
    ("parent-math", "parent"),
    ("parent-lang", "parent"),
    ("soup", "soup"),
)


def sample_recipe_of(model: str) -> Recipe:
    """A recipe of its own for every model; `g0000-i01` shares the soup's."""
    ids = [*SKILLS, "g0000-i02"]
    weight = 0.1 * ids.index("soup" if model == "g0000-i01" else model)
    weights = {"math": {"weight": weight}, "lang": {"weight": 1 - weight}}
    return Recipe(PARENTS, None, (Rule("linear", {"normalize": True}, weights),))


def sample_answers(model: str, set_name: SetName) -> Evaluation:
    """The first items of each task are right, as many as the model's skill says."""
    answers = {}
    n = N_ITEMS[set_name]
    for task, skill in zip(TASKS, SKILLS[model], strict=True):
        items = tuple(f"{set_name}-{task}-{i}" for i in range(n))
        answers[task] = TaskAnswers(task, items, tuple(float(i < round(skill * n)) for i in range(n)))
    return Evaluation(set_name, answers, {"merge": 0.25, "score": 0.75})


def _digest(model: str) -> Digest:
    return recipe_digest(sample_recipe_of(model))


def _scored(store: RunStore, model: str, set_name: SetName) -> Evaluated:
    evaluation = sample_answers(model, set_name)
    responses = store.save_responses(_digest(model), evaluation)
    who, scores = (CandidateId(model), _digest(model), set_name), task_scores(evaluation)
    return Evaluated(*who, scores, responses, evaluation.timing_s, costs=evaluation.costs)


def _baseline(model: str, kind: Kind) -> Baseline:
    recipe = recipe_to_json(sample_recipe_of(model))
    return Baseline(CandidateId(model), kind, _digest(model), recipe, name=model.removeprefix("parent-"))


def _asked(number: int, *models: str) -> Asked:
    return Asked(number, tuple(Candidate(CandidateId(m), "candidate", _digest(m), (0.5,)) for m in models))


def sample_manifest(goals: Goals = GOALS, public: tuple[str, ...] = ()) -> dict[str, Any]:
    """The manifest of the sample run."""
    return {
        "format": "evomerge.run",
        "version": 1,
        "name": "sample",
        "seed": 7,
        "versions": {"evomerge": "0.1.0"},
        "parents": [{"name": p.name, "source": p.source, "revision": p.revision, "content": None} for p in PARENTS],
        "base": None,
        "n_layers": 2,
        "suite": {"splits": {t: dict(N_ITEMS) for t in TASKS}, "public_test_tasks": list(public)},
        **goals_to_json(goals),
        "genes": ["weight"],
        "optimizer": {"name": "nsga2", "options": {}, "why": "two objectives"},
    }


def search_records(store: RunStore) -> list[Record]:
    """Everything up to the end of the search: three baselines, two batches, one candidate reused, one failed."""
    failure = Failure("nan", "the logits of task rev are not finite")
    return [
        PhaseBegun("search"),
        *(_baseline(m, kind) for m, kind in _BASELINES),
        *(_scored(store, m, "search") for m, _ in _BASELINES),
        _asked(0, "g0000-i00", "g0000-i01", "g0000-i02"),
        _scored(store, "g0000-i00", "search"),
        Reused(CandidateId("g0000-i01"), _digest("g0000-i01"), "search"),
        Failed(CandidateId("g0000-i02"), _digest("g0000-i02"), "search", failure),
        Told(0),
        _asked(1, "g0001-i00", "g0001-i01"),
        _scored(store, "g0001-i00", "search"),
        _scored(store, "g0001-i01", "search"),
        Told(1),
    ]


def ending_records(store: RunStore) -> list[Record]:
    """The choice, the report set, the end."""
    baselines = tuple(CandidateId(m) for m, _ in _BASELINES)
    return [
        PhaseBegun("select", "the budget is spent"),
        *(_scored(store, m, "select") for m in (*baselines, *FRONT)),
        Chosen(CandidateId(CHOSEN), _digest(CHOSEN), "knee", baselines),
        PhaseBegun("report"),
        *(_scored(store, m, "report") for m in (*baselines, CHOSEN)),
        Finished("the budget is spent", Digest("0" * 64)),
    ]


def write_sample_run(
    folder: Path,
    *extra: Record,
    done: bool = True,
    goals: Goals = GOALS,
    public: tuple[str, ...] = (),
    notes: tuple[Note, ...] = (),
) -> Path:
    """A run directory: of a finished run, or of one that ends with its search and the `extra` records."""
    files = {
        "job.yaml": "name: sample\nbudget: {evaluations: 7}\n",
        "manifest.json": json.dumps(sample_manifest(goals, public)),
    }
    settings = {"budget": {"evaluations": 7}, "cluster": {"workers": 2}}
    with RunStore.create(folder, files) as store:
        store.append(Opened(1, False, "host", 1, {"numpy": "2"}, settings), *notes, *search_records(store))
        store.append(*(ending_records(store) if done else extra))
    return folder

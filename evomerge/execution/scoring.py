"""The scorer of real runs: parents and one resident model, built once per worker; a candidate is a merge in place."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from evomerge.checkpoints.reader import Checkpoint
from evomerge.evaluation.evaluator import PlanEvaluator
from evomerge.evaluation.plan import EvalPlan
from evomerge.execution.worker import Scorer
from evomerge.merging.kernels import Kernels
from evomerge.merging.parents import ParentPool
from evomerge.merging.resident import ResidentModel
from evomerge.recipe.baselines import parent_recipe
from evomerge.recipe.recipe import ParentRef
from evomerge.recipe.serialize import recipe_from_json
from evomerge.types import EvalTask, Evaluation


@dataclass(frozen=True)
class ScoringSpec:
    """What a worker needs to score recipes; picklable, the checkpoints are opened again on the other side.

    Attributes:
        checkpoints: name -> parent.
        template: name of the parent that gives config, tokenizer and dtypes.
        plan: the compiled questions.
        kernels: compiled or eager.
        dtype: of the model in memory, `auto` for the template's.
        device: `auto`, `cpu` or `cuda`.
        self_check: whether the worker proves at its start that its numbers are lm-eval's.
    """

    checkpoints: Mapping[str, Checkpoint]
    template: str
    plan: EvalPlan
    kernels: Kernels
    dtype: str = "auto"
    device: str = "auto"
    self_check: bool = True

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (self.template, self.plan, self.kernels, self.dtype, self.device, self.self_check)
        return (ScoringSpec, (dict(self.checkpoints), *parts))


@final
class MergeScorer:
    """Merges a task's recipe into the resident model and asks it the task's items."""

    def __init__(self, model: ResidentModel, evaluator: PlanEvaluator) -> None:
        self._resident = model
        self._evaluator = evaluator

    def __call__(self, task: EvalTask) -> Evaluation:
        """See `Scorer`."""
        started = time.perf_counter()
        self._resident.apply(recipe_from_json(task.recipe))
        merged_s = time.perf_counter() - started
        evaluation = self._evaluator.evaluate(self._resident.model, task.set_name, task.items)
        return replace(evaluation, timing_s={"merge": merged_s, **evaluation.timing_s})


def choose_device(wanted: str) -> str:
    """`cuda` when it is wanted or there is one and `auto` leaves the choice, else `cpu`."""
    import torch

    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def build_scorer(spec: ScoringSpec) -> Scorer:
    """Open the parents, build the resident model and check its numbers against lm-eval's.

    Raises:
        ModelError: when a parent changed or the model cannot be built.
        SelfCheckError: when scores differ from lm-eval's.
    """
    device = choose_device(spec.device)
    template = spec.checkpoints[spec.template]
    pool = ParentPool(spec.checkpoints, device=device)
    resident = ResidentModel(pool, spec.template, dtype=spec.dtype, kernels=spec.kernels, device=device)
    evaluator = PlanEvaluator(spec.plan, Path(template.folder))
    if spec.self_check:
        from evomerge.evaluation.selfcheck import self_check

        resident.apply(parent_recipe(ParentRef(spec.template, template.source, template.revision)))
        self_check(spec.plan, resident.model, evaluator.tokenizer)
    return MergeScorer(resident, evaluator)

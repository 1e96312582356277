"""A worker's generation engine: built beside the resident model, fed from its memory, proven before the first task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.overlay import Overlay
from evomerge.evaluation.engine_check import engine_check
from evomerge.evaluation.engine_names import REFERENCE
from evomerge.evaluation.engine_probe import probe_prompts
from evomerge.evaluation.engine_support import EngineJob, check_engine
from evomerge.evaluation.engines import EngineSetup, engine_class
from evomerge.evaluation.guarded import GuardedWriter
from evomerge.evaluation.plan import EvalPlan
from evomerge.merging.resident import ResidentModel
from evomerge.recipe.baselines import parent_recipe
from evomerge.recipe.recipe import ParentRef

if TYPE_CHECKING:
    from evomerge.execution.scoring import MergeScorer, ScoringSpec


def changes_config(parent: OpenParent) -> bool:
    """Whether a parent's config is not that of the folder in which its files lie."""
    under = parent
    while isinstance(under, Overlay):
        under = under.under
    return parent.config != under.config


def open_writer(plan: EvalPlan, template: OpenParent, resident: ResidentModel, device: str) -> GuardedWriter | None:
    """The plan's engine behind its guard; None where transformers answers, or nothing is written.

    Args:
        plan: names the engine in its suite.
        template: gives config and tokenizer.
        resident: whose weights the engine is given.
        device: where both live.

    Raises:
        EvaluationError: for a model or a dtype that no engine is trusted with.
        ModelError: when the engine cannot be built.
    """
    if not plan.generates or plan.suite.engine == REFERENCE:
        return None
    adapted = changes_config(template)
    check_engine(plan, EngineJob(template.config, plan.suite.dtype, False, None, changed_config=adapted))
    dtype = str(resident.model.dtype).removeprefix("torch.")
    setup = EngineSetup(
        Path(template.folder), Path(template.tokenizer_folder), dtype, device, plan.max_length, tuple(plan.eos)
    )
    engine = engine_class(plan.suite.engine)(setup)
    return GuardedWriter(engine, resident.tensors, probe_prompts(plan), dtype)


def check_writer(spec: ScoringSpec, scorer: MergeScorer) -> None:
    """Prove that the engine follows the weights and writes what transformers writes, on two parents and back again.

    Raises:
        NonFinite: when a parent gives logits that are not finite.
        SelfCheckError: when an answer differs.
    """
    if scorer.writer is None:
        return
    others = [name for name in spec.checkpoints if name != spec.template]
    for name in (spec.template, *others[:1], spec.template):
        parent = spec.checkpoints[name]
        scorer.resident.apply(parent_recipe(ParentRef(name, parent.source, parent.revision)))
        scorer.writer.outdated()
        engine_check(scorer.evaluator, scorer.writer, scorer.resident.model)
    scorer.writer.taken()

"""The suite's engine against the job: refused before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from evomerge.config.load import ResolvedJob
from evomerge.config.parents import Parents
from evomerge.config.staging import StageMaker
from evomerge.errors import EvaluationError
from evomerge.evaluation.engine_names import REFERENCE
from evomerge.evaluation.engine_support import EngineJob, check_engine
from evomerge.evaluation.plan import EvalPlan
from evomerge.execution.engine_worker import changes_config
from evomerge.execution.scoring import choose_device
from evomerge.loop import Known


def check_job_engine(
    resolved: ResolvedJob, plan: EvalPlan, parents: Parents, known: Sequence[Known], makers: Sequence[StageMaker]
) -> None:
    """Refuse an engine that cannot serve the job, or that is not installed here.

    Args:
        resolved: the job.
        plan: the compiled questions, whose suite names the engine.
        parents: whose template says what is merged.
        known: baselines and injected recipes, which may have paths.
        makers: all stages, whose candidates may have paths.

    Raises:
        EvaluationError: naming every reason.
    """
    if plan.suite.engine == REFERENCE or not plan.generates:
        return
    cluster = resolved.job.cluster
    shared = cluster.workers or 1 if cluster.backend == "local" and choose_device(cluster.device) == "cuda" else 1
    paths = any(k.recipe.path is not None for k in known) or any(m.space.runs_paths for m in makers)
    gpus = None if cluster.gpus_per_worker is None else float(cluster.gpus_per_worker)
    with resolved.document.placing("suite", "engine"):
        template = parents.template
        changed = changes_config(template)
        check_engine(plan, EngineJob(template.config, plan.suite.dtype, paths, gpus, shared, changed))
        if find_spec(plan.suite.engine) is None:
            raise EvaluationError(
                "The suite's engine is not installed.",
                got=f"engine: {plan.suite.engine}, and no such package",
                allowed=f"{REFERENCE}, or an environment with vLLM",
                fix="install evomerge[vllm] in an environment of its own, the same for driver and workers.",
            )


def engine_words(plan: EvalPlan) -> str:
    """What answers, in words."""
    name = plan.suite.engine
    if not plan.generates:
        return f"{REFERENCE} (nothing is generated)"
    return name if name == REFERENCE else f"{name}, proven against {REFERENCE} for every candidate"


def engine_versions(plan: EvalPlan) -> dict[str, str]:
    """The version of the engine's package, where an engine answers."""
    from importlib.metadata import PackageNotFoundError, version

    if plan.suite.engine == REFERENCE or not plan.generates:
        return {}
    for name in (plan.suite.engine, f"{plan.suite.engine}-cpu"):
        try:
            return {plan.suite.engine: version(name)}
        except PackageNotFoundError:
            continue
    return {}

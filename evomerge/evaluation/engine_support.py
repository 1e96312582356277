"""What the engine vllm is trusted with; everything else is refused by name before anything is built.

The families below were checked against transformers with a real vLLM (`tests/unit/evaluation/test_vllm_real.py`). For
others the probe would still catch a wrong answer, but only after every worker has built an engine in vain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from evomerge.errors import EvaluationError
from evomerge.evaluation.engine_names import REFERENCE
from evomerge.evaluation.engine_probe import TOLERANCES
from evomerge.evaluation.plan import EvalPlan

FAMILIES: Final = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type` of dense decoders."""
_MIXTURE_KEYS: Final = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_LATENT_KEYS: Final = ("kv_lora_rank", "q_lora_rank")


class EngineJob(NamedTuple):
    """What of a job decides whether an engine can serve it.

    Attributes:
        config: the template's config.json.
        dtype: of the suite; `auto` takes the config's.
        runs_paths: candidates may have layer paths.
        gpus_per_worker: None leaves it to the job's backend.
        per_gpu: workers that share one GPU.
        changed_config: the template's config is not that of its folder, where engines read it.
    """

    config: Mapping[str, Any]
    dtype: str
    runs_paths: bool
    gpus_per_worker: float | None
    per_gpu: int = 1
    changed_config: bool = False


class _Reason(NamedTuple):
    got: str
    allowed: str


def check_engine(plan: EvalPlan, job: EngineJob) -> None:
    """Refuse a job that the suite's engine cannot serve; lists every reason.

    Args:
        plan: whose suite names the engine; a plan that generates nothing needs none.
        job: the rest.

    Raises:
        EvaluationError: when there is a reason.
    """
    if plan.suite.engine == REFERENCE or not plan.generates:
        return
    reasons = [*_of_model(job), *_of_job(plan, job)]
    if reasons:
        raise EvaluationError(
            f"The engine {plan.suite.engine} is not trusted with this job.",
            got="; ".join(r.got for r in reasons),
            allowed="; ".join(dict.fromkeys(r.allowed for r in reasons)),
            fix="set `suite.engine: transformers`, which scores everything.",
        )


def _of_model(job: EngineJob) -> Iterator[_Reason]:
    config = job.config
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        yield _Reason(f"architecture {family}", f"dense decoders ({', '.join(FAMILIES)})")
    for keys, words in ((_MIXTURE_KEYS, "a mixture of experts"), (_LATENT_KEYS, "latent attention (MLA)")):
        found = [k for k in keys if config.get(k)]
        if found:
            yield _Reason(f"{words} ({found[0]}: {config[found[0]]})", "dense layers and plain attention")
    if config.get("quantization_config"):
        yield _Reason("quantised weights (quantization_config)", "weights that are not quantised")
    kinds = sorted({str(k) for k in config.get("layer_types") or ()} - {"full_attention"})
    sliding = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if kinds or sliding:
        what = ", ".join(kinds) or f"sliding_window: {sliding}"
        yield _Reason(f"layers that do not see everything ({what})", "full attention in every layer")
    if job.changed_config:
        yield _Reason("parents whose config or vocabulary is adapted", "a template that is used as it is saved")
    if config.get("auto_map"):
        yield _Reason("code of its own (auto_map)", "a stock config")
    dtype = job.dtype if job.dtype != "auto" else str(config.get("dtype") or config.get("torch_dtype") or "float32")
    if dtype not in TOLERANCES:
        yield _Reason(f"dtype {dtype}", " or ".join(sorted(TOLERANCES)))


def _of_job(plan: EvalPlan, job: EngineJob) -> Iterator[_Reason]:
    if job.runs_paths:
        yield _Reason("candidates with layer paths", "candidates with the template's layers")
    if job.gpus_per_worker not in (None, 1):
        yield _Reason(f"cluster.gpus_per_worker: {job.gpus_per_worker:g}", "one GPU per worker")
    if job.per_gpu > 1:
        yield _Reason(f"{job.per_gpu} workers on one GPU", "one worker per GPU")
    for task in plan.tasks:
        if task.generation is not None and task.generation.repetition_penalty != 1:
            penalty = f"{task.name}: repetition_penalty {task.generation.repetition_penalty:g}"
            yield _Reason(penalty, "plain greedy decoding")

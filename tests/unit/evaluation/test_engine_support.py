"""What engines are not trusted with, by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from evomerge.errors import EvaluationError
from evomerge.evaluation.engine_support import FAMILIES, EngineJob, check_engine
from evomerge.evaluation.plan import EvalPlan, GenerationArgs, Item, MetricPlan, Prompted, TaskPlan, pack
from evomerge.evaluation.suite import SuiteSpec, TaskSpec
from evomerge.types import Digest

CONFIG = {"model_type": "llama", "dtype": "bfloat16", "sliding_window": None, "layer_types": ["full_attention"] * 2}


def plan(engine: str = "vllm", penalty: float = 1.0) -> EvalPlan:
    items = tuple(Item(Digest(s), 0, i, (Prompted(pack([1, 2])),)) for i, s in enumerate("abc"))
    arguments = GenerationArgs(("\n",), 4, penalty)
    sets: Any = {"search": (0,), "select": (1,), "report": (2,)}
    task = TaskPlan("say", "generate_until", MetricPlan("exact_match"), items, sets, generation=arguments)
    return EvalPlan((task,), SuiteSpec((TaskSpec("say"),), engine=engine), 64, (0,), 0)


def engine_job(**config: Any) -> EngineJob:
    return EngineJob({**CONFIG, **config}, "auto", runs_paths=False, gpus_per_worker=None)


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_families_are_accepted(family: str) -> None:
    check_engine(plan(), engine_job(model_type=family))
    check_engine(plan(), engine_job(model_type=family, tie_word_embeddings=True, dtype="float32"))
    check_engine(plan(), engine_job(model_type=family, sliding_window=4096, use_sliding_window=False))
    check_engine(plan(), engine_job()._replace(gpus_per_worker=1.0))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model_type": "mixtral"}, "architecture mixtral"),
        ({"num_experts": 8}, r"a mixture of experts \(num_experts: 8\)"),
        ({"kv_lora_rank": 512}, r"latent attention \(MLA\)"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised weights"),
        ({"sliding_window": 4096}, "sliding_window: 4096"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "code of its own"),
        ({"dtype": "float16"}, "dtype float16"),
    ],
)
def test_other_models_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(EvaluationError, match=words) as refused:
        check_engine(plan(), engine_job(**changed))
    assert "suite.engine: transformers" in refused.value.fix
    check_engine(plan("transformers"), engine_job(**changed))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"runs_paths": True}, "layer paths"),
        ({"gpus_per_worker": 2.0}, "gpus_per_worker: 2"),
        ({"gpus_per_worker": 0.25}, r"gpus_per_worker: 0\.25"),
        ({"per_gpu": 4}, "4 workers on one GPU"),
        ({"dtype": "float16"}, "dtype float16"),
        ({"changed_config": True}, "vocabulary is adapted"),
    ],
)
def test_other_jobs_are_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(EvaluationError, match=words):
        check_engine(plan(), engine_job()._replace(**changed))


def test_all_reasons_are_told_at_once() -> None:
    with pytest.raises(EvaluationError, match="repetition_penalty") as refused:
        check_engine(plan(penalty=1.2), engine_job(model_type="gemma3", sliding_window=512))
    assert refused.value.got.count(";") == 2


def test_a_plan_that_writes_nothing_needs_no_engine() -> None:
    task = replace(plan().tasks[0], kind="loglikelihood", generation=None)
    check_engine(replace(plan(), tasks=(task,)), engine_job(model_type="mixtral"))

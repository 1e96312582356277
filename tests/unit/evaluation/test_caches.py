"""Models with a state instead of plain keys and values are scored right, without sharing or padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from evomerge.evaluation.caches import keeps_plain_cache
from evomerge.evaluation.evaluator import PlanEvaluator
from evomerge.evaluation.lm_eval import compile_plan
from evomerge.evaluation.plan import EvalPlan
from evomerge.evaluation.selfcheck import self_check
from evomerge.evaluation.suite import load_suite
from evomerge.evaluation.tokens import load_tokenizer
from evomerge.testing import eval_tasks
from evomerge.testing.tiny import FAMILIES, tiny_model

STATES = ("mamba", "recurrent_gemma", "qwen3_next", "lfm2", "jamba", "minimax", "falcon_h1", "deepseek_v32")
MIXTURES = ("mixtral", "deepseek_v3", "gpt_oss")


@pytest.mark.parametrize("family", [*FAMILIES, *MIXTURES, *STATES])
def test_plain_caches_are_told_from_states(family: str) -> None:
    assert keeps_plain_cache(tiny_model(family, 0)) == (family not in STATES)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> EvalPlan:
    root = tmp_path_factory.mktemp("plan")
    tasks = (eval_tasks.write_choice_task, eval_tasks.write_loglikelihood_task, eval_tasks.write_generation_task)
    for write in tasks:
        write(root / "tasks")
    split = {"search": 4, "select": 1, "report": 1}
    suite = load_suite({"include": [str(root / "tasks")], "tasks": ["pick", "last", "say"], "split": split})
    return compile_plan(suite, eval_tasks.byte_pair_checkpoint(root / "model"))


@pytest.mark.parametrize("family", [*STATES, *MIXTURES])
def test_scores_and_texts_are_lm_evals(family: str, plan: EvalPlan, tmp_path: Path) -> None:
    folder = eval_tasks.byte_pair_checkpoint(tmp_path, family, seed=1)
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert self_check(plan, model, load_tokenizer(folder)).n_items > 0
    scores = [
        PlanEvaluator(plan, folder, batch_tokens, cache_tokens=batch_tokens).evaluate(model, "search").answers
        for batch_tokens in (60, 5000)
    ]
    for name, answers in scores[0].items():
        assert answers.scores == pytest.approx(scores[1][name].scores, abs=1e-4)

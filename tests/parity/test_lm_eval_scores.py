"""Our scores against lm_eval.evaluate with HFLM: every output type, metric by metric, item by item."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from evomerge.errors import EvaluationError
from evomerge.evaluation import metrics
from evomerge.evaluation.evaluator import PlanEvaluator
from evomerge.evaluation.lm_eval import compile_plan
from evomerge.evaluation.lm_eval_guard import quiet
from evomerge.evaluation.lm_eval_reference import reference_model
from evomerge.evaluation.selfcheck import self_check
from evomerge.evaluation.suite import SuiteSpec, TaskSpec, load_suite
from evomerge.evaluation.tokens import load_tokenizer
from evomerge.testing import eval_tasks
from evomerge.types import SET_NAMES

pytestmark = pytest.mark.parity

SPLIT = {"search": 0.4, "select": 0.25, "report": 0.3}


def load_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def reference(suite: SuiteSpec, folder: Path, model: Any) -> dict[str, list[dict[str, Any]]]:
    """lm_eval.evaluate over all documents of every task of the suite: its logged samples."""
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    tokenizer = load_tokenizer(folder)
    lm = reference_model(model, tokenizer, model.config.max_position_embeddings)
    with quiet():
        manager = TaskManager(include_path=[str(p) for p in suite.include], include_defaults=False)
        loaded = manager.load([t.task for t in suite.tasks if isinstance(t, TaskSpec)])
        for task in loaded["tasks"].values():
            task.set_config("num_fewshot", suite.num_fewshot or 0)
            task.set_fewshot_seed(1234)
            if suite.gen_kwargs and task.OUTPUT_TYPE == "generate_until":
                task.set_config("generation_kwargs", dict(suite.gen_kwargs), update=True)
        result = evaluate(
            lm,
            loaded,
            bootstrap_iters=0,
            log_samples=True,
            system_instruction=suite.system_instruction,
            apply_chat_template=suite.chat_template,
            fewshot_as_multiturn=suite.fewshot_as_multiturn,
        )
    return dict(result["samples"])


def compare(suite: SuiteSpec, folder: Path, samples: dict[str, list[dict[str, Any]]], model: Any) -> int:
    """Compares item by item and in the aggregate; returns how many items were compared."""
    from lm_eval.api.registry import get_aggregation

    plan = compile_plan(suite, folder)
    evaluator = PlanEvaluator(plan, folder)
    compared = 0
    for set_name in SET_NAMES:
        evaluation = evaluator.evaluate(model, set_name)
        for task in plan.tasks:
            theirs = {s["doc_id"]: s for s in samples[task.name] if s["filter"] == task.metric.filter}
            ids = [task.items[i].doc_id for i in task.sets[set_name]]
            values = [theirs[i][task.metric.name] for i in ids]
            answers = evaluation.answers[task.name]
            if task.metric.aggregation == "mean":
                assert answers.scores == tuple(float(v) for v in values), (task.name, set_name)
            elif task.metric.aggregation == "perplexity":
                np.testing.assert_allclose(answers.scores, values, rtol=1e-5)
            else:
                ours = np.array(answers.scores) * task.mean_weight[set_name]
                np.testing.assert_allclose(ours, [v[0] for v in values], rtol=1e-5)
            figure = get_aggregation(task.metric.aggregation)(values)
            assert metrics.aggregate(task.metric.aggregation, answers.mean) == pytest.approx(figure, rel=1e-5)
            compared += len(ids)
    return compared


METRICS = {
    "pick": ("acc", "acc_norm", "acc_bytes", "exact_match"),
    "last": ("perplexity", "acc"),
    "read": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
    "say": ("exact_match",),
}


def write_all(folder: Path) -> None:
    eval_tasks.write_choice_task(folder)
    eval_tasks.write_loglikelihood_task(folder)
    eval_tasks.write_rolling_task(folder)
    eval_tasks.write_generation_task(folder)


def own_answers(suite: SuiteSpec, folder: Path, model: Any, task: str) -> list[str]:
    """What the model itself says, every third one spoiled: targets that are sometimes right."""
    samples = sorted(reference(suite, folder, model)[task], key=lambda s: s["doc_id"])
    return [s["resps"][0][0] + ("x" if i % 3 == 0 else "") for i, s in enumerate(samples)]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "qwen2", "gpt_neox"])
def test_every_metric_equals_lm_eval(tmp_path: Path, family: str) -> None:
    folder = eval_tasks.byte_pair_checkpoint(tmp_path / "model", family, seed=3)
    write_all(tmp_path / "tasks")
    model = load_model(folder)
    suite = load_suite({"include": [str(tmp_path / "tasks")], "tasks": list(METRICS), "split": SPLIT})
    answers = own_answers(suite, folder, model, "say")
    eval_tasks.write_generation_task(tmp_path / "tasks", answers=answers)
    samples = reference(suite, folder, model)
    assert 0 < np.mean([s["exact_match"] for s in samples["say"]]) < 1
    for i in range(4):
        tasks = tuple(TaskSpec(t, metric=names[i % len(names)]) for t, names in METRICS.items())
        assert compare(SuiteSpec(tasks, suite.include, suite.split), folder, samples, model) > 30


def test_characters_with_bos_and_the_shortcut(tmp_path: Path) -> None:
    folder = eval_tasks.character_checkpoint(tmp_path / "model", seed=1, max_position_embeddings=96)
    write_all(tmp_path / "tasks")
    model = load_model(folder)
    suite = load_suite({"include": [str(tmp_path / "tasks")], "tasks": list(METRICS), "split": SPLIT})
    answers = own_answers(suite, folder, model, "say")
    eval_tasks.write_generation_task(tmp_path / "tasks", answers=answers)
    plan = compile_plan(suite, folder)
    assert any(item.answer is not None for item in plan.task("say").items)
    scores = PlanEvaluator(plan, folder).evaluate(model, "search").answers["say"].scores
    assert 0 < np.mean(scores) < 1
    assert compare(suite, folder, reference(suite, folder, model), model) > 40
    assert self_check(plan, model, load_tokenizer(folder)).n_items == 16


def test_few_shot_chat_template_and_system_instruction(tmp_path: Path) -> None:
    folder = eval_tasks.byte_pair_checkpoint(tmp_path / "model", seed=2, max_position_embeddings=400)
    write_all(tmp_path / "tasks")
    model = load_model(folder)
    suite = load_suite(
        {
            "include": [str(tmp_path / "tasks")],
            "tasks": ["pick", "say", "last"],
            "split": SPLIT,
            "num_fewshot": 2,
            "chat_template": True,
            "fewshot_as_multiturn": True,
            "system_instruction": "Be short.",
            "gen_kwargs": {"max_gen_toks": 4, "until": ["e"], "repetition_penalty": 1.3},
        }
    )
    answers = own_answers(suite, folder, model, "say")
    eval_tasks.write_generation_task(tmp_path / "tasks", answers=answers)
    plan = compile_plan(suite, folder)
    assert plan.task("say").sources[0].num_fewshot == 2
    assert compare(suite, folder, reference(suite, folder, model), model) > 30


def test_prompts_longer_than_the_model_are_cut_as_lm_eval_cuts_them(tmp_path: Path) -> None:
    folder = eval_tasks.byte_pair_checkpoint(tmp_path / "model", seed=5, max_position_embeddings=24)
    write_all(tmp_path / "tasks")
    model = load_model(folder)
    suite = load_suite({"include": [str(tmp_path / "tasks")], "tasks": list(METRICS), "split": SPLIT, "num_fewshot": 1})
    samples = reference(suite, folder, model)
    assert compare(suite, folder, samples, model) > 40


def test_filters_and_options_of_exact_match(tmp_path: Path) -> None:
    folder = eval_tasks.byte_pair_checkpoint(tmp_path / "model", seed=7)
    model = load_model(folder)
    first = [{"function": "regex", "regex_pattern": "([a-zA-Z]+)"}, {"function": "take_first"}]
    last = [
        {"function": "lowercase"},
        {"function": "regex", "group_select": -1, "regex_pattern": "([a-z])|([^a-z])", "fallback": "?"},
        {"function": "remove_whitespace"},
        {"function": "take_first"},
    ]
    chains = [{"name": "first", "filter": first}, {"name": "last", "filter": last}]
    options = {"ignore_case": True, "ignore_punctuation": True, "regexes_to_ignore": ["[0-9]", " "]}
    config = {
        "filter_list": chains,
        "metric_list": [eval_tasks.metric("exact_match", **options)],
        "generation_kwargs": {"until": ["zz"], "do_sample": False, "max_gen_toks": 9},
    }
    plain = {"include": [str(tmp_path / "tasks")], "split": SPLIT}
    eval_tasks.write_generation_task(tmp_path / "tasks", **config)
    suite = load_suite({**plain, "tasks": ["say"]})
    samples = reference(suite, folder, model)["say"]
    for chain in ("first", "last"):
        said = {s["doc_id"]: s["filtered_resps"][0] for s in samples if s["filter"] == chain}
        answers = [said[i].upper() + ("." if i % 2 else "b") for i in range(16)]
        eval_tasks.write_generation_task(tmp_path / "tasks", answers=answers, **config)
        suite = load_suite({**plain, "tasks": [{"task": "say", "filter": chain}]})
        assert compile_plan(suite, folder).task("say").metric.fast
        assert compare(suite, folder, reference(suite, folder, model), model) > 10


def test_metrics_without_a_fast_path_are_lm_eval_s_own(tmp_path: Path) -> None:
    folder = eval_tasks.byte_pair_checkpoint(tmp_path / "model", seed=9)
    model = load_model(folder)
    mapped = [{"function": "map", "mapping_dict": {"a": "b"}, "default_value": "c"}, {"function": "take_first"}]
    eval_tasks.write_choice_task(tmp_path / "tasks", metric_list=[eval_tasks.metric("acc_mutual_info")])
    eval_tasks.write_generation_task(
        tmp_path / "tasks", answers=["c"] * 16, filter_list=[{"name": "mapped", "filter": mapped}]
    )
    suite = load_suite({"include": [str(tmp_path / "tasks")], "tasks": ["pick", "say"], "split": SPLIT})
    plan = compile_plan(suite, folder)
    assert not plan.task("pick").metric.fast
    assert not plan.task("say").metric.fast
    assert compare(suite, folder, reference(suite, folder, model), model) > 20


def test_a_task_s_own_code_when_trusted(tmp_path: Path) -> None:
    """`process_results` in Python: a number per item that is neither 0 nor 1, from all answers of the item."""
    folder = eval_tasks.byte_pair_checkpoint(tmp_path / "model", seed=11)
    model = load_model(folder)
    path = eval_tasks.write_choice_task(tmp_path / "tasks", metric_list=[eval_tasks.metric("spread")])
    path.write_text(path.read_text() + "process_results: !function own.spread\n")
    code = "def spread(doc, results):\n    lls = [r[0] for r in results]\n    return {'spread': max(lls) - min(lls)}\n"
    (tmp_path / "tasks" / "own.py").write_text(code)
    mapping = {"include": [str(tmp_path / "tasks")], "tasks": ["pick"], "split": SPLIT, "trust_task_code": True}
    suite = load_suite(mapping)
    samples = {s["doc_id"]: s["spread"] for s in reference(suite, folder, model)["pick"]}
    plan = compile_plan(suite, folder)
    evaluator = PlanEvaluator(plan, folder)
    scores = evaluator.evaluate(model, "search").answers["pick"].scores
    theirs = [samples[plan.task("pick").items[i].doc_id] for i in plan.task("pick").sets["search"]]
    assert scores == pytest.approx(theirs, abs=1e-4)
    eval_tasks.write_choice_task(tmp_path / "tasks", n=20, metric_list=[eval_tasks.metric("spread")])
    changed = (tmp_path / "tasks" / "pick.jsonl").read_text().replace("the", "teh")
    (tmp_path / "tasks" / "pick.jsonl").write_text(changed)
    path.write_text(path.read_text() + "process_results: !function own.spread\n")
    with pytest.raises(EvaluationError, match="changed since the run started"):
        PlanEvaluator(plan, folder).evaluate(model, "search")


def test_a_group_is_the_pooled_mean(tmp_path: Path) -> None:
    folder = eval_tasks.byte_pair_checkpoint(tmp_path / "model", seed=13)
    model = load_model(folder)
    for name, question in (("one", "{{question}}\nAnswer:"), ("two", "{{question}} So:")):
        eval_tasks.write_choice_task(tmp_path / "tasks", name, n=14 if name == "one" else 16, doc_to_text=question)
    lines = (tmp_path / "tasks" / "two.jsonl").read_text()
    (tmp_path / "tasks" / "two.jsonl").write_text(lines.replace('"question": "', '"question": "Well, '))
    (tmp_path / "tasks" / "both.yaml").write_text("group: both\ntask: [one, two]\n")
    plain = {"include": [str(tmp_path / "tasks")], "split": SPLIT}
    samples = reference(load_suite({**plain, "tasks": ["one", "two"]}), folder, model)
    plan = compile_plan(load_suite({**plain, "tasks": ["both"]}), folder)
    task = plan.task("both")
    answers = PlanEvaluator(plan, folder).evaluate(model, "report").answers["both"]
    theirs = []
    for i in task.sets["report"]:
        item = task.items[i]
        theirs.append(next(s["acc"] for s in samples[task.sources[item.source].task] if s["doc_id"] == item.doc_id))
    assert len({task.items[i].source for i in task.sets["report"]}) == 2
    assert list(answers.scores) == theirs

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from evomerge import registry
from evomerge.errors import ConfigError, EvaluationError, NonFinite
from evomerge.evaluation.evaluator import PlanEvaluator
from evomerge.evaluation.lm_eval import compile_plan
from evomerge.evaluation.plugin import ItemTask, load_evaluator
from evomerge.evaluation.suite import load_suite
from evomerge.testing import eval_tasks
from evomerge.testing.evaluator_suite import check_item_task


class Brevity(ItemTask):
    """Log-probability of ending at once, item by item."""

    def __init__(self, n: int = 30, spoil: str = "") -> None:
        self.n = n
        self.spoil = spoil

    @property
    def name(self) -> str:
        return "brevity"

    def items(self) -> Sequence[str]:
        return [eval_tasks.sentence(i, 4) for i in range(self.n)]

    def score(self, model: Any, tokenizer: Any, items: Sequence[str]) -> Sequence[float]:
        if self.spoil == "number":
            return [0.0]
        if self.spoil == "random":
            torch.rand(1)
        if self.spoil == "weights":
            with torch.no_grad():
                model.lm_head.weight += 1
        scores = []
        for item in items:
            ids = torch.tensor([tokenizer.encode(item)])
            with torch.no_grad():
                ll = torch.log_softmax(model(ids).logits[0, -1].float(), -1)
            scores.append(float(ll[tokenizer.eos_token_id]) * (len(items) if self.spoil == "others" else 1))
        return [float("nan")] * len(items) if self.spoil == "nan" else scores


def not_a_task() -> str:
    return "no"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry points that an installed distribution would bring."""
    points = [
        EntryPoint(name, f"{__name__}:{attribute}", registry.GROUP_EVALUATORS)
        for name, attribute in (("brevity", "Brevity"), ("odd", "not_a_task"))
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)


def suite(**options: Any) -> Any:
    entry = {"evaluator": "brevity", "options": options}
    return load_suite({"tasks": [entry], "split": {"search": 5, "select": 5, "report": 10}})


@pytest.mark.usefixtures("installed")
def test_an_evaluator_is_a_task_like_others(tmp_path: Path) -> None:
    folder = eval_tasks.byte_pair_checkpoint(tmp_path)
    plan = compile_plan(suite(n=25), folder)
    task = plan.task("brevity")
    assert task.kind == "plugin"
    assert plan.digest != compile_plan(suite(n=26), folder).digest
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    evaluator = PlanEvaluator(plan, folder)
    answers = evaluator.evaluate(model, "search").answers["brevity"]
    texts = [task.items[i].targets[0] for i in task.sets["search"]]
    assert answers.scores == tuple(Brevity().score(model, evaluator.tokenizer, texts))
    some = evaluator.evaluate(model, "search", {"brevity": answers.items[1:3]})
    assert some.answers["brevity"].scores == answers.scores[1:3]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [("number", EvaluationError, "1 scores for 5 items"), ("nan", NonFinite, "not finite")],
)
def test_bad_scores_are_refused(tmp_path: Path, spoil: str, error: type[Exception], message: str) -> None:
    folder = eval_tasks.byte_pair_checkpoint(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with pytest.raises(error, match=message):
        PlanEvaluator(compile_plan(suite(spoil=spoil), folder), folder).evaluate(model, "search")


@pytest.mark.usefixtures("installed")
def test_bad_evaluators_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no evaluator 'brevty'"):
        load_evaluator("brevty", {})
    with pytest.raises(EvaluationError, match="does not take its options"):
        load_evaluator("brevity", {"m": 3})
    with pytest.raises(EvaluationError, match="not an ItemTask"):
        load_evaluator("odd", {})
    folder = eval_tasks.byte_pair_checkpoint(tmp_path)
    with pytest.raises(EvaluationError, match="at most 12"):
        compile_plan(suite(n=12), folder)


def test_the_conformance_suite_passes_a_good_one(tmp_path: Path) -> None:
    check_item_task(Brevity, tmp_path)


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        ("number", "one score per item"),
        ("nan", "scores are finite"),
        ("random", "global random numbers"),
        ("weights", "weights stay"),
        ("others", "which other items"),
    ],
)
def test_the_conformance_suite_finds_faults(tmp_path: Path, spoil: str, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_item_task(lambda: Brevity(spoil=spoil), tmp_path)

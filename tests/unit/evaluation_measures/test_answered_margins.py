"""Margins and subjects as the evaluator gives them: against lm-eval's log-likelihoods on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from evomerge.errors import EvaluationError
from evomerge.evaluation.evaluator import PlanEvaluator
from evomerge.evaluation.goal_names import check_measurable
from evomerge.evaluation.lm_eval import compile_plan
from evomerge.evaluation.lm_eval_reference import reference_answers, reference_model
from evomerge.evaluation.measures import Measure
from evomerge.evaluation.metrics import choice_margins
from evomerge.evaluation.plan import Item, Scored, TaskPlan
from evomerge.evaluation.suite import load_suite
from evomerge.evaluation.tokens import load_tokenizer
from evomerge.testing import eval_tasks
from evomerge.types import SET_NAMES, Digest, Evaluation

SPLIT = {"search": 6, "select": 2, "report": 4}


class Case:
    """A model that answers tasks of every kind, one of them pooled of two."""

    def __init__(self, root: Path) -> None:
        self.folder = eval_tasks.byte_pair_checkpoint(root / "model", seed=4)
        tasks = root / "tasks"
        eval_tasks.write_choice_task(tasks, "easy", n=8)
        eval_tasks.write_choice_task(tasks, "hard", n=16, doc_to_text="Q: {{question}}\nA:")
        eval_tasks.write_choice_task(tasks)
        (tasks / "both.yaml").write_text("group: both\ntask: [easy, hard]\n")
        eval_tasks.write_loglikelihood_task(tasks)
        eval_tasks.write_rolling_task(tasks)
        eval_tasks.write_generation_task(tasks)
        names: list[Any] = ["both", {"task": "pick", "metric": "acc_norm"}, "last", "read", "say"]
        suite = load_suite({"include": [str(tasks)], "tasks": names, "split": SPLIT})
        self.plan = compile_plan(suite, self.folder)
        self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        evaluator = PlanEvaluator(self.plan, self.folder)
        self.answers: dict[str, Evaluation] = {s: evaluator.evaluate(self.model, s) for s in SET_NAMES}
        self.evaluator = evaluator

    def margin(self, task: TaskPlan, item: int) -> float:
        """Of an item, on whichever set it stands."""
        digest = task.items[item].hash
        answered = self.answers[task.set_of[digest]].answers[task.name]
        return answered.margins[answered.items.index(digest)]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("margins"))


def test_margins_are_those_of_lm_evals_log_likelihoods(case: Case) -> None:
    reference = reference_model(case.model, load_tokenizer(case.folder), case.plan.max_length)
    compared = 0
    for name in ("both", "pick", "last"):
        task = case.plan.task(name)
        for probe in task.probes:
            found = reference_answers(reference, task.kind, probe.arguments)
            lls = np.array([ll for ll, _ in found])
            item = task.items[probe.item]
            if task.kind == "multiple_choice":
                texts = [continuation for _, continuation in probe.arguments]
                scaled = lls / [len(t.lstrip()) for t in texts] if task.metric.name == "acc_norm" else lls
                (gold,) = item.golds
                expected = scaled[gold] - np.delete(scaled, gold).max()
            else:
                (expected,) = lls
            assert case.margin(task, probe.item) == pytest.approx(expected, abs=2e-5)
            compared += 1
    assert compared == 12


def test_right_choices_have_positive_margins(case: Case) -> None:
    for evaluation in case.answers.values():
        for name in ("both", "pick"):
            found = evaluation.answers[name]
            assert [float(m > 0) for m in found.margins] == list(found.scores)
        last = evaluation.answers["last"]
        assert last.margins == pytest.approx(last.scores, abs=1e-5)  # its metric, perplexity, scores log-likelihoods


def test_only_tasks_with_known_answers_have_margins_and_only_pooled_ones_subjects(case: Case) -> None:
    found = case.answers["search"].answers
    assert [bool(found[n].margins) for n in ("read", "say")] == [False, False]
    assert set(found["both"].subjects) == {"easy", "hard"}
    assert not any(found[n].subjects for n in ("pick", "last", "read", "say"))
    task = case.plan.task("both")
    sources = {task.items[i].hash: task.sources[task.items[i].source].task for i in task.sets["search"]}
    assert list(found["both"].subjects) == [sources[h] for h in found["both"].items]


def test_a_part_of_the_items_keeps_margins_and_subjects_aligned(case: Case) -> None:
    whole = case.answers["search"].answers["both"]
    part = case.evaluator.evaluate(case.model, "search", {"both": whole.items[1::2]}).answers["both"]
    assert part.subjects == whole.subjects[1::2]
    assert part.margins == pytest.approx(whole.margins[1::2], abs=2e-5)


@pytest.mark.parametrize(
    ("golds", "lls", "expected"),
    [
        ((1,), (-3.0, -1.0, -2.0), 1.0),
        ((0, 2), (-3.0, -1.0, -2.0), -1.0),
        ((-100,), (-3.0, -1.0), 0.0),
        ((0, 1), (-3.0, -1.0), 0.0),
    ],
)
def test_margins_by_hand(golds: tuple[int, ...], lls: tuple[float, ...], expected: float) -> None:
    item = Item(Digest("h"), 0, 0, (Scored(b"aaaa", b"bbbb"),) * len(lls), golds, (2.0,) * len(lls))
    assert choice_margins([item], [np.array(lls)]) == pytest.approx([expected / 2])


def test_what_cannot_be_measured_is_said_before_anything_is_scored(case: Case) -> None:
    def check(task: str, measure: Measure) -> None:
        check_measurable(measure, case.plan.task(task))

    for task, good in (("both", Measure("margin", subject="hard")), ("last", Measure("margin")), ("say", Measure())):
        check(task, good)
    check("say", Measure("flips", "any_parent"))
    with pytest.raises(EvaluationError, match=r"'say' have no margins"):
        check("say", Measure("margin"))
    for task in ("last", "read"):
        with pytest.raises(EvaluationError, match="not right or wrong"):
            check(task, Measure("flips", "any_parent"))
    with pytest.raises(EvaluationError, match=r"pools no subject 'hrad'[\s\S]*Did you mean 'hard'"):
        check("both", Measure(subject="hrad"))
    with pytest.raises(EvaluationError, match=r"pools no subject[\s\S]*name a group"):
        check("pick", Measure(subject="pick"))


def test_a_subject_needs_items_in_every_set(case: Case) -> None:
    task = case.plan.task("both")
    sources = (*task.sources, task.sources[0].__class__("rare", 0))
    odd = TaskPlan(task.name, task.kind, task.metric, task.items, task.sets, sources)
    with pytest.raises(EvaluationError, match="search set of the task 'both' has no items of the subject 'rare'"):
        check_measurable(Measure(subject="rare"), odd)

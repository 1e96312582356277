from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from evomerge.errors import NonFinite, SelfCheckError
from evomerge.evaluation.evaluator import PlanEvaluator
from evomerge.evaluation.forward import NeededLogits
from evomerge.evaluation.generation import StopRule, generate
from evomerge.evaluation.lm_eval import compile_plan
from evomerge.evaluation.plan import EvalPlan, GenerationArgs, pack, unpack
from evomerge.evaluation.scorer import Forced, ForcedBatches
from evomerge.evaluation.selfcheck import self_check
from evomerge.evaluation.suite import load_suite
from evomerge.evaluation.tokens import load_tokenizer
from evomerge.testing import eval_tasks
from evomerge.testing.tiny import FAMILIES
from evomerge.types import SET_NAMES

SPLIT = {"search": 6, "select": 2, "report": 4}


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


class Case:
    """A model, its plan over all output types, and where they live."""

    def __init__(self, root: Path, checkpoint: Any) -> None:
        self.folder = checkpoint(root / "model", seed=4)
        for write in (
            eval_tasks.write_choice_task,
            eval_tasks.write_loglikelihood_task,
            eval_tasks.write_rolling_task,
            eval_tasks.write_generation_task,
        ):
            write(root / "tasks")
        names = ["pick", "last", "read", "say"]
        suite = load_suite({"include": [str(root / "tasks")], "tasks": names, "split": SPLIT})
        self.plan: EvalPlan = compile_plan(suite, self.folder)
        self.model = load_model(self.folder)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("bpe"), eval_tasks.byte_pair_checkpoint)


@pytest.fixture(scope="module")
def spelled(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("characters"), eval_tasks.character_checkpoint)


def test_a_subset_scores_as_in_the_whole_set(case: Case) -> None:
    whole = PlanEvaluator(case.plan, case.folder).evaluate(case.model, "search")
    chosen = {t: h[::2] for t, h in case.plan.items("search").items() if t != "last"}
    part = PlanEvaluator(case.plan, case.folder).evaluate(case.model, "search", chosen)
    assert set(part.answers) == {"pick", "read", "say"}
    for name, answers in part.answers.items():
        assert answers.items == chosen[name]
        full = dict(zip(whole.answers[name].items, whole.answers[name].scores, strict=True))
        assert answers.scores == pytest.approx([full[h] for h in answers.items], abs=1e-5)
    assert part.n_questions == sum(map(len, chosen.values()))
    assert whole.timing_s["score"] > 0


@pytest.mark.parametrize("batch_tokens", [1, 40, 100_000])
def test_batches_do_not_change_scores(case: Case, batch_tokens: int) -> None:
    reference = PlanEvaluator(case.plan, case.folder).evaluate(case.model, "report")
    other = PlanEvaluator(case.plan, case.folder, batch_tokens, cache_tokens=batch_tokens).evaluate(
        case.model, "report"
    )
    for name, answers in other.answers.items():
        assert answers.scores == pytest.approx(reference.answers[name].scores, abs=1e-5)


def test_the_same_model_gives_the_same_bits_and_stays_as_it_was(case: Case) -> None:
    before = {k: v.clone() for k, v in case.model.state_dict().items()}
    evaluator = PlanEvaluator(case.plan, case.folder)
    first = evaluator.evaluate(case.model, "search")
    state = torch.random.get_rng_state()
    assert evaluator.evaluate(case.model, "search").answers == first.answers
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in case.model.state_dict().items())
    assert not case.model.get_output_embeddings()._forward_pre_hooks


def test_log_likelihoods_equal_the_plain_way(case: Case) -> None:
    """One row at a time, all logits, float64 sums."""
    task = case.plan.task("last")
    scores = PlanEvaluator(case.plan, case.folder).evaluate(case.model, "search").answers["last"].scores
    for score, i in zip(scores, task.sets["search"], strict=True):
        request: Any = task.items[i].requests[0]
        context, continuation = unpack(request.context).tolist(), unpack(request.continuation).tolist()
        with torch.no_grad():
            logits = case.model(torch.tensor([context + continuation])).logits[0]
        ll = torch.log_softmax(logits.double(), -1)
        total = sum(float(ll[len(context) - 1 + j, t]) for j, t in enumerate(continuation))
        assert score == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_texts_of_every_family_equal_the_plain_way(tmp_path: Path, family: str) -> None:
    folder = eval_tasks.byte_pair_checkpoint(tmp_path, family, seed=1)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 250, n).astype("<i4") for n in (9, 3, 14, 3)]
    requests = [Forced(pack(p.tolist()), p[1:]) for p in prompts]
    rule = StopRule(tokenizer, GenerationArgs(("<eos>", "th"), 7), (0,))
    with NeededLogits(model) as needed:
        sums = ForcedBatches(requests, 1000, model.device).run(needed).sums()
        written = generate(needed, prompts, rule, pad=0, device=model.device, cache_tokens=1000)
    for prompt, total, answer in zip(prompts, sums, written, strict=True):
        ids = torch.tensor(prompt[None].astype(np.int64))
        with torch.no_grad():
            ll = torch.log_softmax(model(ids).logits[0].double(), -1)
        # position j of the inputs predicts target j: the prompt's own next tokens
        expected = ll[torch.arange(1, len(prompt)), ids[0, 1:]].sum()
        assert total == pytest.approx(float(expected), abs=1e-3)
        slow: list[int] = []
        while not slow or not rule.ended(slow):
            with torch.no_grad():
                logits = model(torch.cat([ids, torch.tensor([slow], dtype=torch.int64)], 1)).logits
            slow.append(int(logits[0, -1].argmax()))
        assert list(answer.ids) == slow


def test_shared_prompts_run_once() -> None:
    targets = np.array([3], np.int32)
    inputs = [pack(range(1, 9)), pack(range(1, 9)), pack(range(1, 6)), pack([2, 3]), pack(range(1, 9))]
    batches = ForcedBatches([Forced(i, targets) for i in inputs], 100, "cpu")
    assert batches.n_tokens == 2 * 8


def test_the_shortcut_agrees_with_generation(spelled: Case) -> None:
    task = spelled.plan.task("say")
    slow_task = replace(task, items=tuple(replace(i, answer=None) for i in task.items))
    slow_plan = replace(spelled.plan, tasks=tuple(slow_task if t.name == "say" else t for t in spelled.plan.tasks))
    assert all(i.answer is not None for i in task.items if len(i.targets[0]) <= 6)
    for set_name in SET_NAMES:
        fast = PlanEvaluator(spelled.plan, spelled.folder).evaluate(spelled.model, set_name)
        slow = PlanEvaluator(slow_plan, spelled.folder).evaluate(spelled.model, set_name)
        # the log-likelihoods of the other tasks may round differently, because the batches are not the same
        assert fast.answers["say"] == slow.answers["say"]


@pytest.mark.parametrize("task", ["pick", "last", "read", "say"])
def test_nan_is_a_failure(case: Case, task: str) -> None:
    broken = load_model(case.folder)
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[3, 5] = torch.nan
    with pytest.raises(NonFinite, match="NaN or infinite"):
        PlanEvaluator(case.plan, case.folder).evaluate(broken, "search", {task: case.plan.items("search")[task]})


def test_infinite_weights_are_a_failure_too(spelled: Case) -> None:
    broken = load_model(spelled.folder)
    with torch.no_grad():
        broken.lm_head.weight[5] = torch.inf
    with pytest.raises(NonFinite, match="not finite"):
        PlanEvaluator(spelled.plan, spelled.folder).evaluate(broken, "search")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_self_check_passes_and_leaves_the_model_alone(case: Case, dtype: torch.dtype) -> None:
    model = load_model(case.folder, dtype)
    places = [p.data_ptr() for p in model.parameters()]
    found = self_check(case.plan, model, load_tokenizer(case.folder))
    assert found.n_items == 16
    assert found.largest < (1e-4 if dtype == torch.float32 else 1.0)
    assert places == [p.data_ptr() for p in model.parameters()]


def test_self_check_stops_on_other_tokens(case: Case) -> None:
    task = case.plan.task("last")
    probe = task.probes[0].item
    request: Any = task.items[probe].requests[0]
    changed = replace(request, continuation=pack([*unpack(request.continuation).tolist(), 7]))
    items = tuple(replace(item, requests=(changed,)) if i == probe else item for i, item in enumerate(task.items))
    plan = replace(case.plan, tasks=tuple(replace(t, items=items) if t.name == "last" else t for t in case.plan.tasks))
    with pytest.raises(SelfCheckError, match="task last, item") as caught:
        self_check(plan, case.model, load_tokenizer(case.folder))
    assert caught.value.exit_code == 3


def test_self_check_stops_on_another_text(case: Case) -> None:
    task = case.plan.task("say")
    changed = replace(task, generation=replace(task.generation, repetition_penalty=50.0))  # type: ignore[type-var]
    plan = replace(case.plan, tasks=tuple(changed if t.name == "say" else t for t in case.plan.tasks))
    with pytest.raises(SelfCheckError, match="best two logits are"):
        self_check(plan, case.model, load_tokenizer(case.folder))


def test_near_ties_are_accepted_and_counted(case: Case) -> None:
    """Two equal rows of the output layer: which of the two tokens is greedy is rounding."""
    model = load_model(case.folder)
    with torch.no_grad():
        model.lm_head.weight[:] = model.lm_head.weight[:1]
    found = self_check(case.plan, model, load_tokenizer(case.folder))
    assert found.largest < 1e-3

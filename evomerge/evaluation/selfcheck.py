"""Before a run: our numbers against lm-eval's own model class, on a few items of every task.

Tolerances. Log-likelihoods of `n` scored tokens may differ by `unit * sqrt(n)` (at least `unit`), where `unit` is
1e-4 nats for fp32 and float64 models, 0.03 for fp16 and 0.15 for bf16, whose logits are rounded that coarsely when
batches differ. Another greedy token, or another generated text, is accepted only where the two best logits lie within
that unit at or before the place of divergence: a near tie, which is counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, final

import numpy as np
import torch

from evomerge.errors import SelfCheckError
from evomerge.evaluation.evaluator import BATCH_TOKENS, CACHE_TOKENS, forced_requests
from evomerge.evaluation.forward import NeededLogits
from evomerge.evaluation.generation import StopRule, Written, generate
from evomerge.evaluation.packed import packable
from evomerge.evaluation.plan import EvalPlan, GenerationArgs, Item, Prompted, Scored, TaskPlan, unpack
from evomerge.evaluation.scorer import ForcedBatches, ForcedResults
from evomerge.evaluation.shortcut import OPEN, Judge

_UNITS: Final = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.15}
_LISTED: Final = 8


class SelfCheck(NamedTuple):
    """What was compared.

    Attributes:
        n_items: items over all tasks.
        largest: the largest difference of a log-likelihood, in nats.
        near_ties: answers that differ at a near tie.
    """

    n_items: int
    largest: float
    near_ties: int


class _Findings:
    """Differences, gathered over all tasks."""

    def __init__(self, unit: float) -> None:
        self.unit = unit
        self.largest = 0.0
        self.near_ties = 0
        self.mismatches: list[str] = []

    def number(self, where: str, ours: float, theirs: float, n_tokens: int) -> None:
        difference = abs(ours - theirs)
        self.largest = max(self.largest, difference)
        allowed = self.unit * max(1.0, math.sqrt(n_tokens))
        if not difference <= allowed:
            self.mismatches.append(f"{where}: {ours:.6f}, lm-eval {theirs:.6f}, allowed {allowed:.1e}")

    def choice(self, where: str, same: bool, gap: float, ours: object, theirs: object) -> None:
        if same:
            return
        if gap <= self.unit:
            self.near_ties += 1
        else:
            self.mismatches.append(f"{where}: {ours!r}, lm-eval {theirs!r}, the best two logits are {gap:.1e} apart")


@final
class _Checker:
    """Compares one task after the other.

    Args:
        plan: the compiled suite.
        needed: the model, its context open.
        tokenizer: its tokenizer.
        batch_tokens: as for `PlanEvaluator`.
        cache_tokens: as for `PlanEvaluator`.
        pack: whether the model is `packed.packable`.
        findings: where differences go.
    """

    def __init__(
        self,
        plan: EvalPlan,
        needed: NeededLogits,
        tokenizer: Any,
        *,
        batch_tokens: int,
        cache_tokens: int,
        pack: bool,
        findings: _Findings,
    ) -> None:
        self._plan = plan
        self._needed = needed
        self._tokenizer = tokenizer
        self._batch_tokens = batch_tokens
        self._cache_tokens = cache_tokens
        self._pack = pack
        self._findings = findings

    def check(self, task: TaskPlan, items: Sequence[Item], theirs: Sequence[Sequence[Any]]) -> None:
        """Compares our answers to `items` with lm-eval's, one list of answers per item."""
        requests = [r for item in items for r in forced_requests(item, self._plan.eos[0])]
        cache_tokens = self._cache_tokens if self._needed.plain_cache else 0
        batches = ForcedBatches(requests, self._batch_tokens, self._needed.device, cache_tokens, pack=self._pack)
        results = batches.run(self._needed)
        if task.generation is None:
            self._scores(task, items, results, theirs)
            return
        written = self._write(task.generation, items)
        texts = [str(t[0]) for t in theirs]
        self._texts(task, items, written, texts)
        self._verdicts(task, items, results, {i.hash: w for i, w in zip(items, written, strict=True)}, texts)

    def _scores(
        self, task: TaskPlan, items: Sequence[Item], results: ForcedResults, theirs: Sequence[Sequence[Any]]
    ) -> None:
        sums, greedy = results.sums().tolist(), results.greedy().tolist()
        position = 0
        for item, answers in zip(items, theirs, strict=True):
            scored = [r for r in item.requests if isinstance(r, Scored)]
            mine = range(position, position + len(scored))
            position += len(scored)
            if task.kind == "loglikelihood_rolling":
                n_tokens = sum(len(r.continuation) // 4 for r in scored)
                self._findings.number(_name(task, item), sum(sums[i] for i in mine), float(answers[0]), n_tokens)
                continue
            for number, (i, request, (ll, is_greedy)) in enumerate(zip(mine, scored, answers, strict=True)):
                where = f"{_name(task, item)}, answer {number}"
                self._findings.number(where, sums[i], float(ll), len(request.continuation) // 4)
                same = greedy[i] == bool(is_greedy)
                gap = 0.0 if same else self._gap(request)
                self._findings.choice(f"{where}, greedy", same, gap, greedy[i], bool(is_greedy))

    def _gap(self, request: Scored) -> float:
        """The smallest distance between the two best logits where a request is scored."""
        device = self._needed.device
        ids = torch.from_numpy(unpack(request.context + request.continuation)[:-1].astype(np.int64)).to(device)
        m = len(request.continuation) // 4
        places = torch.arange(len(ids) - m, len(ids), device=device)
        logits, _ = self._needed.logits(ids[None], places, use_cache=False)
        best = logits.float().topk(2, -1).values
        return float((best[:, 0] - best[:, 1]).min())

    def _write(self, generation: GenerationArgs, items: Sequence[Item]) -> list[Written]:
        return generate(
            self._needed,
            [unpack(r.prompt) for item in items for r in item.requests if isinstance(r, Prompted)],
            StopRule(self._tokenizer, generation, self._plan.eos),
            pad=self._plan.pad,
            device=self._needed.device,
            cache_tokens=self._cache_tokens,
            repetition_penalty=generation.repetition_penalty,
            margins=True,
        )

    def _texts(self, task: TaskPlan, items: Sequence[Item], written: Sequence[Written], theirs: Sequence[str]) -> None:
        if task.generation is None:
            return
        rule = StopRule(self._tokenizer, task.generation, self._plan.eos)
        for item, answer, text in zip(items, written, theirs, strict=True):
            ours = rule.text(answer.ids)
            self._findings.choice(_name(task, item), ours == text, divergence_gap(rule, answer, text), ours, text)

    def _verdicts(
        self,
        task: TaskPlan,
        items: Sequence[Item],
        results: ForcedResults,
        written: Mapping[str, Written],
        theirs: Sequence[str],
    ) -> None:
        """The teacher-forced shortcut against exact match of lm-eval's text."""
        if self._plan.characters is None or task.generation is None:
            return
        judge = Judge(self._plan.characters, task.generation, self._plan.eos)
        position = 0
        for item, text in zip(items, theirs, strict=True):
            if item.answer is None:
                continue
            predicted = results.top[results.offsets[position] : results.offsets[position + 1]]
            position += 1
            verdict = float(judge.verdicts([unpack(item.answer)], [predicted])[0])
            right = float(text == item.targets[0])
            gap = min(written[item.hash].margins, default=math.inf)
            self._findings.choice(f"{_name(task, item)}, shortcut", verdict in (OPEN, right), gap, verdict, right)


def _name(task: TaskPlan, item: Item) -> str:
    return f"task {task.name}, item {item.hash[:12]}"


def divergence_gap(rule: StopRule, answer: Written, text: str) -> float:
    """How clear our least clear choice was, up to the first token after which our text cannot become the other one.

    Characters of which only some bytes are written do not count as text yet.
    """
    for i in range(len(answer.ids)):
        if not text.startswith(rule.text(answer.ids[: i + 1]).rstrip("\ufffd")):
            return min(answer.margins[: i + 1])
    return min(answer.margins, default=math.inf)


def self_check(
    plan: EvalPlan,
    model: Any,
    tokenizer: Any,
    *,
    batch_tokens: int = BATCH_TOKENS,
    cache_tokens: int = CACHE_TOKENS,
) -> SelfCheck:
    """Compares our scorer and decoder with lm-eval's HFLM on the plan's probes.

    Args:
        plan: the compiled suite.
        model: a Hugging Face causal language model in eval mode; left as it is.
        tokenizer: its tokenizer, `tokens.load_tokenizer` of the plan's folder.
        batch_tokens: as for `PlanEvaluator`.
        cache_tokens: as for `PlanEvaluator`.

    Raises:
        NonFinite: when a logit is NaN or infinite.
        SelfCheckError: when an answer differs by more than the tolerances above; lists the items.
    """
    from evomerge.evaluation.lm_eval_reference import reference_answers, reference_model

    findings = _Findings(_UNITS.get(model.dtype, 0.15))
    reference = reference_model(model, tokenizer, plan.max_length)
    n_items = 0
    for task in plan.tasks:
        items = [task.items[p.item] for p in task.probes]
        if not items:
            continue
        n_items += len(items)
        theirs = [reference_answers(reference, task.kind, p.arguments) for p in task.probes]
        with NeededLogits(model) as needed:
            checker = _Checker(
                plan,
                needed,
                tokenizer,
                batch_tokens=batch_tokens,
                cache_tokens=cache_tokens,
                pack=packable(model),
                findings=findings,
            )
            checker.check(task, items, theirs)
    if findings.mismatches:
        shown = findings.mismatches[:_LISTED]
        more = len(findings.mismatches) - len(shown)
        raise SelfCheckError(
            "Our scores differ from lm-eval's.",
            got="; ".join(shown) + (f"; and {more} more" if more else ""),
            allowed=f"log-likelihoods within {findings.unit:g} nats times sqrt(tokens), equal texts but for near ties",
            fix="report this with the model and the task; the run would search on wrong numbers.",
        )
    return SelfCheck(n_items, findings.largest, findings.near_ties)

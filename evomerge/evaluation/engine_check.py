"""Before a run: an engine's answers against those of the transformers path, on the plan's self-check items.

Texts must be equal but for near ties: another text is accepted only where the two best log-probabilities of the
transformers path lie within twice the probe's tolerance at or before the place where the texts part.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from evomerge.errors import SelfCheckError
from evomerge.evaluation.engine_probe import tolerance_of
from evomerge.evaluation.evaluator import CACHE_TOKENS, PlanEvaluator
from evomerge.evaluation.forward import NeededLogits
from evomerge.evaluation.generation import generate
from evomerge.evaluation.guarded import GuardedWriter
from evomerge.evaluation.plan import Prompted, TaskPlan, unpack
from evomerge.evaluation.selfcheck import divergence_gap

_LISTED: Final = 8


class EngineCheck(NamedTuple):
    """What was compared.

    Attributes:
        n_items: items over all tasks.
        near_ties: texts that differ at a near tie.
    """

    n_items: int
    near_ties: int


def engine_check(evaluator: PlanEvaluator, writer: GuardedWriter, model: Any) -> EngineCheck:
    """Compare answers of an engine to those of the model whose weights it should hold.

    Args:
        evaluator: gives plan and stop rules.
        writer: the engine behind its guard; told before that there is a new candidate.
        model: the resident model.

    Raises:
        NonFinite: when a logit of the resident model is NaN or infinite.
        SelfCheckError: when the guard had anything to note, or a text differs otherwise than at a near tie.
    """
    n_items = near_ties = 0
    mismatches: list[str] = []
    for task in evaluator.plan.tasks:
        if task.generation is not None and task.generation.repetition_penalty == 1:
            items, ties, wrong = _compare(task, evaluator, writer, model)
            n_items, near_ties, mismatches = n_items + items, near_ties + ties, mismatches + wrong
    mismatches = [*writer.notes(), *mismatches]
    if mismatches:
        shown = mismatches[:_LISTED]
        more = len(mismatches) - len(shown)
        raise SelfCheckError(
            "The engine's answers differ from those of transformers.",
            got="; ".join(shown) + (f"; and {more} more" if more else ""),
            allowed="numbers within the tolerances of docs/evaluation.md, equal texts but for near ties",
            fix="set `suite.engine: transformers`, and report this with the model and the task.",
        )
    return EngineCheck(n_items, near_ties)


def _compare(task: TaskPlan, evaluator: PlanEvaluator, writer: GuardedWriter, model: Any) -> tuple[int, int, list[str]]:
    """Items, near ties and mismatches of one task."""
    rule, plan = evaluator.rule(task), evaluator.plan
    items = [task.items[p.item] for p in task.probes]
    prompts = [unpack(r.prompt) for item in items for r in item.requests if isinstance(r, Prompted)]
    if not prompts:
        return 0, 0, []
    allowed = 2 * tolerance_of(str(model.dtype).removeprefix("torch."))
    with NeededLogits(model) as needed:
        how = {"pad": plan.pad, "device": needed.device, "cache_tokens": CACHE_TOKENS}
        expected = generate(needed, prompts, rule, margins=True, **how)
        found = writer(needed, prompts, rule, **how)
    near_ties, wrong = 0, []
    for item, ours, theirs in zip(items, found, expected, strict=True):
        text, reference = rule.text(ours.ids), rule.text(theirs.ids)
        if text == reference:
            continue
        gap = divergence_gap(rule, theirs, text)
        if gap <= allowed:
            near_ties += 1
        else:
            wrong.append(f"task {task.name}, item {item.hash[:12]}: {text!r}, transformers {reference!r}")
    return len(items), near_ties, wrong

"""Evaluators of one's own: tasks that a plug-in scores by itself, item by item."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final

from evomerge.digest import digest_json, digest_text
from evomerge.errors import EvaluationError, NonFinite
from evomerge.evaluation.plan import Item, MetricPlan, TaskPlan
from evomerge.evaluation.split import Question, split_items
from evomerge.evaluation.suite import PluginSpec, SuiteSpec
from evomerge.registry import GROUP_EVALUATORS, Registry

EVALUATORS: Final = Registry(GROUP_EVALUATORS, "evaluator", {})


class ItemTask(ABC):
    """A task with a score of its own. An entry point of the group `evomerge.evaluators` is a factory of one.

    The factory gets the `options` of the suite's entry as keyword arguments. One object lives in every worker and
    scores many models, one after the other; it must not keep anything from one model to the next.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """The entry point's name."""

    @abstractmethod
    def items(self) -> Sequence[str]:
        """All items, as texts or stable ids: different ones, the same on every machine and in every process."""

    @abstractmethod
    def score(self, model: Any, tokenizer: Any, items: Sequence[str]) -> Sequence[float]:
        """Scores of some items, higher is better, finite, in the order of `items`.

        A score depends on the model and its item alone, never on which other items are asked.

        Args:
            model: a Hugging Face causal language model in eval mode; must be left as it is.
            tokenizer: its tokenizer.
            items: part of `items()`, at least one.
        """


def load_evaluator(name: str, options: Mapping[str, Any]) -> ItemTask:
    """The evaluator of that name.

    Raises:
        ConfigError: for an unknown name.
        PluginError: when it does not load.
        EvaluationError: when its factory does not take the options, or makes something else.
    """
    factory = EVALUATORS.load(name)
    try:
        task = factory(**options)
    except (TypeError, ValueError) as error:
        raise EvaluationError(
            f"The evaluator {name!r} does not take its options.",
            got=f"options {dict(options)}: {error}",
            allowed="the keyword arguments of its factory",
            fix="correct `options`.",
        ) from error
    if not isinstance(task, ItemTask):
        raise EvaluationError(
            f"The evaluator {name!r} is not an ItemTask.",
            got=type(task).__name__,
            allowed="a subclass of evomerge.evaluation.plugin.ItemTask",
            fix="ask the authors of the plug-in.",
        )
    return task


def compile_plugin(spec: PluginSpec, suite: SuiteSpec) -> TaskPlan:
    """A plug-in's items, divided into sets as those of lm-eval tasks; equal texts are one item.

    Raises:
        EvaluationError: as `load_evaluator`; options that JSON cannot express; fewer items than the split asks for.
    """
    task = load_evaluator(spec.evaluator, spec.options)
    try:
        digest_json(dict(spec.options))
    except (TypeError, ValueError) as error:
        raise EvaluationError(
            f"The options of {spec.evaluator!r} cannot be recorded.",
            got=str(error),
            allowed="JSON values",
            fix="use these.",
        ) from error
    texts = list(task.items())
    questions = [Question(digest_text(t), "", t) for t in texts]
    sets = split_items(questions, suite.split, salt=suite.salt, task=spec.name)
    chosen = sorted(i for ids in sets.values() for i in ids)
    place = {old: new for new, old in enumerate(chosen)}
    return TaskPlan(
        name=spec.name,
        kind="plugin",
        metric=MetricPlan("score"),
        items=tuple(Item(digest_text(texts[i]), 0, i, (), targets=(texts[i],)) for i in chosen),
        sets={name: tuple(place[i] for i in ids) for name, ids in sets.items()},
        plugin=dict(spec.options),
    )


def plugin_scores(task: ItemTask, model: Any, tokenizer: Any, items: Sequence[str]) -> list[float]:
    """An evaluator's scores, checked.

    Raises:
        EvaluationError: for a wrong number of scores.
        NonFinite: for a score that is NaN or infinite.
    """
    scores = [float(s) for s in task.score(model, tokenizer, items)]
    if len(scores) != len(items):
        raise EvaluationError(
            f"The evaluator {task.name!r} answered a different number of items.",
            got=f"{len(scores)} scores for {len(items)} items",
            allowed="one score per item",
            fix="ask the authors of the plug-in.",
        )
    bad = [i for i, s in zip(items, scores, strict=True) if not math.isfinite(s)]
    if bad:
        raise NonFinite(
            f"The evaluator {task.name!r} gave scores that are not finite.",
            got=f"{len(bad)} of {len(items)}, the first for {bad[0]!r}",
            allowed="finite scores",
            fix="look at the merge, or ask the authors of the plug-in.",
        )
    return scores

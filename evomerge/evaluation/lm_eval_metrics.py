"""Which metric is a task's score, whether our own code computes it, and lm-eval's own code for the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, final

import numpy as np
from lm_eval.api import metrics as lm_metrics
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from evomerge.errors import EvaluationError, suggest
from evomerge.evaluation.lm_eval_guard import quiet, templates, translated
from evomerge.evaluation.lm_eval_tasks import BuiltTask, TaskLibrary
from evomerge.evaluation.metrics import FAST_FILTERS, FAST_METRICS
from evomerge.evaluation.plan import Aggregation, EvalPlan, Item, MetricPlan, TaskPlan
from evomerge.evaluation.split import document_hash
from evomerge.evaluation.suite import TaskSpec

_AGGREGATIONS: Final[Mapping[Any, Aggregation]] = {
    lm_metrics.mean: "mean",
    lm_metrics.nanmean: "mean",
    lm_metrics.perplexity: "perplexity",
    lm_metrics.weighted_perplexity: "weighted_perplexity",
    lm_metrics.bits_per_byte: "bits_per_byte",
}


def _choose(spec: TaskSpec, what: str, wanted: str | None, names: Sequence[str]) -> str:
    if wanted is None:
        return names[0]
    if wanted not in names:
        raise EvaluationError(
            f"Task {spec.task!r} has no {what} {wanted!r}.",
            got=f"{what}: {wanted!r}",
            allowed=suggest(wanted, names),
            fix=f"use one of these, or remove {what}.",
        )
    return wanted


def _filter_steps(task: ConfigurableTask, chain: str) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    for entry in task.config.filter_list or []:
        if entry["name"] == chain:
            return tuple((f["function"], {k: v for k, v in f.items() if k != "function"}) for f in entry["filter"])
    return (("take_first", {}),)


def _is_fast(task: ConfigurableTask, metric: str, steps: Sequence[tuple[str, Mapping[str, Any]]]) -> bool:
    """Whether `metrics` computes this score: a known metric, standard filters, no Python code of the task's own."""
    kind = task.OUTPUT_TYPE
    if kind == "loglikelihood_rolling":
        return True
    if callable(task.config.process_results) or metric not in FAST_METRICS[kind]:
        return False
    names = [n for n, _ in steps]
    if kind != "generate_until":
        # acc_mutual_info doubles the requests of the whole task
        return names == ["take_first"] and "acc_mutual_info" not in task.aggregation()
    return names[-1:] == ["take_first"] and names.count("take_first") == 1 and set(names) <= FAST_FILTERS


def plan_metric(spec: TaskSpec, built: BuiltTask) -> MetricPlan:
    """The metric of `spec`, or the task's first one behind its first filter.

    Raises:
        EvaluationError: for a metric or filter that the task lacks, or a metric that is no mean over items.
    """
    task = built.task
    metric = _choose(spec, "metric", spec.metric, list(task.aggregation()))
    chains = [entry["name"] for entry in task.config.filter_list or []] or ["none"]
    chain = _choose(spec, "filter", spec.filter, chains)
    aggregation = _AGGREGATIONS.get(task.aggregation()[metric])
    if aggregation is None:
        usable = [m for m, a in task.aggregation().items() if a in _AGGREGATIONS]
        raise EvaluationError(
            f"Metric {metric!r} of task {spec.task!r} has no score per item.",
            got=f"aggregation {getattr(task.aggregation()[metric], '__name__', 'of its own')}",
            allowed=suggest(metric, usable),
            fix="name another metric of the task, or another task.",
        )
    steps = _filter_steps(task, chain)
    options = {
        k: v
        for entry in task.config.metric_list or []
        if entry.get("metric") == metric
        for k, v in entry.items()
        if k not in ("metric", "aggregation", "higher_is_better", "hf_evaluate")
    }
    better = task.higher_is_better().get(metric)
    fast = _is_fast(task, metric, steps) and not (options and task.OUTPUT_TYPE != "generate_until")
    return MetricPlan(
        name=metric,
        filter=chain,
        aggregation=aggregation,
        higher_is_better=True if better is None else bool(better),
        fast=fast,
        filters=steps if fast and task.OUTPUT_TYPE == "generate_until" else (),
        options=options if fast else {},
    )


@final
class Rescorer:
    """lm-eval's own filters and `process_results`, for metrics that `metrics` does not compute.

    Tasks are rebuilt on first use; their documents must be the plan's, by hash.

    Args:
        plan: the plan whose tasks are rescored.
    """

    def __init__(self, plan: EvalPlan) -> None:
        self._plan = plan
        self._library: TaskLibrary | None = None
        self._built: dict[str, dict[str, tuple[ConfigurableTask, Any]]] = {}

    def _sources(self, task: TaskPlan) -> dict[str, tuple[ConfigurableTask, Any]]:
        if task.name not in self._built:
            if self._library is None:
                self._library = TaskLibrary(self._plan.suite)
            spec = next(t for t in self._plan.suite.tasks if isinstance(t, TaskSpec) and t.name == task.name)
            self._built[task.name] = {b.name: (b.task, b.task.eval_docs) for b in self._library.build(spec)}
        return self._built[task.name]

    def scores(self, task: TaskPlan, items: Sequence[Item], answers: Sequence[Sequence[Any]]) -> list[float]:
        """The metric of every item.

        Args:
            task: the task.
            items: the questions, `n` of them.
            answers: per item and request what lm-eval's model would return: `(log-likelihood, is greedy)` or a text.

        Raises:
            EvaluationError: when the data changed since the plan was made, or a value is not a number.
        """
        scores = [math.nan] * len(items)
        with quiet(), templates(self._plan.suite.trust_task_code), translated(task.name):
            sources = self._sources(task)
            for number, source in enumerate(task.sources):
                mine = [i for i, item in enumerate(items) if item.source == number]
                if mine:
                    lm_task, documents = sources[source.task]
                    found = _rescore(task, lm_task, documents, [items[i] for i in mine], [answers[i] for i in mine])
                    for i, value in zip(mine, found, strict=True):
                        scores[i] = value
        return scores


def _rescore(
    plan: TaskPlan, task: ConfigurableTask, documents: Any, items: Sequence[Item], answers: Sequence[Sequence[Any]]
) -> list[float]:
    repeats = plan.sources[items[0].source].repeats
    rows: list[list[Instance]] = []
    for item, responses in zip(items, answers, strict=True):
        document = documents[item.doc_id]
        if document_hash(document) != item.hash:
            raise EvaluationError(
                f"The data of task {plan.name!r} changed since the run started.",
                got=f"document {item.doc_id} of {plan.sources[item.source].task} has another hash",
                allowed="the data the plan was made from",
                fix="restore the data, or start a new run.",
            )
        kind = "loglikelihood" if plan.kind == "multiple_choice" else plan.kind
        rows.append(
            [
                Instance(kind, document, (), i, metadata=(plan.name, item.doc_id, repeats), resps=[r] * repeats)
                for i, r in enumerate(responses)
            ]
        )
    # the task's own filter objects; applied to all its items at once, as lm-eval does
    chain = next(f for f in task._filters if f.name == plan.metric.filter)
    chain.apply([instance for row in rows for instance in row])
    values = []
    for row in rows:
        result = task.process_results(row[0].doc, [i.filtered_resps[plan.metric.filter] for i in row])
        values.append(_number(plan, result))
    return values


def _number(plan: TaskPlan, result: Mapping[str, Any]) -> float:
    value = result.get(plan.metric.name)
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, bool | int | float):
        raise EvaluationError(
            f"Metric {plan.metric.name!r} of task {plan.name!r} gave no number for an item.",
            got=f"{type(value).__name__}; the item's metrics are {', '.join(map(str, result))}",
            allowed="a metric with one number per item",
            fix="name another metric of the task.",
        )
    return float(value)

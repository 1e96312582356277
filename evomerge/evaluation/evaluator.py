"""A plan answered by a model: per-item scores of one item set, or of a chosen part of it."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, final

import numpy as np
import numpy.typing as npt

from evomerge.evaluation import metrics
from evomerge.evaluation.caches import keeps_plain_cache
from evomerge.evaluation.forward import NeededLogits
from evomerge.evaluation.generation import StopRule, Writer, generate
from evomerge.evaluation.packed import packable
from evomerge.evaluation.plan import EvalPlan, Item, Prompted, Scored, TaskPlan, has_margins, pack, unpack
from evomerge.evaluation.plugin import ItemTask, load_evaluator, plugin_scores
from evomerge.evaluation.scorer import Forced, ForcedBatches, ForcedResults, Passes
from evomerge.evaluation.shortcut import OPEN, Judge
from evomerge.evaluation.tokens import load_tokenizer
from evomerge.types import Evaluation, SetName, TaskAnswers

BATCH_TOKENS: Final = 8192
CPU_BATCH_TOKENS: Final = 1024
"""On the CPU: enough for its matrix products, and few enough for what lies between them to stay in its caches."""
CACHE_TOKENS: Final = 65536
_KEPT_SELECTIONS: Final = 8
_MARGIN_DECIMALS: Final = 5
"""A little above what rounding changes between batches (about 1e-6 nats), and short in the files of a run."""

Floats = npt.NDArray[np.float64]


class Evaluator(ABC):
    """Scores models on item sets.

    One evaluator scores many models of one architecture, one after the other. It never changes a model, draws no
    random numbers, and gives the same model the same scores.
    """

    @abstractmethod
    def evaluate(self, model: Any, set_name: SetName, items: Mapping[str, Sequence[str]] | None = None) -> Evaluation:
        """Asks a model the items of one set.

        Args:
            model: a Hugging Face causal language model in eval mode.
            set_name: the set.
            items: task -> hashes of the items to ask; tasks left out are not asked; None asks the whole set.

        Raises:
            EvaluationError: for items that the set does not hold, or data that changed.
            NonFinite: when a logit or a score is NaN or infinite.
        """


class _TaskWork(NamedTuple):
    """One task's part of a selection: which items, and where their requests stand among the forced ones."""

    task: TaskPlan
    items: tuple[Item, ...]
    first: int
    counts: tuple[int, ...]


class _Work(NamedTuple):
    """A prepared selection: everything that does not depend on the model's weights."""

    tasks: tuple[_TaskWork, ...]
    batches: ForcedBatches


def forced_requests(item: Item, end: int) -> list[Forced]:
    """An item's teacher-forced requests; none for what must be generated.

    Args:
        item: the item.
        end: any token id; it stands where only the prediction behind an answer matters.
    """
    found = []
    for request in item.requests:
        if isinstance(request, Scored):
            inputs = request.context + request.continuation[:-4]
            found.append(Forced(inputs, unpack(request.continuation)))
        elif item.answer is not None:
            found.append(Forced(request.prompt + item.answer, unpack(item.answer + pack([end]))))
    return found


def _by_item(part: _TaskWork, values: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """What belongs to each item of a task, of an array over all forced requests."""
    last = part.first + sum(part.counts)
    return np.split(values[part.first : last], np.cumsum(part.counts)[:-1])


def _margins(part: _TaskWork, results: ForcedResults) -> tuple[float, ...]:
    """See `TaskAnswers.margins`; from log-likelihoods that the scores needed anyway."""
    task = part.task
    if not has_margins(task):
        return ()
    lls = _by_item(part, results.sums())
    found = np.concatenate(lls) if task.kind == "loglikelihood" else metrics.choice_margins(part.items, lls)
    return tuple(round(float(m), _MARGIN_DECIMALS) for m in found)


def _subjects(part: _TaskWork) -> tuple[str, ...]:
    """See `TaskAnswers.subjects`."""
    sources = part.task.sources
    return tuple(sources[item.source].task for item in part.items) if len(sources) > 1 else ()


@final
class PlanEvaluator(Evaluator):
    """Answers an `EvalPlan`.

    Batches are fixed by the plan and the selection of items, so that every candidate is scored in the same batches.
    In fp32 an item's log-likelihood in another batch differs by rounding alone (about 1e-6 nats).

    Args:
        plan: the compiled suite.
        tokenizer_folder: the folder it was compiled with; read when a text must be decoded.
        batch_tokens: tokens of one teacher-forced pass, padding included; None chooses by the model's device.
        cache_tokens: tokens that the caches of one generation batch may hold.
        pack: whether short rows are packed; None asks the first model. To be given where models of several configs are
            scored (paths), so that batches do not depend on which comes first.
        writer: what writes answers.
    """

    def __init__(
        self,
        plan: EvalPlan,
        tokenizer_folder: Path,
        batch_tokens: int | None = None,
        cache_tokens: int = CACHE_TOKENS,
        pack: bool | None = None,
        *,
        writer: Writer = generate,
    ) -> None:
        self._writer = writer
        self._plan = plan
        self._folder = Path(tokenizer_folder)
        self._batch_tokens = batch_tokens
        self._cache_tokens = cache_tokens
        self._pack = pack
        self._tokenizer: Any = None
        self._rescorer: Any = None
        self._plugins: dict[str, ItemTask] = {}
        self._rules: dict[str, StopRule] = {}
        self._judges: dict[str, Judge] = {}
        self._works: dict[Any, _Work] = {}

    @property
    def plan(self) -> EvalPlan:
        """The plan."""
        return self._plan

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded on first use."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._folder)
        return self._tokenizer

    def evaluate(
        self,
        model: Any,
        set_name: SetName,
        items: Mapping[str, Sequence[str]] | None = None,
        passes: Passes | None = None,
    ) -> Evaluation:
        """See `Evaluator.evaluate`.

        Args:
            model: as there.
            set_name: as there.
            items: as there.
            passes: told of every teacher-forced pass without cache.

        Raises:
            EvaluationError: as there.
            NonFinite: as there.
        """
        started = time.perf_counter()
        work = self._work(model, set_name, self._plan.selected(set_name, items))
        scores: dict[str, Sequence[float] | Floats] = {}
        margins: dict[str, tuple[float, ...]] = {}
        with NeededLogits(model) as needed:
            results = work.batches.run(needed, passes)
            for part in work.tasks:
                if part.task.kind != "plugin":
                    scores[part.task.name] = self._task_scores(part, results, needed, set_name)
                    margins[part.task.name] = _margins(part, results)
        answers = {}
        for part in work.tasks:
            name = part.task.name
            # a plug-in calls the model itself and must see all of its logits
            found = scores[name] if name in scores else self._plugin_scores(part, model)
            answers[name] = TaskAnswers(
                name,
                tuple(i.hash for i in part.items),
                tuple(float(s) for s in found),
                margins.get(name, ()),
                _subjects(part),
            )
        return Evaluation(set_name, answers, {"score": time.perf_counter() - started})

    def _work(self, model: Any, set_name: SetName, selection: Mapping[str, tuple[int, ...]]) -> _Work:
        key = (set_name, str(model.device), tuple(selection.items()))
        if key not in self._works:
            if len(self._works) >= _KEPT_SELECTIONS:
                self._works.pop(next(iter(self._works)))
            self._works[key] = self._prepare(model, selection)
        return self._works[key]

    def _prepare(self, model: Any, selection: Mapping[str, tuple[int, ...]]) -> _Work:
        requests: list[Forced] = []
        tasks = []
        for name, indices in selection.items():
            task = self._plan.task(name)
            items = tuple(task.items[i] for i in indices)
            rows = [forced_requests(item, self._plan.eos[0]) for item in items]
            tasks.append(_TaskWork(task, items, len(requests), tuple(len(r) for r in rows)))
            requests += [r for row in rows for r in row]
        batch_tokens = self._batch_tokens or (CPU_BATCH_TOKENS if model.device.type == "cpu" else BATCH_TOKENS)
        pack = packable(model) if self._pack is None else self._pack
        cache_tokens = self._cache_tokens if keeps_plain_cache(model) else 0
        batches = ForcedBatches(requests, batch_tokens, model.device, cache_tokens, pack=pack)
        return _Work(tuple(tasks), batches)

    def _task_scores(
        self, part: _TaskWork, results: ForcedResults, needed: NeededLogits, set_name: SetName
    ) -> Sequence[float] | Floats:
        task = part.task
        if task.kind == "generate_until":
            return self._generated_scores(part, results, needed)
        lls = _by_item(part, results.sums())
        if task.kind == "loglikelihood_rolling":
            totals = np.array([part_ll.sum() for part_ll in lls])
            mean_weight = task.mean_weight[set_name] if task.metric.aggregation != "perplexity" else 1.0
            return totals / mean_weight
        greedy = _by_item(part, results.greedy())
        if not task.metric.fast:
            pairs = [[(float(a), bool(b)) for a, b in zip(x, y, strict=True)] for x, y in zip(lls, greedy, strict=True)]
            return self._rescored(part, pairs)
        if task.kind == "multiple_choice":
            return metrics.choice_scores(task.metric.name, part.items, lls, [g.tolist() for g in greedy])
        return np.concatenate(greedy if task.metric.name == "acc" else lls).astype(np.float64)

    def _plugin_scores(self, part: _TaskWork, model: Any) -> list[float]:
        name = part.task.name
        if name not in self._plugins:
            self._plugins[name] = load_evaluator(name, part.task.plugin)
        return plugin_scores(self._plugins[name], model, self.tokenizer, [i.targets[0] for i in part.items])

    def _rescored(self, part: _TaskWork, answers: Sequence[Sequence[Any]]) -> list[float]:
        if self._rescorer is None:
            from evomerge.evaluation.lm_eval_metrics import Rescorer

            self._rescorer = Rescorer(self._plan)
        scores: list[float] = self._rescorer.scores(part.task, part.items, answers)
        return scores

    def _generated_scores(
        self, part: _TaskWork, results: ForcedResults, needed: NeededLogits
    ) -> Sequence[float] | Floats:
        verdicts = self._verdicts(part, results)
        opened = np.flatnonzero(verdicts == OPEN)
        if opened.size:
            items = [part.items[i] for i in opened]
            texts = self.texts(part.task, items, needed)
            if part.task.metric.fast:
                verdicts[opened] = metrics.exact_match(part.task.metric, items, texts)
            else:
                return self._rescored(part, [[t] for t in texts])
        return verdicts

    def _verdicts(self, part: _TaskWork, results: ForcedResults) -> Floats:
        """Scores of the items that the teacher-forced pass decides, `OPEN` for the others."""
        verdicts = np.full(len(part.items), OPEN)
        places = [i for i, n in enumerate(part.counts) if n]
        if places:
            judge = self._judge(part.task)
            spans = results.offsets[part.first : part.first + len(places) + 1].tolist()
            predicted = [results.top[a:b] for a, b in itertools.pairwise(spans)]
            answers = [unpack(part.items[i].answer or b"") for i in places]
            verdicts[places] = judge.verdicts(answers, predicted)
        return verdicts

    def _judge(self, task: TaskPlan) -> Judge:
        if task.name not in self._judges:
            if self._plan.characters is None or task.generation is None:
                raise ValueError(f"task {task.name} has answers but no character table")
            self._judges[task.name] = Judge(self._plan.characters, task.generation, self._plan.eos)
        return self._judges[task.name]

    def rule(self, task: TaskPlan) -> StopRule:
        """When generations of a task end."""
        if task.generation is None:
            raise ValueError(f"task {task.name} generates nothing")
        if task.name not in self._rules:
            self._rules[task.name] = StopRule(self.tokenizer, task.generation, self._plan.eos)
        return self._rules[task.name]

    def texts(self, task: TaskPlan, items: Sequence[Item], needed: NeededLogits) -> list[str]:
        """Generated answers of items, by real decoding, up to their stop strings."""
        rule = self.rule(task)
        prompts = [unpack(r.prompt) for item in items for r in item.requests if isinstance(r, Prompted)]
        written = self._writer(
            needed,
            prompts,
            rule,
            pad=self._plan.pad,
            device=needed.device,
            cache_tokens=self._cache_tokens,
            repetition_penalty=task.generation.repetition_penalty if task.generation else 1.0,
        )
        return [rule.text(w.ids) for w in written]

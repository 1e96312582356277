"""A suite compiled once: token ids, targets, metrics, item hashes and item sets. Frozen, picklable, no lm-eval.

Notation: token ids are packed as little-endian int32 in `bytes` (`pack`, `unpack`), which keeps plans small, hashable
and quick to ship. `n` items of a task; every index into `items` is 0-based.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from evomerge.digest import digest_json
from evomerge.errors import EvaluationError, suggest
from evomerge.evaluation.suite import SuiteSpec
from evomerge.types import SET_NAMES, Digest, SetName

Kind = Literal["multiple_choice", "loglikelihood", "loglikelihood_rolling", "generate_until", "plugin"]
KINDS: Final[tuple[Kind, ...]] = (
    "multiple_choice",
    "loglikelihood",
    "loglikelihood_rolling",
    "generate_until",
    "plugin",
)
Aggregation = Literal["mean", "perplexity", "weighted_perplexity", "bits_per_byte"]

PLAN_VERSION: Final = 1


def pack(ids: Iterable[int]) -> bytes:
    """Token ids as little-endian int32."""
    return np.fromiter(ids, dtype="<i4").tobytes()


def unpack(packed: bytes) -> npt.NDArray[np.int32]:
    """Token ids of `pack`, a read-only array of shape `(length,)`."""
    return np.frombuffer(packed, dtype="<i4")


@dataclass(frozen=True)
class Scored:
    """A log-likelihood request: score `continuation` after `context`, both packed.

    The two together are what the model may see: already cut from the left to its maximum length.
    """

    context: bytes
    continuation: bytes

    def __post_init__(self) -> None:
        if not self.context or not self.continuation:
            raise ValueError("a log-likelihood request needs a context and a continuation of at least one token")


@dataclass(frozen=True)
class Prompted:
    """A generate-until request: continue `prompt`, packed, already cut from the left."""

    prompt: bytes

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("a generation needs a prompt of at least one token")


Request = Scored | Prompted


@dataclass(frozen=True)
class GenerationArgs:
    """How to continue a prompt; decoding is greedy.

    Attributes:
        until: stop strings, the tokenizer's end-of-text string included.
        max_gen_toks: at most so many new tokens.
        repetition_penalty: 1 leaves the logits alone.
    """

    until: tuple[str, ...]
    max_gen_toks: int
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.max_gen_toks < 1:
            raise ValueError(f"max_gen_toks is {self.max_gen_toks}; it must be at least 1")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; it must be positive")


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        hash: sha256 of the canonical document.
        source: index into the task's `sources`.
        doc_id: position in the source's evaluation documents.
        requests: what the model is asked, in lm-eval's order.
        golds: multiple choice: indices of the right choices; -100 is a label outside the choices.
        lengths: multiple choice: what log-likelihoods are divided by for the metric, one per choice.
        targets: generate-until with exact match: the accepted texts.
        answer: generate-until: packed token ids of the only target when one teacher-forced pass decides, else None.
        weight: rolling: words or bytes of the text.
    """

    hash: Digest
    source: int
    doc_id: int
    requests: tuple[Request, ...]
    golds: tuple[int, ...] = ()
    lengths: tuple[float, ...] = ()
    targets: tuple[str, ...] = ()
    answer: bytes | None = None
    weight: float = 1.0

    @cached_property
    def digest(self) -> str:
        """sha256 of everything that decides the item's score."""
        h = hashlib.sha256(self.hash.encode())
        for request in self.requests:
            parts = (request.context, request.continuation) if isinstance(request, Scored) else (request.prompt,)
            for part in parts:
                h.update(len(part).to_bytes(4, "little") + part)
        rest = [list(self.golds), list(self.lengths), list(self.targets), self.weight, self.answer is not None]
        h.update(digest_json(rest).encode())
        return h.hexdigest()


@dataclass(frozen=True)
class MetricPlan:
    """The metric that is a task's score.

    Attributes:
        name: lm-eval's name of it.
        filter: lm-eval's name of the filter chain before it.
        aggregation: how item values become the task's value; `metrics.aggregate` computes lm-eval's figure.
        higher_is_better: as lm-eval says of the aggregated figure.
        fast: computed by `metrics` without lm-eval; otherwise a worker rebuilds the lm-eval task.
        filters: fast generate-until: the steps of the chain, each `(name, arguments)`.
        options: fast exact match: its keyword arguments.
    """

    name: str
    filter: str = "none"
    aggregation: Aggregation = "mean"
    higher_is_better: bool = True
    fast: bool = True
    filters: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Where items come from: one lm-eval task as it was built.

    Attributes:
        task: lm-eval's name.
        num_fewshot: examples in every prompt.
        version: the task's own version.
        public_test_split: lm-eval ships the task and its items are a test split.
        repeats: how often lm-eval repeats a request; greedy answers are all the same.
        dataset: the hub's id of its data set; empty for files.
    """

    task: str
    num_fewshot: int
    version: str = ""
    public_test_split: bool = False
    repeats: int = 1
    dataset: str = ""


@dataclass(frozen=True)
class Probe:
    """An item's requests as text, kept for the self-check.

    Attributes:
        item: index into the task's items.
        arguments: per request, what lm-eval passes to its model: `(context, continuation)`, `(text,)`, or
            `(prompt, generation arguments)`.
    """

    item: int
    arguments: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class TaskPlan:
    """One task, compiled.

    Attributes:
        name: the suite's name of it.
        kind: lm-eval's output type, or `plugin`.
        metric: the task's score.
        items: the items of all sets.
        sets: set -> indices into `items`; disjoint, and duplicates of an item are in no other set.
        sources: lm-eval tasks that were pooled; one unless the suite names a group.
        generation: for generate-until.
        probes: items kept as text for the self-check.
        plugin: options of a plug-in evaluator.
    """

    name: str
    kind: Kind
    metric: MetricPlan
    items: tuple[Item, ...]
    sets: Mapping[SetName, tuple[int, ...]]
    sources: tuple[Source, ...] = ()
    generation: GenerationArgs | None = None
    probes: tuple[Probe, ...] = ()
    plugin: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"task {self.name}: kind {self.kind!r} is not one of {', '.join(KINDS)}")
        if (self.kind == "generate_until") != (self.generation is not None):
            raise ValueError(f"task {self.name}: generation arguments belong to generate_until, and only there")
        hashes = [i.hash for i in self.items]
        if len(set(hashes)) != len(hashes):
            raise ValueError(f"task {self.name}: an item occurs twice")
        used = [i for name in SET_NAMES for i in self.sets[name]]
        if sorted(used) != list(range(len(self.items))):
            raise ValueError(f"task {self.name}: the item sets must be disjoint and use every item")

    def hashes(self, set_name: SetName) -> tuple[str, ...]:
        """Item hashes of one set, in plan order."""
        return tuple(self.items[i].hash for i in self.sets[set_name])

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Item hash -> index into `items`."""
        return MappingProxyType({item.hash: i for i, item in enumerate(self.items)})

    @cached_property
    def set_of(self) -> Mapping[str, SetName]:
        """Item hash -> the set it belongs to."""
        return MappingProxyType({h: name for name in SET_NAMES for h in self.hashes(name)})

    @property
    def public_test_split(self) -> bool:
        """Whether any source's items are a public test split."""
        return any(s.public_test_split for s in self.sources)

    @cached_property
    def mean_weight(self) -> Mapping[SetName, float]:
        """Mean `weight` of each set's items: the fixed denominator of weighted perplexities (see `metrics`)."""
        return MappingProxyType(
            {s: float(np.mean([self.items[i].weight for i in ids])) for s, ids in self.sets.items() if ids}
        )

    def canonical(self) -> dict[str, Any]:
        """What decides the task's scores, as plain JSON; items by digest."""
        return {
            "name": self.name,
            "kind": self.kind,
            "metric": [self.metric.name, self.metric.filter, self.metric.aggregation],
            "options": {k: repr(v) for k, v in self.metric.options.items()},
            "filters": [[n, {k: repr(v) for k, v in a.items()}] for n, a in self.metric.filters],
            "sets": {s: [self.items[i].digest for i in ids] for s, ids in self.sets.items()},
            "sources": [[s.task, s.num_fewshot, s.version, s.repeats] for s in self.sources],
            "generation": None
            if self.generation is None
            else [list(self.generation.until), self.generation.max_gen_toks, self.generation.repetition_penalty],
            "plugin": dict(self.plugin),
        }


def has_margins(task: TaskPlan) -> bool:
    """Whether answers to a task have margins (see `TaskAnswers.margins`): right choices or a target are known."""
    return task.kind == "loglikelihood" or (task.kind == "multiple_choice" and task.metric.fast)


@dataclass(frozen=True)
class EvalPlan:
    """A suite, compiled for one tokenizer.

    Attributes:
        tasks: in the suite's order; names are unique.
        suite: what it was compiled from.
        max_length: tokens a model may see at once.
        eos: ids that end a generation.
        pad: id that fills the left side of prompts.
        characters: for tokenizers whose text has one spelling (see `tokens.characters`): token id -> its character,
            `""` for specials; None for all other tokenizers.
        versions: packages whose version the plan depends on.
    """

    tasks: tuple[TaskPlan, ...]
    suite: SuiteSpec
    max_length: int
    eos: tuple[int, ...]
    pad: int
    characters: tuple[str, ...] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [t.name for t in self.tasks]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a plan needs tasks with unique names, got {names}")

    @cached_property
    def digest(self) -> Digest:
        """sha256 of everything that decides scores; equal plans ask the same questions in the same words."""
        return digest_json(
            {
                "version": PLAN_VERSION,
                "tasks": [t.canonical() for t in self.tasks],
                "max_length": self.max_length,
                "eos": list(self.eos),
                "dtype": self.suite.dtype,
                **self._engine(),
            }
        )

    def _engine(self) -> dict[str, str]:
        """What answers, where it is not transformers: answers of two engines are never mixed."""
        return {"engine": self.suite.engine} if self.generates and self.suite.engine != "transformers" else {}

    @property
    def generates(self) -> bool:
        """Whether any answer is written rather than scored."""
        return any(t.kind == "generate_until" for t in self.tasks)

    def task(self, name: str) -> TaskPlan:
        """The task of that name.

        Raises:
            EvaluationError: for an unknown name, with the nearest match.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        raise EvaluationError(
            "The plan has no such task.",
            got=repr(name),
            allowed=suggest(name, [t.name for t in self.tasks]),
            fix="use one of the suite's tasks.",
        )

    def items(self, set_name: SetName) -> Mapping[str, tuple[str, ...]]:
        """Task -> item hashes of one set, in plan order."""
        return {t.name: t.hashes(set_name) for t in self.tasks}

    def n_questions(self, set_name: SetName) -> int:
        """How many items one set holds over all tasks."""
        return sum(len(t.sets[set_name]) for t in self.tasks)

    @property
    def public_test_tasks(self) -> tuple[str, ...]:
        """Tasks whose items, search set included, come from a public test split."""
        return tuple(t.name for t in self.tasks if t.public_test_split)

    def selected(self, set_name: SetName, items: Mapping[str, Sequence[str]] | None) -> Mapping[str, tuple[int, ...]]:
        """Task -> indices into its items, in plan order: the whole set, or the chosen part of it.

        Args:
            set_name: the set.
            items: task -> item hashes; tasks that are left out are not asked; None is the whole set.

        Raises:
            EvaluationError: for a task or hash that the set does not hold, or a choice without any item.
        """
        if items is None:
            return {t.name: t.sets[set_name] for t in self.tasks}
        for name, hashes in items.items():
            inside = self.task(name).set_of
            alien = [h for h in hashes if inside.get(h) != set_name]
            if alien:
                raise EvaluationError(
                    f"Items were asked that are not in the {set_name} set of task {name!r}.",
                    got=f"{len(alien)} of them, the first is {alien[0]}",
                    allowed=f"the {len(self.task(name).sets[set_name])} items of EvalPlan.items({set_name!r})",
                    fix="choose from that list.",
                )
        chosen: dict[str, tuple[int, ...]] = {}
        for task in self.tasks:
            wanted = {task.index[h] for h in items.get(task.name, ())}
            if wanted:
                chosen[task.name] = tuple(i for i in task.sets[set_name] if i in wanted)
        if not chosen:
            raise EvaluationError(
                "No item was asked.", got="an empty choice", allowed="at least one item", fix="choose one."
            )
        return chosen

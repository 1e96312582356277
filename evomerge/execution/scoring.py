"""The scorer of real runs: parents and one resident model, built once per worker; a candidate is a merge in place."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, final

from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.tickets import NodeParents, Ticket, tickets_for
from evomerge.dataflow.models import PathModels
from evomerge.dataflow.prefixes import PrefixMemory, default_budget
from evomerge.evaluation.costs import wanted_costs
from evomerge.evaluation.evaluator import PlanEvaluator
from evomerge.evaluation.generation import generate
from evomerge.evaluation.packed import packable
from evomerge.evaluation.plan import EvalPlan
from evomerge.evaluation.scorer import Passes
from evomerge.execution.engine_worker import check_writer, open_writer
from evomerge.execution.gpus import limit_share, spread_over, worker_devices
from evomerge.execution.memory import measure_sizes
from evomerge.execution.node import settle
from evomerge.execution.worker import failure_kind
from evomerge.merging.kernels import Kernels
from evomerge.merging.parents import ParentPool
from evomerge.merging.residence import Holding, Storage, choose_residence
from evomerge.merging.resident import ResidentModel
from evomerge.merging.sharding import Send
from evomerge.recipe.baselines import parent_recipe
from evomerge.recipe.recipe import ParentRef, Recipe
from evomerge.recipe.serialize import recipe_from_json
from evomerge.types import EvalTask, Evaluation


@dataclass(frozen=True)
class ScoringSpec:
    """What a worker needs to score recipes; picklable, the checkpoints are opened again on the other side.

    Attributes:
        checkpoints: name -> parent.
        template: name of the parent that gives config, tokenizer and dtypes.
        plan: the compiled questions.
        kernels: compiled or eager.
        dtype: of the model in memory, `auto` for the template's.
        device: `auto`, `cpu` or `cuda`.
        self_check: whether the worker proves at its start that its numbers are lm-eval's.
        prefix_bytes: of hidden states that paths share, on the worker; None chooses by the memory there is.
        costs: what is told of a model besides its answers, names of `evaluation.costs`.
        storage: where the parents live, and in what form a search reads them.
        gpus: of a worker: a share of one, one, or several over which its models are spread.
        cache: folder of each node into which parents are copied once, as the job names it; None reads them where they
            are.
    """

    checkpoints: Mapping[str, OpenParent]
    template: str
    plan: EvalPlan
    kernels: Kernels
    dtype: str = "auto"
    device: str = "auto"
    self_check: bool = True
    prefix_bytes: int | None = None
    costs: tuple[str, ...] = ()
    storage: Storage = field(default_factory=Storage)
    gpus: float = 1.0
    cache: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        values = [getattr(self, f.name) for f in fields(self)]
        return (_unpacked, (tickets_for(self.checkpoints), *values[1:]))


def _unpacked(tickets: Mapping[str, Ticket], *values: Any) -> ScoringSpec:
    """A spec on another side: its parents are opened when they are asked for, where the worker then runs."""
    return ScoringSpec(NodeParents(tickets), *values)


@final
class MergeScorer:
    """Merges a task's recipe into the resident model and asks it the task's items, along its path if it has one.

    Args:
        spec: what is asked, and how.
        device: where the models live.
        devices: where the layers live, when they are several; None asks `worker_devices`.
        send: brings a tensor to one of `devices`; None moves it.

    Raises:
        ModelError: when a parent changed or the model cannot be built.

    Attributes:
        notes: what its worker's log should say.
        resident: into which recipes are merged.
        writer: writes answers with an engine; None where transformers does.
        evaluator: asks the items.
        memory: what paths share, and how many layers ran.
    """

    def __init__(
        self, spec: ScoringSpec, device: str, devices: tuple[str, ...] | None = None, send: Send | None = None
    ) -> None:
        self.notes: Sequence[str] = ()
        self._parents = spec.checkpoints
        self._template = self._parents[spec.template]
        self._costs = spec.costs
        devices = worker_devices(device, spec.gpus) if devices is None else devices
        sharding, device = spread_over(self._template, devices), devices[0]
        limit_share(device, spec.gpus)
        places = {} if sharding is None else sharding.tensor_devices(self._template.layout)
        self._pool = ParentPool(self._parents, device, _holding(spec, device), places)
        new_model = partial(
            ResidentModel,
            self._pool,
            spec.template,
            dtype=spec.dtype,
            kernels=spec.kernels,
            device=device,
            sharding=sharding,
            send=send,
        )
        self.resident: ResidentModel = new_model()
        self.writer = open_writer(spec.plan, self._template, self.resident, device)
        self.evaluator = PlanEvaluator(
            spec.plan,
            Path(self._template.tokenizer_folder),
            pack=packable(self.resident.model),
            writer=self.writer or generate,
        )
        self.memory = PrefixMemory(default_budget(device) if spec.prefix_bytes is None else spec.prefix_bytes)
        self._new_source = new_model
        self._made_paths: PathModels | None = None

    def __call__(self, task: EvalTask) -> Evaluation:
        """See `Scorer`."""
        recipe = recipe_from_json(task.recipe)
        self._pool.pack_when(task.set_name == "search")
        try:
            return self._score(recipe, task)
        except (MemoryError, RuntimeError) as error:
            # a candidate must not fail because of what earlier ones left in memory
            if failure_kind(error) != "memory" or not self.memory.clear():
                raise
        return self._score(recipe, task)

    def _score(self, recipe: Recipe, task: EvalTask) -> Evaluation:
        started = time.perf_counter()
        self._noted()  # a candidate that failed leaves words that are not this one's
        model, sharing = self._model(recipe)
        merged_s = time.perf_counter() - started
        with sharing as passes:
            found = self.evaluator.evaluate(model, task.set_name, task.items, passes)
        for parent in self._parents.values():
            parent.check_unchanged()  # an answer of weights that changed meanwhile is none
        by_engine, notes = self._noted()
        timing_s = {"merge": merged_s, **found.timing_s, **by_engine}
        return replace(found, timing_s=timing_s, notes=notes, costs=self._costs_of(recipe, model) if task.costs else {})

    def _noted(self) -> tuple[Mapping[str, float], tuple[str, ...]]:
        """What the engine's guard has to tell since the last call: seconds by stage, and what went wrong."""
        return ({}, ()) if self.writer is None else (self.writer.taken(), self.writer.notes())

    def _model(self, recipe: Recipe) -> tuple[Any, AbstractContextManager[Passes | None]]:
        """The recipe's model, and the context in which it is asked."""
        if recipe.path is None:
            self.resident.apply(recipe)
            if self.writer is not None and self.resident.n_merged:
                self.writer.outdated()
            return self.resident.model, nullcontext()
        if self._made_paths is None:
            self._made_paths = PathModels(self.resident, self._new_source)
        made = self._made_paths.model(recipe)
        return made.model, self.memory.sharing(made.layers, made.chain, made.token_bytes)

    def _costs_of(self, recipe: Recipe, model: Any) -> dict[str, tuple[float, float]]:
        layout, tied = self._template.layout, self._template.tied_embeddings
        return wanted_costs(self._costs, recipe, layout, tied, lambda: model)


def _holding(spec: ScoringSpec, device: str) -> Holding:
    """Where this worker's parents live: what the job says, or what this machine has room for."""
    storage = spec.storage
    if storage.place is not None:
        return Holding(storage.place, storage.packed_from)
    if spec.gpus < 1:  # what is free beside the others is asked, so that they are not counted again
        storage = replace(storage, per_device=1)
    sizes = measure_sizes(spec.checkpoints, spec.template, spec.dtype, device, replace(storage, gpus=spec.gpus))
    return Holding(choose_residence(sizes).place, storage.packed_from)


def choose_device(wanted: str) -> str:
    """`cuda` when it is wanted or there is one and `auto` leaves the choice, else `cpu`."""
    import torch

    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def build_scorer(spec: ScoringSpec) -> MergeScorer:
    """Open the parents, build the resident model and check its numbers against lm-eval's.

    Raises:
        ConfigError: when the node's cache has no folder.
        ModelError: when a parent changed, is not to be had here, or the model cannot be built.
        SelfCheckError: when scores differ from lm-eval's.
    """
    settled = settle(spec.checkpoints, spec.kernels, spec.cache)
    spec = replace(spec, checkpoints=settled.parents, kernels=settled.kernels)
    scorer = MergeScorer(spec, choose_device(spec.device))
    scorer.notes = settled.notes
    if spec.self_check:
        from evomerge.evaluation.selfcheck import self_check

        template = spec.checkpoints[spec.template]
        scorer.resident.apply(parent_recipe(ParentRef(spec.template, template.source, template.revision)))
        self_check(spec.plan, scorer.resident.model, scorer.evaluator.tokenizer)
        check_writer(spec, scorer)
    return scorer

"""From a job's cluster section to the pool that scores its candidates."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from evomerge.config.assemble import Assembled
from evomerge.config.cache import kernel_folder
from evomerge.execution.admission import Admission
from evomerge.execution.devices import WorkerClass
from evomerge.execution.lazy import LazyPool
from evomerge.execution.local import local_pool
from evomerge.execution.pool import EvaluationPool
from evomerge.execution.scoring import ScoringSpec
from evomerge.execution.worker import WorkerSpec
from evomerge.merging.compiled import AnyVariant
from evomerge.merging.foresight import kept_bytes, variants_of
from evomerge.merging.kernels import Kernels, compile_kernels, worth_compiling
from evomerge.merging.parents import ParentPool
from evomerge.merging.residence import Storage
from evomerge.recipe.baselines import parent_recipe
from evomerge.recipe.recipe import Recipe
from evomerge.runs.store import LOGS, RunStore
from evomerge.runs.worker_records import WorkerNews


def n_workers(assembled: Assembled) -> int:
    """How many workers there will be at the beginning: see `Seating.workers`."""
    return assembled.seating.workers


def kernels_for(assembled: Assembled) -> Kernels:
    """Compiled kernels where the run is long enough to pay for the compilation, or the job asks for them."""
    cluster, evaluations = assembled.resolved.job.cluster, assembled.resolved.job.budget.evaluations
    if cluster.compile == "never" or assembled.seating.device != "cpu":
        return Kernels()
    pool = ParentPool(assembled.parents.checkpoints)
    variants = frozenset[AnyVariant]().union(*(variants_of(recipe, pool) for recipe in _typical(assembled)))
    n_parameters = assembled.parents.n_parameters
    if cluster.compile == "auto" and not worth_compiling(n_parameters, evaluations // n_workers(assembled), variants):
        return Kernels()
    return compile_kernels(variants, kernel_folder())


def _typical(assembled: Assembled) -> list[Recipe]:
    """A recipe in the middle of every stage's space."""
    spaces = [assembled.likely_space(number) for number in range(len(assembled.makers))]
    return [maker.recipe_of(s, s.space.start) for maker, s in zip(assembled.makers, spaces, strict=True)]


def measured_bytes(assembled: Assembled) -> int:
    """What a worker keeps of what methods measure once, over all stages the most."""
    pool = ParentPool(assembled.parents.checkpoints)
    return max(kept_bytes(recipe, pool) for recipe in _typical(assembled))


def runs_paths(assembled: Assembled) -> bool:
    """Whether workers will run paths."""
    known = any(k.recipe.path is not None for k in assembled.known)
    return known or any(maker.space.runs_paths for maker in assembled.makers)


def hop_parents(assembled: Assembled) -> tuple[str, ...]:
    """The parents that paths of this job may name: a worker keeps a model of each that one has named, over all stages.

    A later stage stands around the best merge so far, which may be a parent.
    """
    found = [hop.parent for k in assembled.known for hop in k.recipe.path or () if hop.parent is not None]
    for number, maker in enumerate(assembled.makers):
        elites = [parent_recipe(ref) for ref in assembled.parents.refs()] if number else []
        for space in (maker.space, *(maker.around([elite]) for elite in elites)):
            found += space.hop_parents
    return tuple(name for name in assembled.parents.checkpoints if name in found)


def storage_of(assembled: Assembled) -> Storage:
    """Where the job wants its parents, and who shares the memory of one host and one GPU."""
    cluster = assembled.resolved.job.cluster
    return Storage(
        place=None if cluster.parents == "auto" else cluster.parents,
        packed_from=assembled.parents.base if cluster.task_vectors == "int8" else None,
        n_models=1 + len(hop_parents(assembled)),
        workers=assembled.seating.per_host,
        per_device=assembled.seating.per_device,
        gpus=_gpus(assembled),
    )


def _gpus(assembled: Assembled) -> float:
    """GPUs of a worker as the job says, a share or several; 1 where it says nothing, or there are none."""
    stated = assembled.resolved.job.cluster.gpus_per_worker
    return float(stated) if stated is not None and assembled.seating.device == "cuda" else 1.0


def open_pool(assembled: Assembled, run: Path, *, self_check: bool) -> EvaluationPool:
    """The workers of a run; none is started before the first candidate.

    Args:
        assembled: the search.
        run: the run directory, for logs.
        self_check: whether every worker proves at its start that its numbers are lm-eval's.
    """
    return LazyPool(partial(_start, assembled, run, self_check), lambda: n_workers(assembled))


def worker_spec(assembled: Assembled, log_folder: Path | None, *, self_check: bool) -> WorkerSpec:
    """What every worker is built from."""
    spec = ScoringSpec(
        checkpoints=assembled.parents.checkpoints,
        template=assembled.parents.template_name,
        plan=assembled.plan,
        kernels=kernels_for(assembled),
        dtype=assembled.suite.dtype,
        device=assembled.seating.device,
        self_check=self_check,
        costs=assembled.goals.costs,
        storage=storage_of(assembled),
        gpus=_gpus(assembled),
        cache=assembled.resolved.job.cluster.cache,
    )
    return WorkerSpec(arguments={"spec": spec}, log_folder=log_folder, device=spec.device)


def _start(assembled: Assembled, run: Path, self_check: bool) -> EvaluationPool:
    cluster, seating = assembled.resolved.job.cluster, assembled.seating
    spec = worker_spec(assembled, (run / LOGS).resolve(), self_check=self_check)
    timeout_s = float(cluster.candidate_timeout_s)
    if cluster.backend == "local":
        return local_pool(spec, seating.workers, timeout_s=timeout_s)
    from evomerge.execution.ray import RayPool

    return RayPool(
        spec,
        cluster.workers if cluster.address is not None else seating.workers,
        address=cluster.address,
        cpus_per_worker=seating.cpus,
        gpus_per_worker=seating.gpus,
        timeout_s=timeout_s,
        admission=Admission(cluster.mixed_devices, recorded_class(run)),
    )


def recorded_class(run: Path) -> WorkerClass | None:
    """The class of the first worker that the journal of a run knows; None while it knows none."""
    news = (r for r in RunStore.open(run, write=False).records() if isinstance(r, WorkerNews) and r.kind == "joined")
    first = next((r for r in news if r.device), None)
    return None if first is None else WorkerClass(first.device, first.versions)

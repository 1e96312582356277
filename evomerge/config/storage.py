"""What a job says about the memory of its workers: where parents and models live, and who shares it."""

from __future__ import annotations

from evomerge.config.load import ResolvedJob
from evomerge.config.parents import Parents
from evomerge.config.seating import check_devices
from evomerge.errors import ConfigError
from evomerge.execution.gpus import check_spreads, fullest_share


def check_storage(resolved: ResolvedJob, parents: Parents) -> None:
    """Refuse what a job's parents, and the GPUs of its workers, do not allow.

    Raises:
        ConfigError: for a relative cache, packed task vectors without a base, GPUs that are not here, or a part of a
            second one.
        ModelError: for a model that cannot be spread over as many GPUs.
    """
    check_cache(resolved)
    check_task_vectors(resolved, parents)
    check_devices(resolved)
    check_gpus(resolved, parents)


def check_task_vectors(resolved: ResolvedJob, parents: Parents) -> None:
    """Refuse packed task vectors where there is nothing to take differences from.

    Raises:
        ConfigError: for `int8` in a job without a base.
    """
    with resolved.document.placing("cluster", "task_vectors"):
        if resolved.job.cluster.task_vectors == "int8" and parents.base is None:
            raise ConfigError(
                "Task vectors need a base.",
                got="cluster.task_vectors: int8, and no parents.base",
                allowed="exact, or a job with parents.base",
                fix="name the model that the parents were trained from as parents.base, or leave task_vectors out.",
            )


def check_gpus(resolved: ResolvedJob, parents: Parents) -> None:
    """Refuse a number of GPUs per worker that no model can lie on.

    Raises:
        ConfigError: for one and a half.
        ModelError: for an architecture that cannot be spread, or one of fewer layers.
    """
    cluster = resolved.job.cluster
    gpus = 1.0 if cluster.gpus_per_worker is None else float(cluster.gpus_per_worker)
    if gpus <= 1 or cluster.device == "cpu":
        return
    with resolved.document.placing("cluster", "gpus_per_worker"):
        if not gpus.is_integer():
            raise ConfigError(
                "A worker takes a share of one GPU, or whole ones.",
                got=f"cluster.gpus_per_worker: {gpus:g}",
                allowed="more than 0 and at most 1, or 2, 3, ...",
                fix=f"use {int(gpus)} or {int(gpus) + 1}.",
            )
        check_spreads(parents.template.config)
        fullest_share(parents.template, int(gpus))


def check_cache(resolved: ResolvedJob) -> None:
    """Refuse a cache that would lie wherever a worker happens to be started.

    Raises:
        ConfigError: for a relative path.
    """
    cache = resolved.job.cluster.cache
    with resolved.document.placing("cluster", "cache"):
        if cache is not None and not cache.startswith(("/", "$")):
            raise ConfigError(
                "The cache of a node needs an absolute path.",
                got=f"cluster.cache: {cache}",
                allowed="/FOLDER, or $VARIABLE/FOLDER with a variable that is set on the nodes",
                fix="name a folder of the nodes' own disks, such as /local/ssd/evomerge or $SLURM_TMPDIR/evomerge.",
            )

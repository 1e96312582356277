"""What a job's workers will run on: asked of the cluster where there is one, since the driver needs no GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from evomerge.config.load import ResolvedJob
from evomerge.config.schema import Cluster
from evomerge.errors import ConfigError
from evomerge.execution.ray_cluster import ClusterDescription, describe, lacking
from evomerge.execution.ray_session import has_joined
from evomerge.execution.scoring import choose_device


@dataclass(frozen=True)
class Seating:
    """Where workers find room.

    Attributes:
        device: `cpu` or `cuda`.
        workers: how many are expected at the beginning, at least 1; on a cluster they may become more or fewer.
        per_host: how many share the memory of one host, at most.
        per_device: how many share one GPU.
        cpus: that each reserves of a cluster.
        gpus: that each reserves of a cluster: a share of one, or a whole number.
        lacking: why no node of the cluster, as it is now, could hold a worker; empty when one could.
    """

    device: str
    workers: int
    per_host: int
    per_device: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    lacking: str = field(default="", compare=False)


def find_seating(cluster: Cluster) -> Seating:
    """What a job asks for, on what there is now.

    Raises:
        ConfigError: when there should be a cluster and it does not answer.
    """
    if cluster.backend == "ray" and cluster.address is not None:
        return _on_cluster(cluster, describe(cluster.address))
    device = choose_device(cluster.device)
    workers = cluster.workers or _seats_here(device == "cuda")
    gpus = _gpus(cluster, device)
    if cluster.backend == "local":  # local processes share the first GPU
        return Seating(device, workers, workers, workers if device == "cuda" else 1)
    return Seating(device, workers, workers, _sharing(gpus, device), float(cluster.cpus_per_worker), gpus)


def check_devices(resolved: ResolvedJob) -> None:
    """Refuse GPUs that this machine does not have, for workers that can only be here.

    Raises:
        ConfigError: for `cuda` without a CUDA device, or more GPUs per worker than there are.
    """
    cluster = resolved.job.cluster
    asks_gpus = cluster.gpus_per_worker is not None and (cluster.backend == "ray" or cluster.device == "cuda")
    if not _stays_here(cluster) or not (asks_gpus or cluster.device == "cuda"):
        return
    there = _gpus_here()
    with resolved.document.placing("cluster", "device"):
        if cluster.device == "cuda" and not there:
            raise ConfigError(
                "This machine has no CUDA device.",
                got="cluster.device: cuda, and no cluster.address",
                allowed="auto or cpu; or cuda with the address of a cluster that has GPUs",
                fix="set cluster.device=auto, or name the cluster with cluster.address=HOST:PORT (`evomerge doctor` "
                "says what is here).",
            )
    with resolved.document.placing("cluster", "gpus_per_worker"):
        if asks_gpus and (cluster.gpus_per_worker or 0) > there:
            raise ConfigError(
                "No worker finds so many GPUs on this machine.",
                got=f"cluster.gpus_per_worker: {cluster.gpus_per_worker:g}, and {there} here",
                allowed=f"at most {there}" if there else "nothing: leave it out",
                fix="ask for fewer, or name a cluster that has them with cluster.address=HOST:PORT.",
            )


def _stays_here(cluster: Cluster) -> bool:
    """Whether workers can only run on this machine: a process that has joined a cluster keeps it."""
    return cluster.backend == "local" or (cluster.address is None and not has_joined())


def _gpus_here() -> int:
    import torch

    return torch.cuda.device_count()


def _on_cluster(cluster: Cluster, found: ClusterDescription) -> Seating:
    device = ("cuda" if found.has_gpus else "cpu") if cluster.device == "auto" else cluster.device
    cpus, gpus = float(cluster.cpus_per_worker), _gpus(cluster, device)
    room = found.seats(cpus, gpus)
    workers = max(1, room if cluster.workers is None else min(cluster.workers, room))
    per_host = max((node.seats(cpus, gpus) for node in found.alive), default=1)
    why = lacking(found.nodes, cpus, gpus)
    return Seating(device, workers, max(1, min(workers, per_host)), _sharing(gpus, device), cpus, gpus, why)


def _gpus(cluster: Cluster, device: str) -> float:
    if cluster.gpus_per_worker is not None:
        return float(cluster.gpus_per_worker)
    return 1.0 if device == "cuda" else 0.0


def _sharing(gpus: float, device: str) -> int:
    """Workers on one GPU, when each reserves a share of it."""
    return max(1, int(1.0 / gpus + 1e-6)) if device == "cuda" and 0.0 < gpus < 1.0 else 1


def _seats_here(on_gpu: bool) -> int:
    """How many workers suit this host: one per GPU, or one per core that this process may use."""
    if not on_gpu:
        return len(os.sched_getaffinity(0))
    import torch

    return max(1, torch.cuda.device_count())

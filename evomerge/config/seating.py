"""What a job's workers will run on: asked of the cluster where there is one, since the driver needs no GPU."""

from __future__ import annotations

import os
from dataclasses import dataclass

from evomerge.config.schema import Cluster
from evomerge.execution.ray_cluster import ClusterDescription, describe
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
    """

    device: str
    workers: int
    per_host: int
    per_device: int = 1
    cpus: float = 1.0
    gpus: float = 0.0


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


def _on_cluster(cluster: Cluster, found: ClusterDescription) -> Seating:
    device = ("cuda" if found.has_gpus else "cpu") if cluster.device == "auto" else cluster.device
    cpus, gpus = float(cluster.cpus_per_worker), _gpus(cluster, device)
    room = found.seats(cpus, gpus)
    workers = max(1, room if cluster.workers is None else min(cluster.workers, room))
    per_host = max((node.seats(cpus, gpus) for node in found.alive), default=1)
    return Seating(device, workers, max(1, min(workers, per_host)), _sharing(gpus, device), cpus, gpus)


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

"""What a worker has to hold, what memory there is, and how fast it is: measured where the worker runs, or will run."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Final

import torch

from evomerge.checkpoints.dtypes import FLOATING, ITEMSIZE
from evomerge.checkpoints.opened import OpenParent
from evomerge.execution.gpus import device_free, fullest_share
from evomerge.hostmemory import host_free
from evomerge.merging.packed8 import packed_bytes
from evomerge.merging.residence import Rates, Sizes, Storage

_PROBE_S: Final = 0.05
_PROBE_ELEMENTS: Final = 1 << 23


def model_bytes(template: OpenParent, dtype: str) -> int:
    """Bytes of one model in memory.

    Args:
        template: the parent that gives architecture and dtypes.
        dtype: of the model, `auto` for the template's.
    """
    width = None if dtype == "auto" else getattr(torch, dtype).itemsize
    return sum(
        math.prod(t.shape) * (ITEMSIZE[t.dtype] if width is None or t.dtype not in FLOATING else width)
        for t in template.layout.tensors
    )


def parent_bytes(checkpoint: OpenParent) -> int:
    """Bytes of a parent as it is stored."""
    return sum(math.prod(t.shape) * ITEMSIZE[t.dtype] for t in checkpoint.layout.tensors)


def task_vector_bytes(checkpoint: OpenParent) -> int:
    """Bytes of a parent's packed differences from the base; what cannot be merged is read as it is stored."""
    return sum(packed_bytes(math.prod(t.shape)) for t in checkpoint.layout.tensors if t.dtype in FLOATING)


def measure_sizes(
    checkpoints: Mapping[str, OpenParent], template: str, dtype: str, device: str, storage: Storage
) -> Sizes:
    """What a worker has to hold, and what there is on this machine now.

    Args:
        checkpoints: name -> parent.
        template: the parent that gives architecture and dtypes.
        dtype: of the model in memory, `auto` for the template's.
        device: where merges run, torch's spelling; one of them where a worker has several.
        storage: what the job says.

    Raises:
        ModelError: for a model of fewer layers than a worker has GPUs.
    """
    spread = device.startswith("cuda") and storage.gpus > 1
    # a worker that asks for itself sees what is free beside the others, and may take its share of all
    share = storage.gpus if storage.per_device == 1 and storage.gpus < 1 else 1.0
    exact = [c for name, c in checkpoints.items() if storage.packed_from in (None, name)]
    packed = sum(task_vector_bytes(c) for c in checkpoints.values() if c not in exact)
    return Sizes(
        parents=packed + sum(map(parent_bytes, exact)),
        packed=packed,
        model=model_bytes(checkpoints[template], dtype),
        device_free=device_free(device, share),
        host_free=host_free(),
        n_models=storage.n_models,
        workers=storage.workers,
        per_device=storage.per_device,
        fullest=fullest_share(checkpoints[template], round(storage.gpus)) if spread else 1.0,
    )


def measure_rates() -> Rates:
    """The host's copy bandwidth, from 50 ms of copying 32 MiB on one thread; the other rates are assumed."""
    source = torch.ones(_PROBE_ELEMENTS, dtype=torch.float32)
    target = torch.empty_like(source)
    target.copy_(source)
    best, until = math.inf, time.perf_counter() + _PROBE_S
    while time.perf_counter() < until:
        started = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - started)
    return Rates(memory=2 * source.nbytes / best, measured=("memory",))

"""The GPUs of one worker: a share of one, one, or several over which its model is spread."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Final

import torch

from evomerge.checkpoints.opened import OpenParent
from evomerge.errors import ModelError
from evomerge.evaluation.caches import keeps_plain_cache
from evomerge.merging.sharding import Sharding, balance, layer_bytes

_UNSPREADABLE: Final = frozenset({"jetmoe"})
"""Values of `model_type` whose layers all keep their keys and values in one place."""


def worker_devices(device: str, gpus: float) -> tuple[str, ...]:
    """Where a worker's models live: one device, or as many GPUs as it takes of those that it sees.

    Args:
        device: `cpu` or `cuda`.
        gpus: GPUs of a worker; a share of one is one.

    Raises:
        ModelError: when it sees fewer.
    """
    n = max(1, round(gpus))
    if not device.startswith("cuda") or n == 1:
        return (device,)
    if torch.cuda.device_count() < n:
        raise ModelError(
            "A worker sees fewer GPUs than its model should be spread over.",
            got=f"{torch.cuda.device_count()} GPUs, and cluster.gpus_per_worker: {n}",
            allowed=f"{n} GPUs on one host, and CUDA_VISIBLE_DEVICES that names them",
            fix="lower cluster.gpus_per_worker, or use hosts with more GPUs.",
        )
    return tuple(f"cuda:{i}" for i in range(n))


def limit_share(device: str, gpus: float) -> None:
    """Have this process take no more of a shared GPU's memory than its share; torch's own context comes on top."""
    if device.startswith("cuda") and 0.0 < gpus < 1.0:
        torch.cuda.set_per_process_memory_fraction(gpus)


def device_free(device: str, share: float = 1.0) -> int | None:
    """Free bytes of a GPU's memory, at most a share of all of it; None for the CPU."""
    if not device.startswith("cuda"):
        return None
    free, total = torch.cuda.mem_get_info(torch.device(device))
    return min(int(free), int(total * share))


def spread_over(template: OpenParent, devices: tuple[str, ...]) -> Sharding | None:
    """How a worker's models lie on its devices; None on a single one.

    Raises:
        ModelError: for an architecture that cannot be spread, or one of fewer layers than devices.
    """
    if len(devices) == 1:
        return None
    check_spreads(template.config)
    return balance(layer_bytes(template.layout), devices)


def fullest_share(template: OpenParent, n_devices: int) -> float:
    """What part of a model's bytes the fullest of so many devices holds."""
    sizes = layer_bytes(template.layout)
    return max(balance(sizes, ("",) * n_devices).shares(sizes)) if n_devices > 1 else 1.0


def check_spreads(config: Mapping[str, Any]) -> None:
    """Refuse architectures whose layers keep more between calls than keys and values of their own.

    Raises:
        ModelError: naming the architecture.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    model_type = config["model_type"]
    built = CONFIG_MAPPING[model_type].from_dict(dict(config)) if model_type in CONFIG_MAPPING else None
    known = built is not None and type(built) in MODEL_FOR_CAUSAL_LM_MAPPING
    if known and model_type not in _UNSPREADABLE:
        stateful = getattr(MODEL_FOR_CAUSAL_LM_MAPPING[type(built)], "_is_stateful", False)
        if keeps_plain_cache(SimpleNamespace(config=built, _is_stateful=stateful)):
            return
    raise ModelError(
        "A model of this architecture cannot be spread over several GPUs.",
        got=f"model_type {model_type!r}, and cluster.gpus_per_worker above 1",
        allowed="architectures that transformers knows and whose layers keep keys and values, and nothing else",
        fix="set cluster.gpus_per_worker to 1 or less.",
    )

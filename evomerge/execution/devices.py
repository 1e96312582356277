"""What a worker runs on: the device class and the packages that decide numbers, measured where the worker lives.

Two devices of one class give the same bits for the same recipe; of two classes they may differ in the last place, and
a search that compares such scores compares devices. The class of a GPU is its model and compute capability, that of a
CPU its architecture and the vector instructions that torch uses there.
"""

from __future__ import annotations

import importlib
import os
import platform
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Final, cast

from evomerge.errors import ConfigError

PACKAGES: Final = ("evomerge", "lm_eval", "numpy", "tokenizers", "torch", "transformers")
"""Their versions decide numbers, with Python's."""


@dataclass(frozen=True)
class WorkerClass:
    """What must be equal for two workers to give the same numbers.

    Attributes:
        device: device class, for people and for comparison.
        versions: package -> version, of what decides numbers.
    """

    device: str
    versions: Mapping[str, str] = field(default_factory=dict)

    def difference(self, other: WorkerClass) -> str:
        """What `other` has that this one does not have, for people; empty when they are of one class."""
        if self.device != other.device:
            return f"{other.device} instead of {self.device}"
        names = sorted(self.versions.keys() | other.versions.keys())
        told = [(name, self.versions.get(name, "none"), other.versions.get(name, "none")) for name in names]
        return ", ".join(f"{name} {theirs} instead of {ours}" for name, ours, theirs in told if ours != theirs)


@dataclass(frozen=True)
class Station:
    """Where a worker lives.

    Attributes:
        kind: its class.
        host: name of the machine.
        pid: of its process.
        node: the cluster's name for the machine; empty without a cluster.
    """

    kind: WorkerClass
    host: str
    pid: int
    node: str = ""


def device_class(wanted: str) -> str:
    """The class of the device that a worker in this process uses.

    Args:
        wanted: `auto`, `cpu` or `cuda`, as the job says.
    """
    import torch

    if wanted != "cpu" and torch.cuda.is_available():
        return gpu_class(
            [(torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)) for i in range(_n_gpus())]
        )
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _n_gpus() -> int:
    import torch

    return int(torch.cuda.device_count())


def gpu_class(devices: list[tuple[str, tuple[int, int]]]) -> str:
    """The class of a worker with some GPUs, each a name and a compute capability; equal ones are counted."""
    told = [f"{name} ({major}.{minor})" for name, (major, minor) in devices]
    kinds = [f"{told.count(kind)} x {kind}" if told.count(kind) > 1 else kind for kind in dict.fromkeys(told)]
    return " and ".join(kinds)


def numeric_versions() -> dict[str, str]:
    """Versions of the packages that decide numbers, as installed here; those that are not installed are left out."""
    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def identify(device: str) -> WorkerClass:
    """The class of a worker in this process; loads torch.

    Args:
        device: `auto`, `cpu` or `cuda`, as the job says.
    """
    return WorkerClass(device_class(device), numeric_versions())


def here(identifier: str, device: str, node: str = "") -> Station:
    """Where this process is.

    Args:
        identifier: `"module:attribute"` of a callable like `identify`.
        device: `auto`, `cpu` or `cuda`.
        node: the cluster's name for this machine.

    Raises:
        ConfigError: when the identifier does not load.
    """
    module, _, attribute = identifier.partition(":")
    try:
        tell = cast("Callable[[str], WorkerClass]", getattr(importlib.import_module(module), attribute))
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            "What tells a worker's device class does not load.",
            got=f"{identifier}: {type(error).__name__}: {error}",
            allowed="module:attribute of an importable callable",
            fix="install what brings it on every host, or correct its name.",
        ) from error
    return Station(tell(device), socket.gethostname(), os.getpid(), node)

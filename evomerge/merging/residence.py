"""Where the parents live during a search, and what follows from it: memory per worker and seconds per merge.

Pure functions of sizes. The figures are told before a search and decide where workers put their parents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

Home = Literal["device", "host", "disk"]
"""On the device that merges, copied into the host's memory, or mapped from the files as they lie on the disk."""

DEVICE: Final = "device"
HOST: Final = "host"
DISK: Final = "disk"
HOMES: Final[tuple[Home, ...]] = get_args(Home)

GIB: Final = 1 << 30
ACTIVATIONS: Final = 2 * GIB
"""Kept free on a GPU for activations, and for the parts of tensors under way."""

HOST_SHARE: Final = 0.5
"""Of the host's free memory, what pinned copies of parents may take: it can be paged no more."""


@dataclass(frozen=True)
class Holding:
    """Where a pool's parents live, and in what form merges read them.

    Attributes:
        place: of the parents, or of their packed differences; the originals are then mapped.
        packed_from: the base whose differences are packed in eight bits; None for exact parents.
    """

    place: Home
    packed_from: str | None = None


@dataclass(frozen=True)
class Storage:
    """What a job says about where parents live, and who shares the memory.

    Attributes:
        place: None leaves the choice to `choose_residence`.
        packed_from: the base whose differences are packed in eight bits; None for exact parents.
        n_models: models that a worker keeps.
        workers: on one host.
        per_device: workers that share one GPU.
        gpus: of a worker: a share of one, one, or several over which its models are spread.
    """

    place: Home | None = None
    packed_from: str | None = None
    n_models: int = 1
    workers: int = 1
    per_device: int = 1
    gpus: float = 1.0


@dataclass(frozen=True)
class Sizes:
    """What a worker has to hold, in bytes, and what there is.

    Attributes:
        parents: of all parents in the form that merges read.
        packed: how many of them are task vectors in eight bits, which no file holds.
        model: of one model in memory.
        n_models: models that a worker keeps: the merged one, and one per parent that paths run through.
        caches: what methods measure once and keep, per worker.
        workers: on one host.
        per_device: workers that share one GPU.
        device_free: free memory of one GPU; None where merges run on the CPU.
        host_free: free memory of the host.
        fullest: what part of models and parents the fullest of a worker's GPUs holds.
    """

    parents: int
    model: int
    device_free: int | None
    host_free: int
    packed: int = 0
    n_models: int = 1
    caches: int = 0
    workers: int = 1
    per_device: int = 1
    fullest: float = 1.0

    def __post_init__(self) -> None:
        counts = (self.n_models, self.workers, self.per_device)
        held = (self.parents - self.packed, self.packed, self.model, self.caches)
        if min(counts) < 1 or min(*held, self.host_free, self.device_free or 0) < 0 or not 0 < self.fullest <= 1:
            raise ValueError(f"sizes are not negative, and there is one model and worker at least: {self}")

    @property
    def models(self) -> int:
        """Bytes of all models of a worker."""
        return self.n_models * self.model


class Residence(NamedTuple):
    """Where the parents live, and whether all of it fits.

    Attributes:
        place: of the parents.
        device_bytes: what one worker takes of a GPU, of several the fullest, activations not counted; 0 on the CPU.
        host_bytes: what one worker takes of the host's memory for itself.
        mapped_bytes: of files that all workers of a host share through the system's cache.
        headroom: of a GPU, what is kept free for activations; 0 on the CPU.
        fits: whether what is free suffices; files may be mapped beyond it, which costs time and nothing else.
    """

    place: Home
    device_bytes: int
    host_bytes: int
    mapped_bytes: int
    headroom: int
    fits: bool


def choose_residence(sizes: Sizes, wanted: Home | None = None) -> Residence:
    """The fastest place that has room, or what the wanted one takes.

    On a GPU: the device where parents, models and activations fit, else pinned memory where the copies of all workers
    take no more than half of what the host has free, else the files. On the CPU: the files, mapped, since all workers
    of a host then share one copy in the system's cache; `device` and `host` both mean a copy per worker.

    Args:
        sizes: what has to be held, and what there is.
        wanted: None to choose.
    """
    if wanted is not None:
        return _residence(sizes, wanted)
    if sizes.device_free is None:
        return _residence(sizes, DISK)
    found = [_residence(sizes, place) for place in HOMES]
    return next((r for r in found if r.fits), found[-1])


def _residence(sizes: Sizes, place: Home) -> Residence:
    mapped = sizes.parents - sizes.packed if place == DISK else 0
    copies = sizes.parents - mapped
    if sizes.device_free is None:
        own = sizes.models + sizes.caches + copies
        return Residence(place, 0, own, mapped, 0, sizes.workers * own <= sizes.host_free)
    on_device = math.ceil(sizes.fullest * (sizes.models + (copies if place == DEVICE else 0)))
    on_host = sizes.caches + (0 if place == DEVICE else copies)
    device_fits = sizes.per_device * (on_device + ACTIVATIONS) <= sizes.device_free
    host_fits = sizes.workers * on_host <= (HOST_SHARE if place == HOST else 1.0) * sizes.host_free
    return Residence(place, on_device, on_host, mapped, ACTIVATIONS, device_fits and host_fits)


Limit = Literal["device", "link", "memory", "disk"]


class Rates(NamedTuple):
    """How fast bytes move, per second; `measured` says which of them are this machine's.

    Attributes:
        device: within a GPU's memory.
        link: from pinned memory to a GPU.
        memory: within the host's memory, on one thread.
        disk: from the disk.
        measured: names of the fields that were measured.
    """

    device: float = 1.5e12
    link: float = 20e9
    memory: float = 10e9
    disk: float = 1e9
    measured: tuple[Limit, ...] = ()


class Duration(NamedTuple):
    """How long a merge lasts at least, and why.

    Attributes:
        seconds: for reading and writing.
        limit: the field of `Rates` at which the parents are read.
        pageable: whether they pass through a buffer of the GPU's driver, which halves that rate.
    """

    seconds: float
    limit: Limit
    pageable: bool = False


def merge_seconds(sizes: Sizes, held: Residence, rates: Rates) -> Duration:
    """Least duration of a merge that changes every tensor: each parent read once, the result written once.

    Files that do not all fit into the host's free memory, beside what the workers hold, come from the disk every time.

    Args:
        sizes: of a worker.
        held: where its parents live.
        rates: of the machine.
    """
    crowded = held.mapped_bytes > sizes.host_free - sizes.workers * held.host_bytes
    writing = sizes.model / (rates.memory if sizes.device_free is None else rates.device)
    limit: Limit = "disk" if crowded else "memory" if sizes.device_free is None else "link"
    if held.place == DEVICE and sizes.device_free is not None:
        limit = "device"
    pageable = limit == "link" and held.place == DISK
    rate: float = getattr(rates, limit) / (2 if pageable else 1)
    return Duration(sizes.parents / rate + writing, limit, pageable)

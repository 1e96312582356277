"""Where the parents live during a search, and what follows from it: memory per worker and seconds per merge.

Pure functions of sizes. The figures are told before a search and decide where workers put their parents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

from evomerge.merging.packed8 import BYTES_PER_ELEMENT

Place = Literal["device", "host", "disk"]
"""On the device that merges, copied into the host's memory, or mapped from the files as they lie on the disk."""

TaskVectors = Literal["exact", "int8"]
"""What merges of a search read: the parents, or their differences from the base in eight bits."""

DEVICE: Final = "device"
HOST: Final = "host"
DISK: Final = "disk"
PLACES: Final[tuple[Place, ...]] = get_args(Place)

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

    place: Place
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
    """

    place: Place | None = None
    packed_from: str | None = None
    n_models: int = 1
    workers: int = 1
    per_device: int = 1


@dataclass(frozen=True)
class Sizes:
    """What a worker has to hold, in bytes, and what there is.

    Attributes:
        parents: of all parents in the form that merges read.
        model: of one model in memory.
        n_models: models that a worker keeps: the merged one, and one per parent that paths run through.
        caches: what methods measure once and keep, per worker.
        workers: on one host.
        per_device: workers that share one GPU.
        device_free: free memory of one GPU; None where merges run on the CPU.
        host_free: free memory of the host.
    """

    parents: int
    model: int
    device_free: int | None
    host_free: int
    n_models: int = 1
    caches: int = 0
    workers: int = 1
    per_device: int = 1

    def __post_init__(self) -> None:
        counts = (self.n_models, self.workers, self.per_device)
        if min(counts) < 1 or min(self.parents, self.model, self.caches, self.host_free, self.device_free or 0) < 0:
            raise ValueError(f"sizes are not negative, and there is one model and worker at least: {self}")

    @property
    def models(self) -> int:
        """Bytes of all models of a worker."""
        return self.n_models * self.model


class Residence(NamedTuple):
    """Where the parents live, and whether all of it fits.

    Attributes:
        place: of the parents.
        device_bytes: what one worker takes of a GPU, activations not counted; 0 on the CPU.
        host_bytes: what one worker takes of the host's memory for itself.
        mapped_bytes: of files that all workers of a host share through the system's cache.
        fits: whether what is free suffices; files may be mapped beyond it, which costs time and nothing else.
    """

    place: Place
    device_bytes: int
    host_bytes: int
    mapped_bytes: int
    fits: bool


def choose_residence(sizes: Sizes, wanted: Place | None = None) -> Residence:
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
    found = [_residence(sizes, place) for place in PLACES]
    return next((r for r in found if r.fits), found[-1])


def _residence(sizes: Sizes, place: Place) -> Residence:
    mapped = sizes.parents if place == DISK else 0
    copies = sizes.parents if place != DISK else 0
    if sizes.device_free is None:
        own = sizes.models + sizes.caches + copies
        return Residence(place, 0, own, mapped, sizes.workers * own <= sizes.host_free)
    on_device = sizes.models + (copies if place == DEVICE else 0)
    on_host = sizes.caches + (copies if place == HOST else 0)
    device_fits = sizes.per_device * (on_device + ACTIVATIONS) <= sizes.device_free
    share = HOST_SHARE if place == HOST else 1.0
    return Residence(
        place, on_device, on_host, mapped, device_fits and sizes.workers * on_host <= share * sizes.host_free
    )


def parents_bytes(base: int, others: int, itemsize: float, task_vectors: TaskVectors) -> int:
    """Bytes of all parents as merges read them.

    Args:
        base: bytes of the base, 0 without one.
        others: bytes of the other parents.
        itemsize: bytes per element of the other parents.
        task_vectors: what is read of them.
    """
    return base + (others if task_vectors == "exact" else round(others / itemsize * BYTES_PER_ELEMENT))


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
    measured: tuple[str, ...] = ()


def merge_seconds(sizes: Sizes, place: Place, rates: Rates) -> float:
    """Least seconds of a merge that changes every tensor: each parent read once, the result written once.

    Files that do not all fit into the host's free memory, beside what workers hold, are read from the disk every time.

    Args:
        sizes: of the worker.
        place: of the parents.
        rates: of the machine.
    """
    held = choose_residence(sizes, place)
    rest = sizes.host_free - sizes.workers * held.host_bytes
    from_disk = place == DISK and sizes.parents > rest
    if sizes.device_free is None:
        read = sizes.parents / (rates.disk if from_disk else rates.memory)
        return read + sizes.model / rates.memory
    written = sizes.model / rates.device
    if place == DEVICE:
        return sizes.parents / rates.device + written
    # pageable memory passes through a buffer of the driver, at about half the speed
    return sizes.parents / (rates.link if place == HOST else rates.disk if from_disk else rates.link / 2) + written

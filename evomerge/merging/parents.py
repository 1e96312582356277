"""The parents of a search: mapped tensors, and what is measured on them once and asked for by every candidate."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeVar, final

import numpy as np
import numpy.typing as npt
import torch

from evomerge.checkpoints.dtypes import FLOATING
from evomerge.checkpoints.opened import OpenParent
from evomerge.errors import MergeError, suggest
from evomerge.merging.feeding import Stretch, feed
from evomerge.merging.gram import gram_matrix, vector_grams, vector_length
from evomerge.merging.kernels import Kernels
from evomerge.merging.measures import Deltas, Measurement
from evomerge.merging.methods import Facts
from evomerge.merging.packed8 import Packed, pack, unpack
from evomerge.merging.residence import DEVICE, DISK, Holding
from evomerge.merging.settings import Cut
from evomerge.merging.thresholds import MagnitudePart, Magnitudes, density_count, joint_cut

_T = TypeVar("_T")

WHOLE_MODEL: Final = ""
"""Stands for all tensors where a measurement looks at all of them."""


@final
class ParentPool:
    """Checkpoints by the names that recipes use, with their measurements.

    Histograms, thresholds and inner products are kept for as long as the pool lives. Picklable: the copy opens the
    checkpoints again and measures for itself.

    Args:
        checkpoints: name -> checkpoint; compatible with each other (see `checkpoints.compatible`).
        device: where merges run, torch's spelling.
        holding: where the parents live meanwhile, and in what form.
        devices: tensor -> device, where a model is spread over several; others are merged on `device`.

    Raises:
        MergeError: without checkpoints.

    Attributes:
        packs: whether merges read task vectors of eight bits; measurements always read the originals.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, OpenParent],
        device: str = "cpu",
        holding: Holding | None = None,
        devices: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        if not checkpoints:
            raise MergeError(
                "There is nothing to merge.",
                got="no checkpoints",
                allowed="one parent or more",
                fix="name some parents.",
            )
        self.checkpoints: Mapping[str, OpenParent] = MappingProxyType(dict(checkpoints))
        self.device = device
        self._devices = dict(devices)
        self._holding = holding or Holding(DISK if device == "cpu" else DEVICE)
        self.packs = self._holding.packed_from is not None
        self._flat: dict[tuple[str, str], torch.Tensor] = {}
        self._packed: dict[tuple[str, str], Packed] = {}
        self._measured: dict[str, dict[Hashable, Any]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (ParentPool, (dict(self.checkpoints), self.device, self._holding, self._devices))

    def device_of(self, tensor: str) -> str:
        """Where a tensor is merged."""
        return self._devices.get(tensor, self.device)

    def checkpoint(self, parent: str) -> OpenParent:
        """The checkpoint of a parent.

        Raises:
            MergeError: for an unknown name.
        """
        if parent not in self.checkpoints:
            raise MergeError(
                "A recipe names a parent that is not loaded.",
                got=repr(parent),
                allowed=suggest(parent, self.checkpoints),
                fix="use the names of the job's parents, or open the missing checkpoint too.",
            )
        return self.checkpoints[parent]

    def flat(self, parent: str, tensor: str) -> torch.Tensor:
        """A parent's own tensor as one axis, where it lives: a view of its file unless copies are held; read only."""
        key = (parent, tensor)
        if key not in self._flat:
            stored = self.checkpoint(parent).tensor(tensor).contiguous().view(-1)
            self._flat[key] = stored if self._is_packed(parent) else self._at_home(stored, self.device_of(tensor))
        return self._flat[key]

    def pack_when(self, searching: bool) -> None:
        """Have merges read packed task vectors, where the pool holds them, or the originals.

        Args:
            searching: whether the next candidates only have to be told apart; what is chosen is scored as it is.
        """
        self.packs = searching and self._holding.packed_from is not None

    def _at_home(self, stored: torch.Tensor, device: str) -> torch.Tensor:
        if self._holding.place == DEVICE:
            return stored.to(device)
        if self._holding.place == DISK:
            return stored
        return stored.clone() if device == "cpu" else stored.pin_memory()

    def _is_packed(self, parent: str) -> bool:
        return self._holding.packed_from not in (None, parent)

    def _pack(self, parent: str, tensor: str) -> Packed | None:
        """The packed form of a tensor; None where merges read the original."""
        base = self._holding.packed_from
        if not self.packs or base is None or base == parent:
            return None
        key = (parent, tensor)
        if key not in self._packed:
            origin, x = self.flat(base, tensor), self.flat(parent, tensor)
            device = self.device_of(tensor)
            packed = pack(origin, x, device if self._holding.place == DEVICE else "cpu")
            pinned = device != "cpu" and self._holding.place != DEVICE
            self._packed[key] = packed.pinned() if pinned else packed
            self.checkpoint(parent).release(tensor)
        return self._packed[key]

    def read(self, parent: str, tensor: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """What a merge reads of a parent's floating tensor: elements `[start, stop)`, on the device; read only.

        Args:
            parent: its name.
            tensor: its name.
            start: first element.
            stop: behind the last element; None reads to the end.
        """
        packed, device = self._pack(parent, tensor), self.device_of(tensor)
        if packed is None:
            return self.flat(parent, tensor)[start:stop].to(device, non_blocking=True)
        until = packed.codes.numel() if stop is None else stop
        origin = self.flat(self._holding.packed_from or "", tensor)[start:until]
        return unpack(packed, origin.to(device, non_blocking=True), start, until)

    def feed(self, parents: Sequence[str], tensor: str, start: int, stop: int) -> Iterator[Stretch]:
        """What a merge reads of some parents, in parts that follow each other.

        Args:
            parents: their names.
            tensor: a floating one.
            start: first element.
            stop: behind the last element.
        """
        if all(self._is_at_hand(p, tensor) for p in parents):
            return iter([Stretch(start, [self.flat(p, tensor)[start:stop] for p in parents])])
        device = self.device_of(tensor)
        return feed(lambda a, b: [self.read(p, tensor, a, b) for p in parents], start, stop, device)

    def _is_at_hand(self, parent: str, tensor: str) -> bool:
        own_device = torch.device(self.device_of(tensor)).type
        return self._pack(parent, tensor) is None and self.flat(parent, tensor).device.type == own_device

    def cut(self, tensor: str, parent: str, base: str, count: int, kernels: Kernels) -> Cut:
        """The threshold above which exactly `count` entries of `parent - base` lie.

        The first call for a tensor and parent counts all magnitudes, the first for a count reads one bin again; later
        calls look the answer up. The kernels do not change it.
        """
        origin, x = self.flat(base, tensor), self.flat(parent, tensor)
        magnitudes = self.measured(tensor, ("magnitudes", parent, base), lambda: Magnitudes.measure(origin, x, kernels))
        return magnitudes.cut(count, origin, x, (tensor, parent))

    def gram(self, tensor: str, parents: tuple[str, ...]) -> npt.NDArray[np.float64]:
        """Inner products of the parents' tensors, shape `(n, n)`, fp64."""
        return self.measured(tensor, ("gram", parents), lambda: gram_matrix([self.flat(p, tensor) for p in parents]))

    def measured(self, tensor: str, key: Hashable, measure: Callable[[], _T]) -> _T:
        """What was measured on a tensor of some parents, measured when it is asked for first.

        Args:
            tensor: what was looked at; `WHOLE_MODEL` for all tensors together.
            key: what was measured, and on which parents; one key always means the same function.
            measure: does it.
        """
        found = self._measured.setdefault(tensor, {})
        if key not in found:
            found[key] = measure()
            if tensor == WHOLE_MODEL:
                for info in next(iter(self.checkpoints.values())).layout.tensors:
                    self.release(info.name)
        result: _T = found[key]
        return result

    def forget(self, tensor: str) -> None:
        """Drop all that was measured on a tensor and every copy of it; a merge that streams asks for it no more."""
        self._measured.pop(tensor, None)
        for parent in self.checkpoints:
            self._flat.pop((parent, tensor), None)
            self._packed.pop((parent, tensor), None)
        self.release(tensor)

    def release(self, tensor: str) -> None:
        """Give mapped pages of a tensor back to the system; it can be read as before."""
        for checkpoint in self.checkpoints.values():
            checkpoint.release(tensor)

    def measured_bytes(self) -> int:
        """Bytes of all that was measured: what has an attribute `nbytes` counts."""
        return sum(int(getattr(m, "nbytes", 0)) for found in self._measured.values() for m in found.values())


@final
class PoolFacts(Facts):
    """Facts about one tensor of a pool."""

    def __init__(
        self,
        pool: ParentPool,
        tensor: str,
        shape: tuple[int, ...],
        *,
        base: str | None,
        parents: tuple[str, ...],
        kernels: Kernels,
    ) -> None:
        self._pool = pool
        self._tensor = tensor
        self._shape = shape
        self._base = base
        self._parents = parents
        self._kernels = kernels

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Facts.shape`."""
        return self._shape

    @property
    def has_base(self) -> bool:
        """See `Facts.has_base`."""
        return self._base is not None

    def gram(self, *, deltas: bool = False) -> npt.NDArray[np.float64]:
        """See `Facts.gram`."""
        return self._gram(self._tensor) if deltas else self._pool.gram(self._tensor, self._parents)

    def _gram(self, tensor: str) -> npt.NDArray[np.float64]:
        def measure() -> npt.NDArray[np.float64]:
            return gram_matrix(
                [self._pool.flat(p, tensor) for p in self._parents], self._pool.flat(self._origin, tensor)
            )

        return self._pool.measured(tensor, ("delta gram", self._parents, self._origin), measure)

    def vector_grams(self, *, deltas: bool, columns: bool) -> npt.NDArray[np.float64]:
        """See `Facts.vector_grams`."""
        origin = self._origin if deltas else None
        length = vector_length(self._shape, columns=columns)

        def measure() -> npt.NDArray[np.float64]:
            base = None if origin is None else self._pool.flat(origin, self._tensor)
            inputs = [self._pool.flat(p, self._tensor) for p in self._parents]
            return vector_grams(inputs, base, length, columns=columns)

        return self._pool.measured(self._tensor, ("vector grams", self._parents, origin, length, columns), measure)

    def model_gram(self) -> npt.NDArray[np.float64]:
        """See `Facts.model_gram`."""

        def measure() -> npt.NDArray[np.float64]:
            grams = [
                self._gram(t.name) for t in self._pool.checkpoint(self._origin).layout.tensors if t.dtype in FLOATING
            ]
            return np.asarray(np.sum(grams, axis=0), np.float64)

        return self._pool.measured(WHOLE_MODEL, ("model gram", self._parents, self._origin), measure)

    def cut(self, index: int, count: int) -> Cut:
        """See `Facts.cut`."""
        return self._pool.cut(self._tensor, self._parents[index], self._origin, count, self._kernels)

    def model_cut(self, index: int, density: float) -> Cut:
        """See `Facts.model_cut`."""
        parent = self._parents[index]
        tensors = self._pool.checkpoint(self._origin).layout.tensors
        names = [t.name for t in tensors if t.dtype in FLOATING and len(t.shape) > 1]

        def measure() -> Cut:
            parts = [
                MagnitudePart(self._magnitudes(parent, n), partial(self._pair, parent, n), (n, parent)) for n in names
            ]
            count = density_count(density, sum(p.magnitudes.numel for p in parts))
            return joint_cut(count, parts, self._kernels)

        return self._pool.measured(WHOLE_MODEL, ("model cut", parent, self._origin, density), measure)

    def norm(self, index: int, count: int) -> float:
        """See `Facts.norm`."""
        parent = self._parents[index]
        return self._magnitudes(parent, self._tensor).norm(count, *self._pair(parent, self._tensor))

    def ranks(self, index: int) -> torch.Tensor:
        """See `Facts.ranks`."""
        parent, length = self._parents[index], vector_length(self._shape, columns=False)
        pair = self._pair(parent, self._tensor)
        return self._pool.measured(
            self._tensor, ("ranks", parent, self._origin), lambda: self._kernels.ranks(*pair, length)
        )

    def ranks_within(self, index: int, start: int, stop: int) -> torch.Tensor:
        """The ranks of elements `[start, stop)`; those of the whole tensor are kept."""
        return self.ranks(index)[start:stop]

    def ranks_between(self, index: int, start: int, stop: int) -> torch.Tensor:
        """The ranks of elements `[start, stop)`, from their rows alone and not kept: for merges that stream."""
        length = max(vector_length(self._shape, columns=False), 1)
        first, last = start // length * length, -(-stop // length) * length
        base, x = (t[first:last] for t in self._pair(self._parents[index], self._tensor))
        return self._kernels.ranks(base, x, length)[start - first : stop - first]

    @property
    def pool(self) -> ParentPool:
        """The pool that is asked."""
        return self._pool

    @property
    def _origin(self) -> str:
        if self._base is None:
            raise ValueError("deltas need a base")
        return self._base

    def _pair(self, parent: str, tensor: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self._pool.flat(self._origin, tensor), self._pool.flat(parent, tensor)

    def _magnitudes(self, parent: str, tensor: str) -> Magnitudes:
        pair = self._pair(parent, tensor)
        key = ("magnitudes", parent, self._origin)
        return self._pool.measured(tensor, key, lambda: Magnitudes.measure(*pair, self._kernels))

    def measure(self, measurement: Measurement[_T]) -> _T:
        """See `Facts.measure`; the whole model is all its floating tensors with two axes or more."""
        if self._base is None:
            raise ValueError("a measurement needs a base")
        base = self._base
        if measurement.whole_model:
            layout = self._pool.checkpoint(base).layout
            wanted = {t.name: t.shape for t in layout.tensors if t.dtype in FLOATING and len(t.shape) > 1}
        else:
            wanted = {self._tensor: self._shape}

        def take() -> _T:
            return measurement.take([self._deltas(name, shape, base) for name, shape in wanted.items()])

        tensor = WHOLE_MODEL if measurement.whole_model else self._tensor
        if not measurement.passing:
            return self._pool.measured(tensor, (measurement, base, self._parents), take)
        latest: dict[Measurement[_T], _T] = self._pool.measured(tensor, (type(measurement), base, self._parents), dict)
        if measurement not in latest:
            value = take()
            latest.clear()
            latest[measurement] = value
        return latest[measurement]

    def _deltas(self, tensor: str, shape: tuple[int, ...], base: str) -> Deltas:
        inputs = tuple(self._pool.flat(p, tensor) for p in self._parents)
        return Deltas(tensor, shape, self._pool.flat(base, tensor), inputs, self._kernels)

"""The measurements of the fused methods."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, final

import numpy as np
import torch

from evomerge.merging.elements import at_most, hash_range, signed
from evomerge.merging.fused_eager import chosen, spread, steepness_of
from evomerge.merging.fused_settings import FusedSetting, Rows
from evomerge.merging.lanes import LaneSum
from evomerge.merging.measures import PART, Deltas, Measurement, Ranking
from evomerge.merging.settings import Cut, single
from evomerge.merging.thresholds import density_count


class Moments(NamedTuple):
    """Of one delta.

    Attributes:
        magnitude: mean of the magnitudes.
        deviation: standard deviation, with `numel - 1`; 0 for one element.
        norm: Euclidean.
    """

    magnitude: float
    deviation: float
    norm: float


@final
@dataclass(frozen=True)
class MeasureMoments(Measurement[tuple[Moments, ...]]):
    """The moments of every model's delta."""

    def guess(self, shape: tuple[int, ...], n: int) -> tuple[Moments, ...]:
        """See `Measurement.guess`."""
        return (Moments(1.0, 1.0, 1.0),) * n

    def take(self, tensors: Sequence[Deltas]) -> tuple[Moments, ...]:
        """See `Measurement.take`."""
        (deltas,) = tensors
        sums = [(LaneSum(), LaneSum(), LaneSum()) for _ in deltas.inputs]
        for part in deltas.parts():
            for delta, (plain, magnitude, square) in zip(part, sums, strict=True):
                wide = delta.double()
                plain.add(wide)
                magnitude.add(wide.abs())
                square.add(wide * wide)
        n = deltas.numel
        found = []
        for totals in sums:
            total, size, squares = (s.total() for s in totals)
            variance = max(squares - total * total / n, 0.0) / (n - 1) if n > 1 else 0.0
            found.append(Moments(size / n if n else 0.0, math.sqrt(variance), math.sqrt(squares)))
        return tuple(found)


class Changes(NamedTuple):
    """How many entries one model changed.

    Attributes:
        alone: those that it alone changed.
        common: those that others changed too.
    """

    alone: int
    common: int


@final
@dataclass(frozen=True)
class MeasureChanges(Measurement[tuple[Changes, ...]]):
    """How many entries each model changed by more than `epsilon`, alone and together with others."""

    epsilon: float

    def guess(self, shape: tuple[int, ...], n: int) -> tuple[Changes, ...]:
        """See `Measurement.guess`."""
        return (Changes(1, 1),) * n

    def take(self, tensors: Sequence[Deltas]) -> tuple[Changes, ...]:
        """See `Measurement.take`."""
        (deltas,) = tensors
        counts = torch.zeros(len(deltas.inputs), 2, dtype=torch.int64)
        for part in deltas.parts():
            active = torch.stack([delta.abs() > self.epsilon for delta in part])
            lone = active.sum(dim=0) == 1
            counts[:, 0] += (active & lone).sum(dim=1)
            counts[:, 1] += (active & ~lone).sum(dim=1)
        return tuple(Changes(int(alone), int(common)) for alone, common in counts.tolist())


class Selection(NamedTuple):
    """What SCE selects in one tensor, and how much of each model lies in it.

    Attributes:
        cut: entries of `fused_eager.spread` above it are selected; None selects all.
        energies: sum of the squares of each model's selected deltas.
    """

    cut: Cut | None
    energies: tuple[float, ...]


@final
@dataclass(frozen=True)
class MeasureSelection(Measurement[Selection | None]):
    """The entries where the models differ most, a share of those where they differ at all; None selects none.

    Attributes:
        share: in [0, 1]; 1 selects everything.
        salts: of the hash that breaks ties.
    """

    share: float
    salts: tuple[int, int]

    def guess(self, shape: tuple[int, ...], n: int) -> Selection | None:
        """See `Measurement.guess`."""
        return Selection(Cut(1, 0) if self.share < 1.0 else None, (1.0,) * n)

    def take(self, tensors: Sequence[Deltas]) -> Selection | None:
        """See `Measurement.take`."""
        (deltas,) = tensors
        cut: Cut | None = None
        if self.share < 1.0:
            setting = FusedSetting("sce", tuple(range(len(deltas.inputs))), switches=frozenset({"trim"}))
            ranking = Ranking(partial(_scores, tensors, setting))
            count = density_count(self.share, ranking.above_zero())
            if count == 0:
                return None
            cut = ranking.cut(count, self.salts)
        sums = [LaneSum() for _ in deltas.inputs]
        for index, part in enumerate(deltas.parts()):
            kept = part if cut is None else self._selected(part, cut, index * PART)
            for total, delta in zip(sums, kept, strict=True):
                total.add(delta.double() * delta.double())
        return Selection(cut, tuple(total.total() for total in sums))

    def _selected(self, part: Sequence[torch.Tensor], cut: Cut, first: int) -> list[torch.Tensor]:
        scores = spread(part)
        ties = hash_range(first, scores, self.salts[0]) ^ signed(self.salts[1])
        keep = (scores.view(torch.int32) + at_most(ties, cut.bound).to(torch.int32)) > cut.bits
        return [chosen(delta, keep) for delta in part]


class Gate(NamedTuple):
    """Which entries matter: those with `|delta| * number of the row >= threshold`.

    Attributes:
        rows: divergence of every row.
        threshold: fp32 value.
    """

    rows: Rows
    threshold: float


_FLOOR = 1e-8


@final
@dataclass(frozen=True)
class MeasureGate(Measurement[Gate]):
    """Arcee Fusion's importance of the first model: `|delta|` times the divergence of its row.

    The divergence is `sum p log(p / q)` of the softmaxed rows plus 1e-8, in fp64; the threshold is the median plus
    1.5 times the distance of the quartiles, each the lower of its neighbours, over all entries.
    """

    def guess(self, shape: tuple[int, ...], n: int) -> Gate:
        """See `Measurement.guess`."""
        return Gate(Rows(1, b""), 1.0)

    def take(self, tensors: Sequence[Deltas]) -> Gate:
        """See `Measurement.take`."""
        (deltas,) = tensors
        width = deltas.shape[-1]
        rows = np.concatenate([_divergence(deltas, start, width) for start in _row_starts(deltas.numel, width)])
        numbers = torch.from_numpy(rows)

        def importance() -> Iterator[Sequence[torch.Tensor]]:
            for start in range(0, deltas.numel, PART):
                delta = deltas.part(start)[0]
                at = torch.arange(start, start + delta.numel()) // width
                yield [delta.abs() * numbers[at]]

        last = deltas.numel - 1
        (found,) = Ranking(importance).values([[last // 4, last // 2, 3 * last // 4]])
        low, median, high = found
        return Gate(Rows(width, rows.tobytes()), single(median + 1.5 * (high - low)))


def _row_starts(numel: int, width: int) -> range:
    return range(0, numel, max(PART // width, 1) * width)


def _divergence(deltas: Deltas, start: int, width: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Of the rows from element `start` on, as many as are read at a time."""
    part = slice(start, start + max(PART // width, 1) * width)
    logs = []
    for x in (deltas.inputs[0], deltas.base):
        wide = x[part].cpu().double().view(-1, width)
        shifted = torch.exp(wide - wide.max(dim=1, keepdim=True).values)
        logs.append(shifted / shifted.sum(dim=1, keepdim=True) + _FLOOR)
    p, q = logs
    return (p * torch.log(p / q)).sum(dim=1).float().numpy()


def _scores(tensors: Sequence[Deltas], setting: FusedSetting) -> Iterator[Sequence[torch.Tensor]]:
    """The scores of some tensors, part by part."""
    for tensor in tensors:
        for start in range(0, tensor.numel, PART):
            part = slice(start, start + PART)
            yield tensor.kernels.scores(setting, tensor.base[part], [x[part] for x in tensor.inputs])


def clip_ranks(numel: int, clip: float) -> tuple[int, int]:
    """The ranks, from 0, of the magnitudes at which PCB clamps."""
    low = int(numel * clip)
    return low, max(int(numel * (1.0 - clip) - 1), low)


@final
@dataclass(frozen=True)
class MeasureCompetition(Measurement[tuple[tuple[float, ...], ...]]):
    """PCB's thresholds: low, high, origin, inverse of the magnitudes, least, most, inverse of the balances, per model.

    Attributes:
        ratio: share of the entries that survive the competition.
        clip: share of the smallest, and of the largest, magnitudes that are clamped.
        whole_model: over all tensors together.
        clamps: the two magnitudes of each model, where they are known.
    """

    ratio: float
    clip: float
    whole_model: bool = False
    clamps: tuple[tuple[float, float], ...] = ()

    def guess(self, shape: tuple[int, ...], n: int) -> tuple[tuple[float, ...], ...]:
        """See `Measurement.guess`."""
        return ((0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0),) * n

    def take(self, tensors: Sequence[Deltas]) -> tuple[tuple[float, ...], ...]:
        """See `Measurement.take`."""
        n, d = len(tensors[0].inputs), sum(t.numel for t in tensors)

        def magnitudes() -> Iterator[Sequence[torch.Tensor]]:
            for tensor in tensors:
                for part in tensor.parts():
                    yield [delta.abs() for delta in part]

        sizes = self.clamps or Ranking(magnitudes).values([clip_ranks(d, self.clip)] * n)
        clamps = [(low, high, *_origin(low, high)) for low, high in sizes]
        setting = FusedSetting("pcb", tuple(range(n)), (1.0, steepness_of(n)), tuple(clamps))
        survivor = min(int(d * (1.0 - self.ratio)), d - 1)
        scores = Ranking(partial(_scores, tensors, setting)).values([[survivor, d - 1]] * n)
        return tuple(
            (*clamp, least, most, single(1.0 / (most - least)) if most > least else 0.0)
            for clamp, (least, most) in zip(clamps, scores, strict=True)
        )


def _origin(low: float, high: float) -> tuple[float, float]:
    """What is taken from a clamped magnitude, and what it is then multiplied by, so that [low, high] becomes [0, 1].

    Magnitudes that are all the same become 1, or 0 where they vanish.
    """
    if high > low:
        return low, single(1.0 / (high - low))
    return (-1.0, single(1.0 / (high + 1.0))) if high > 0.0 else (0.0, 1.0)


@final
@dataclass(frozen=True)
class MeasureEnergy(Measurement[float]):
    """The squared norm of the merged delta that a setting gives, before it is scaled.

    Attributes:
        setting: without its scale, which does not matter.
    """

    setting: FusedSetting
    passing = True

    def guess(self, shape: tuple[int, ...], n: int) -> float:
        """See `Measurement.guess`."""
        return 1.0

    def take(self, tensors: Sequence[Deltas]) -> float:
        """See `Measurement.take`."""
        (deltas,) = tensors
        return deltas.kernels.energy(self.setting, deltas.base, deltas.inputs)

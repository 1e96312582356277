"""WIDEN (arXiv 2408.03092): deltas weighed by column, by the ranks of how magnitude and direction changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch

from evomerge.merging.fused_methods import NOTHING
from evomerge.merging.measures import Deltas, Measurement
from evomerge.merging.methods import Facts, KernelMethod, Parameters
from evomerge.merging.settings import Setting, VectorSetting
from evomerge.recipe.element_specs import WIDEN

Array = npt.NDArray[np.float64]

_EMBEDDING: Final = re.compile(r"(^|\.)(?!embed_out)(\w*embed\w*|w[tp]e|shared)\.weight$")
_BLOCK: Final = 1 << 20


class Significances(NamedTuple):
    """How much each model's columns changed.

    Attributes:
        lists: what is turned to scores and averaged: ranks of the magnitudes and of the directions, or the deltas'
            magnitudes themselves for one axis; each of shape `(n, columns)`.
        by_row: the "columns" are the tensor's rows.
    """

    lists: tuple[Array, ...]
    by_row: bool


@final
@dataclass(frozen=True)
class MeasureSignificance(Measurement[Significances]):
    """WIDEN's significances.

    Attributes:
        by_row: rows stand for columns, as for embeddings, where a row belongs to a token.
    """

    by_row: bool

    def guess(self, shape: tuple[int, ...], n: int) -> Significances:
        """See `Measurement.guess`."""
        size = int(np.prod(shape, dtype=np.int64))
        width = size if len(shape) <= 1 else shape[-1]
        return Significances((np.zeros((n, size // max(width, 1) if self.by_row else width)),), self.by_row)

    def take(self, tensors: Sequence[Deltas]) -> Significances:
        """See `Measurement.take`."""
        (deltas,) = tensors
        if len(deltas.shape) <= 1:
            sizes = [(x.double() - deltas.base.double()).abs().cpu().numpy().reshape(-1) for x in deltas.inputs]
            return Significances((np.stack(sizes),), False)
        changes = [_changes(x, deltas.base, deltas.shape[-1], by_row=self.by_row) for x in deltas.inputs]
        return Significances(
            tuple(np.stack([_ranks(c) for c in found]) for found in zip(*changes, strict=True)), self.by_row
        )


def _changes(x: torch.Tensor, base: torch.Tensor, width: int, *, by_row: bool) -> tuple[Array, Array]:
    """How much the magnitudes and the directions of the columns differ: `|m - m_0|` and `1 - cos`."""
    sums: list[Array] = []
    rows = x.numel() // width
    step = max(_BLOCK // width, 1)
    for start in range(0, rows, step):
        part = slice(start * width, (start + step) * width)
        a, b = (t[part].cpu().double().numpy().reshape(-1, width) for t in (x, base))
        sums.append(np.stack([np.add.reduce(y, axis=1 if by_row else 0) for y in (a * a, a * b, b * b)]))
    aa, ab, bb = np.concatenate(sums, axis=1) if by_row else np.add.reduce(sums, axis=0)
    sizes = np.sqrt(aa) * np.sqrt(bb)
    cosine = np.divide(ab, sizes, out=np.where(aa == bb, 1.0, 0.0), where=sizes > 0.0)
    return np.abs(np.sqrt(aa) - np.sqrt(bb)), 1.0 - cosine


def _ranks(values: Array) -> Array:
    """Ranks from 0, in order of the columns among equals, over their number."""
    ranks = np.empty(values.size)
    ranks[np.argsort(values, kind="stable")] = np.arange(values.size)
    return ranks / values.size


def scores(significances: Array, above_average: float, score: float) -> Array:
    """Softmax over the models; `score` where a significance exceeds `above_average` times its model's mean.

    Args:
        significances: shape `(n, columns)`.
        above_average: the factor t of the paper.
        score: what the exceeding get, c of the paper.
    """
    powers = np.exp(significances - significances.max(axis=0))
    softmax = powers / powers.sum(axis=0)
    mean = significances.sum(axis=1, keepdims=True) / max(significances.shape[1], 1)
    exceeding = significances > (mean * above_average) * (1.0 + 1e-12)
    return np.where(exceeding, score, softmax)


@final
class Widen(KernelMethod):
    """`base + sum_i weight_i s_i delta_i` with a score s per model and column (WIDEN, arXiv 2408.03092).

    A column's magnitude is its norm, its direction the column divided by that. The columns of a model are ranked by how
    much their magnitude changed, and by how much their direction did; ranks become `scores`, and the two are averaged.
    Rows take the place of columns in embeddings; tensors with one axis are scored by the magnitudes of their deltas.
    Where the authors' vanishing column gives NaN, its direction has not changed.
    """

    spec = WIDEN

    def compile(self, parameters: Parameters, facts: Facts) -> Setting:
        """See `KernelMethod.compile`."""
        if facts.numel == 0:
            return NOTHING
        by_row = len(facts.shape) > 1 and _EMBEDDING.search(parameters.tensor) is not None
        found = facts.measure(MeasureSignificance(by_row))
        t, c = float(parameters.shared["above_average"]), float(parameters.shared["score"])
        mean = np.add.reduce([scores(s, t, c) for s in found.lists], axis=0) / len(found.lists)
        table = (mean * np.array(parameters.column("weight"))[:, None]).astype(np.float32)
        n, vectors = table.shape
        length = facts.numel // max(vectors, 1)
        return VectorSetting(tuple(range(n)), table.tobytes(), vectors, length, "rows" if by_row else "columns", True)


WIDEN_METHOD: Final = Widen()

"""Measures a survey of parents: one pass over the weights, a few chunks in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from evomerge.checkpoints.dtypes import FLOATING
from evomerge.checkpoints.opened import OpenParent
from evomerge.layout import ROLES, Role, TensorInfo
from evomerge.survey.values import Matrix, Section, Survey

_CHUNK: Final = 1 << 20

VERSION: Final = 1
"""Raised when other numbers are measured than before."""

Matrices = npt.NDArray[np.float64]


class _Totals:
    """Sums over the tensors of one section; `n` models."""

    def __init__(self, n: int) -> None:
        self.numel = 0
        self.origin = 0.0
        self.gram = np.zeros((n, n))
        self.sums = np.zeros(n)
        self.moved = np.zeros(n)
        self.both = np.zeros((n, n))
        self.opposed = np.zeros((n, n))

    def add(self, origin: torch.Tensor, models: Sequence[torch.Tensor]) -> None:
        """One chunk: flat fp32 tensors of one length."""
        self.numel += origin.numel()
        self.origin += _dot(origin, origin)
        deltas = [x - origin for x in models]
        signs = [d.sign() for d in deltas]
        for i, delta in enumerate(deltas):
            self.sums[i] += float(delta.sum(dtype=torch.float64))
            self.moved[i] += float(signs[i].abs().sum(dtype=torch.float64))
            for j in range(i + 1):
                self.gram[i, j] = self.gram[j, i] = self.gram[i, j] + _dot(delta, deltas[j])
                product = signs[i] * signs[j]
                both = float(product.abs().sum(dtype=torch.float64))
                opposed = (both - float(product.sum(dtype=torch.float64))) / 2
                self.both[i, j] = self.both[j, i] = self.both[i, j] + both
                self.opposed[i, j] = self.opposed[j, i] = self.opposed[i, j] + opposed

    def section(self, layer: int | None, role: Role) -> Section:
        """What was summed."""
        sums, moved = (tuple(map(float, v)) for v in (self.sums, self.moved))
        matrices = (_rows(self.both), _rows(self.opposed))
        return Section(layer, role, self.numel, self.origin, _rows(self.gram), sums, moved, *matrices)


def _rows(matrix: Matrices) -> Matrix:
    return tuple(tuple(float(v) for v in row) for row in matrix)


def _dot(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x.double() * y.double()).sum())


def measure_survey(
    parents: Mapping[str, OpenParent], base: str | None, report: Callable[[int, int], None] | None = None
) -> Survey:
    """Norms, inner products and sign counts of all parents' deltas, in fp64 sums of fp32 differences.

    Args:
        parents: name -> parent, the base among them; compatible with each other.
        base: origin of the deltas; None takes the models' mean.
        report: told how many of how many tensors are done.
    """
    models = tuple(name for name in parents if name != base)
    layout = parents[base if base is not None else models[0]].layout
    floating = [t for t in layout.tensors if t.dtype in FLOATING]
    totals: dict[tuple[int | None, Role], _Totals] = {}
    for done, info in enumerate(floating):
        if report is not None:
            report(done, len(floating))
        section = totals.setdefault((info.layer, info.role), _Totals(len(models)))
        _add_tensor(section, info, parents, models, base)
    order = sorted(totals, key=lambda k: (-1 if k[0] is None else k[0], ROLES.index(k[1])))
    return Survey(models, base, layout.n_layers, tuple(totals[key].section(*key) for key in order))


def _add_tensor(
    totals: _Totals, info: TensorInfo, parents: Mapping[str, OpenParent], models: Sequence[str], base: str | None
) -> None:
    flat = {name: parent.tensor(info.name).reshape(-1) for name, parent in parents.items()}
    for start in range(0, max(1, flat[models[0]].numel()), _CHUNK):
        chunk = {name: x[start : start + _CHUNK].float() for name, x in flat.items()}
        origin = chunk[base] if base is not None else torch.stack([chunk[m] for m in models]).mean(dim=0)
        totals.add(origin, [chunk[m] for m in models])

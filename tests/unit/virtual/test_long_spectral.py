"""Matrices as large as those of a small model; behind the marker `long`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evomerge.virtual.iso import ISO_C, ISO_CTS
from evomerge.virtual.knots import KNOTS
from evomerge.virtual.opcm import without
from evomerge.virtual.spectral import newton_schulz, polar
from evomerge.virtual.star import STAR
from evomerge.virtual.tsv import TSV_M
from evomerge.virtual.wudi import minimiser

pytestmark = pytest.mark.long
SHAPES = [(1024, 2816), (2816, 1024), (1024, 1024)]


def draw(shape: tuple[int, int], models: int) -> list[torch.Tensor]:
    """Deltas with a spectrum that falls off, of the size that fine-tuning gives."""
    found = []
    for i in range(models):
        rng = np.random.default_rng(i)
        strong = rng.standard_normal((shape[0], 40)) @ rng.standard_normal((40, shape[1])) / 10
        found.append(torch.from_numpy(1e-4 * (strong + rng.standard_normal(shape))).float())
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("condition", "tolerance"), [(None, 1e-4), (1e2, 1e-5), (1e4, 2e-4)])
def test_newton_schulz(shape: tuple[int, int], condition: float | None, tolerance: float) -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(shape)).float()
    if condition is not None:
        u, s, vt = torch.linalg.svd(x.double(), full_matrices=False)
        x = ((u * torch.logspace(0, -float(np.log10(condition)), s.numel(), dtype=torch.float64)) @ vt).float()
    u, _, vt = torch.linalg.svd(x.double(), full_matrices=False)
    expected = u @ vt
    assert (newton_schulz(x).double() - expected).norm() < tolerance * expected.norm()
    if condition is not None or shape[0] != shape[1]:  # a square Gaussian may have a value below the tolerance
        assert (polar(x) - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_makers_against_whole_decompositions(shape: tuple[int, int]) -> None:
    deltas = draw(shape, 3)
    xs = [d.double() for d in deltas]
    parts = [torch.linalg.svd(x, full_matrices=False) for x in xs]
    kept = min(shape) // 3
    u = torch.cat([p[0][:, :kept] for p in parts], 1)
    s = torch.cat([p[1][:kept] for p in parts])
    vt = torch.cat([p[2][:kept] for p in parts])
    (a, _, b), (c, _, d) = (torch.linalg.svd(y, full_matrices=False) for y in (u, vt))
    pairs = {"tsv_m": (TSV_M.matrix(deltas, {}), (a @ b) @ torch.diag(s) @ (c @ d))}
    a, t, b = torch.linalg.svd(xs[0] + xs[1] + xs[2], full_matrices=False)
    for exact in (True, False):
        pairs[f"iso_c {exact}"] = (ISO_C.matrix(deltas, {"exact": exact}), t.mean() * a @ b)
    s0 = parts[0].S
    rank = int((s0.cumsum(0) < 0.4 * s0.sum()).sum()) + 1
    cut = (parts[0].U[:, :rank] * s0[:rank]) @ parts[0].Vh[:rank] * (s0.sum() / s0[:rank].sum())
    pairs["star"] = (STAR.matrix(deltas[:1], {"eta": 40.0}), cut)
    r = int((s0.cumsum(0) <= 0.5 * s0.sum()).sum())
    p = parts[0].U.T @ xs[1] @ parts[0].Vh.T
    dropped = torch.diag(p.diagonal())
    dropped[:r, :r] = p[:r, :r]
    pairs["opcm"] = (without(deltas[1], deltas[0], 0.5), xs[1] - parts[0].U @ dropped @ parts[0].Vh)
    for name, (got, expected) in pairs.items():
        assert (got.double() - expected).norm() < 2e-4 * expected.norm(), name
    best = minimiser(deltas)
    slope = sum(((best - x) @ (x.T @ x) / x.square().sum() for x in xs), start=torch.zeros(shape, dtype=torch.float64))
    assert slope.norm() < 1e-8 * max(float(x.norm()) for x in xs)
    plain = KNOTS.matrix(deltas, {"density": 1.0, "elect": False, "mean": False})
    assert (plain - sum(xs[1:], start=xs[0])).norm() < 1e-6 * plain.norm()
    assert ISO_CTS.matrix(deltas, {"common": 0.8}).isfinite().all()

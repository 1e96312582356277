"""What the authors' code gave on two small sets of matrices; `values_from_authors.json` names file and commit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evomerge.virtual.iso import ISO_C, ISO_CTS
from evomerge.virtual.knots import KNOTS
from evomerge.virtual.opcm import OPCM
from evomerge.virtual.star import STAR
from evomerge.virtual.tsv import TSV_M
from evomerge.virtual.wudi import descend, minimiser

VALUES = json.loads((Path(__file__).parent / "values_from_authors.json").read_text())["values"]
SHAPES = {"wide": (4, 7), "tall": (6, 4)}
MODELS = {"wide": 3, "tall": 2}


def sample(i: int, m: int, n: int) -> torch.Tensor:
    rows, columns = np.arange(1, m + 1)[:, None], np.arange(2, n + 2)[None, :]
    return torch.from_numpy(np.sin(0.713 * (i + 1) * rows * columns + 0.3 * i)).float()


def rank_one(i: int, m: int, n: int) -> torch.Tensor:
    return torch.from_numpy(
        np.outer(np.sin((i + 1) * np.arange(1, m + 1)), np.cos((i + 2) * np.arange(1, n + 1)))
    ).float()


def assert_value(name: str, got: torch.Tensor, tolerance: float = 2e-5) -> None:
    assert np.abs(got.double().numpy() - np.array(VALUES[name])).max() < tolerance, name


@pytest.mark.parametrize("shape", SHAPES)
def test_spectral_makers(shape: str) -> None:
    deltas = [sample(i, *SHAPES[shape]) for i in range(MODELS[shape])]
    assert_value(f"tsv {shape}", TSV_M.matrix(deltas, {}), 5e-5)
    assert_value(f"iso_c {shape}", ISO_C.matrix(deltas, {"exact": True}))
    assert_value(f"iso_c {shape}", ISO_C.matrix(deltas, {"exact": False}))
    assert_value(f"iso_cts {shape}", ISO_CTS.matrix(deltas, {"common": 0.5}))
    # the wide matrix has two nearly equal singular values, which their fp32 SVD mixes
    assert_value(f"star 40 {shape}", STAR.matrix(deltas[:1], {"eta": 40.0}), 5e-4 if shape == "wide" else 2e-5)
    assert_value(f"star 75 {shape}", STAR.matrix(deltas[:1], {"eta": 75.0}))


def test_star_of_a_low_rank() -> None:
    assert_value("star lowrank 90", STAR.matrix([rank_one(0, 5, 4) + 0.5 * rank_one(1, 5, 4)], {"eta": 90.0}))


@pytest.mark.parametrize("shape", SHAPES)
def test_knots(shape: str) -> None:
    deltas = [sample(i, *SHAPES[shape]) for i in range(MODELS[shape])]
    half = (deltas[0].numel() // 2 + 1) / deltas[0].numel()  # theirs keeps one more than half
    assert_value(f"knots ties100 {shape}", 0.5 * KNOTS.matrix(deltas, {"density": 1.0, "elect": True, "mean": True}))
    assert_value(f"knots ties50 {shape}", KNOTS.matrix(deltas, {"density": half, "elect": True, "mean": True}))
    assert_value(f"knots tv50sum {shape}", KNOTS.matrix(deltas, {"density": half, "elect": False, "mean": False}))


def test_knots_of_low_rank() -> None:
    deltas = [rank_one(i, 5, 4) for i in range(3)]
    assert_value("knots lowrank", KNOTS.matrix(deltas, {"density": 1.0, "elect": True, "mean": True}))


@pytest.mark.parametrize("shape", SHAPES)
def test_wudi(shape: str) -> None:
    deltas = [1e-3 * sample(i, *SHAPES[shape]) for i in range(3)]
    assert_value(f"wudi 20 {shape}", 1e3 * descend(deltas, 20))
    assert_value(f"wudi 300 {shape}", 1e3 * descend(deltas, 300))
    assert_value(f"wudi 20000 {shape}", 1e3 * minimiser(deltas), 2e-3)  # steps of 1e-5 end that near


@pytest.mark.parametrize("alpha", [0.5, 0.8])
@pytest.mark.parametrize("shape", SHAPES)
def test_opcm_rescales_the_whole_model(shape: str, alpha: float, build) -> None:  # type: ignore[no-untyped-def]
    m, n = SHAPES[shape]
    names = ("model.layers.0.a.weight", "model.layers.0.a.bias")
    base = {names[0]: torch.zeros(m, n), names[1]: torch.zeros(m)}
    models = [{names[0]: sample(i, m, n), names[1]: sample(i + 5, 1, m)[0]} for i in range(3)]
    made = build(OPCM, base, models, {"alpha": alpha})
    assert_value(f"opcm {alpha} {shape}", made[names[0]], 2e-4)

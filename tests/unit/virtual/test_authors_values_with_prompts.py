"""What the authors' code gave; `values_with_prompts.json` names file and commit. MaTS's is scipy's: `test_regmean`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.layout import TensorInfo
from evomerge.recipe.recipe import ParentRef
from evomerge.virtual.fisher import weighted_mean
from evomerge.virtual.maker import Ingredients
from evomerge.virtual.regmean import Normal, solution

VALUES = json.loads((Path(__file__).parent / "values_with_prompts.json").read_text())["values"]


@pytest.mark.parametrize(("name", "outputs", "inputs"), [("wide", 3, 6), ("tall", 7, 4)])
def test_regmean(name: str, outputs: int, inputs: int) -> None:
    rng = np.random.default_rng(len(name) + outputs)
    maps = [torch.from_numpy(rng.standard_normal((outputs, inputs))) for _ in range(3)]
    given = [torch.from_numpy(rng.standard_normal((20, inputs))) for _ in range(3)]
    mean, normal = sum(maps) / 3, Normal(inputs, outputs)
    for w, x in zip(maps, given, strict=True):
        normal.add(x.T @ x / 20, (w - mean).T, 0.9)
    assert (mean + solution(normal).T).numpy() == pytest.approx(np.array(VALUES[f"regmean_{name}"]), abs=2e-6)


class _Model:
    def __init__(self, values: torch.Tensor) -> None:
        self._values = values

    def tensor(self, name: str) -> torch.Tensor:
        return self._values

    def release(self, name: str) -> None: ...


class _Diagonals:
    """As `fisher.Diagonals`: each divided by its root mean square over the whole model."""

    def __init__(self, values: list[dict[str, torch.Tensor]]) -> None:
        self._values = values

    def of(self, info: TensorInfo, model: int) -> torch.Tensor:
        whole = torch.cat([v.flatten() for v in self._values[model].values()])
        return self._values[model][info.name] / whole.square().mean().sqrt()


def test_fisher() -> None:
    """Their floor is added before they divide by the norm; here that moves nothing by more than 1e-5."""
    rng = np.random.default_rng(11)
    shapes = {"norm": (8,), "matrix": (3, 4)}
    models = {n: [torch.from_numpy(rng.standard_normal(s)).float() for _ in range(3)] for n, s in shapes.items()}
    squares = [{n: torch.from_numpy(rng.random(s)) * 10.0**i for n, s in shapes.items()} for i in range(3)]
    diagonals: Any = _Diagonals(squares)
    for name, shape in shapes.items():
        of: Any = tuple(_Model(m) for m in models[name])
        given = Ingredients(ParentRef("m", "m"), of, None, {"floor": 1e-6})
        found = weighted_mean(TensorInfo(name, shape, "F32", None, "other"), given, diagonals)
        assert found.numpy() == pytest.approx(np.array(VALUES[f"fisher_{name}"]), abs=1e-5)

"""Simulated answers, and sample logs as lm-eval writes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.irt.responses import Responses


def simulated(m: int, n: int, seed: int = 0) -> Responses:
    """Right and wrong answers of `m` models to `n` items of a one-dimensional bank."""
    rng = np.random.default_rng(seed)
    theta, slopes = rng.normal(size=(m, 1)), rng.uniform(0.7, 2.2, size=n)
    p = 1 / (1 + np.exp(-(theta * slopes + rng.normal(0, 1.2, size=n))))
    scores = (rng.random((m, n)) < p).astype(float)
    return Responses(scores, tuple(f"m{i}" for i in range(m)), tuple(f"i{i}" for i in range(n)))


@pytest.fixture
def answers() -> Callable[..., Responses]:
    return simulated


def line_of(document: Mapping[str, Any], score: Any, metric: str = "acc", filter_: str = "none") -> dict[str, Any]:
    return {"doc_id": 0, "doc": dict(document), "filter": filter_, "metrics": [metric], metric: score}


@pytest.fixture
def sample() -> Callable[..., dict[str, Any]]:
    """A line of a sample log with the keys that matter."""
    return line_of


@pytest.fixture
def log(tmp_path: Path) -> Callable[..., Path]:
    """Writes `samples_TASK_DATE.jsonl` into a folder of its own for every model."""

    def write(
        scores: Sequence[Any],
        *,
        task: str = "pick",
        model: str = "org__tiny",
        date: str = "2026-01-02T03-04-05.000006",
        results: Mapping[str, Any] | None = None,
        lines: Sequence[Mapping[str, Any]] | None = None,
    ) -> Path:
        folder = tmp_path / "logs" / model
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"samples_{task}_{date}.jsonl"
        told = lines if lines is not None else [line_of({"q": f"{task} {i}"}, s) for i, s in enumerate(scores)]
        path.write_text("".join(json.dumps(line) + "\n" for line in told))
        if results is not None:
            (folder / f"results_{date}.json").write_text(json.dumps(results))
        return path

    return write

"""A survey as tables over depth: one row per model or pair and module, one column per layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from evomerge.layout import Role
from evomerge.survey.values import Section, Survey

ROWS: Final[tuple[tuple[str, tuple[Role, ...]], ...]] = (
    ("attention", ("attention",)),
    ("mlp", ("mlp", "other")),
    ("norm", ("norm",)),
)
"""Modules inside the layers that have a row of their own."""

OUTSIDE: Final[tuple[tuple[str, tuple[Role, ...]], ...]] = (
    ("embed", ("embedding",)),
    ("norm", ("norm",)),
    ("head", ("head", "other")),
)
"""Columns of what stands outside the layers: the first before them, the others behind."""


@dataclass(frozen=True)
class DepthMap:
    """One quantity over depth.

    Attributes:
        title: what it is.
        rows: labels: model or pair, and module.
        columns: `embed`, the layers' numbers, `norm`, `head`.
        values: rows x columns; None where there is nothing to say.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]


Read = Callable[[Section], float | None]


Row = tuple[float | None, ...]


def _inside(survey: Survey, roles: tuple[Role, ...], read: Read) -> Row:
    sections = [survey.select(layer=layer, roles=roles) for layer in range(survey.n_layers)]
    return (None, *(None if p is None else read(p) for p in sections), *(None for _ in OUTSIDE[1:]))


def _outside(survey: Survey, read: Read) -> Row:
    sections = [survey.select(roles=roles, inside=False) for _, roles in OUTSIDE]
    first, *others = (None if p is None else read(p) for p in sections)
    return (first, *(None for _ in range(survey.n_layers)), *others)


def _map(survey: Survey, title: str, who: list[tuple[str, Read]]) -> DepthMap:
    columns = (OUTSIDE[0][0], *(str(k) for k in range(survey.n_layers)), *(name for name, _ in OUTSIDE[1:]))
    rows: list[str] = []
    values: list[Row] = []
    for name, read in who:
        drawn = {module: _inside(survey, roles, read) for module, roles in ROWS} | {"outside": _outside(survey, read)}
        for module, row in drawn.items():
            if any(v is not None for v in row):
                rows.append(f"{name} · {module}")
                values.append(row)
    return DepthMap(title, tuple(rows), columns, tuple(values))


def norm_map(survey: Survey) -> DepthMap:
    """How far each model is from the base, in parts of the base's norm there."""

    def reader(i: int) -> Read:
        return lambda section: section.relative(i) if section.origin > 0 else None

    origin = "base" if survey.base is not None else "mean"
    return _map(survey, f"delta norm / {origin} norm", [(m, reader(i)) for i, m in enumerate(survey.models)])


def cosine_map(survey: Survey) -> DepthMap:
    """How each pair of deltas points: 1 the same way, 0 apart, -1 against each other."""

    def reader(i: int, j: int) -> Read:
        return lambda section: section.cosine(i, j)

    return _map(survey, "cosine of deltas", [(name, reader(*pair)) for name, pair in _pairs(survey)])


def conflict_map(survey: Survey) -> DepthMap:
    """Share of the entries that both changed in which a pair's signs differ; one half is chance."""

    def reader(i: int, j: int) -> Read:
        return lambda section: section.conflict(i, j)

    return _map(survey, "sign conflict", [(name, reader(*pair)) for name, pair in _pairs(survey)])


def _pairs(survey: Survey) -> list[tuple[str, tuple[int, int]]]:
    return [(f"{survey.models[i]} / {survey.models[j]}", (i, j)) for i, j in combinations(range(len(survey.models)), 2)]

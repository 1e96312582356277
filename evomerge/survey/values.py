"""A survey of parents: for every kind of tensor the norms of their deltas, how they point, where signs disagree.

With `d_i = x_i - origin` over all tensors of one layer and role ("section"), it holds inner products, sums and counts,
from which everything else follows; sections add up, so that the whole model is a section, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt

from evomerge.errors import EvomergeError
from evomerge.layout import ROLES, Role

FORMAT: Final = "evomerge.survey"
VERSION: Final = 1

Matrix = tuple[tuple[float, ...], ...]


class SurveyError(EvomergeError):
    """A stored survey cannot be read."""


@dataclass(frozen=True)
class Section:
    """The tensors of one layer and role together.

    Attributes:
        layer: 0-based; None outside the layers.
        role: of the tensors.
        numel: entries per parent.
        origin: sum of squares of the origin's entries.
        gram: inner products of the deltas, `(n, n)`.
        sums: sums of the deltas' entries, `(n,)`.
        moved: entries of each delta that are not zero, `(n,)`.
        both: entries in which two deltas are both not zero, `(n, n)`.
        opposed: of those, entries in which their signs differ, `(n, n)`.
    """

    layer: int | None
    role: Role
    numel: int
    origin: float
    gram: Matrix
    sums: tuple[float, ...]
    moved: tuple[float, ...]
    both: Matrix
    opposed: Matrix

    def norm(self, model: int) -> float:
        """Euclidean norm of a delta."""
        return math.sqrt(max(0.0, self.gram[model][model]))

    def rms(self, model: int) -> float:
        """Root mean square of a delta's entries."""
        return self.norm(model) / math.sqrt(self.numel) if self.numel else 0.0

    def relative(self, model: int) -> float:
        """Norm of a delta over the norm of the origin; infinite where only the origin vanishes."""
        norm = self.norm(model)
        return norm / math.sqrt(self.origin) if self.origin > 0 else (math.inf if norm else 0.0)

    def cosine(self, i: int, j: int) -> float | None:
        """Cosine between two deltas; None where one vanishes."""
        return _ratio(self.gram[i][j], self.norm(i) * self.norm(j))

    def correlation(self, i: int, j: int) -> float | None:
        """Pearson correlation of two deltas' entries: the model kinship of Hu et al. 2024, eq. 2; None if constant."""
        if not self.numel:
            return None
        spread = [self.gram[k][k] - self.sums[k] ** 2 / self.numel for k in (i, j)]
        product = self.gram[i][j] - self.sums[i] * self.sums[j] / self.numel
        return _ratio(product, math.sqrt(max(0.0, spread[0])) * math.sqrt(max(0.0, spread[1])))

    def conflict(self, i: int, j: int) -> float | None:
        """Share of the entries that both changed in which they changed in opposite directions; None without any."""
        return _ratio(self.opposed[i][j], self.both[i][j])

    def share_moved(self, model: int) -> float:
        """Share of a delta's entries that are not zero."""
        return self.moved[model] / self.numel if self.numel else 0.0


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _added(matrices: Iterable[Matrix]) -> Matrix:
    total: npt.NDArray[np.float64] = np.sum([np.asarray(m, dtype=np.float64) for m in matrices], axis=0)
    return tuple(tuple(float(v) for v in row) for row in total)


def together(sections: Sequence[Section]) -> Section:
    """Several sections as one; layer and role are the first's.

    Raises:
        ValueError: without any.
    """
    if not sections:
        raise ValueError("there is no section")
    columns = {name: [getattr(p, name) for p in sections] for name in ("sums", "moved")}
    return Section(
        sections[0].layer,
        sections[0].role,
        sum(p.numel for p in sections),
        sum(p.origin for p in sections),
        _added([p.gram for p in sections]),
        tuple(map(sum, zip(*columns["sums"], strict=True))),
        tuple(map(sum, zip(*columns["moved"], strict=True))),
        _added([p.both for p in sections]),
        _added([p.opposed for p in sections]),
    )


@dataclass(frozen=True)
class Survey:
    """What was measured on some parents.

    Attributes:
        models: names of the models, in order.
        base: name of the base; None where there is none, and deltas are taken from the models' mean.
        n_layers: of the architecture.
        sections: outside the layers first, then by layer, roles in the order of `ROLES`.
    """

    models: tuple[str, ...]
    base: str | None
    n_layers: int
    sections: tuple[Section, ...]

    @property
    def whole(self) -> Section:
        """The whole model as one section."""
        return together(self.sections)

    def select(self, *, layer: int | None = None, roles: Sequence[Role] = ROLES, inside: bool = True) -> Section | None:
        """The tensors of some roles in one layer, or in all layers, or outside them; None where there are none.

        Args:
            layer: 0-based; None takes every layer.
            roles: of the tensors.
            inside: False takes what stands outside the layers.
        """
        found = [
            p
            for p in self.sections
            if p.role in roles and (p.layer is not None) == inside and (layer is None or p.layer == layer)
        ]
        return together(found) if found else None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; `survey_from_json` gives it back."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "models": list(self.models),
            "base": self.base,
            "n_layers": self.n_layers,
            "places": [
                {
                    "layer": p.layer,
                    "role": p.role,
                    "numel": p.numel,
                    "origin": p.origin,
                    "gram": [list(row) for row in p.gram],
                    "sums": list(p.sums),
                    "moved": list(p.moved),
                    "both": [list(row) for row in p.both],
                    "opposed": [list(row) for row in p.opposed],
                }
                for p in self.sections
            ],
        }


def _unreadable(got: str) -> NoReturn:
    raise SurveyError(
        "A stored survey of parents cannot be read.",
        got=got,
        allowed=f"{FORMAT}, version {VERSION}",
        fix="remove it; it is measured again.",
    )


def survey_from_json(value: object) -> Survey:
    """The survey of a JSON object.

    Raises:
        SurveyError: when it is none, or of another version.
    """
    if not isinstance(value, Mapping) or value.get("format") != FORMAT or value.get("version") != VERSION:
        _unreadable(str(value.get("version") if isinstance(value, Mapping) else type(value).__name__)[:80])
    try:
        sections = tuple(_section(p) for p in value["places"])
        return Survey(tuple(map(str, value["models"])), value["base"], int(value["n_layers"]), sections)
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:
        _unreadable(f"{type(error).__name__}: {error}")


def recorded_survey(manifest: Mapping[str, Any]) -> Survey | None:
    """The survey in a run's manifest; None for runs without one.

    Raises:
        SurveyError: as `survey_from_json`.
    """
    found = manifest.get("survey")
    return None if found is None else survey_from_json(found)


def _section(value: Mapping[str, Any]) -> Section:
    def matrix(name: str) -> Matrix:
        return tuple(tuple(float(v) for v in row) for row in value[name])

    def row(name: str) -> tuple[float, ...]:
        return tuple(float(v) for v in value[name])

    if value["role"] not in ROLES:
        raise ValueError(f"role {value['role']!r}")
    return Section(
        value["layer"], value["role"], int(value["numel"]), float(value["origin"]), matrix("gram"), row("sums"),
        row("moved"), matrix("both"), matrix("opposed"),
    )  # fmt: skip

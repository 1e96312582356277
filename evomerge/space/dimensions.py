"""One gene in [0, 1] and the value it stands for: real, integer, choice, gate.

Every dimension is *quantised* (its values are finitely many, because a weight step of less than about 0.01 vanishes in
a bf16 cast), *total* (every gene in [0, 1] decodes) and *invertible*: `decode(encode(v)) == v` for each of its values,
and `encode(decode(x)) == quantise(x)` for each gene.

Notation: `x` a gene in [0, 1], `v` a value, `k` the index of a value, `n` the number of values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, final

from evomerge.space.dimension import Dimension, Value, dimension_problem
from evomerge.types import GeneKind

Scale = Literal["linear", "log"]

MAX_VALUES: Final = 1_000_000
DECIMALS: Final = 10
"""Values are rounded to so many decimals, so that 0.3 is 0.3 and not 0.30000000000000004."""

MIN_RATIO: Final = 2e-3
"""Finest step of a log scale, so that four significant digits tell neighbours apart."""

DEFAULT_SPREAD: Final = 1 / 6
"""Initial standard deviation of a gene: Akiba et al. 2025, section 4.1."""


def _decimal(value: float) -> float:
    """`value` as a short decimal; -0.0 becomes 0.0."""
    return round(value, DECIMALS) + 0.0


@final
@dataclass(frozen=True)
class Real(Dimension):
    """A number on a grid between `low` and `high`, both included.

    On a linear scale the values are `low + k * step`; on a log scale `low * (high / low) ** (k / (n - 1))`, with `step`
    the wanted ratio of neighbours minus one, and four significant digits. Genes are `k / (n - 1)` on both.

    Attributes:
        name: unique in its space.
        low: smallest value.
        high: largest value; on a linear scale a whole number of steps above `low`.
        step: distance of neighbouring values (log: their ratio minus one).
        scale: `linear` or `log`.
        start: where search starts, in values; None for the middle gene.
        spread: initial standard deviation, in values (log: a ratio minus one); None for a sixth of the range.
    """

    name: str
    low: float
    high: float
    step: float = 0.01
    scale: Scale = "linear"
    start: float | None = None
    spread: float | None = None
    _steps: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for label, number in (("low", self.low), ("high", self.high), ("step", self.step)):
            if isinstance(number, bool) or not math.isfinite(number):
                raise dimension_problem(self.name, f"has an unusable {label}.", number, "a finite number")
        if not self.low < self.high:
            raise dimension_problem(self.name, "has an empty range.", f"low {self.low}, high {self.high}", "low < high")
        if self.step <= 0:
            raise dimension_problem(self.name, "has an unusable step.", self.step, "a number > 0")
        if self.scale not in ("linear", "log"):
            raise dimension_problem(self.name, "has an unknown scale.", repr(self.scale), "linear, log")
        if self.scale == "log" and self.low <= 0:
            raise dimension_problem(self.name, "cannot have a log scale.", f"low {self.low}", "low > 0 on a log scale")
        object.__setattr__(self, "_steps", self._count_steps())
        if self.start is not None and not self.low <= self.start <= self.high:
            allowed = f"a number in [{self.low:g}, {self.high:g}]"
            raise dimension_problem(self.name, "starts outside its range.", self.start, allowed)
        if self.spread is not None and not (math.isfinite(self.spread) and self.spread > 0):
            raise dimension_problem(self.name, "has an unusable spread.", self.spread, "a finite number > 0")

    def _count_steps(self) -> int:
        if self.scale == "log":
            if self.step < MIN_RATIO:
                raise dimension_problem(self.name, "has too fine a step.", self.step, f">= {MIN_RATIO} on a log scale")
            return max(1, round(math.log(self.high / self.low) / math.log1p(self.step)))
        exact = (self.high - self.low) / self.step
        steps = round(exact)
        if exact > MAX_VALUES or steps < 1 or abs(exact - steps) > 1e-6 * exact:
            near = _decimal(self.low + max(1, math.floor(exact)) * self.step)
            raise dimension_problem(
                self.name,
                "has a range that is no whole number of steps.",
                f"low {self.low}, high {self.high}, step {self.step}",
                f"at most {MAX_VALUES} steps; with this step, high {near:g} for instance",
            )
        return steps

    def _log_value(self, k: int, steps: int) -> float:
        if k in (0, steps):
            return self.low if k == 0 else self.high
        return float(f"{self.low * (self.high / self.low) ** (k / steps):.4g}")

    @property
    def n_values(self) -> int:
        """How many values the grid has."""
        return self._steps + 1

    @property
    def kind(self) -> GeneKind:
        """See `Dimension.kind`."""
        return GeneKind("real", self.n_values)

    @property
    def start_value(self) -> float:
        """The value of the grid nearest to `start`."""
        if self.start is None:
            return self.value_at(self.index_at(0.5))
        return self.value_at(self.index_at(self._position(self.start)))

    @property
    def gene_spread(self) -> float:
        """Initial standard deviation of the gene."""
        if self.spread is None:
            return DEFAULT_SPREAD
        if self.scale == "log":
            return math.log1p(self.spread) / math.log(self.high / self.low)
        return self.spread / (self.high - self.low)

    @property
    def gene_step(self) -> float:
        """Distance between the genes of neighbouring values."""
        return 1 / self._steps

    def _position(self, value: float) -> float:
        """Where `value` lies between low (0) and high (1), clipped."""
        if self.scale == "log":
            x = math.log(value / self.low) / math.log(self.high / self.low) if value > 0 else 0.0
        else:
            x = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, x))

    def index_of(self, value: Value) -> int:
        """See `Dimension.index_of`; the value must be on the grid exactly."""
        if not isinstance(value, bool | str) and math.isfinite(value):
            k = self.index_at(self._position(value))
            if self.value_at(k) == value:
                return k
        grid = f"the numbers from {self.low:g} to {self.high:g} in {self.n_values} values ({self.scale} scale)"
        raise dimension_problem(self.name, "does not hold a value.", repr(value), grid)

    def value_at(self, index: int) -> float:
        """See `Dimension.value_at`."""
        if self.scale == "log":
            return self._log_value(index, self._steps)
        return _decimal(self.low + index * self.step) if index < self._steps else _decimal(self.high)

    def index_at(self, gene: float) -> int:
        """The nearest grid point; halves go up."""
        return min(self._steps, math.floor(gene * self._steps + 0.5))

    def gene_at(self, index: int) -> float:
        """See `Dimension.gene_at`."""
        return index / self._steps

    def describe(self) -> Mapping[str, Any]:
        """See `Dimension.describe`."""
        grid = {"low": self.low, "high": self.high, "values": self.n_values, "scale": self.scale}
        return {"kind": "real", "name": self.name, **grid, "start": self.start_value, "spread": self.gene_spread}


class _Cells(Dimension):
    """`n` values that share [0, 1] in equal cells; a cell's gene is its centre."""

    @property
    def gene_step(self) -> float:
        """Width of a cell."""
        return 1 / self.n_values

    @property
    def gene_spread(self) -> float:
        """Initial standard deviation of the gene: wide enough to reach every value early."""
        return max(DEFAULT_SPREAD, 1 / (2 * self.n_values))

    def index_at(self, gene: float) -> int:
        """The cell that holds the gene."""
        return min(self.n_values - 1, math.floor(gene * self.n_values))

    def gene_at(self, index: int) -> float:
        """The centre of a cell."""
        return (index + 0.5) / self.n_values


@final
@dataclass(frozen=True)
class Integer(_Cells):
    """A whole number between `low` and `high`, both included.

    Attributes:
        name: unique in its space.
        low: smallest value.
        high: largest value.
        start: where search starts; None for the middle.
    """

    name: str
    low: int
    high: int
    start: int | None = None

    def __post_init__(self) -> None:
        if not self.low < self.high or self.high - self.low >= MAX_VALUES:
            allowed = f"low < high, fewer than {MAX_VALUES} values"
            raise dimension_problem(self.name, "has an unusable range.", f"low {self.low}, high {self.high}", allowed)
        if self.start is not None:
            self.index_of(self.start)

    @property
    def n_values(self) -> int:
        """How many whole numbers there are."""
        return self.high - self.low + 1

    @property
    def kind(self) -> GeneKind:
        """See `Dimension.kind`."""
        return GeneKind("integer", self.n_values)

    @property
    def start_value(self) -> int:
        """Where search starts."""
        return self.start if self.start is not None else (self.low + self.high) // 2

    def index_of(self, value: Value) -> int:
        """See `Dimension.index_of`."""
        if isinstance(value, bool | str) or value != int(value) or not self.low <= value <= self.high:
            allowed = f"a whole number from {self.low} to {self.high}"
            raise dimension_problem(self.name, "does not hold a value.", repr(value), allowed)
        return int(value) - self.low

    def value_at(self, index: int) -> int:
        """See `Dimension.value_at`."""
        return self.low + index

    def describe(self) -> Mapping[str, Any]:
        """See `Dimension.describe`."""
        return {"kind": "integer", "name": self.name, "low": self.low, "high": self.high, "start": self.start_value}


@final
@dataclass(frozen=True)
class Choice(_Cells):
    """One of several values without an order.

    Attributes:
        name: unique in its space.
        options: two or more distinct values.
        start: where search starts; None for the first option.
    """

    name: str
    options: tuple[Value, ...]
    start: Value | None = None

    def __post_init__(self) -> None:
        distinct = {(type(o), o) for o in self.options}
        if len(self.options) < 2 or len(distinct) < len(self.options):
            raise dimension_problem(self.name, "has unusable choices.", list(self.options), "two or more, distinct")
        if self.start is not None:
            self.index_of(self.start)

    @property
    def n_values(self) -> int:
        """How many options there are."""
        return len(self.options)

    @property
    def kind(self) -> GeneKind:
        """See `Dimension.kind`."""
        return GeneKind("choice", self.n_values, tuple(str(o) for o in self.options))

    @property
    def start_value(self) -> Value:
        """Where search starts."""
        return self.start if self.start is not None else self.options[0]

    def index_of(self, value: Value) -> int:
        """See `Dimension.index_of`; True is not 1."""
        for index, option in enumerate(self.options):
            if option == value and isinstance(option, bool) == isinstance(value, bool):
                return index
        allowed = ", ".join(str(o) for o in self.options)
        raise dimension_problem(self.name, "does not hold a value.", repr(value), allowed)

    def value_at(self, index: int) -> Value:
        """See `Dimension.value_at`."""
        return self.options[index]

    def describe(self) -> Mapping[str, Any]:
        """See `Dimension.describe`."""
        return {"kind": "choice", "name": self.name, "options": list(self.options), "start": self.start_value}


@final
@dataclass(frozen=True)
class Gate(_Cells):
    """On or off: genes below one half are off.

    Attributes:
        name: unique in its space.
        start: where search starts.
    """

    name: str
    start: bool = False

    @property
    def n_values(self) -> int:
        """Two."""
        return 2

    @property
    def kind(self) -> GeneKind:
        """See `Dimension.kind`."""
        return GeneKind("choice", self.n_values)

    @property
    def start_value(self) -> bool:
        """Where search starts."""
        return self.start

    def index_of(self, value: Value) -> int:
        """See `Dimension.index_of`."""
        if not isinstance(value, bool):
            raise dimension_problem(self.name, "does not hold a value.", repr(value), "true or false")
        return int(value)

    def value_at(self, index: int) -> bool:
        """See `Dimension.value_at`."""
        return bool(index)

    def describe(self) -> Mapping[str, Any]:
        """See `Dimension.describe`."""
        return {"kind": "gate", "name": self.name, "start": self.start}

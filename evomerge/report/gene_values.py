"""The genes of a merge as the report shows them: one table per parameter."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GeneTable:
    """One parameter of one merge, laid out for a heat map.

    Attributes:
        parameter: for instance `weight`.
        rows: parents, or parent and module where modules differ.
        columns: `embed`, layer numbers, `norm`, `head`: in the order of the forward pass.
        values: `values[row][column]`, None where the rule does not use the parameter.
    """

    parameter: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]

    def __post_init__(self) -> None:
        shape = (len(self.rows), len(self.columns))
        if len(self.values) != shape[0] or any(len(row) != shape[1] for row in self.values):
            raise ValueError(f"genes of {self.parameter}: the values do not have shape {shape}")


@dataclass(frozen=True)
class MergeGenes:
    """The genes of one merge: its methods and one table per parameter."""

    entry_id: str
    methods: tuple[str, ...]
    tables: tuple[GeneTable, ...]

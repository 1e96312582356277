"""The table of docs/families.md: `python -m evomerge.testing.family_table docs/families.md` measures it again."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from evomerge.files import write_atomic
from evomerge.testing.family_checks import RULES, FamilyFacts, check_family, open_siblings
from evomerge.testing.family_peer import Agreement, agreement
from evomerge.testing.tiny_families import ALL, MIXTURES

COLUMNS: Final = (
    "family",
    "kind",
    "in memory",
    "merged in place",
    "export loads",
    "generates",
    "parent exact",
    "paths",
    "mergekit linear",
    "mergekit ties",
)


def fact_cells(facts: FamilyFacts) -> tuple[str, ...]:
    """The cells of a family that need no peer, in the order of `COLUMNS`."""
    flags = (facts.in_place, facts.loads, facts.generates, facts.parent, facts.paths)
    kind = "mixture" if facts.family in MIXTURES else "dense"
    return (facts.family, kind, facts.memory, *("yes" if flag else "no" for flag in flags))


def measure(family: str) -> tuple[str, ...]:
    """All cells of a family; needs mergekit."""
    with TemporaryDirectory(prefix="evomerge-family-") as folder:
        facts = check_family(family, Path(folder) / "ours")
        folders, pool = open_siblings(Path(folder) / "peer", family)
        peers: list[Agreement] = [agreement(name, folders, pool, Path(folder) / name) for name in RULES]
    return (*fact_cells(facts), *peers)


def table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """The lines of the table."""
    head = [COLUMNS, ("---",) * len(COLUMNS)]
    return [f"| {' | '.join(cells)} |" for cells in (*head, *rows)]


def read_rows(page: str) -> dict[str, tuple[str, ...]]:
    """Family -> cells, of the table in a page."""
    rows = [tuple(c.strip() for c in line.strip("|").split("|")) for line in page.splitlines() if line.startswith("|")]
    wide = [row for row in rows if len(row) == len(COLUMNS)]
    return {row[0]: row for row in wide[2:]}


def replaced(page: str, rows: Iterable[tuple[str, ...]]) -> str:
    """A page with another table in the place of its own."""
    lines = page.splitlines()
    places = [i for i, line in enumerate(lines) if line.count("|") == len(COLUMNS) + 1]
    return "\n".join([*lines[: places[0]], *table(rows), *lines[places[-1] + 1 :], ""])


def main() -> None:
    """Measure every family and write the page named on the command line."""
    logging.disable(logging.CRITICAL)
    page = Path(sys.argv[1])
    text = replaced(page.read_text(encoding="utf-8"), [measure(family) for family in ALL])
    write_atomic(page, text)


if __name__ == "__main__":
    main()

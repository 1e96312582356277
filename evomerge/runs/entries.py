"""Lines of a journal as records: migrated from older schemas, and held to what their classes say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from evomerge.errors import CorruptJournal, SchemaTooNew
from evomerge.runs.race_records import ALL_RECORDS
from evomerge.runs.records import MIGRATIONS, SCHEMA_VERSION, Opened, Record
from evomerge.runs.typed import fits, misfit


class Entry(NamedTuple):
    """One line of the journal: sequence number from 0, unix time in seconds, record."""

    n: int
    time_s: float
    record: Record


def decode_entries(
    payloads: tuple[dict[str, Any], ...],
    migrations: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = MIGRATIONS,
) -> Iterator[Entry]:
    """Payloads of a journal as records; those of an older schema are migrated.

    Raises:
        SchemaTooNew: at the first life that a newer version wrote.
        CorruptJournal: for a payload that is no record.
    """
    version = SCHEMA_VERSION
    for n, payload in enumerate(payloads):
        version = payload.get("schema", version) if payload.get("t") == Opened.tag else version
        if not isinstance(version, int) or version < 1:
            raise _unreadable(n, f"schema {version!r}"[:200])
        if version > SCHEMA_VERSION:
            raise SchemaTooNew(
                "This run was written by a newer evomerge.",
                got=f"journal schema {version}, from line {n + 1} on",
                allowed=f"up to {SCHEMA_VERSION}",
                fix="install the newer evomerge again.",
            )
        fields = dict(payload)
        for old in range(version, SCHEMA_VERSION):
            fields = migrations[old](fields)
        tag, at = fields.pop("t", None), fields.pop("at", 0.0)
        try:
            record = ALL_RECORDS[tag].from_json(fields)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise _unreadable(n, f"kind {tag!r}: {type(error).__name__} {error}") from error
        wrong = misfit(record) if fits(at, float) else f"at = {at!r}"[:200]
        if wrong is not None:
            raise _unreadable(n, f"kind {tag!r}: {wrong}")
        yield Entry(n, at, record)


def _unreadable(n: int, got: str) -> CorruptJournal:
    return CorruptJournal(
        "The journal holds a record that cannot be read.",
        got=f"line {n + 1}, {got}",
        allowed=", ".join(ALL_RECORDS),
        fix="open the run with the version of evomerge that wrote it.",
    )

r"""The bytes of a journal: checksummed lines, and what a crash may leave at their end.

A line is one JSON object `{"n":12,"t":"told",...,"crc":"9b2f01aa"}` and a newline; `n` counts from 0 and the crc-32
covers everything before `,"crc"`. A file only ever grows: the bytes of a cut write stay where they are, and the next
writer puts ` <cut>`, a newline and a `torn` record behind them that gives their offset, length and crc, so that a copy
made at any moment is a prefix of the file for ever. All functions here are pure.

A cut write is told from a damaged record by its end: a line that has its newline was written as a whole, so if it
fails its checksum it is damaged, even if it is the last one. Exceptions are lines that end with ` <cut>`, which a
writer put there, and lines with a run of zeros: a power cut leaves them of blocks that never reached the disk.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, NamedTuple
from zlib import crc32

from evomerge.errors import CorruptJournal

_NEWLINE: Final = b"\n"
_CUT: Final = b" <cut>"
_NOTHING: Final = b"\0\0"
_SEAL: Final = re.compile(rb',"crc":"[0-9a-f]{8}"}')
_SEAL_BYTES: Final = len(',"crc":"00000000"}')


class Scan(NamedTuple):
    """What a journal holds.

    Attributes:
        payloads: one JSON object per good line, in order; without `n` and `crc`.
        tail: bytes of a cut write at the end, which no record explains yet; usually empty.
        ends_line: False when the last good line lacks its newline; it may have zeros in its place.
        size: length of the whole in bytes.
    """

    payloads: tuple[dict[str, Any], ...]
    tail: bytes
    ends_line: bool
    size: int


def frame(n: int, payload: dict[str, Any]) -> bytes:
    """The line of a payload, newline included.

    Raises:
        ValueError: for NaN or infinity in the payload.
    """
    body = json.dumps({"n": n, **payload}, separators=(",", ":"), allow_nan=False)[:-1].encode()
    return b'%s,"crc":"%08x"}\n' % (body, crc32(body))


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _parse(line: bytes) -> dict[str, Any] | None:
    body, seal = line[:-_SEAL_BYTES], line[-_SEAL_BYTES:]
    if seal != b',"crc":"%08x"}' % crc32(body):
        return None
    try:
        parsed = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def torn_marker(n: int, start: int, torn: bytes) -> bytes:
    """The line that explains `torn` bytes at offset `start`; a function of its arguments alone."""
    return frame(n, {"t": "torn", "start": start, "bytes": len(torn), "sum": f"{crc32(torn):08x}"})


def _explains(payload: dict[str, Any], data: bytes, start: int, end: int) -> bool:
    """Whether `payload` at offset `end` is the marker of the bad bytes from `start`, up to a writer's end of line."""
    n_bytes = payload.get("bytes")
    if payload.get("t") != "torn" or payload.get("start") != start or not isinstance(n_bytes, int) or n_bytes < 0:
        return False
    torn = data[start : start + n_bytes]
    between = data[start + n_bytes : end]
    return between in (b"", _NEWLINE, _CUT + _NEWLINE) and payload.get("sum") == f"{crc32(torn):08x}"


def _is_cut_write(tail: bytes, n: int, start: int) -> bool:
    """Whether one cut write, and cut attempts to mark it, explain the tail.

    Its first line must be a cut write; it does not begin with a whole record, because then the newline behind that
    record was damaged. A further line must be the beginning of the marker that the next writer would have put there;
    anything else is damage.
    """
    at = tail.find(_NEWLINE)
    only = tail if at < 0 else tail[:at]
    for seal in _SEAL.finditer(only):
        if _parse(only[: seal.end()]) is not None:
            return False
    if 0 <= at == len(tail) - 1 and not only.endswith(_CUT) and _NOTHING not in only:
        return False
    while 0 <= at < len(tail) - 1:
        following = tail[at + 1 :].split(_NEWLINE, 1)[0]
        torn = (tail[:at].removesuffix(_CUT), tail[:at], tail[: at + 1])
        begun, _, ends = following.partition(b" ")  # a marker has no spaces, what a writer ends a line with begins so
        if not following or ends.strip(_CUT) or not any(torn_marker(n, start, t).startswith(begun) for t in torn):
            return False
        at = tail.find(_NEWLINE, at + 1)
    return True


def _corrupt(line: int, why: str) -> CorruptJournal:
    return CorruptJournal(
        "The journal is damaged.",
        got=f"line {line} {why}",
        allowed="lines whose checksum and sequence number are right; only the very last may be cut short",
        fix="restore journal.jsonl from a copy. Without one, go on from what is intact, in the run directory: "
        f"mv journal.jsonl journal.damaged; head -n {line - 1} journal.damaged > journal.jsonl; then `evomerge resume` "
        "does again what stood in the lines that are given up.",
    )


def scan(data: bytes) -> Scan:
    """Read a whole journal.

    Raises:
        CorruptJournal: when a line before the end is damaged and no marker explains it, or is out of sequence.
    """
    payloads: list[dict[str, Any]] = []
    at, number, bad = 0, 0, -1
    bad_line = 0
    while at < len(data):
        end = data.find(_NEWLINE, at)
        end = len(data) if end < 0 else end
        number += 1
        payload = _parse(data[at:end].rstrip(b"\0"))
        if payload is None:
            bad, bad_line = (at, number) if bad < 0 else (bad, bad_line)
        else:
            if bad >= 0 and not _explains(payload, data, bad, at):
                raise _corrupt(bad_line, "fails its checksum")
            if payload.pop("n", None) != len(payloads):
                raise _corrupt(number, f"is out of sequence, number {len(payloads)} was due")
            del payload["crc"]
            payloads.append(payload)
            bad = -1
        at = end + 1
    tail = data[bad:] if bad >= 0 else b""
    if not _is_cut_write(tail, len(payloads), bad):
        raise _corrupt(bad_line, "fails its checksum")
    return Scan(tuple(payloads), tail, not data or bool(tail) or data.endswith(_NEWLINE), len(data))


def mend(found: Scan) -> bytes:
    """What a writer appends before its first record, so that every line before it is explained; often nothing."""
    if not found.tail:
        return b"" if found.ends_line else _NEWLINE
    gap = b"" if found.tail.endswith(_NEWLINE) else _CUT + _NEWLINE
    return gap + torn_marker(len(found.payloads), found.size - len(found.tail), found.tail)

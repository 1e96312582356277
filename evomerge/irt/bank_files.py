"""Item banks on disk: one versioned file, JSON or npz by suffix, never a pickle."""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from evomerge.errors import ConfigError
from evomerge.files import write_atomic
from evomerge.irt.bank import ItemBank
from evomerge.plain_arrays import MOST_BYTES, check_npz

FORMAT = "evomerge.bank"
VERSION = 1
_ARRAYS = ("slopes", "intercepts", "noise", "constants", "mean", "covariance")
_NEEDED = ("format", "version", "items", "link", "n_models", "settings", "provenance")
_ALLOWED = f"a file that evomerge wrote: format {FORMAT!r}, version {VERSION}, as .json or .npz"
_AGAIN = "make the bank again with `evomerge calibrate`, or copy the file again."


class Match(NamedTuple):
    """A bank for a given list of items.

    Attributes:
        bank: restricted to those items, in their order; None unless the bank knows them all.
        n_found: how many of the wanted items the bank knows.
        n_wanted: how many were wanted.
    """

    bank: ItemBank | None
    n_found: int
    n_wanted: int


def write_bank(path: Path, bank: ItemBank) -> None:
    """Write a bank; the file appears in one step or not at all, and equal banks make equal files.

    Args:
        path: ends in `.json` (readable) or `.npz` (small).
        bank: what to write.

    Raises:
        ConfigError: when the suffix is neither, or the bank's settings or provenance are not JSON.
        DiskFull: when there is no space.
    """
    _check_suffix(path, "written")
    head = {
        "format": FORMAT,
        "version": VERSION,
        "link": bank.link,
        "n_models": bank.n_models,
        "settings": dict(bank.settings),
        "provenance": dict(bank.provenance),
        "items": list(bank.items),
    }
    arrays = {name: getattr(bank, name) for name in _ARRAYS}
    whole = {**head, **{name: _listed(value) for name, value in arrays.items()}} if path.suffix == ".json" else head
    try:
        text = json.dumps(whole, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "An item bank cannot be written: its settings or provenance are not plain JSON.",
            got=str(error),
            allowed="texts, finite numbers, booleans, null, lists, and mappings with text keys",
            fix="give plain values as provenance.",
        ) from error
    write_atomic(path, text + "\n" if path.suffix == ".json" else _npz(text, arrays))


def _listed(array: npt.NDArray[np.float64]) -> Any:
    """Nested lists with null for NaN: JSON has no NaN."""
    if array.ndim > 1:
        return [_listed(row) for row in array]
    return [None if math.isnan(value) else value for value in array.tolist()]


def _npz(head: str, arrays: Mapping[str, npt.NDArray[np.float64]]) -> bytes:
    """A deflated npz without time stamps (np.savez would write the present time into it)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in {"head": np.array(head), **arrays}.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asarray(value, order="C"), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def read_bank(path: Path) -> ItemBank:
    """Read a bank that `write_bank` wrote.

    Raises:
        ConfigError: when the suffix is neither `.json` nor `.npz`, the file cannot be read, it is not a bank, it was
            written by a newer version, or its content does not fit together.
    """
    _check_suffix(path, "read")
    try:
        if path.exists() and not path.is_dir() and (not path.is_file() or path.stat().st_size > MOST_BYTES):
            _damaged(path, f"no regular file of at most {MOST_BYTES} bytes")
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            "An item bank cannot be read.",
            got=f"{path}: {error.strerror}",
            allowed="a file that exists and may be read",
            fix="check the path; `evomerge calibrate` makes banks.",
        ) from error
    head, arrays = _from_json(path, raw) if path.suffix == ".json" else _from_npz(path, raw)
    return _bank(path, head, arrays)


def _check_suffix(path: Path, verb: str) -> None:
    if path.suffix not in {".json", ".npz"}:
        raise ConfigError(
            f"An item bank cannot be {verb}: its file type is not known.",
            got=f"{path} (suffix {path.suffix!r})",
            allowed=".json or .npz",
            fix="name the file BANK.npz (small) or BANK.json (readable).",
        )


def _damaged(path: Path, got: str, cause: Exception | None = None) -> NoReturn:
    raise ConfigError(
        "A file is not a usable item bank.", got=f"{path}: {got}", allowed=_ALLOWED, fix=_AGAIN
    ) from cause


def _from_json(path: Path, raw: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    head = _object(path, raw)
    return head, {name: head.pop(name) for name in _ARRAYS if name in head}


def _object(path: Path, raw: bytes | str) -> dict[str, Any]:
    """The JSON object in `raw`."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        _damaged(path, f"no JSON ({error})", error)
    if not isinstance(value, dict):
        _damaged(path, "the JSON value is not an object")
    return value


def _from_npz(path: Path, raw: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Head and arrays of an npz; every way in which a zip or an array can be broken is one error."""
    try:
        check_npz(io.BytesIO(raw))
        with np.load(io.BytesIO(raw), allow_pickle=False) as members:
            found = {name: members[name] for name in members.files if name in {"head", *_ARRAYS}}
    except (
        ValueError,
        TypeError,
        AttributeError,
        KeyError,
        OSError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        SyntaxError,
        RuntimeError,
        MemoryError,
        struct.error,
    ) as error:
        _damaged(path, f"no readable npz ({type(error).__name__}: {error})", error)
    head = found.pop("head", None)
    if head is None or head.shape != () or head.dtype.kind != "U":
        _damaged(path, "no text member 'head'")
    return _object(path, str(head)), found


def _bank(path: Path, head: dict[str, Any], arrays: dict[str, Any]) -> ItemBank:
    _check_head(path, head)
    missing = [name for name in _ARRAYS if name not in arrays]
    if missing:
        _damaged(path, f"without {', '.join(missing)}")
    try:
        numbers = {name: _numbers(arrays[name]) for name in _ARRAYS}
        bank = ItemBank(
            items=tuple(head["items"]),
            link=head["link"],
            n_models=head["n_models"],
            settings=head["settings"],
            provenance=head["provenance"],
            **numbers,
        )
        np.linalg.cholesky(bank.covariance)
    except (ArithmeticError, ValueError, TypeError, np.linalg.LinAlgError) as error:
        _damaged(path, str(error), error)
    return bank


def _numbers(value: Any) -> npt.NDArray[np.float64]:
    """An array of numbers, null as NaN (texts, which numpy would parse, are refused)."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "fiu":
            raise ValueError(f"an array holds {value.dtype}, not numbers")
        return value.astype(np.float64)
    plain = np.array(value, dtype=object)
    if any(isinstance(x, bool) or not isinstance(x, int | float | None) for x in plain.ravel().tolist()):
        raise ValueError("an array holds something that is not a number, or rows of unequal length")
    return plain.astype(np.float64)


def _check_head(path: Path, head: Mapping[str, Any]) -> None:
    """Raise ConfigError unless every entry beside the arrays is there and of its type."""
    if head.get("format") != FORMAT:
        _damaged(path, f"format {head.get('format')!r}")
    version = head.get("version")
    if isinstance(version, int) and not isinstance(version, bool) and version > VERSION:
        raise ConfigError(
            "An item bank was written by a newer evomerge.",
            got=f"{path}: version {version}",
            allowed=f"version {VERSION}",
            fix="upgrade evomerge, or make the bank again with this one.",
        )
    if version != VERSION or isinstance(version, bool):
        _damaged(path, f"version {version!r}")
    missing = [name for name in _NEEDED if name not in head]
    if missing:
        _damaged(path, f"without {', '.join(missing)}")
    items = head["items"]
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        _damaged(path, "items is not a list of texts")
    if head["link"] not in {"logistic", "normal"}:
        _damaged(path, f"link {head['link']!r}")
    n_models = head["n_models"]
    if isinstance(n_models, bool) or not isinstance(n_models, int) or n_models < 0:
        _damaged(path, f"n_models {n_models!r}")
    if not isinstance(head["settings"], dict) or not isinstance(head["provenance"], dict):
        _damaged(path, "settings or provenance is not an object")


def bank_for(bank: ItemBank, items: Sequence[str]) -> Match:
    """The bank restricted to `items` and in their order, if it knows every one of them.

    Args:
        bank: any bank.
        items: wanted item hashes, each once.
    """
    place = {item: i for i, item in enumerate(bank.items)}
    found = [place[item] for item in items if item in place]
    if len(found) < len(items) or not found:
        return Match(None, len(found), len(items))
    index = np.array(found, dtype=np.intp)
    part = replace(
        bank,
        items=tuple(items),
        slopes=bank.slopes[index],
        intercepts=bank.intercepts[index],
        noise=bank.noise[index],
        constants=bank.constants[index],
    )
    return Match(part, len(found), len(items))

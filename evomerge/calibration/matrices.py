"""Response matrices: `.npz` with Y, models and items, or `.csv` with a header of items and a first column of models."""

from __future__ import annotations

import csv
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np

from evomerge.calibration.sheets import Sheet
from evomerge.errors import ConfigError
from evomerge.irt.responses import Floats
from evomerge.plain_arrays import check_npz

_BROKEN: Final = (
    *(OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, SyntaxError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, struct.error),
)
"""What zip files and array headers raise that are broken in all the ways there are."""
UNSEEN: Final = 255
"""In matrices of unsigned bytes: the model was not asked."""

_NPZ_FORM: Final = "Y (models x items; bytes 1, 0 and 255 for not asked, or numbers and NaN), models and items"
_LARGEST: Final = 1e9
_CSV_FORM: Final = "a header of items, then one line per model: its name and one number per item, empty for not asked"


def read_npz(path: Path, task: str) -> Sheet:
    """A matrix from an npz file; nothing in it is unpickled.

    Args:
        path: the file.
        task: the task whose answers it holds.

    Raises:
        ConfigError: the file cannot be read, is pickled, lacks an array, or its arrays do not fit each other.
    """
    try:
        if not path.is_file():
            raise OSError("not a regular file")
        with path.open("rb") as f:
            if f.read(6) == b"\x93NUMPY":
                raise _no_matrix(path, None)
            f.seek(0)
            check_npz(f)
            found = np.load(f, allow_pickle=False)
            held = sorted(found.files) if isinstance(found, np.lib.npyio.NpzFile) else None
            if held is None or not {"Y", "models", "items"} <= set(held):
                raise _no_matrix(path, held)
            scores, models, items = (found[name] for name in ("Y", "models", "items"))
    except _BROKEN as error:
        raise _unreadable(path, error) from error
    for name, names in (("models", models), ("items", items)):
        if names.ndim != 1 or names.dtype.kind not in "Uiu":
            raise _bad(path, f"{name} is an array of {names.dtype} with shape {names.shape}", _NPZ_FORM)
    if scores.shape != (models.size, items.size):
        raise _bad(
            path, f"Y has shape {scores.shape}, but there are {models.size} models and {items.size} items", _NPZ_FORM
        )
    rows, columns = tuple(map(str, models)), tuple(map(str, items))
    sheet = Sheet(path.name, "matrix", task, "", rows, rows, columns, _numbers(path, scores))
    return _checked(path, sheet, _NPZ_FORM)


def read_csv(path: Path, task: str) -> Sheet:
    """A matrix from a csv file in UTF-8.

    Args:
        path: the file.
        task: the task whose answers it holds.

    Raises:
        ConfigError: the file cannot be read, a line is too short or too long, or a cell is no number.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("not a regular file")
        with path.open(encoding="utf-8-sig", newline="") as f:
            lines = [(number, line) for number, line in enumerate(csv.reader(f), start=1) if line]
    except (OSError, ValueError, csv.Error) as error:
        raise _unreadable(path, error) from error
    if len(lines) < 2 or len(lines[0][1]) < 2:
        raise _bad(path, f"{len(lines)} lines, {len(lines[0][1]) if lines else 0} columns", _CSV_FORM)
    items = tuple(cell.strip() for cell in lines[0][1][1:])
    rows = []
    for number, line in lines[1:]:
        if len(line) != len(items) + 1:
            raise _bad(path, f"line {number} has {len(line) - 1} answers, the header has {len(items)} items", _CSV_FORM)
        rows.append([_cell(path, number, cell) for cell in line[1:]])
    models = tuple(line[0].strip() for _, line in lines[1:])
    sheet = Sheet(path.name, "matrix", task, "", models, models, items, np.array(rows, dtype=np.float64))
    return _checked(path, sheet, _CSV_FORM)


def _cell(path: Path, number: int, cell: str) -> float:
    if not cell.strip():
        return float("nan")
    try:
        value = float(cell)
    except ValueError as error:
        raise _bad(path, f"line {number} holds {cell!r}", _CSV_FORM) from error
    if _LARGEST < abs(value) < np.inf:
        raise _bad(path, f"line {number} holds {cell!r}", f"{_CSV_FORM}; scores up to {_LARGEST:g}")
    return value


def _numbers(path: Path, found: np.ndarray[Any, Any]) -> Floats:
    if found.dtype == np.uint8:
        alien = found[~np.isin(found, (0, 1, UNSEEN))]
        if alien.size:
            raise _bad(path, f"Y holds the byte {alien[0]}", _NPZ_FORM)
        return np.where(found == UNSEEN, np.nan, found.astype(np.float64))
    if found.dtype.kind not in "biuf":
        raise _bad(path, f"Y is an array of {found.dtype}", _NPZ_FORM)
    return found.astype(np.float64)


def _checked(path: Path, sheet: Sheet, form: str) -> Sheet:
    for what, names in (("model", sheet.keys), ("item", sheet.items)):
        if len(set(names)) < len(names):
            double = next(name for name, n in Counter(names).items() if n > 1)
            raise _bad(path, f"the {what} {double!r} occurs twice", f"{form}; every name once")
    if np.isinf(sheet.scores).any():
        raise _bad(path, "an answer is infinite", form)
    if not sheet.scores.size or np.isnan(sheet.scores).all():
        raise _bad(path, "no answer at all", form)
    return sheet


def _bad(path: Path, got: str, allowed: str) -> ConfigError:
    return ConfigError(
        "A response matrix cannot be used.", got=f"{path}: {got}", allowed=allowed, fix="mend the file and try again."
    )


def _no_matrix(path: Path, held: list[str] | None) -> ConfigError:
    got = f"{path} holds {', '.join(held) or 'nothing'}" if held is not None else f"{path} is a single array"
    return ConfigError(
        "The file holds no response matrix.",
        got=got,
        allowed=_NPZ_FORM,
        fix="write it with numpy.savez(FILE, Y=..., models=..., items=...); finished banks need no calibration.",
    )


def _is_pickled(path: Path) -> bool:
    """Numpy says of whatever it does not know that it may be a pickle; this is one, or an archive with one in it."""
    with path.open("rb") as f:
        return f.read(1) == b"\x80" or zipfile.is_zipfile(path)


def _unreadable(path: Path, error: Exception) -> ConfigError:
    if "allow_pickle" in str(error) and _is_pickled(path):
        return ConfigError(
            "A response matrix holds pickled objects, which could run code; they are not read.",
            got=str(path),
            allowed="plain arrays: names as text (numpy dtype U), answers as bytes or numbers",
            fix="save the names with numpy.array(names, dtype=str) instead of as objects.",
        )
    told = "no npz file" if "allow_pickle" in str(error) else str(error)  # no advice to read it unsafely
    return ConfigError(
        "A response matrix cannot be read.",
        got=f"{path}: {type(error).__name__}: {told}",
        allowed=f"{_NPZ_FORM} in an .npz file, or {_CSV_FORM} in a .csv file",
        fix="check the path and the file.",
    )

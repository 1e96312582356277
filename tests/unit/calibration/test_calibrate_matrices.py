"""Response matrices from npz and csv files, and every kind of damage."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.calibration.matrices import read_csv, read_npz
from evomerge.errors import ConfigError

MODELS, ITEMS = np.array(["a", "b"]), np.array(["x", "y", "z"])


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "m.npz"
    np.savez(path, **arrays)
    return path


def csv(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "m.csv"
    path.write_text(text, encoding=encoding)
    return path


def test_bytes_with_255_for_unseen(tmp_path: Path) -> None:
    path = npz(tmp_path, Y=np.array([[1, 0, 255], [0, 0, 1]], dtype=np.uint8), models=MODELS, items=ITEMS)
    sheet = read_npz(path, "t")
    np.testing.assert_array_equal(sheet.scores, [[1, 0, np.nan], [0, 0, 1]])
    assert (sheet.source, sheet.task, sheet.keys, sheet.items) == ("m.npz", "t", ("a", "b"), ("x", "y", "z"))


def test_numbers_with_nan_for_unseen_and_integer_names(tmp_path: Path) -> None:
    path = npz(tmp_path, Y=[[0.5, np.nan, -2.0], [1, 0, 1]], models=np.arange(2), items=ITEMS, extra=MODELS)
    sheet = read_npz(path, "t")
    np.testing.assert_array_equal(sheet.scores, [[0.5, np.nan, -2.0], [1, 0, 1]])
    assert sheet.keys == ("0", "1")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"models": np.array(["a", None], dtype=object)}, r"holds pickled objects, which could run code"),
        ({"Y": np.zeros((2, 2))}, r"Y has shape \(2, 2\), but there are 2 models and 3 items"),
        ({"Y": np.full((2, 3), 7, dtype=np.uint8)}, "Y holds the byte 7"),
        ({"Y": np.full((2, 3), np.inf)}, "an answer is infinite"),
        ({"Y": np.full((2, 3), np.nan)}, "no answer at all"),
        ({"Y": np.full((2, 3), "1")}, "Y is an array of <U1"),
        ({"models": np.array(["a", "a"])}, "the model 'a' occurs twice"),
        ({"items": np.array(["x", "y", "x"])}, "the item 'x' occurs twice"),
        ({"items": np.zeros((3, 1))}, "items is an array of float64"),
    ],
)
def test_bad_arrays_are_refused(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    arrays: dict[str, Any] = {"Y": np.eye(2, 3), "models": MODELS, "items": ITEMS}
    with pytest.raises(ConfigError, match=match):
        read_npz(npz(tmp_path, **{**arrays, **change}), "t")


def test_files_that_are_no_matrix_are_refused(tmp_path: Path) -> None:
    path = npz(tmp_path, slopes=np.zeros(3))
    with pytest.raises(ConfigError, match=r"holds no response matrix(.|\n)*holds slopes"):
        read_npz(path, "t")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_npz(path, "t")
    path.write_bytes(pickle.dumps({"Y": 1}))
    with pytest.raises(ConfigError, match="pickled objects"):
        read_npz(path, "t")
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_npz(path, "t")
    with path.open("wb") as f:
        np.save(f, np.zeros(3))
    with pytest.raises(ConfigError, match="is a single array"):
        read_npz(path, "t")


def test_csv_with_holes_and_a_byte_order_mark(tmp_path: Path) -> None:
    sheet = read_csv(csv(tmp_path, 'model,x,"y,1"\na,1,\n\nb, 0.5 ,0\n', "utf-8-sig"), "t")
    np.testing.assert_array_equal(sheet.scores, [[1, np.nan], [0.5, 0]])
    assert (sheet.keys, sheet.items) == (("a", "b"), ("x", "y,1"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("model,x,y\na,1,0\nb,1\n", "line 3 has 1 answers, the header has 2 items"),
        ("model,x,y\na,1,right\n", "line 2 holds 'right'"),
        ("model,x,y\na,1,inf\n", "an answer is infinite"),
        ("model,x,x\na,1,0\n", "the item 'x' occurs twice"),
        ("model,x,y\na,1,0\na,0,0\n", "the model 'a' occurs twice"),
        ("model,x,y\n", "1 lines, 3 columns"),
        ("", "0 lines, 0 columns"),
    ],
)
def test_bad_csv_is_refused(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        read_csv(csv(tmp_path, text), "t")


def test_csv_in_another_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_csv(csv(tmp_path, "model,ü\na,1\n", "latin-1"), "t")

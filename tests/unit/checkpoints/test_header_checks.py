"""Damaged safetensors headers: every one is a ModelError that names the file, and no tensor is read."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from evomerge.checkpoints import header as header_module
from evomerge.checkpoints.header import HeaderEntry, read_header
from evomerge.errors import ModelError

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.bias": np.arange(4, dtype=np.float16),
    "c": np.array(True),
}
GOOD = save(TENSORS, metadata={"format": "pt"})


def parts() -> tuple[dict[str, Any], bytes]:
    (n,) = struct.unpack("<Q", GOOD[:8])
    return json.loads(GOOD[8 : 8 + n]), GOOD[8 + n :]


def build(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def changed(name: str, **fields: Any) -> bytes:
    header, data = parts()
    header[name] = {**header[name], **fields}
    return build(header, data)


def without(name: str) -> bytes:
    header, data = parts()
    del header[name]
    return build(header, data)


def raw(change: Any) -> bytes:
    header, data = parts()
    return build(change(json.dumps(header)).encode(), data)


MUTANTS: dict[str, bytes] = {
    "empty file": b"",
    "seven bytes": GOOD[:7],
    "length only": GOOD[:8],
    "length zero": struct.pack("<Q", 0) + GOOD[8:],
    "length beyond the file": struct.pack("<Q", len(GOOD)) + GOOD[8:],
    "length of 100 MB": struct.pack("<Q", 100_000_000) + GOOD[8:],
    "length above 100 MB": struct.pack("<Q", 100_000_001) + GOOD[8:],
    "length of 2^63": struct.pack("<Q", 1 << 63) + GOOD[8:],
    "length of all ones": b"\xff" * 8 + GOOD[8:],
    "length one short": struct.pack("<Q", struct.unpack("<Q", GOOD[:8])[0] - 1) + GOOD[8:],
    "length one long": struct.pack("<Q", struct.unpack("<Q", GOOD[:8])[0] + 1) + GOOD[8:],
    "last byte gone": GOOD[:-1],
    "half the data gone": GOOD[: len(GOOD) - 10],
    "all data gone": build(parts()[0], b""),
    "header cut": GOOD[:40],
    "a byte behind": GOOD + b"\0",
    "a page behind": GOOD + b"\0" * 4096,
    "garbage": bytes(range(256)) * 4,
    "a pickle": b"\x80\x04\x95" + b"." * 100,
    "a zip": b"PK\x03\x04" + b"\0" * 100,
    "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 10\n",
    "not JSON": build(b"{not json}", parts()[1]),
    "not UTF-8": build(b'{"\xff\xfe": 1}', parts()[1]),
    "a list": build([1, 2], parts()[1]),
    "a number": build(b"12", parts()[1]),
    "null": build(b"null", parts()[1]),
    "leading space": build(b" " + json.dumps(parts()[0]).encode(), parts()[1]),
    "two objects": raw(lambda t: t + "{}"),
    "trailing comma": raw(lambda t: t[:-1] + ",}"),
    "duplicate tensor": raw(lambda t: t[:-1] + ', "c": {"dtype":"BOOL","shape":[],"data_offsets":[32,33]}}'),
    "duplicate field": raw(lambda t: t.replace('"shape": [4]', '"shape": [4], "shape": [4]')),
    "nesting bomb": build(b'{"a":' * 100_000, b""),
    "list bomb": build(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", b""),
    "huge number": raw(lambda t: t.replace('"shape": [4]', f'"shape": [{"9" * 5000}]')),
    "NaN": raw(lambda t: t.replace('"shape": [4]', '"shape": [NaN]')),
    "Infinity": raw(lambda t: t.replace('"shape": [4]', '"shape": [Infinity]')),
    "lone surrogate": raw(lambda t: t.replace('"c"', '"\\ud800"')),
    "control characters": raw(lambda t: t.replace('"c"', '"c\\u001b[2J"')),
    "empty name": raw(lambda t: t.replace('"c"', '""')),
    "metadata a list": raw(lambda t: t.replace('{"format": "pt"}', "[]")),
    "metadata of numbers": raw(lambda t: t.replace('{"format": "pt"}', '{"format": 1}')),
    "metadata null": raw(lambda t: t.replace('{"format": "pt"}', "null")),
    "entry null": raw(lambda t: t[:-1] + ', "d": null}'),
    "entry a list": raw(lambda t: t[:-1] + ', "d": [1]}'),
    "entry a text": raw(lambda t: t[:-1] + ', "d": "F32"}'),
    "entry empty": raw(lambda t: t[:-1] + ', "d": {}}'),
    "entry without dtype": raw(lambda t: t.replace('"dtype": "F16", ', "")),
    "entry with a stranger": changed("b.bias", stride=[1]),
    "dtype unknown": changed("b.bias", dtype="F17"),
    "dtype in lower case": changed("b.bias", dtype="f16"),
    "dtype sub-byte": changed("b.bias", dtype="F4"),
    "dtype a number": changed("b.bias", dtype=16),
    "dtype a list": changed("b.bias", dtype=["F16"]),
    "dtype null": changed("b.bias", dtype=None),
    "dtype too wide": changed("b.bias", dtype="F32"),
    "dtype too narrow": changed("b.bias", dtype="U8"),
    "shape negative": changed("b.bias", shape=[-4]),
    "shape two negatives": changed("b.bias", shape=[-2, -2]),
    "shape of floats": changed("b.bias", shape=[4.0]),
    "shape of texts": changed("b.bias", shape=["4"]),
    "shape of booleans": changed("b.bias", shape=[4, True]),
    "shape nested": changed("b.bias", shape=[[4]]),
    "shape a number": changed("b.bias", shape=4),
    "shape null": changed("b.bias", shape=None),
    "shape too small": changed("b.bias", shape=[3]),
    "shape too large": changed("b.bias", shape=[5]),
    "shape with a zero": changed("b.bias", shape=[4, 0]),
    "shape that overflows": changed("b.bias", shape=[2**62, 2**62]),
    "shape that overflows to 4": changed("b.bias", shape=[2**32, 2**32 + 4]),
    "shape of many axes": changed("b.bias", shape=[1] * 65 + [4]),
    "shape of enormous product": changed("b.bias", shape=[2**62] * 2000),
    "offsets swapped": changed("b.bias", data_offsets=[32, 24]),
    "offsets negative": changed("b.bias", data_offsets=[-8, 0]),
    "offsets beyond": changed("b.bias", data_offsets=[1000, 1008]),
    "offsets at 2^64": changed("b.bias", data_offsets=[2**64, 2**64 + 8]),
    "offsets of one": changed("b.bias", data_offsets=[24]),
    "offsets of three": changed("b.bias", data_offsets=[24, 32, 40]),
    "offsets of floats": changed("b.bias", data_offsets=[24.0, 32.0]),
    "offsets null": changed("b.bias", data_offsets=None),
    "offsets overlap": changed("b.bias", data_offsets=[0, 8]),
    "offsets overlap partly": changed("b.bias", data_offsets=[20, 28]),
    "offsets leave a hole": changed("b.bias", data_offsets=[25, 33]),
    "a hole at the start": without("a.weight"),
    "a hole inside": without("b.bias"),
    "a hole at the end": without("c"),
    "no tensors but data": build({"__metadata__": {}}, b"12345678"),
}


def test_the_corpus_is_large_and_made_of_different_files() -> None:
    assert len(MUTANTS) >= 60
    assert len(set(MUTANTS.values())) == len(MUTANTS)
    assert GOOD not in MUTANTS.values()


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(MUTANTS[name])
    with pytest.raises(ModelError, match=r"model\.safetensors") as caught:
        read_header(path)
    assert caught.value.exit_code == 3
    assert len(str(caught.value)) < 2000


def test_a_good_file_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "good.safetensors"
    path.write_bytes(GOOD)
    header = read_header(path)
    assert {n: (e.dtype, e.shape) for n, e in header.entries.items()} == {
        "a.weight": ("F32", (2, 3)),
        "b.bias": ("F16", (4,)),
        "c": ("BOOL", ()),
    }
    assert header.metadata == {"format": "pt"}
    assert header.size == len(GOOD)
    entry = header.entries["a.weight"]
    assert GOOD[entry.start : entry.stop] == TENSORS["a.weight"].tobytes()


def test_zero_sized_tensors_and_an_empty_file_of_tensors_are_legal(tmp_path: Path) -> None:
    path = tmp_path / "empty.safetensors"
    path.write_bytes(save({"none": np.zeros((0, 3), dtype=np.float32), "one": np.ones(1, dtype=np.float32)}))
    assert read_header(path).entries["none"].shape == (0, 3)
    path.write_bytes(build({}, b""))
    assert read_header(path).entries == {}


def test_a_missing_and_an_unreadable_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.safetensors"):
        read_header(tmp_path / "gone.safetensors")
    with pytest.raises(ModelError, match="Is a directory"):
        read_header(tmp_path)


def test_the_header_limit_is_checked_before_the_header_is_read(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(header_module, "MAX_HEADER_BYTES", 20)
    path = tmp_path / "model.safetensors"
    path.write_bytes(GOOD)
    with pytest.raises(ModelError, match="at most 20 bytes of header"):
        read_header(path)


@settings(deadline=None, max_examples=60)
@given(position=st.integers(0, len(GOOD) - 1 - 33), flip=st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_changes_nothing_but_a_name(
    tmp_path_factory: pytest.TempPathFactory, position: int, flip: int
) -> None:
    data = bytearray(GOOD)
    data[position] ^= flip
    path = tmp_path_factory.mktemp("flip") / "model.safetensors"
    path.write_bytes(bytes(data))
    try:
        header = read_header(path)
    except ModelError:
        return
    # what survives describes a complete, gapless file of the same bytes
    assert sum(e.nbytes for e in header.entries.values()) == 33
    assert all(0 < e.start <= e.stop <= len(GOOD) for e in header.entries.values())


@settings(deadline=None, max_examples=40)
@given(cut=st.integers(0, len(GOOD) - 1))
def test_every_truncation_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "model.safetensors"
    path.write_bytes(GOOD[:cut])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        read_header(path)


def test_sizes_of_entries() -> None:
    assert HeaderEntry("BF16", (2, 3)).nbytes == 12
    assert HeaderEntry("F64", ()).nbytes == 8
    assert HeaderEntry("F32", (0, 5)).numel == 0

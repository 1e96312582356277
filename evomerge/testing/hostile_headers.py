"""Mutations of a safetensors file: its length field, its header's JSON, its entries, its bytes."""

# ruff: noqa: E501 - tables: one line a case

from __future__ import annotations

import json
import struct
from typing import Any

from evomerge.testing.hostile_model import (
    TENSOR,
    WEIGHTS,
    Mutation,
    Victim,
    header_of,
    nested,
    with_bytes,
    with_header,
    with_text,
    write_header,
)

_FILE = r"model\.safetensors"


def _length(value: int) -> Any:
    return with_bytes(lambda data: struct.pack("<Q", value) + data[8:])


def _shortened(by: int) -> Any:
    return with_bytes(lambda data: data[:-by])


def _cut(share: float) -> Any:
    return with_bytes(lambda data: data[: int(len(data) * share)])


def _cut_at(position: int) -> Any:
    return with_bytes(lambda data: data[:position])


def _renamed(name: str) -> Any:
    def change(header: dict[str, Any]) -> None:
        header[name] = header.pop(TENSOR)

    return with_header(change)


def _entry(fields: dict[str, object]) -> Any:
    return with_header(lambda header: header[TENSOR].update(fields))


def _text(old: str, new: str) -> Any:
    return with_header(lambda header: json.dumps(header).replace(old, new, 1).encode())


def _moved(delta: int) -> Any:
    def change(header: dict[str, Any]) -> None:
        header[TENSOR]["data_offsets"] = [n + delta for n in header[TENSOR]["data_offsets"]]

    return with_header(change)


def _many_tensors(victim: Victim) -> None:
    text = ",".join(f'"t{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(300_000))
    write_header(victim.folder / WEIGHTS, f"{{{text}}}".encode(), b"")


def _many_lists(victim: Victim) -> None:
    write_header(victim.folder / WEIGHTS, b'{"a":[' + b"[]," * 12_000_000 + b"[]]}", b"")


def _twice(victim: Victim) -> None:
    header, data = header_of(victim.folder / WEIGHTS)
    entry = json.dumps({TENSOR: header[TENSOR]})[1:]
    write_header(victim.folder / WEIGHTS, (json.dumps(header)[:-1] + ", " + entry).encode(), data)


def _shared(victim: Victim) -> None:
    header, data = header_of(victim.folder / WEIGHTS)
    header[TENSOR + "2"] = header[TENSOR]
    write_header(victim.folder / WEIGHTS, header, data)


def _hole(victim: Victim) -> None:
    header, data = header_of(victim.folder / WEIGHTS)
    del header[TENSOR]
    write_header(victim.folder / WEIGHTS, header, data)


def _deep(depth: int) -> Any:
    return with_header(lambda header: json.dumps(header)[:-1].encode() + f', "x": {nested(depth)}}}'.encode())


def _lengths() -> list[Mutation]:
    make = [
        ("empty file", with_text(WEIGHTS, b""), "only 0 bytes"),
        ("seven bytes", _cut_at(7), "only 7 bytes"),
        ("length field alone", _cut_at(8), "truncated"),
        ("length zero", _length(0), "begins with"),
        ("length one", _length(1), "JSON"),
        ("length of the file", with_bytes(lambda d: struct.pack("<Q", len(d)) + d[8:]), "truncated"),
        ("length of the cap", _length(100_000_000), "truncated"),
        ("length above the cap", _length(100_000_001), "at most 100000000"),
        ("length 2^31", _length(1 << 31), "at most 100000000"),
        ("length 2^62", _length(1 << 62), "at most 100000000"),
        ("length 2^63", _length(1 << 63), "at most 100000000"),
        ("length 2^64 - 1", _length((1 << 64) - 1), "at most 100000000"),
        ("length big-endian", with_bytes(lambda d: d[:8][::-1] + d[8:]), "header"),
        ("length one less", with_bytes(lambda d: struct.pack("<Q", struct.unpack("<Q", d[:8])[0] - 1) + d[8:]), "JSON|hole|bytes"),
        ("length one more", with_bytes(lambda d: struct.pack("<Q", struct.unpack("<Q", d[:8])[0] + 1) + d[8:]), "JSON"),
        ("one byte behind", with_bytes(lambda d: d + b"\0"), "1 bytes behind"),
        ("a page behind", with_bytes(lambda d: d + b"\0" * 4096), "4096 bytes behind"),
        ("a pickle behind", with_bytes(lambda d: d + b"\x80\x04N."), "bytes behind"),
        ("a zip behind", with_bytes(lambda d: d + b"PK\x05\x06" + b"\0" * 18), "bytes behind"),
        ("a second file behind", with_bytes(lambda d: d + d), "bytes behind"),
        ("no data", with_bytes(lambda d: d[: 8 + struct.unpack("<Q", d[:8])[0]]), "truncated"),
        ("header without tensors", with_header(lambda _: {"__metadata__": {}}), "bytes behind"),
        ("nothing but a header", with_text(WEIGHTS, struct.pack("<Q", 2) + b"{}"), "no tensors"),
    ]  # fmt: skip
    made = [
        Mutation(name, "header", change, f"{words}(.|\n)*{_FILE}" if words != "at" else words)
        for name, change, words in make
    ]
    shares = [0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999]
    made += [Mutation(f"cut to {s:.1%}", "header", _cut(s), "truncated|only") for s in shares]
    made += [Mutation(f"cut by {n}", "header", _shortened(n), "truncated") for n in (1, 2, 3, 4, 127)]
    return made


def _json() -> list[Mutation]:
    make = [
        ("not JSON", with_header(lambda _: b"{not json}"), "invalid JSON"),
        ("not UTF-8", with_header(lambda _: b'{"\xff\xfe": 1}'), "invalid JSON"),
        ("UTF-16", with_header(lambda h: json.dumps(h).encode("utf-16")), "begins with"),
        ("byte order mark", with_header(lambda h: b"\xef\xbb\xbf" + json.dumps(h).encode()), "begins with"),
        ("a list", with_header(lambda _: [1]), "begins with"),
        ("null", with_header(lambda _: b"null"), "begins with"),
        ("two objects", with_header(lambda h: json.dumps(h).encode() + b"{}"), "invalid JSON"),
        ("a comma too many", with_header(lambda h: json.dumps(h)[:-1].encode() + b",}"), "invalid JSON"),
        ("a comment", with_header(lambda h: b"{/* */" + json.dumps(h)[1:].encode()), "invalid JSON"),
        ("NaN", _text('"shape": [', '"shape": [NaN, '), "NaN is not JSON"),
        ("Infinity", _text('"shape": [', '"shape": [Infinity, '), "Infinity is not JSON"),
        ("a number of 5,000 digits", _text('"shape": [', f'"shape": [{"9" * 5000}, '), "invalid JSON"),
        ("nested 65 deep", _deep(65), "nested too deeply"),
        ("nested 900 deep", _deep(900), "nested too deeply"),
        ("nested 3,000 deep", _deep(3000), "nested too deeply"),
        ("nested 100,000 deep", _deep(100_000), "nested too deeply"),
        ("three hundred thousand tensors", _many_tensors, "about 300000 tensors"),
        ("twelve million lists", _many_lists, "values"),
        ("a tensor twice", _twice, "stands twice"),
        ("a field twice", _text('"dtype": "F32"', '"dtype": "F32", "dtype": "F32"'), "stands twice"),
        ("lone surrogate", _renamed("\ud800"), "invalid JSON"),
        ("zero byte in the text", with_header(lambda h: json.dumps(h).encode().replace(b"{", b"{\0", 1)), "invalid JSON"),
        ("metadata a list", with_header(lambda h: h.update(__metadata__=[])), "__metadata__"),
        ("metadata a text", with_header(lambda h: h.update(__metadata__="pt")), "__metadata__"),
        ("metadata null", with_header(lambda h: h.update(__metadata__=None)), "__metadata__"),
        ("metadata of numbers", with_header(lambda h: h.update(__metadata__={"a": 1})), "__metadata__"),
        ("metadata nested", with_header(lambda h: h.update(__metadata__={"a": {"b": "c"}})), "__metadata__"),
    ]  # fmt: skip
    return [Mutation(f"header: {name}", "header", change, words) for name, change, words in make]


def _names() -> list[Mutation]:
    odd = {
        "empty": "",
        "with a zero byte": "a\0b",
        "with a newline": "a\nb",
        "with a carriage return": "a\rb",
        "that clears the screen": "a\x1b[2J",
        "with C1 control": "a\x9b31m",
        "right to left": "a\u202egnp.exe",
        "zero width": "a\u200bb",
        "of a megabyte": "a" * 1_000_000,
        "of 513 characters": "a" * 513,
    }
    made = [
        Mutation(f"tensor name {what}", "header", _renamed(name), "printable characters") for what, name in odd.items()
    ]
    paths = ("../../etc/passwd", "/etc/passwd", "C:\\windows", "a/../b", "$(touch canary)", "; rm -rf ~", "%s%n", "{0}")
    made += [Mutation(f"tensor name {n}", "header", _renamed(n), "layers|differences") for n in paths]
    return made


def _entries() -> list[Mutation]:
    half = [32, 48]
    fields: list[tuple[str, dict[str, object], str]] = [
        ("dtype unknown", {"dtype": "F17"}, "with dtype"),
        ("dtype lower case", {"dtype": "f32"}, "with dtype"),
        ("dtype of four bits", {"dtype": "F4"}, "with dtype"),
        ("dtype a number", {"dtype": 32}, "with dtype"),
        ("dtype a list", {"dtype": ["F32"]}, "with dtype"),
        ("dtype null", {"dtype": None}, "with dtype"),
        ("dtype a class path", {"dtype": "torch.storage.UntypedStorage"}, "with dtype"),
        ("dtype too wide", {"dtype": "F64"}, "bytes for shape"),
        ("dtype too narrow", {"dtype": "F16"}, "bytes for shape"),
        ("dtype one byte", {"dtype": "I8"}, "bytes for shape"),
        ("shape negative", {"shape": [-32, 48]}, "with shape"),
        ("shape two negatives", {"shape": [-32, -48]}, "with shape"),
        ("shape of floats", {"shape": [32.0, 48.0]}, "with shape"),
        ("shape of texts", {"shape": ["32", "48"]}, "with shape"),
        ("shape of booleans", {"shape": [True, True]}, "with shape"),
        ("shape a number", {"shape": 1536}, "with shape"),
        ("shape null", {"shape": None}, "with shape"),
        ("shape nested", {"shape": [[32, 48]]}, "with shape"),
        ("shape of rank 100", {"shape": [1] * 98 + [32, 48]}, "with shape"),
        ("shape of 10,000 twos", {"shape": [2] * 10_000}, "with shape"),
        ("shape with a zero", {"shape": [0, 48]}, "bytes for shape"),
        ("shape empty", {"shape": []}, "bytes for shape"),
        ("shape too large", {"shape": [33, 48]}, "bytes for shape"),
        ("shape huge", {"shape": [1 << 40, 1 << 40]}, "bytes for shape"),
        ("shape that overflows 64 bits", {"shape": [1 << 62, 4, 1536]}, "bytes for shape"),
        ("shape that overflows to right", {"shape": [1 << 32, (1 << 32) + 1536]}, "bytes for shape"),
        ("shape beyond 2^63", {"shape": [1 << 63, 1]}, "with shape"),
        ("offsets reversed", {"data_offsets": half[::-1]}, "bytes"),
        ("offsets negative", {"data_offsets": [-6144, 0]}, "data_offsets"),
        ("offsets of floats", {"data_offsets": [0.0, 6144.0]}, "data_offsets"),
        ("offsets of booleans", {"data_offsets": [False, True]}, "data_offsets"),
        ("offsets of texts", {"data_offsets": ["0", "6144"]}, "data_offsets"),
        ("offsets of one", {"data_offsets": [0]}, "data_offsets"),
        ("offsets of three", {"data_offsets": [0, 1, 2]}, "data_offsets"),
        ("offsets null", {"data_offsets": None}, "data_offsets"),
        ("offsets a mapping", {"data_offsets": {"0": 1}}, "data_offsets"),
        ("offsets beyond 2^64", {"data_offsets": [1 << 64, (1 << 64) + 6144]}, "data_offsets"),
        ("offsets beyond the file", {"data_offsets": [1 << 40, (1 << 40) + 6144]}, "hole|ends at"),
        ("offsets of half", {"data_offsets": half}, "bytes"),
        ("a field too many", {"strides": [1]}, "exactly dtype, shape"),
        ("an absolute file", {"filename": "/etc/passwd"}, "exactly dtype, shape"),
    ]
    made = [Mutation(f"entry: {name}", "header", _entry(change), words) for name, change, words in fields]
    made += [
        Mutation("entry: overlap of one byte", "header", _moved(-1), "overlaps|hole"),
        Mutation("entry: hole of one byte", "header", _moved(1), "overlaps|hole"),
        Mutation("entry: shared bytes", "header", _shared, "overlaps"),
        Mutation("entry: bytes of nobody", "header", _hole, "hole|behind"),
        Mutation("entry: null", "header", with_header(lambda h: h.update(x=None)), "described by"),
        Mutation("entry: a list", "header", with_header(lambda h: h.update(x=[1])), "described by"),
        Mutation("entry: a text", "header", with_header(lambda h: h.update(x="F32")), "described by"),
        Mutation("entry: empty", "header", with_header(lambda h: h.update(x={})), "described by"),
    ]
    return made


def header_mutations() -> tuple[Mutation, ...]:
    """All of them."""
    return (*_lengths(), *_json(), *_names(), *_entries())

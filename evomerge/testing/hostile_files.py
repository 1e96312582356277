"""Mutations of which files a checkpoint has: indexes that lie, links that lead out, things that are no files, pickles."""

# ruff: noqa: E501, ARG005, RUF005 - tables: one line a case

from __future__ import annotations

import json
import os
import shutil
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evomerge.testing.hostile_model import (
    INDEX,
    TENSOR,
    WEIGHTS,
    Mutation,
    Victim,
    header_of,
    in_turn,
    nested,
    with_text,
    write_header,
)

_FIRST = "model-00001-of-00002.safetensors"
_SECOND = "model-00002-of-00002.safetensors"


def _split(victim: Victim) -> dict[str, str]:
    """Turn the single file into two shards and return the weight map of their index."""
    header, data = header_of(victim.folder / WEIGHTS)
    names = [n for n in header if n != "__metadata__"]
    weight_map = {}
    for shard, part in ((_FIRST, names[::2]), (_SECOND, names[1::2])):
        body, entries = b"", {}
        for name in part:
            first, last = header[name]["data_offsets"]
            entries[name] = {**header[name], "data_offsets": [len(body), len(body) + last - first]}
            body += data[first:last]
            weight_map[name] = shard
        write_header(victim.folder / shard, entries, body)
    (victim.folder / WEIGHTS).unlink()
    return weight_map


def sharded(change: Callable[[Victim, dict[str, Any]], object] = lambda *_: None) -> Callable[[Victim], object]:
    """Shards, with an index whose content is what `change` makes of it: bytes, a mapping, or the given one."""

    def apply(victim: Victim) -> None:
        index: dict[str, Any] = {"metadata": {"total_size": 1}, "weight_map": _split(victim)}
        found = change(victim, index)
        text = found if isinstance(found, bytes) else json.dumps(found if isinstance(found, dict) else index).encode()
        (victim.folder / INDEX).write_bytes(text)

    return apply


def _elsewhere(name: str) -> Callable[[Victim], object]:
    """All tensors of the first shard in a file called `name`; `{outside}` is a folder with the same shard."""

    def change(victim: Victim, index: dict[str, Any]) -> None:
        shutil.copy(victim.folder / _FIRST, victim.outside / _FIRST)
        found = name.format(outside=victim.outside)
        index["weight_map"] = {t: found if f == _FIRST else f for t, f in index["weight_map"].items()}

    return sharded(change)


def _replaced(file: str, make: Callable[[Victim, Path], object]) -> Callable[[Victim], object]:
    """A file replaced by something that `make` puts in its place."""

    def apply(victim: Victim) -> None:
        path = victim.folder / file
        path.rename(victim.outside / path.name)
        make(victim, path)

    return apply


def _link_chain(victim: Victim, path: Path) -> None:
    (victim.folder / "inner.safetensors").symlink_to(victim.outside / path.name)
    path.symlink_to("inner.safetensors")


def _link_loop(victim: Victim, path: Path) -> None:
    (victim.folder / "loop.safetensors").symlink_to(path.name)
    path.symlink_to("loop.safetensors")


def _link_folder(victim: Victim, path: Path) -> None:
    (victim.folder / "weights").symlink_to(victim.outside)
    path.symlink_to(f"weights/{path.name}")


def _socket(_: Victim, path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # paths of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


def _sparse(size: int) -> Callable[[Victim], object]:
    def apply(victim: Victim) -> None:
        entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
        write_header(victim.folder / WEIGHTS, {"model.embed_tokens.weight": entry}, b"")
        os.truncate(victim.folder / WEIGHTS, (victim.folder / WEIGHTS).stat().st_size + size)

    return apply


def pickled(canary: Path) -> bytes:
    """A pickle that makes the canary when it is read: what `__reduce__` of a hostile class writes."""
    return b"cio\nopen\n(V" + str(canary).encode() + b"\nVw\ntR."


def _pickled(name: str, *, keep: bool = False, inside: bool = False) -> Callable[[Victim], object]:
    """Weights as a pickle that makes the canary; `inside` a zip as torch writes it."""

    def apply(victim: Victim) -> None:
        if not keep:
            (victim.folder / WEIGHTS).unlink()
        raw = pickled(victim.canary)
        if not inside:
            (victim.folder / name).write_bytes(raw)
            return
        with zipfile.ZipFile(victim.folder / name, "w") as archive:
            archive.writestr("archive/data.pkl", raw)
            archive.writestr("archive/version", "3\n")

    return apply


def _zip_bomb(name: str) -> Callable[[Victim], object]:
    def apply(victim: Victim) -> None:
        (victim.folder / WEIGHTS).unlink()
        with zipfile.ZipFile(victim.folder / name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data/0", b"\0" * 50_000_000)

    return apply


def _without_shards(victim: Victim, _: dict[str, Any]) -> None:
    for name in (_FIRST, _SECOND):
        (victim.folder / name).unlink()


def _many_files(victim: Victim) -> None:
    for i in range(5_001):
        (victim.folder / f"f{i}").touch()


def _device(path: str) -> Callable[[Victim, Path], object]:
    return lambda _, p: p.symlink_to(path)


def _linked_out(name: str) -> Callable[[Victim], object]:
    def apply(victim: Victim) -> None:
        (victim.folder / name).unlink(missing_ok=True)
        (victim.folder / name).symlink_to(victim.outside / "config.json")

    return apply


def _indexes() -> list[Mutation]:
    def at(name: str, change: Callable[[Victim, dict[str, Any]], object], words: str) -> Mutation:
        return Mutation(f"index: {name}", "index", sharded(change), words)

    outside = "does not lie in its folder"
    names = {
        "..": "../outside/" + _FIRST,
        "absolute": "{outside}/" + _FIRST,
        ". in front": "./" + _FIRST,
        "a folder": "weights/" + _FIRST,
        "a backslash": "..\\outside\\" + _FIRST,
        "a drive": "C:" + _FIRST,
        "a zero byte": "model\0.safetensors",
        "a newline": "model\n.safetensors",
        "right to left": "model\u202e.safetensors",
        "a name of 300": "m" * 300 + ".safetensors",
        "a URL": "https://example.org/" + _FIRST,
        "home": "~/" + _FIRST,
    }
    made = [Mutation(f"index: {what}", "index", _elsewhere(name), outside) for what, name in names.items()]
    return made + [
        at("no shard is there", _without_shards, "lacks weight files"),
        at("a shard missing", lambda v, _: (v.folder / _SECOND).unlink(), "lacks weight files"),
        at("a shard of another case", lambda v, _: (v.folder / _SECOND).rename(v.folder / _SECOND.upper()), "lacks weight"),
        at("a shard doubled", lambda v, _: shutil.copy(v.folder / _FIRST, v.folder / _SECOND), "is not in|holds"),
        at("a tensor too many", lambda _, i: i["weight_map"].update({"x": _FIRST}), "is not in"),
        at("a tensor too few", lambda _, i: i["weight_map"].pop(TENSOR), "puts into 'no file'|holds"),
        at("tensors exchanged", lambda _, i: i.update(weight_map={t: _SECOND if f == _FIRST else _FIRST for t, f in i["weight_map"].items()}), "is not in"),
        at("no weight_map", lambda *_: {"metadata": {}}, "weight_map"),
        at("weight_map a list", lambda _, i: {"weight_map": list(i["weight_map"])}, "weight_map"),
        at("weight_map empty", lambda *_: {"weight_map": {}}, "weight_map"),
        at("weight_map of lists", lambda _, i: {"weight_map": {t: [f] for t, f in i["weight_map"].items()}}, "in file"),
        at("weight_map of pickles", lambda _, i: {"weight_map": dict.fromkeys(i["weight_map"], "pytorch_model.bin")}, "names of .safetensors"),
        at("not JSON", lambda *_: b"{", "invalid JSON"),
        at("a key twice", lambda _, i: json.dumps(i).replace('"weight_map"', '"weight_map": {}, "weight_map"').encode(), "stands twice"),
        at("a tensor twice", lambda _, i: json.dumps(i).replace(f'"{TENSOR}"', f'"{TENSOR}": "x.safetensors", "{TENSOR}"').encode(), "stands twice"),
        at("nested", lambda *_: f'{{"weight_map": {nested(5000)}}}'.encode(), "nested too deeply"),
        at("of a million tensors", lambda *_: b'{"weight_map": {' + b",".join(b'"%d":"a"' % i for i in range(1_100_000)) + b"}}", "values"),
        at("of 101 MB", lambda *_: b'{"weight_map": {"' + b"a" * 101_000_000 + b'": "b"}}', "at most"),
    ]  # fmt: skip


def _links() -> list[Mutation]:
    outside, no_file = "does not lie in its folder", "not a regular file"
    link = {
        "a link out": lambda v, p: p.symlink_to(v.outside / p.name),
        "a relative link out": lambda v, p: p.symlink_to(f"../outside/{p.name}"),
        "a chain of links out": _link_chain,
        "a loop of links": _link_loop,
        "a link to nothing": lambda _, p: p.symlink_to("nothing"),
        "a link through a folder out": _link_folder,
    }
    kinds: dict[str, Callable[[Victim, Path], object]] = {
        "a folder": lambda _, p: p.mkdir(),
        "a pipe": lambda _, p: os.mkfifo(p),
        "a socket": _socket,
    }
    made = []
    for file in (WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json"):
        made += [Mutation(f"{file}: {what}", "file", _replaced(file, make), outside) for what, make in link.items()]
        made += [Mutation(f"{file}: {what}", "file", _replaced(file, make), no_file) for what, make in kinds.items()]
    made.append(
        Mutation("a shard: a link out", "file", in_turn(sharded(), _replaced(_FIRST, link["a link out"])), outside)
    )
    made.append(Mutation("a shard: a pipe", "file", in_turn(sharded(), _replaced(_FIRST, kinds["a pipe"])), no_file))
    for device in ("/dev/zero", "/dev/random", "/dev/stdin"):
        made.append(Mutation(f"{WEIGHTS}: {device}", "file", _replaced(WEIGHTS, _device(device)), outside))
    for name in (
        "chat_template.jinja",
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "bpe.codes",
    ):
        made.append(
            Mutation(
                f"{name}: a link out",
                "file",
                _linked_out(name),
                outside,
            )
        )
    made.append(
        Mutation(
            "templates: a link out",
            "file",
            lambda v: (v.folder / "additional_chat_templates").symlink_to(v.outside),
            "leads out",
        )
    )
    return made  # fmt: skip


def _others() -> list[Mutation]:
    pickles = ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "weights.pkl", "weights.pickle"]
    made = [Mutation(f"only {n}", "file", _pickled(n), "pickles only") for n in pickles]
    return made + [
        Mutation("a pickle in disguise", "file", _pickled(WEIGHTS), "truncated|header"),
        Mutation("a zipped pickle in disguise", "file", _pickled(WEIGHTS, inside=True), "header"),
        Mutation("a zip bomb in disguise", "file", _zip_bomb(WEIGHTS), "header"),
        Mutation("a zip bomb", "file", _zip_bomb("pytorch_model.bin"), "pickles only"),
        Mutation("a pickle beside", "file", _pickled("pytorch_model.bin", keep=True), legal="the pickle is not opened"),
        Mutation("no weights", "file", lambda v: (v.folder / WEIGHTS).unlink(), "holds no weights"),
        Mutation("weights of another case", "file", lambda v: (v.folder / WEIGHTS).rename(v.folder / "MODEL.SAFETENSORS"), "holds no weights"),
        Mutation("a name with escapes", "file", lambda v: (v.folder / WEIGHTS).rename(v.folder / "\x1b[2Jx"), r"\\x1b\[2Jx"),
        Mutation("a sparse terabyte", "file", _sparse(1 << 40), "sparse"),
        Mutation("a sparse petabyte", "file", _sparse(1 << 43), "sparse"),
        Mutation("an adapter beside", "file", with_text("adapter_config.json", '{"base_model_name_or_path": "../outside"}'), "An adapter lies in"),
        Mutation("five thousand files", "file", _many_files, "more than 5000 files"),
        Mutation("single file and index", "index", in_turn(lambda v: shutil.copy(v.folder / WEIGHTS, v.outside / "kept"), sharded(), lambda v: shutil.copy(v.outside / "kept", v.folder / WEIGHTS)), legal="the single file goes before an index, as in transformers"),
        Mutation("shards", "index", sharded(), legal="what transformers writes"),
        Mutation("a hard link", "file", _replaced(WEIGHTS, lambda v, p: os.link(v.outside / p.name, p)), legal="a second name of a file is that file"),
        Mutation("code beside", "file", in_turn(*(with_text(n, f"raise SystemExit({n!r})") for n in ("modeling_llama.py", "torch.py", "__init__.py", "sitecustomize.py"))), legal="no folder of a model is on Python's path"),
    ]  # fmt: skip


def file_mutations() -> tuple[Mutation, ...]:
    """All of them."""
    return (*_indexes(), *_links(), *_others())

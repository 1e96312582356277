"""Find the safetensors files of a folder and check that index and headers tell the same story."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from evomerge.checkpoints.folder import find_file
from evomerge.checkpoints.header import Header, HeaderEntry, read_header
from evomerge.checkpoints.strict_json import damaged, quoted, read_object
from evomerge.errors import ModelError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MAX_INDEXED = 1_000_000
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class Shards:
    """The checked headers of a checkpoint.

    Attributes:
        headers: file name -> header, sorted by name.
        files: tensor -> name of its file.
    """

    headers: Mapping[str, Header]
    files: Mapping[str, str]

    def entry(self, name: str) -> HeaderEntry:
        """The entry of a tensor; `KeyError` for an unknown name."""
        return self.headers[self.files[name]].entries[name]

    def entries(self) -> dict[str, HeaderEntry]:
        """All entries by tensor name."""
        return {name: self.entry(name) for name in sorted(self.files)}


def adapter_instead(folder: Path) -> ModelError | None:
    """What to say about a folder that holds an adapter where a model is wanted; None for any other."""
    if (folder / "adapter_config.json").exists():
        return ModelError(
            "A LoRA adapter is not a checkpoint.",
            got=f"adapter_config.json and no {SINGLE} in {folder}",
            allowed="the folder of a whole model",
            fix="name it as `{adapter: FOLDER}` in a job, as `MODEL+FOLDER` in a mergekit file.",
        )
    return None


def _nothing_found(folder: Path) -> ModelError:
    adapter = adapter_instead(folder)
    if adapter is not None:
        return adapter
    names = sorted(p.name for p in islice(folder.iterdir(), 10_000))
    pickles = [n for n in names if n.endswith(_PICKLES)]
    if pickles:
        return ModelError(
            "A checkpoint holds its weights as pickles only, which can run code when they are read.",
            got=f"{', '.join(map(quoted, pickles[:5]))} in {folder}",
            allowed=f"{SINGLE}, or shards with {INDEX}",
            fix="convert to safetensors: load it with transformers where you trust it, and call save_pretrained.",
        )
    return ModelError(
        "A checkpoint holds no weights.",
        got=f"{', '.join(map(quoted, names[:12])) or 'an empty folder'} in {folder}",
        allowed=f"{SINGLE}, or shards with {INDEX}",
        fix="name the folder of a model that transformers saved.",
    )


def _read_index(path: Path) -> dict[str, str]:
    """The `weight_map` of an index: tensor -> file name, not yet compared with the files."""
    weight_map = read_object(path, max_values=_MAX_INDEXED).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise damaged(path, f"weight_map = {quoted(weight_map)}", "a mapping of tensor names to file names")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise damaged(path, f"tensor {quoted(tensor)} in file {quoted(name)}", "names of .safetensors files")
    return weight_map


def _check_index(folder: Path, weight_map: Mapping[str, str], headers: Mapping[str, Header]) -> None:
    """Every indexed tensor lies in its shard, every tensor of a shard is indexed there."""
    faults = [f"{quoted(t)} is not in {f!r}" for t, f in weight_map.items() if t not in headers[f].entries]
    faults += [
        f"{f!r} holds {quoted(t)}, which the index puts into {weight_map.get(t, 'no file')!r}"
        for f, header in headers.items()
        for t in header.entries
        if weight_map.get(t) != f
    ]
    if faults:
        more = f" and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise damaged(folder / INDEX, "; ".join(faults[:20]) + more, "an index that lists exactly what the shards hold")


def find_shards(folder: Path) -> Shards:
    """Read and check the headers of all weight files of a folder; `model.safetensors` goes before an index.

    Raises:
        ModelError: when there are only pickles, an adapter or nothing; when the index is damaged, names a file that is
            missing or lies outside, or disagrees with the headers; when a header is damaged.
    """
    single = find_file(folder, SINGLE)
    if single is not None:
        header = read_header(single)
        if not header.entries:
            raise damaged(single, "no tensors", "the tensors of a model")
        return Shards({SINGLE: header}, dict.fromkeys(header.entries, SINGLE))
    index = find_file(folder, INDEX)
    if index is None:
        raise _nothing_found(folder)
    weight_map = _read_index(index)
    paths = {name: find_file(folder, name) for name in sorted(set(weight_map.values()))}
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        raise damaged(
            index,
            f"{', '.join(missing[:5])} ({len(missing)} of {len(paths)} shards missing)",
            "shards that lie beside the index",
            "A checkpoint lacks weight files.",
        )
    headers = {name: read_header(path) for name, path in paths.items() if path is not None}
    _check_index(folder, weight_map, headers)
    return Shards(headers, weight_map)

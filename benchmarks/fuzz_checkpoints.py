"""Fuzz the readers of checkpoints with coverage feedback (atheris, which is not among the dependencies).

    pip install atheris
    python benchmarks/fuzz_checkpoints.py header -max_total_time=60     # or: json, config, pattern, adapter

A crash is an exception that is not an `EvomergeError`, or input that takes longer than `-timeout` seconds; libFuzzer
leaves it in a file `crash-*`. What was found becomes a named case of `evomerge.testing.hostile_checkpoints`.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["evomerge.checkpoints"]):
    from evomerge.checkpoints import adapter_config, header, model_config, strict_json, tokenizer_bombs, tokenizers
    from evomerge.errors import ModelError

FOLDER = Path(tempfile.mkdtemp(prefix="evomerge-fuzz-"))
SOUND = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"__metadata__":{"format":"pt"}}'


def fuzz_header(data: bytes) -> None:
    """The bytes as a file, and as the JSON of a header in front of eight bytes."""
    for content in (data, len(data).to_bytes(8, "little") + data + b"\0" * 8):
        (FOLDER / "model.safetensors").write_bytes(content)
        with contextlib.suppress(ModelError):
            found = header.read_header(FOLDER / "model.safetensors")
            if any(e.stop - e.start != e.nbytes or e.stop > found.size for e in found.entries.values()):
                raise AssertionError("a tensor outside its file")


def fuzz_json(data: bytes) -> None:
    """The bytes as any JSON of a checkpoint."""
    with contextlib.suppress(ModelError):
        json.dumps(strict_json.parse_object(data, FOLDER / "x.json", constants=True))


def _parsed(data: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ModelError):
        return strict_json.parse_object(data, FOLDER / "x.json", constants=True)
    return None


def fuzz_config(data: bytes) -> None:
    """The bytes as a config, and as a tokenizer."""
    content = _parsed(data)
    if content is None:
        return
    with contextlib.suppress(ModelError):
        tokenizer_bombs.check_tokenizer(FOLDER / "tokenizer.json", content)
        tokenizers.vocabulary_in(content, FOLDER / "tokenizer.json")
    with contextlib.suppress(ModelError):
        model_config.check_config(FOLDER / "config.json", {"model_type": "llama", **content})


def fuzz_pattern(data: bytes) -> None:
    """The bytes as a regular expression of a tokenizer."""
    tokenizer_bombs.pattern_fault(data.decode("utf-8", "replace"))


def fuzz_adapter(data: bytes) -> None:
    """The bytes as the config of an adapter."""
    (FOLDER / "adapter_config.json").write_bytes(data)
    with contextlib.suppress(ModelError):
        adapter_config.read_adapter_config(FOLDER / "adapter_config.json")


TARGETS: dict[str, tuple[Callable[[bytes], None], bytes]] = {
    "header": (fuzz_header, SOUND),
    "json": (fuzz_json, SOUND),
    "config": (fuzz_config, b'{"model_type":"llama","hidden_size":32,"rope_scaling":{"factor":2.0},"text_config":{}}'),
    "pattern": (fuzz_pattern, rb"(?i:'s|'t)|[^\r\n\p{L}]?\p{L}+|\p{N}{1,3}|\s+(?!\S)"),
    "adapter": (fuzz_adapter, b'{"peft_type":"LORA","r":2,"lora_alpha":4,"rank_pattern":{"a.*b":3}}'),
}


def main() -> None:
    """The target of the command line, from a seed of its own."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: fuzz_checkpoints.py {{{','.join(TARGETS)}}} [libFuzzer options]")
    target, seed = TARGETS[sys.argv[1]]
    seeds = FOLDER / "seeds"
    seeds.mkdir()
    (seeds / "sound").write_bytes(seed)
    atheris.Setup([sys.argv[0], "-timeout=5", "-rss_limit_mb=2000", *sys.argv[2:], str(seeds)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

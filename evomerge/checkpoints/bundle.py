"""The small files beside the weights: configs and tokenizers, carried from a parent to a merge byte for byte."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.checkpoints.folder import find_file, read_bytes
from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.reader import CONFIG

GENERATION_CONFIG = "generation_config.json"
EXTRA_TEMPLATES = "additional_chat_templates"
TOKENIZER_PATTERNS = (
    "tokenizer*.json",
    "tokenizer.model",
    "tokenizer.model.v*",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.tiktoken",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """The tokenizer's files of a checkpoint, chat templates included: relative name -> path, sorted.

    Raises:
        ModelError: when one of them is a link that leads out of the folder.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in TOKENIZER_PATTERNS):
            file = find_file(folder, path.name)
            if file is not None:
                found[path.name] = file
    templates = folder / EXTRA_TEMPLATES
    if templates.is_dir():
        for path in sorted(templates.glob("*.jinja")):
            file = find_file(templates, path.name, root=folder)
            if file is not None:
                found[f"{EXTRA_TEMPLATES}/{path.name}"] = file
    return found


def config_text(template: OpenParent, changes: Mapping[str, Any]) -> bytes:
    """The template's config.json: byte for byte without changes, otherwise with these keys replaced or added."""
    raw = read_bytes(template.folder / CONFIG)
    wanted = {**template.config, **changes}
    if wanted == json.loads(raw):
        return raw
    return (json.dumps(wanted, indent=2, ensure_ascii=False) + "\n").encode()


def dtype_change(config: Mapping[str, Any], dtype: str) -> dict[str, str]:
    """The config's edit that says in which dtype the weights are stored, under the key that the config uses."""
    key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
    return {key: dtype}


def side_files(template: OpenParent, tokenizer: OpenParent, changes: Mapping[str, Any]) -> dict[str, bytes]:
    """Everything of an export that is neither weights nor written by the caller: relative name -> content.

    Args:
        template: gives config.json and generation_config.json.
        tokenizer: gives the tokenizer's files and chat templates.
        changes: edits of config.json.

    Raises:
        ModelError: when a file cannot be read or leads out of its folder.
    """
    files = {CONFIG: config_text(template, changes)}
    generation = find_file(template.folder, GENERATION_CONFIG)
    if generation is not None:
        files[GENERATION_CONFIG] = read_bytes(generation)
    return files | {name: read_bytes(path) for name, path in tokenizer_files(tokenizer.tokenizer_folder).items()}

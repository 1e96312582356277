"""The chat template beside a checkpoint's weights: read, and replaced in what is written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from evomerge.checkpoints.folder import find_file, read_bytes
from evomerge.checkpoints.strict_json import damaged, read_object
from evomerge.errors import ModelError

TEMPLATE: Final = "chat_template.jinja"
SETTINGS: Final = "tokenizer_config.json"
_OLD: Final = "chat_template.json"
_DEFAULT: Final = "default"


def chat_template(folder: Path) -> str | None:
    """The default chat template of a checkpoint's tokenizer; None without one.

    Raises:
        ModelError: when a file cannot be read or is damaged.
    """
    path = find_file(folder, TEMPLATE)
    if path is not None:
        try:
            return read_bytes(path).decode()
        except UnicodeDecodeError as error:
            raise damaged(path, "bytes that are not UTF-8", "text") from error
    for name in (_OLD, SETTINGS):
        settings = find_file(folder, name)
        found = None if settings is None else _stated(read_object(settings).get("chat_template"))
        if found is not None:
            return found
    return None


def _stated(value: Any) -> str | None:
    """Of one template, or of several with names the default."""
    if isinstance(value, list):
        named = {v.get("name"): v.get("template") for v in value if isinstance(v, Mapping)}
        value = named.get(_DEFAULT)
    return value if isinstance(value, str) else None


def with_chat_template(files: Mapping[str, bytes], text: str) -> dict[str, bytes]:
    """The files of an export, with another chat template.

    Args:
        files: name -> content, the tokenizer's among them.
        text: Jinja.

    Raises:
        ModelError: when there is no tokenizer that the template would belong to.
    """
    if SETTINGS not in files:
        raise ModelError(
            "The merge has no tokenizer that a chat template could belong to.",
            got=f"no {SETTINGS} beside the parent's weights",
            allowed="a parent with a tokenizer",
            fix="save a tokenizer into the folder of the base, or remove the chat template from the recipe.",
        )
    settings = json.loads(files[SETTINGS])
    settings.pop("chat_template", None)
    kept = {name: content for name, content in files.items() if name != _OLD}
    written = (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
    return kept | {SETTINGS: written, TEMPLATE: text.encode()}

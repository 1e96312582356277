"""What lies beside the weights and is read by whoever loads the model: transformers asks nobody before it opens it.

Checked when a checkpoint is opened, so that no file is left which leads out of the folder, names other files, or asks
for code.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

from evomerge.checkpoints.folder import find_file, is_plain_name
from evomerge.checkpoints.model_config import check_token_ids
from evomerge.checkpoints.strict_json import damaged, quoted, read_object
from evomerge.errors import ModelError

_READ: Final = (
    *(".json", ".jinja", ".safetensors", ".model", ".txt", ".tiktoken", ".py", ".bin", ".gguf"),
    *(".codes", ".tokenizer"),
)
"""How the names of files end that transformers may open."""
_MAX_FILES: Final = 5_000
_SETTINGS: Final = ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json")
_TEMPLATES: Final = "additional_chat_templates"
_MAX_SETTINGS: Final = 32_000_000
_MAX_TEMPLATE: Final = 1_000_000
_CLASSES: Final = ("tokenizer_class", "processor_class", "model_type")
_LENGTHS: Final = ("max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams", "num_return_sequences")
_LARGEST: Final = 1 << 24


def check_beside(folder: Path) -> None:
    """Refuse a checkpoint folder for what lies in it beside weights and config.json.

    Args:
        folder: of the checkpoint, absolute.

    Raises:
        ModelError: for links that lead out of the folder, an adapter in the folder of a model, files that are too large
            or damaged, and settings that name files, classes or sizes which no tokenizer needs.
    """
    names = [path.name for path in islice(folder.iterdir(), _MAX_FILES + 1)]
    if len(names) > _MAX_FILES:
        raise damaged(folder, f"more than {_MAX_FILES} files", "the folder of one model")
    for name in names:
        if name.endswith(_READ) and is_plain_name(name):
            find_file(folder, name)
    if "adapter_config.json" in names:
        raise ModelError(
            "An adapter lies in the folder of a model.",
            got=f"adapter_config.json beside config.json in {folder}",
            allowed="a folder with a model, or a folder with an adapter: transformers would apply it unasked",
            fix="move the adapter to a folder of its own; `{adapter: FOLDER}` in a job applies it.",
        )
    check_settings(folder)


def check_settings(folder: Path) -> None:
    """The small files of a tokenizer and of a generation config.

    Args:
        folder: where they lie, absolute.

    Raises:
        ModelError: as `check_beside`.
    """
    for name in _SETTINGS:
        path = find_file(folder, name)
        if path is not None:
            content = read_object(path, constants=True, max_bytes=_MAX_SETTINGS)
            _check_content(path, content)
    for path in _template_files(folder):
        if path.stat().st_size > _MAX_TEMPLATE:
            raise damaged(path, f"a chat template of {path.stat().st_size} bytes", f"at most {_MAX_TEMPLATE} bytes")


def _template_files(folder: Path) -> list[Path]:
    """Every chat template that is a file; links that lead out are refused."""
    found = [find_file(folder, "chat_template.jinja")]
    inner = folder / _TEMPLATES
    if inner.is_symlink() and not inner.resolve().is_relative_to(folder.resolve()):
        raise damaged(inner, "a link that leads out of the folder", "a folder")
    if inner.is_dir():
        for path in islice(inner.iterdir(), _MAX_FILES):
            if path.suffix == ".jinja":
                found.append(find_file(inner, path.name, root=folder))
    return [path for path in found if path is not None]


def _check_content(path: Path, content: Mapping[str, Any]) -> None:
    if path.name == "added_tokens.json":
        if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i <= _LARGEST for i in content.values()):
            raise damaged(path, "ids that are not whole numbers", "token strings and their ids")
        return
    _check_names(path, content)
    for key in _LENGTHS:
        value = content.get(key)
        if value is not None and not (isinstance(value, int | float) and abs(value) <= _LARGEST):
            raise damaged(path, f"{key} = {quoted(value)}", f"a number of at most {_LARGEST}")
    if path.name == "generation_config.json":
        check_token_ids(path, content)
        penalty = content.get("repetition_penalty")
        if penalty is not None and not (isinstance(penalty, int | float) and 0 < penalty < _LARGEST):
            raise damaged(path, f"repetition_penalty = {quoted(penalty)}", "a positive number")
    limit = content.get("model_max_length")
    if limit is not None and not (isinstance(limit, int | float) and not isinstance(limit, bool) and limit > 0):
        raise damaged(path, f"model_max_length = {quoted(limit)}", "a positive number")
    if path.name == "tokenizer_config.json":
        _check_tokenizer_settings(path, content)


def _check_names(path: Path, content: Mapping[str, Any]) -> None:
    """Names of classes are words. Old tokenizers name files of where they were saved; none may exist here."""
    for key in _CLASSES:
        value = content.get(key)
        if value is not None and not (isinstance(value, str) and is_plain_name(value) and len(value) <= 128):
            raise damaged(path, f"{key} = {quoted(value)}", "the name of a class of transformers")
    for key, value in content.items():
        listed = value if isinstance(value, list) else [value]
        strict = key in {"fast_tokenizer_files", "custom_generate"}
        if (strict or key.endswith("_file")) and not all(_is_inside(path.parent, v, strict=strict) for v in listed):
            raise damaged(path, f"{quoted(key)} = {quoted(value)}", "plain names of files in the folder")
    classes = content.get("auto_map")
    if classes is not None and not isinstance(classes, Mapping | list):
        raise damaged(path, f"auto_map = {quoted(classes)}", "a mapping of classes to names, which is never followed")


def _is_inside(folder: Path, value: Any, *, strict: bool) -> bool:
    """Whether a named file lies in the folder, or, unless `strict`, nowhere."""
    if value is None or (isinstance(value, str) and is_plain_name(value)):
        return True
    if strict or not isinstance(value, str):
        return False
    try:
        return not (folder / value).exists()
    except (OSError, ValueError):
        return True


def _check_tokenizer_settings(path: Path, content: Mapping[str, Any]) -> None:
    template = content.get("chat_template")
    texts = (
        [t.get("template") if isinstance(t, Mapping) else None for t in template]
        if isinstance(template, list)
        else [template]
    )
    if isinstance(template, Mapping):
        texts = list(template.values())
    if template is not None and not all(isinstance(t, str) and len(t) <= _MAX_TEMPLATE for t in texts):
        raise damaged(path, f"chat_template = {quoted(template)}", f"texts of at most {_MAX_TEMPLATE} characters")
    for key, value in content.items():
        if key.endswith("_token") and not _is_token(value):
            raise damaged(path, f"{quoted(key)} = {quoted(value)}", "the text of a token")
    decoder = content.get("added_tokens_decoder")
    if decoder is not None and not (isinstance(decoder, Mapping) and all(map(_is_numbered, decoder.items()))):
        raise damaged(path, "malformed added_tokens_decoder", "a mapping of ids to tokens")


def _is_token(value: Any) -> bool:
    """A text, a token as the tokenizers library writes it, or a switch (`add_bos_token`)."""
    text = value.get("content") if isinstance(value, Mapping) else value
    return text is None or isinstance(text, bool) or (isinstance(text, str) and len(text) <= 4096)


def _is_numbered(item: tuple[str, Any]) -> bool:
    return item[0].isascii() and item[0].isdigit() and int(item[0][:12]) <= _LARGEST and isinstance(item[1], Mapping)

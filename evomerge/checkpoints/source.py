"""From what the user wrote, a folder or a hub id with a revision, to a folder on this machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from evomerge.checkpoints.strict_json import quoted
from evomerge.errors import ModelError

HUB_PATTERNS = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
    "README.md",
)
"""What is downloaded from the hub: weights, configs, tokenizers, licences and card; no pickles and no code."""
HUB_EXCLUDED = ("*/*.safetensors", "consolidated*.safetensors")
"""Second copies of the weights in other formats."""

_HUB_ERRORS = ("HTTPError", "CorruptedCacheException", "RevisionResolutionError", "XetDownloadError")
_HUB_ID = re.compile(r"[\w][\w.-]{0,95}(/[\w][\w.-]{0,95})?")


class Located(NamedTuple):
    """Where a checkpoint lies.

    Attributes:
        folder: absolute, with links resolved.
        revision: commit of the hub's repository, None for a folder.
    """

    folder: Path
    revision: str | None


def _hub_error(source: str, revision: str | None, reason: str) -> ModelError:
    at = f"{source}@{revision}" if revision else source
    return ModelError(
        "A checkpoint was not found.",
        got=f"{quoted(at, 200)}: no such folder here, and not available from the hub ({reason[:300]})",
        allowed="an existing folder, or the id of a hub repository with an optional @revision and a network",
        fix="correct the path or the id; without a network, download the checkpoint first and name its folder.",
    )


def _hub_errors() -> tuple[type[Exception], ...]:
    """What a download may raise: offline, unknown, gated and invalid ids are the first two, broken ones the others."""
    from huggingface_hub import errors

    known = [getattr(errors, name, None) for name in _HUB_ERRORS]
    return (OSError, ValueError, *(k for k in known if isinstance(k, type) and issubclass(k, Exception)))


def download(source: str, revision: str | None, *, to: Path | None = None) -> Located:
    """A repository of the hub on this machine.

    Args:
        source: its id.
        revision: branch, tag or commit; None for the main branch.
        to: an empty folder that it is put into; None leaves the choice to the hub's client, which keeps it.

    Raises:
        ModelError: when there is no such repository, or no network.
    """
    from huggingface_hub import snapshot_download

    expected = _hub_errors()
    where: dict[str, Any] = {} if to is None else {"local_dir": str(to)}
    try:
        folder = snapshot_download(
            source, revision=revision, allow_patterns=list(HUB_PATTERNS), ignore_patterns=list(HUB_EXCLUDED), **where
        )
    except expected as error:
        text = str(error).strip().splitlines()
        raise _hub_error(source, revision, f"{type(error).__name__}: {text[0] if text else ''}") from error
    path = Path(folder).resolve()
    return Located(path, path.name)


def locate(source: str | Path, revision: str | None = None) -> Located:
    """The folder of a checkpoint, downloaded from the hub when `source` is a hub id and not a folder.

    Args:
        source: a folder, or a hub id, which may end in `@revision`.
        revision: branch, tag or commit on the hub; ignored for folders.

    Raises:
        ModelError: when there is no such folder and no such repository, or no network to ask for it.
    """
    text = str(source)
    if not text:
        raise _hub_error(text, revision, "not a hub id")
    try:
        folder = Path(source).expanduser()
        if folder.is_dir():
            return Located(folder.resolve(), None)
        is_file = folder.exists()
    except (OSError, RuntimeError) as error:  # no permission, too long a name, no such user behind `~`
        raise _hub_error(text, revision, str(error)) from error
    if is_file:
        raise ModelError(
            "A checkpoint must be a folder.",
            got=f"{text!r}, a file",
            allowed="a folder with config.json and safetensors files",
            fix=f"name its folder, {str(folder.parent)!r}.",
        )
    name, _, at = text.partition("@")
    if isinstance(source, Path) or not _HUB_ID.fullmatch(name):
        raise _hub_error(text, revision, "not a hub id")
    return download(name, revision or at or None)

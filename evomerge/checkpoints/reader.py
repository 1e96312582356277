"""A checkpoint opened for reading: checked headers, layout, memory-mapped tensors.

Names are those of the files, not the in-memory ones of transformers. What whoever loads the model recomputes anyway
(causal masks, rotary frequencies) and the second copy of a tied embedding are left out of the layout, so that they
are neither compared nor merged nor written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, final

from evomerge.checkpoints.architecture import infer_layout, is_derived_buffer, language_config
from evomerge.checkpoints.beside import check_beside
from evomerge.checkpoints.dtypes import torch_dtype
from evomerge.checkpoints.folder import find_file
from evomerge.checkpoints.header import FileState, HeaderEntry
from evomerge.checkpoints.model_config import check_config, check_widths
from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.pages import release
from evomerge.checkpoints.proofs import Proofs, changed, content_of, prove_all
from evomerge.checkpoints.shards import Shards, adapter_instead, find_shards
from evomerge.checkpoints.source import locate
from evomerge.checkpoints.strict_json import damaged, quoted, read_object
from evomerge.digest import digest_json
from evomerge.errors import ModelError
from evomerge.layout import Layout, TensorInfo
from evomerge.types import Digest

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
_MAX_CONFIG = 8_000_000
_MAX_CONFIG_VALUES = 500_000


def _read_config(folder: Path) -> dict[str, Any]:
    path = find_file(folder, CONFIG)
    if path is None:
        raise adapter_instead(folder) or ModelError(
            "A checkpoint has no config.",
            got=f"no {CONFIG} in {folder}",
            allowed="a folder as transformers saves it",
            fix=f"copy {CONFIG} from where the model came from.",
        )
    config = read_object(path, constants=True, max_bytes=_MAX_CONFIG, max_values=_MAX_CONFIG_VALUES)
    if not isinstance(config.get("model_type"), str):
        raise damaged(path, f"model_type = {quoted(config.get('model_type'))}", "the name of an architecture")
    check_config(path, config)
    return config


def _config_ties(config: Mapping[str, Any]) -> bool | None:
    """What the config says about tied embeddings; None when it says nothing."""
    for level in (config, language_config(config)):
        value = level.get("tie_word_embeddings")
        if isinstance(value, bool):
            return value
    return None


def _architecture_ties(config: Mapping[str, Any]) -> bool | None:
    """Whether embeddings are tied where the config does not say so: transformers' default, None if it has none."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    model_type = config["model_type"]
    if model_type not in CONFIG_MAPPING:
        return None
    try:
        return bool(getattr(CONFIG_MAPPING[model_type](), "tie_word_embeddings", False))
    except (ValueError, StrictDataclassError):  # of models made of models there is no default
        return None


@final
class Checkpoint(OpenParent):
    """One checked checkpoint. Made by `open_checkpoint`; picklable, the copy opens the same folder again.

    Tensors are views of private memory maps: never copied, and never to be written to.

    Attributes:
        source: the folder or hub id, as the user wrote it.
        revision: the hub's commit, None for a folder.
        folder: where the files lie, absolute.
        config: the content of config.json.
        layout: every tensor that a merge has to decide, with layer and role.
        left_out: names in the files that `layout` leaves out: derived buffers, the second copy of a tied embedding.
        tied_embeddings: whether the head shares the embedding's tensor.
        header_digest: digest of all shard headers and their names; no tensor's value is in it.
    """

    def __init__(self, source: str, revision: str | None, folder: Path) -> None:
        self._content: Digest | None = None
        self._proofs: Proofs | None = None
        self.source = source
        self.revision = revision
        self.folder = folder
        self.config: Mapping[str, Any] = MappingProxyType(_read_config(folder))
        self._shards: Shards = find_shards(folder)
        check_beside(folder)
        self._maps: dict[str, torch.Tensor] = {}
        headers = self._shards.headers
        self.header_digest = digest_json({name: [h.digest, h.size] for name, h in headers.items()})
        entries = self._shards.entries()
        check_widths(folder / CONFIG, self.config, max(max(e.shape, default=1) for e in entries.values()))
        whole = infer_layout(entries, self.config)
        derived = {t.name for t in whole.tensors if is_derived_buffer(t.name, t)}
        kept = tuple(t for t in whole.tensors if t.name not in derived)
        duplicate = self._tied_duplicate(kept)
        self.tied_embeddings = duplicate is not None or self._head_is_absent(kept)
        self.left_out: tuple[str, ...] = tuple(sorted(derived | ({duplicate} if duplicate is not None else set())))
        self.layout = Layout(whole.n_layers, tuple(t for t in kept if t.name != duplicate))

    def _head_is_absent(self, tensors: tuple[TensorInfo, ...]) -> bool:
        has_head = any(t.role == "head" and len(t.shape) == 2 for t in tensors)
        has_embedding = any(t.role == "embedding" and len(t.shape) == 2 for t in tensors)
        if has_head and has_embedding:
            return False
        stated = _config_ties(self.config)
        return (_architecture_ties(self.config) is not False) if stated is None else stated

    def _tied_duplicate(self, tensors: tuple[TensorInfo, ...]) -> str | None:
        """The head that repeats the embedding byte for byte although the two are tied, as transformers decides it."""
        pairs = [
            (head.name, embedding.name)
            for head in tensors
            for embedding in tensors
            if (head.role, embedding.role) == ("head", "embedding") and len(head.shape) == 2
            if (head.shape, head.dtype) == (embedding.shape, embedding.dtype)
        ]
        stated = _config_ties(self.config)
        if not pairs or stated is False or not (stated or _architecture_ties(self.config)):
            return None
        return next((head for head, embedding in pairs if self._same_bytes(head, embedding)), None)

    def _same_bytes(self, name: str, other: str) -> bool:
        left, right = self._bytes(name), self._bytes(other)
        same = left.equal(right)
        release(left)
        release(right)
        return same

    def entry(self, name: str) -> HeaderEntry:
        """The header's entry of a tensor of the files.

        Raises:
            KeyError: for an unknown name.
        """
        return self._shards.entry(name)

    def _bytes(self, name: str) -> torch.Tensor:
        """The bytes of a tensor, shape `(nbytes,)`, uint8: a view of the memory map."""
        import torch

        file, entry = self._shards.files[name], self._shards.entry(name)
        if file not in self._maps:
            size = self._shards.headers[file].size
            # private mapping: a stray write would stay in this process and never reach the file
            path = self.folder / file
            try:
                if FileState.of(path.stat()) != self._shards.headers[file].state:
                    raise changed(path, "other bytes than when its header was read")
                self._maps[file] = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
            except (RuntimeError, OSError) as error:
                raise changed(path, "a file that can no longer be mapped") from error
        return self._maps[file][entry.start : entry.stop]

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor of the files in its stored dtype and shape, memory-mapped. Do not write to it.

        Only where a foreign file placed it at an address that its dtype does not allow, the tensor is a copy.

        Raises:
            KeyError: for an unknown name.
        """
        raw, entry = self._bytes(name), self._shards.entry(name)
        dtype = torch_dtype(entry.dtype)
        if raw.storage_offset() % dtype.itemsize:
            raw = raw.clone()
        return raw.view(dtype).reshape(entry.shape)

    def release(self, name: str) -> None:
        """See `OpenParent.release`."""
        if self._shards.files.get(name) in self._maps:
            release(self._bytes(name))

    @property
    def content(self) -> Digest:
        """Digest of the weights: over the sha256 of every shard's bytes.

        Read at disk speed, then remembered for as long as the files' stamps stay what they were.

        Raises:
            ModelError: when the weights are no longer those that this object has told of.
        """
        found = content_of(self.proofs())
        if self._content is not None and found != self._content:
            raise changed(self.folder, f"weights with digest {found[:16]}…, not {self._content[:16]}…")
        self._content = found
        return found

    def proofs(self) -> Proofs:
        """The digests of the weight files; see `proofs.proven` for when they are taken again.

        Raises:
            ModelError: when a file has other bytes than before, or cannot be read.
        """
        self._proofs = prove_all(self.folder, list(self._shards.headers), self._proofs)
        return self._proofs

    def check_unchanged(self) -> None:
        """See `OpenParent.check_unchanged`."""
        if self._proofs is not None:
            self.proofs()

    def remember(self, content: Digest | None, proofs: Proofs | None = None) -> None:
        """Take over what another process has read of the same files; None where it has read nothing."""
        self._content = content
        self._proofs = proofs

    def close(self) -> None:
        """Drop the memory maps; tensors handed out before stay valid, and a later `tensor` maps again."""
        self._maps.clear()

    def __reduce__(self) -> tuple[Callable[..., Checkpoint], tuple[object, ...]]:
        known = Known(self.header_digest, self._content, self._proofs)
        return reopen, (self.source, self.revision, str(self.folder), known)

    def __repr__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"Checkpoint({self.source}{at}, {len(self.layout.tensors)} tensors, {self.layout.n_layers} layers)"


def _open(source: str, revision: str | None, folder: Path) -> Checkpoint:
    """Open a folder; what the system refuses (permissions, a network file system that is gone) is a `ModelError`."""
    try:
        return Checkpoint(source, revision, folder)
    except OSError as error:
        raise ModelError(
            "A checkpoint cannot be read.",
            got=str(error),
            allowed="a folder and files that this user may read",
            fix="check the permissions and the file system.",
        ) from error


class Known(NamedTuple):
    """What one process knows of a checkpoint, and another has to find again.

    Attributes:
        header_digest: of its headers.
        content: of the weights, None where nobody has read them.
        proofs: of the weight files, None where nobody has read them.
    """

    header_digest: Digest
    content: Digest | None = None
    proofs: Proofs | None = None


def reopen(source: str, revision: str | None, folder: str, known: Known) -> Checkpoint:
    """Open in another process what was opened in one; headers, and weights that were read, must be the same.

    Args:
        source: as the user wrote it.
        revision: the hub's commit.
        folder: where it lies here.
        known: of the first.

    Raises:
        ModelError: when it cannot be opened, or is not what it was.
    """
    checkpoint = _open(source, revision, Path(folder))
    if checkpoint.header_digest != known.header_digest:
        raise changed(checkpoint.folder, "other headers than before")
    checkpoint.remember(known.content, known.proofs)
    checkpoint.check_unchanged()
    return checkpoint


def open_checkpoint(source: str | Path, revision: str | None = None) -> Checkpoint:
    """Open a checkpoint and check its headers; no tensor is read but to compare a tied head with its embedding.

    Args:
        source: a folder, or a hub id with an optional `@revision`.
        revision: of the hub id; ignored for folders.

    Raises:
        ModelError: when it is not found, is unsafe (pickles, paths that lead out of the folder), damaged or incomplete,
            or when its layers cannot be told.
    """
    located = locate(source, revision)
    return _open(str(source), located.revision, located.folder)

"""Write a checkpoint as a stream: headers first, then every tensor to its place as it comes, then the small files.

At most one tensor, or a part of one, is held at a time, in whatever order they come. The folder appears complete or not
at all.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, final

from evomerge.checkpoints.bundle import dtype_change, side_files
from evomerge.checkpoints.chat_templates import with_chat_template
from evomerge.checkpoints.dtypes import FLOATING, safetensors_name
from evomerge.checkpoints.folder import is_plain_name
from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.parts import TensorPart
from evomerge.checkpoints.seal import Seal, digest_of_bytes, digest_of_tensors
from evomerge.checkpoints.sharding import ShardPlan, index_text, plan_shards
from evomerge.checkpoints.shards import INDEX
from evomerge.checkpoints.staging import check_target, staged_folder
from evomerge.digest import digest_file
from evomerge.errors import ConfigError, MergeError
from evomerge.files import disk_full_is_told
from evomerge.layout import Layout

if TYPE_CHECKING:
    import torch

_NOTHING: Mapping[str, Any] = MappingProxyType({})
SHARD_BYTES = 5_000_000_000
DIGEST_FILE = "sha256"
"""Beside the tensors that `write_tensors` writes: the digest of their file, by which damage is noticed."""


def stored_layout(layout: Layout, dtype: str) -> Layout:
    """`layout` as it is stored in another dtype: floating tensors change, integer buffers do not.

    Args:
        layout: of the template.
        dtype: `"parent"` to keep each tensor's own, or torch's spelling (`"bfloat16"`).
    """
    if dtype == "parent":
        return layout
    name = safetensors_name(dtype)
    return Layout(layout.n_layers, tuple(replace(t, dtype=name) if t.dtype in FLOATING else t for t in layout.tensors))


def _mismatch(what: str, got: str, allowed: str) -> MergeError:
    return MergeError(what, got=got, allowed=allowed, fix="report this: a merge gave other tensors than it planned.")


@final
class _ShardFiles:
    """The open files of a checkpoint under construction; digests are taken in the stream where they are asked for."""

    def __init__(self, folder: Path, plans: tuple[ShardPlan, ...], stack: ExitStack, *, digests: bool = False) -> None:
        self._plans = plans
        self._plan_of = {name: plan for plan in plans for name in plan.entries}
        self._missing = set(self._plan_of)
        self._begun: dict[str, int] = {}
        self._files: dict[str, BinaryIO] = {}
        self._hashes = {name: hashlib.sha256() for name in self._plan_of} if digests else {}
        for plan in plans:
            file = stack.enter_context((folder / plan.name).open("wb"))
            file.write(plan.prefix)
            file.flush()
            self._files[plan.name] = file

    def put(self, name: str, tensor: torch.Tensor | TensorPart) -> None:
        """Write one tensor, or its next part, to its place."""
        plan = self._plan_of.get(name)
        if plan is None or name not in self._missing:
            state = "not in the layout" if plan is None else "written before"
            raise _mismatch("A tensor cannot be written.", f"{name!r}, {state}", "every tensor of the layout, once")
        entry = plan.entries[name]
        if isinstance(tensor, TensorPart):
            self._put_part(name, tensor, plan)
            return
        if (tuple(tensor.shape), safetensors_name(tensor.dtype)) != (entry.shape, entry.dtype):
            got = f"{name!r} of shape {tuple(tensor.shape)}, {tensor.dtype}"
            raise _mismatch("A tensor cannot be written.", got, f"shape {entry.shape}, {entry.dtype}")
        self._write(plan, name, tensor, entry.start)
        self._missing.discard(name)

    def _put_part(self, name: str, part: TensorPart, plan: ShardPlan) -> None:
        entry, expected = plan.entries[name], self._begun.get(name, 0)
        found = (part.start, part.numel, safetensors_name(part.values.dtype))
        if found != (expected, entry.numel, entry.dtype) or part.start + part.values.numel() > part.numel:
            got = f"{name!r} from element {part.start} of {part.numel}, {part.values.dtype}"
            allowed = f"element {expected} of {entry.numel}, {entry.dtype}"
            raise _mismatch("A part of a tensor cannot be written.", got, allowed)
        self._write(plan, name, part.values, entry.start + part.start * part.values.element_size())
        self._begun[name] = part.start + part.values.numel()
        if part.is_last:
            self._missing.discard(name)

    def _write(self, plan: ShardPlan, name: str, values: torch.Tensor, position: int) -> None:
        import torch

        flat = values.detach().to("cpu").contiguous().reshape(-1)
        view = flat.view(torch.uint8).numpy().data
        if name in self._hashes:
            self._hashes[name].update(view)  # the parts of a tensor come in order
        while view:
            written = os.pwrite(self._files[plan.name].fileno(), view, position)
            view, position = view[written:], position + written

    def finish(self) -> None:
        """Check that nothing is missing and force the files to the disk."""
        if self._missing:
            some = ", ".join(sorted(self._missing)[:10])
            raise _mismatch("Tensors are missing.", f"{len(self._missing)} missing: {some}", "every tensor")
        for file in self._files.values():
            os.fsync(file.fileno())

    def digests(self) -> dict[str, str]:
        """File name -> digest; only of files that were begun with `digests`."""
        return {
            plan.name: digest_of_tensors(plan.prefix, (self._hashes[name].digest() for name in plan.entries))
            for plan in self._plans
        }


def _write_small(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())


def _write_seal(folder: Path, seal: Seal | None, digests: Mapping[str, str], small: Mapping[str, bytes]) -> None:
    """The last file, which knows the digests of all others."""
    if seal is not None:
        found = {**digests, **{name: digest_of_bytes(content) for name, content in small.items()}}
        _write_small(folder, {seal.name: seal.content(dict(sorted(found.items()))).encode()})


def _with_extra(files: Mapping[str, bytes], extra: Mapping[str, str | bytes], taken: set[str]) -> dict[str, bytes]:
    for name in extra:
        if not is_plain_name(name) or name in files or name in taken:
            raise ConfigError(
                "An extra file cannot be written into a checkpoint.",
                got=repr(name),
                allowed="plain names that the checkpoint itself does not use",
                fix="choose another name.",
            )
    return {**files, **{n: c.encode() if isinstance(c, str) else c for n, c in extra.items()}}


def _check_space(folder: Path, needed: int) -> None:
    """Say at once, not after writing for an hour, that the file system is too full."""
    existing = next(p for p in [folder.resolve(), *folder.resolve().parents] if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        with disk_full_is_told(folder):
            raise OSError(errno.ENOSPC, f"{needed} bytes are needed, {free} are free,")


def _check_shard_size(most: float) -> None:
    if not most > 0:
        raise ConfigError(
            "The shard size is not usable.",
            got=str(most),
            allowed="a positive number of bytes",
            fix="omit it.",
        )


def write_checkpoint(
    folder: Path,
    tensors: Iterable[tuple[str, torch.Tensor | TensorPart]],
    *,
    template: OpenParent,
    metadata: Mapping[str, str] = _NOTHING,
    max_shard_bytes: float = SHARD_BYTES,
    extra_files: Mapping[str, str | bytes] = _NOTHING,
    tokenizer_from: OpenParent | None = None,
    dtype: str = "parent",
    layout: Layout | None = None,
    config_changes: Mapping[str, Any] = _NOTHING,
    chat_template: str | None = None,
    seal: Seal | None = None,
) -> None:
    """Write a checkpoint that stock transformers loads.

    Args:
        folder: new or empty; appears complete or not at all.
        tensors: (name, tensor) in any order, each tensor of the layout exactly once, whole or in parts; a stream.
        template: gives the layout, config.json and generation_config.json, byte for byte where nothing changes.
        metadata: text for the header of every weight file.
        max_shard_bytes: tensors' bytes per file.
        extra_files: plain name -> content, for instance recipe and model card.
        tokenizer_from: gives the tokenizer's files and chat templates byte for byte; None takes the template's.
        dtype: `"parent"`, or the dtype of all floating tensors in torch's spelling; config.json is changed to say so.
        layout: what is written, where it is not the template's; overrides `dtype`'s effect on tensors.
        config_changes: keys of config.json to replace.
        chat_template: Jinja text that replaces the tokenizer's own; None leaves that.
        seal: a file that is written last, of the digests of all others; None writes none and takes no digests.

    Raises:
        ConfigError: when the folder is neither new nor empty or cannot be written, when the shard size is not positive,
            or an extra file's name is not usable.
        DiskFull: when there is no space; nothing stays behind.
        ModelError: when a file of the template cannot be carried over.
        MergeError: when a tensor is missing, unknown, repeated, or of another shape or dtype than the layout says.
    """
    check_target(folder)
    _check_shard_size(max_shard_bytes)
    plans = plan_shards(layout or stored_layout(template.layout, dtype), metadata, int(max(1, max_shard_bytes)))
    changes = dict(config_changes)
    if dtype != "parent":
        changes = {**dtype_change(template.config, dtype), **changes}
    small = side_files(template, tokenizer_from or template, changes)
    small = small if chat_template is None else with_chat_template(small, chat_template)
    if len(plans) > 1:
        small[INDEX] = index_text(plans)
    taken = {plan.name for plan in plans} | {INDEX} | ({seal.name} if seal else set())
    small = _with_extra(small, extra_files, taken)
    _check_space(folder, sum(plan.size for plan in plans) + sum(map(len, small.values())))
    with staged_folder(folder) as staged, ExitStack() as stack:
        files = _ShardFiles(staged, plans, stack, digests=seal is not None)
        for name, tensor in tensors:
            files.put(name, tensor)
        files.finish()
        _write_small(staged, small)
        _write_seal(staged, seal, files.digests() if seal else {}, small)


def write_files(folder: Path, files: Mapping[str, bytes], seal: Seal | None = None) -> None:
    """Write nothing but small files.

    Args:
        folder: new or empty; appears complete or not at all.
        files: plain name, or name in one folder inside -> content.
        seal: a file that is written last, of the digests of all others.

    Raises:
        ConfigError, DiskFull: as `write_checkpoint`.
    """
    with staged_folder(folder) as staged:
        _write_small(staged, files)
        _write_seal(staged, seal, {}, files)


def write_tensors(folder: Path, layout: Layout, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Write nothing but tensors, in one file `model.safetensors`, and beside it the file's digest in `DIGEST_FILE`.

    Args:
        folder: new or empty; appears complete or not at all.
        layout: what is written; at least one tensor.
        tensors: (name, tensor) in any order, each tensor of the layout exactly once; consumed as a stream.

    Raises:
        ConfigError, DiskFull, MergeError: as `write_checkpoint`.
    """
    plans = plan_shards(layout, {}, sum(p.size for p in plan_shards(layout, {}, 1)))
    _check_space(folder, plans[0].size)
    with staged_folder(folder) as staged, ExitStack() as stack:
        files = _ShardFiles(staged, plans, stack)
        for name, tensor in tensors:
            files.put(name, tensor)
        files.finish()
        _write_small(staged, {DIGEST_FILE: digest_file(staged / plans[0].name).encode()})

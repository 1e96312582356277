"""Where a checkpoint's tensors live in a transformers model: checkpoint name -> storage, tied weights once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch

from evomerge.errors import ModelError
from evomerge.layout import TensorInfo

_ALIGN: Final = 64


def _renamer(model: Any, held: Mapping[str, torch.Tensor]) -> Callable[[str], str | None]:
    """How transformers renames checkpoint names on loading; None for names whose tensors it also rearranges.

    Since version 5 some architectures live in memory under other names than in their files (GPT-NeoX's head), and
    some are fused or split (mixtures of experts); the first are followed here, the second have no place of their own.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if not isinstance(t, WeightRenaming)]
    prefix = str(getattr(model, "base_model_prefix", "") or "")

    def rename(name: str) -> str | None:
        renamed, converted = rename_source_key(name, renamings, converters, prefix, dict(held))
        return None if converted is not None else str(renamed)

    return rename


def _is_ignored(name: str, model: Any) -> bool:
    """Whether the model says that it recomputes this tensor (old masks, rotary tables)."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return name.endswith("rotary_emb.inv_freq") or any(re.search(p, name) for p in patterns)


def place(model: Any, tensors: Iterable[TensorInfo]) -> dict[str, torch.Tensor]:
    """The in-memory tensor of every checkpoint tensor.

    Args:
        model: a transformers model.
        tensors: the checkpoint's layout.

    Returns:
        Checkpoint name -> tensor of the model that shares its storage; names that the model recomputes are left out.

    Raises:
        ModelError: when a tensor has no place or another shape, or a parameter of the model would never be merged.
    """
    held: Mapping[str, torch.Tensor] = model.state_dict(keep_vars=True)
    rename = _renamer(model, held)
    placed: dict[str, torch.Tensor] = {}
    for info in tensors:
        renamed = rename(info.name)
        found = held.get(renamed) if renamed is not None else None
        if found is None and _is_ignored(info.name, model):
            continue
        if found is None or tuple(found.shape) != info.shape:
            shape = "no such parameter" if found is None else f"shape {list(found.shape)}"
            raise _unplaced(f"{info.name} {list(info.shape)}: {shape} in {type(model).__name__}")
        placed[info.name] = found.data
    covered = {t.data_ptr() for t in placed.values()}
    missing = [n for n, p in model.named_parameters() if p.data_ptr() not in covered]
    if missing:
        raise _unplaced(f"{missing[0]} of {type(model).__name__} stands in no file ({len(missing)} such)")
    return placed


def _unplaced(got: str) -> ModelError:
    return ModelError(
        "The checkpoint's tensors do not line up with the model in memory.",
        got=got,
        allowed="tensors that transformers loads under their own names",
        fix="save the model again with this transformers, or report the architecture.",
    )


def own_memory(model: Any, device: str) -> None:
    """Move all parameters and persistent buffers into one fresh block per dtype, and stop them from asking gradients.

    Loading may leave weights in memory maps of the file, or scattered; a merge writes faster into one aligned block,
    and never into a map. Tied weights stay tied.
    """
    model.requires_grad_(False)
    model.to(device)
    parameters = list(dict.fromkeys(model.parameters()))
    for dtype in {p.dtype for p in parameters}:
        step = _ALIGN // dtype.itemsize
        own = [p for p in parameters if p.dtype == dtype]
        sizes = [-(-p.numel() // step) * step for p in own]
        arena = torch.empty(sum(sizes), dtype=dtype, device=device)
        start = 0
        for parameter, size in zip(own, sizes, strict=True):
            view = arena[start : start + parameter.numel()].view(parameter.shape)
            view.copy_(parameter.data)
            parameter.data = view
            start += size

"""Where a checkpoint's tensors live in a transformers model: checkpoint name -> memory, tied weights once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, final

import torch

from evomerge.checkpoints.opened import OpenParent
from evomerge.errors import ModelError
from evomerge.layout import TensorInfo
from evomerge.merging.placement_converted import Part, Parts, Unplaceable, converted_parts
from evomerge.merging.sharding import Sharding, tensor_shards

_ALIGN: Final = 64
_SPOTS: Final = 7


@final
@dataclass(frozen=True)
class Place:
    """The memory of one checkpoint tensor in a model.

    Attributes:
        shape: the checkpoint's.
        parts: views of the model's memory, together the whole tensor. Mostly one run of memory; several, or a turned
            one, where transformers splits or turns the tensor on loading.
    """

    shape: tuple[int, ...]
    parts: Parts

    @property
    def dtype(self) -> torch.dtype:
        """Of the memory, which may be wider than the checkpoint."""
        return self.parts[0].memory.dtype

    @property
    def device(self) -> torch.device:
        """Of the memory."""
        return self.parts[0].memory.device

    @property
    def flat(self) -> torch.Tensor | None:
        """The memory `(n,)` in the checkpoint's order of elements; None when it is not one run."""
        part = self.parts[0]
        one_run = len(self.parts) == 1 and not part.where and part.memory.is_contiguous()
        return part.memory.view(-1) if one_run else None

    def write(self, values: torch.Tensor) -> None:
        """Copy a tensor of as many elements, in the checkpoint's order, into the memory."""
        shaped = values.view(self.shape)
        for part in self.parts:
            part.memory.copy_(shaped[part.where].reshape(part.memory.shape))

    def read(self) -> torch.Tensor:
        """A copy in the checkpoint's shape."""
        values = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        for part in self.parts:
            section = values[part.where]
            section.copy_(part.memory.reshape(section.shape))
        return values

    def agrees_with(self, stored: torch.Tensor) -> bool:
        """Whether a few elements, spread over each part, are those of the checkpoint's tensor."""
        for part in self.parts:
            section = stored[part.where]
            count = part.memory.numel()
            spots = torch.linspace(0, max(count - 1, 0), min(_SPOTS, count), dtype=torch.float64).long()
            here = part.memory[torch.unravel_index(spots.to(part.memory.device), part.memory.shape)]
            there = section[torch.unravel_index(spots, section.shape)]
            if not torch.equal(here.cpu().nan_to_num(), there.to(here.dtype).nan_to_num()):
                return False
        return True


class _Target(NamedTuple):
    """Where one checkpoint name leads: a tensor of the model, alone or through a conversion of several."""

    name: str
    pattern: str | None


class _Names:
    """How transformers renames checkpoint names on loading, and which of them it converts together."""

    def __init__(self, model: Any, held: Mapping[str, torch.Tensor]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming

        transforms = get_model_conversion_mapping(model)
        self._renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        self._converters = [t for t in transforms if not isinstance(t, WeightRenaming)]
        self._prefix = str(getattr(model, "base_model_prefix", "") or "")
        self._held = dict(held)

    def target(self, name: str) -> _Target:
        """Where a name leads; a name that the model has is never renamed to one that it has not."""
        from transformers.core_model_loading import rename_source_key

        renamed, pattern = rename_source_key(name, self._renamings, self._converters, self._prefix, self._held)
        if renamed not in self._held and name in self._held:
            renamed, pattern = rename_source_key(name, [], [], self._prefix, self._held)
        return _Target(str(renamed), pattern)

    def converter(self, pattern: str) -> Any:
        """The conversion that a source pattern belongs to."""
        return next(c for c in reversed(self._converters) if pattern in c.source_patterns)


@dataclass
class _Conversion:
    """The checkpoint's tensors that become one tensor of the model, or are split from one."""

    target: str
    converter: Any
    sources: dict[str, list[TensorInfo]] = field(default_factory=dict)


def _is_ignored(name: str, model: Any) -> bool:
    """Whether the model says that it recomputes or skips this tensor (old masks, rotary tables, prediction layers)."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return name.endswith("rotary_emb.inv_freq") or any(re.search(p, name) for p in patterns)


def place(model: Any, tensors: Iterable[TensorInfo]) -> dict[str, Place]:
    """The memory of every checkpoint tensor.

    Args:
        model: a transformers model.
        tensors: the checkpoint's layout.

    Returns:
        Checkpoint name -> place, in the order of `tensors`; names that the model recomputes are left out.

    Raises:
        ModelError: when a tensor has no place or another shape, or a parameter of the model would never be merged.
    """
    from transformers.core_model_loading import dot_natural_key

    held: Mapping[str, torch.Tensor] = model.state_dict(keep_vars=True)
    names = _Names(model, held)
    infos = list(tensors)
    places: dict[str, Place] = {}
    conversions: dict[str, _Conversion] = {}
    for info in sorted(infos, key=lambda t: dot_natural_key(t.name)):  # the order in which transformers stacks them
        target = names.target(info.name)
        found = held.get(target.name)
        if found is None and _is_ignored(info.name, model):
            continue
        if target.pattern is not None:
            conversion = _Conversion(target.name, names.converter(target.pattern))
            conversions.setdefault(target.name, conversion).sources.setdefault(target.pattern, []).append(info)
        elif found is None or tuple(found.shape) != info.shape:
            shape = "no such parameter" if found is None else f"shape {list(found.shape)}"
            raise _unplaced(f"{info.name} {list(info.shape)}: {shape} in {type(model).__name__}")
        else:
            places[info.name] = Place(info.shape, (Part((), found.data),))
    for conversion in conversions.values():
        places |= _converted(model, conversion, held)
    _check_covered(model, places.values())
    return {info.name: places[info.name] for info in infos if info.name in places}


def _converted(model: Any, conversion: _Conversion, held: Mapping[str, torch.Tensor]) -> dict[str, Place]:
    infos = {info.name: info for group in conversion.sources.values() for info in group}
    try:
        parts = converted_parts(model, conversion.converter, conversion.target, conversion.sources, held)
    except Unplaceable as reason:
        first = next(iter(infos.values()))
        raise _unplaced(f"{first.name} {list(first.shape)} of {type(model).__name__}: {reason}") from reason
    return {name: Place(infos[name].shape, found) for name, found in parts.items()}


def _check_covered(model: Any, places: Iterable[Place]) -> None:
    """Refuse a model of which something would never be merged.

    A conversion fills its targets whole, so it is enough to ask for the first element of each parameter.

    Raises:
        ModelError: naming the first such parameter.
    """
    covered = {part.memory.data_ptr() for place in places for part in place.parts}
    missing = [n for n, p in model.named_parameters() if p.data_ptr() not in covered]
    if missing:
        raise _unplaced(f"{missing[0]} of {type(model).__name__} stands in no file ({len(missing)} such)")


def check_loaded(places: Mapping[str, Place], files: OpenParent, model: Any) -> None:
    """Refuse a model that does not hold what its files do, or holds it elsewhere than `places` say.

    Only a few elements are read of every tensor, which tells a wrong order of experts or rows, and a tensor that
    transformers initialised instead of loading it.

    Args:
        places: of a model as it was loaded, before any merge.
        files: the checkpoint that it was loaded from.
        model: names the architecture in the message.

    Raises:
        ModelError: naming the first such tensor.
    """
    shapes = {t.name: t.shape for t in files.layout.tensors}
    for name, place in places.items():
        if shapes.get(name) == place.shape and not place.agrees_with(files.tensor(name)):
            raise _unplaced(f"{name} {list(place.shape)}: {type(model).__name__} holds other values than its files")


def _unplaced(got: str) -> ModelError:
    return ModelError(
        "The checkpoint's tensors do not line up with the model in memory.",
        got=got,
        allowed="tensors that transformers loads as they are, or stacks, joins, splits or turns (docs/families.md)",
        fix="save the model again with this transformers, or report the architecture.",
    )


def own_memory(model: Any, device: str, sharding: Sharding | None = None) -> None:
    """Move all parameters and persistent buffers into one fresh block per dtype, and stop them from asking gradients.

    Loading may leave weights in memory maps of the file, or scattered; a merge writes faster into one aligned block,
    and never into a map. Tied weights stay tied.

    Args:
        model: a transformers model.
        device: torch's spelling, where all of it goes without `sharding`.
        sharding: which layers go where; there is a block per device, too.

    Raises:
        ModelError: when the model cannot be spread over several devices.
    """
    model.requires_grad_(False)
    shards = {} if sharding is None else tensor_shards(model, sharding)
    if sharding is None:
        model.to(device)
    else:
        _spread_buffers(model, sharding, shards)
    parameters = list(dict.fromkeys(model.parameters()))
    for shard, dtype in dict.fromkeys((shards.get(id(p), 0), p.dtype) for p in parameters):
        own = [p for p in parameters if (shards.get(id(p), 0), p.dtype) == (shard, dtype)]
        _own_block(own, dtype, device if sharding is None else sharding.devices[shard])


def _own_block(parameters: Sequence[Any], dtype: torch.dtype, device: str) -> None:
    """Move parameters of one dtype into one block on a device."""
    step = _ALIGN // dtype.itemsize
    sizes = [-(-p.numel() // step) * step for p in parameters]
    arena = torch.empty(sum(sizes), dtype=dtype, device=device)
    start = 0
    for parameter, size in zip(parameters, sizes, strict=True):
        view = arena[start : start + parameter.numel()].view(parameter.shape)
        view.copy_(parameter.data)
        parameter.data = view
        start += size


def _spread_buffers(model: Any, sharding: Sharding, shards: Mapping[int, int]) -> None:
    """Move every buffer to the device of the module that holds it; one in two modules stays one."""
    moved: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                target = sharding.devices[shards.get(id(buffer), 0)]
                module._buffers[name] = moved.setdefault(id(buffer), buffer.to(target))

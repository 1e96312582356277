"""One model over several devices: whole layers next to each other on each, and tensors carried between them on the way.

What stands outside the layers (embeddings, final norm, head) lives on the first device, so that whoever asks the model
hands in ids and takes logits there, and tied weights stay one tensor. Layers go to the devices in order, in runs whose
bytes are as equal as they can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, final

import torch

from evomerge.checkpoints.dtypes import ITEMSIZE
from evomerge.errors import ModelError
from evomerge.layout import Layout


@dataclass(frozen=True)
class Sharding:
    """Which device holds what.

    Attributes:
        devices: torch's spelling; the same one may stand here several times.
        layers: of every layer, the index of its device; ascending.
    """

    devices: tuple[str, ...]
    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        ascending = all(a <= b for a, b in zip(self.layers, self.layers[1:], strict=False))
        if not self.devices or not ascending or not set(self.layers) <= set(range(len(self.devices))):
            raise ValueError(f"layers lie on the devices in order, not {self.layers} on {self.devices}")

    def shard(self, layer: int | None) -> int:
        """The index of a layer's device; None asks for what stands outside the layers."""
        return 0 if layer is None else self.layers[layer]

    def device(self, layer: int | None) -> str:
        """The device of a layer."""
        return self.devices[self.shard(layer)]

    def tensor_devices(self, layout: Layout) -> dict[str, str]:
        """Tensor -> device, where its parents are read and it is merged."""
        return {t.name: self.device(t.layer) for t in layout.tensors}

    def shares(self, sizes: Mapping[int | None, int]) -> tuple[float, ...]:
        """What part of all bytes each device holds.

        Args:
            sizes: layer -> bytes; None for what stands outside.
        """
        held = [0] * len(self.devices)
        for layer, size in sizes.items():
            held[self.shard(layer)] += size
        return tuple(h / max(sum(held), 1) for h in held)


def balance(sizes: Mapping[int | None, int], devices: Sequence[str]) -> Sharding:
    """The runs of layers of which the largest device's bytes are fewest; of equal ones, what fills the first devices.

    Args:
        sizes: layer -> bytes, all layers; None for what stands outside.
        devices: one or more.

    Raises:
        ModelError: for more devices than layers.
    """
    layers = [sizes[i] for i in range(len(sizes) - (None in sizes))]
    outside = sizes.get(None, 0)
    if len(devices) > max(len(layers), 1):
        raise ModelError(
            "A model has fewer layers than it should have devices.",
            got=f"{len(layers)} layers for {len(devices)} devices",
            allowed="a layer at least for every device",
            fix="set cluster.gpus_per_worker to fewer.",
        )
    before = [0, *accumulate(layers)]
    limits = sorted({outside + b for b in before} | {b - a for a in before for b in before if b > a})
    low, high = 0, len(limits) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _filled(layers, outside, limits[middle], len(devices)) else (middle + 1, high)
    return Sharding(tuple(devices), tuple(_filled(layers, outside, limits[low], len(devices)) or ()))


def _filled(layers: Sequence[int], outside: int, limit: int, n_devices: int) -> list[int] | None:
    """Devices filled one after the other up to a limit; None when the layers do not fit."""
    found: list[int] = []
    device, held = 0, outside
    if held > limit:
        return None
    for size in layers:
        if held + size > limit:
            device, held = device + 1, 0
        if device >= n_devices or size > limit:
            return None
        held += size
        found.append(device)
    return found


def layer_modules(model: Any, n_layers: int) -> list[Any]:
    """A model's layers, in order: of all lists of so many modules the one with most weights.

    Raises:
        ModelError: when there is none.
    """
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == n_layers]
    if not lists:
        raise _unsharded(model, f"no list of {n_layers} layers")
    sizes = [sum(p.numel() for p in m.parameters()) for m in lists]
    return list(lists[sizes.index(max(sizes))])


def tensor_shards(model: Any, sharding: Sharding) -> dict[int, int]:
    """The index of the device of every parameter and buffer, by their id.

    Raises:
        ModelError: when the layers cannot be found, or layers on two devices share a weight.
    """
    found: dict[int, int] = {}
    for module, shard in zip(layer_modules(model, len(sharding.layers)), sharding.layers, strict=True):
        for tensor in (*module.parameters(), *module.buffers()):
            if found.setdefault(id(tensor), shard) != shard:
                raise _unsharded(model, "layers that share a weight")
    outside = {id(t) for t in (*model.parameters(), *model.buffers())} - found.keys()
    return found | dict.fromkeys(outside, 0)


def _unsharded(model: Any, got: str) -> ModelError:
    return ModelError(
        "A model cannot be spread over several devices.",
        got=f"{type(model).__name__}: {got}",
        allowed="a stack of layers, each with weights of its own",
        fix="set cluster.gpus_per_worker to 1.",
    )


def layer_bytes(layout: Layout) -> dict[int | None, int]:
    """Layer -> bytes of its tensors as they are stored; None for what stands outside the layers."""
    sizes: dict[int | None, int] = dict.fromkeys((None, *range(layout.n_layers)), 0)
    for tensor in layout.tensors:
        sizes[tensor.layer] += math.prod(tensor.shape) * ITEMSIZE[tensor.dtype]
    return sizes


Send = Callable[[torch.Tensor, int], torch.Tensor]
"""Brings a tensor to the device of an index."""


@final
class Ferry:
    """Brings what a layer is called with to its device, and what the last one gives back to the first device.

    What all layers get alike (masks, positions) is carried once for each run of layers on one device.

    Args:
        sharding: where the layers are.
        send: brings a tensor somewhere.
    """

    def __init__(self, sharding: Sharding, send: Send | None = None) -> None:
        self._sharding = sharding
        self._send = send or partial(_to_device, sharding.devices)
        self._here = 0
        self._carried: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def board(self, module: Any, layer: int) -> None:
        """Have a layer's module, or a view of it, get its inputs where its weights are."""
        module.register_forward_pre_hook(partial(self._arrive, self._sharding.shard(layer)), with_kwargs=True)

    def land(self, module: Any) -> None:
        """Have what a module returns brought to the first device: for the last layer that runs."""
        module.register_forward_hook(self._return)

    def _go(self, shard: int) -> None:
        if shard != self._here:
            self._here = shard
            self._carried.clear()

    def _arrive(self, shard: int, _module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        self._go(shard)
        hidden = tuple(self._bring(a, shard, once=True) for a in arguments[:1])
        rest = tuple(self._bring(a, shard) for a in arguments[1:])
        return (*hidden, *rest), {k: self._bring(v, shard, once=k == "hidden_states") for k, v in named.items()}

    def _return(self, _module: Any, _arguments: Any, output: Any) -> Any:
        self._here = 0
        self._carried.clear()
        return self._bring(output, 0, once=True)

    def _bring(self, value: Any, shard: int, *, once: bool = False) -> Any:
        if isinstance(value, torch.Tensor):
            return self._send(value, shard) if once else self._kept(value, shard)
        if type(value) in (tuple, list):
            return type(value)(self._bring(v, shard, once=once) for v in value)
        if type(value) is dict:
            return {k: self._bring(v, shard, once=once) for k, v in value.items()}
        return value

    def _kept(self, value: torch.Tensor, shard: int) -> torch.Tensor:
        if id(value) not in self._carried:  # the original is kept too, so that its id stays its own
            self._carried[id(value)] = (value, self._send(value, shard))
        return self._carried[id(value)][1]


def _to_device(devices: Sequence[str], value: torch.Tensor, shard: int) -> torch.Tensor:
    return value.to(devices[shard], non_blocking=True)


def connect(model: Any, sharding: Sharding, send: Send | None = None) -> Ferry:
    """Have a model whose tensors lie where `sharding` says run there; a ferry that other models like it may use.

    Raises:
        ModelError: when the layers cannot be found.
    """
    ferry = Ferry(sharding, send)
    layers = layer_modules(model, len(sharding.layers))
    for i, layer in enumerate(layers):
        ferry.board(layer, i)
    ferry.land(layers[-1])
    return ferry

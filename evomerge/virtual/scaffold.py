"""One model in memory that takes turns at being each parent, for makers that look at how models answer prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, final

import torch

from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.overlay import Overlay
from evomerge.errors import ModelError, NonFinite
from evomerge.layout import TensorInfo
from evomerge.merging.placement import Place, check_loaded, place
from evomerge.merging.resident import load_model
from evomerge.virtual.averaged import read_model

MODEL_DTYPE = "float32"


class Piece(NamedTuple):
    """A run of one checkpoint tensor that lies in one parameter of the model.

    Attributes:
        info: the checkpoint tensor.
        where: the run, as an index into the checkpoint tensor; empty for all of it.
        memory: its view of the model's memory.
    """

    info: TensorInfo
    where: tuple[slice, ...]
    memory: torch.Tensor


@final
class Scaffold:
    """A transformers model in fp32 whose weights are written tensor by tensor, by the names of the checkpoint.

    Args:
        template: gives config and architecture; its tensors need not be in the model afterwards.

    Raises:
        ModelError: when transformers cannot load it, or its tensors do not line up.

    Attributes:
        model: in eval mode; no parameter asks for gradients until `ask_gradients`.
        layout: the checkpoint's tensors.
    """

    def __init__(self, template: OpenParent) -> None:
        files = template
        while isinstance(files, Overlay):
            files = files.under
        config = None if template.config == files.config else template.config
        self.model: Any = load_model(str(template.folder), MODEL_DTYPE, "cpu", config)
        self.layout = template.layout
        self._infos = {t.name: t for t in self.layout.tensors}
        self._places: Mapping[str, Place] = place(self.model, self.layout.tensors)
        check_loaded(self._places, files, self.model)

    def hold(self, parent: OpenParent, layer: int | None) -> None:
        """Write a parent's tensors of one layer into the model; None takes those outside the layers.

        Raises:
            NonFinite: when one holds NaN or infinity.
        """
        for info in self.layout.tensors:
            if info.layer == layer and info.name in self._places:
                self.put(info.name, read_model(parent, info.name))

    def hold_all(self, parent: OpenParent) -> None:
        """Write all of a parent's tensors into the model.

        Raises:
            NonFinite: when one holds NaN or infinity.
        """
        for layer in (None, *range(self.layout.n_layers)):
            self.hold(parent, layer)

    def put(self, name: str, values: torch.Tensor) -> None:
        """Write one tensor, given in the checkpoint's shape; names that the model recomputes are passed over."""
        if name in self._places:
            self._places[name].write(values.contiguous())

    def layers(self) -> tuple[torch.nn.Module, ...]:
        """The model's layers in order: the outermost list of modules whose members own the layers' tensors.

        Raises:
            ModelError: when there is no such list.
        """
        for module in self.model.modules():
            if isinstance(module, torch.nn.ModuleList) and len(module) == self.layout.n_layers:
                owned = [{p.data_ptr() for p in layer.parameters()} for layer in module]
                if self._owns(owned):
                    return tuple(module)
        raise ModelError(
            "The layers of a model cannot be run one by one.",
            got=f"{type(self.model).__name__} has no list of {self.layout.n_layers} layers that own their tensors",
            allowed="an architecture whose layers follow each other",
            fix="make the parent by a method that runs the whole model (fisher, lm_cocktail, adamerging, dam).",
        )

    def _owns(self, owned: Sequence[set[int]]) -> bool:
        """Whether each layer owns a tensor of its own number, and none of another's."""
        starts = {(i, part.memory.data_ptr()) for i, part in self._starts()}
        return bool(starts) and all(
            {at for i, at in starts if i == number} & own and not {at for i, at in starts if i != number} & own
            for number, own in enumerate(owned)
        )

    def _starts(self) -> Iterator[tuple[int, Any]]:
        for name, found in self._places.items():
            layer = self._infos[name].layer
            if layer is not None:
                yield layer, found.parts[0]

    def whole(self) -> dict[int, TensorInfo]:
        """Address of a parameter -> the checkpoint tensor that it is, unchanged, in one piece."""
        whole = {}
        for name, found in self._places.items():
            part = found.parts[0]
            if found.flat is not None and tuple(part.memory.shape) == found.shape:
                whole[part.memory.data_ptr()] = self._infos[name]
        return whole

    def ask_gradients(self) -> tuple[torch.nn.Parameter, ...]:
        """Have every floating parameter collect gradients; each is given once."""
        found = tuple(p for p in self.model.parameters() if p.is_floating_point())
        for parameter in found:
            parameter.requires_grad_(True)
        return found

    def pieces(self) -> Iterator[Piece]:
        """The checkpoint's tensors, run by run, as they lie in the model."""
        for name, found in self._places.items():
            for part in found.parts:
                yield Piece(self._infos[name], part.where, part.memory)

    @property
    def arena_size(self) -> int:
        """Elements of the one block of memory in which all fp32 parameters lie."""
        return max((p.untyped_storage().nbytes() // p.element_size() for p in self.model.parameters()), default=0)

    def logits(self, prompt: Sequence[int]) -> torch.Tensor:
        """Logits after every token of a prompt, fp32, shape (tokens, vocabulary)."""
        output = self.model(input_ids=torch.tensor([prompt]), use_cache=False)
        found: torch.Tensor = output.logits[0].float()
        if not bool(found.detach().isfinite().all()):
            raise NonFinite(
                "A model answers a prompt with NaN or infinity.",
                got=f"{type(self.model).__name__} on a prompt of {len(prompt)} tokens",
                allowed="finite logits",
                fix="leave this model out, or use other settings.",
            )
        return found


def same_place(view: torch.Tensor, whole: torch.Tensor, start: int = 0) -> torch.Tensor:
    """The part of `whole` that corresponds to a view of other memory laid out alike.

    Args:
        view: where to look.
        whole: contiguous.
        start: where in the memory behind `view` the first element of `whole` stands.
    """
    return whole.view(-1).as_strided(view.size(), view.stride(), view.storage_offset() - start)

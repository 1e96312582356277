"""Gradients of a scaffold's parameters, handed over one at a time, so that no second model lies in memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from evomerge.virtual.scaffold import Piece, Scaffold, same_place

Take = Callable[[torch.nn.Parameter, torch.Tensor], None]
"""Given a parameter and its whole gradient, fp32 and contiguous."""


@contextmanager
def gradients_taken(scaffold: Scaffold, take: Take) -> Iterator[None]:
    """While open, every backward pass hands each parameter's gradient to `take`, once, and keeps none."""

    def hand_over(parameter: torch.Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None and isinstance(parameter, torch.nn.Parameter):
            take(parameter, gradient.contiguous())

    with ExitStack() as undo:
        for parameter in scaffold.ask_gradients():
            undo.callback(parameter.requires_grad_, False)
            hook = parameter.register_post_accumulate_grad_hook(hand_over)  # type: ignore[no-untyped-call]
            undo.callback(hook.remove)
        yield


class PieceFinder:
    """Which runs of which checkpoint tensors lie in a parameter of a scaffold's model."""

    def __init__(self, scaffold: Scaffold) -> None:
        starts = {p.data_ptr(): p for p in scaffold.model.parameters()}
        ordered = sorted(starts)
        self._pieces: dict[int, list[Piece]] = defaultdict(list)
        for piece in scaffold.pieces():
            at = piece.memory.data_ptr()
            owner = max((s for s in ordered if s <= at), default=None)
            if owner is not None and at < owner + 4 * starts[owner].numel():
                self._pieces[owner].append(piece)

    def of(self, parameter: torch.nn.Parameter, values: torch.Tensor) -> Iterator[tuple[Piece, torch.Tensor]]:
        """Each run with its part of `values`, in the shape of the run's memory.

        Args:
            parameter: of the model.
            values: of the parameter's shape, contiguous.
        """
        for piece in self._pieces[parameter.data_ptr()]:
            yield piece, same_place(piece.memory, values, int(parameter.storage_offset()))

"""Gradients of a scaffold's parameters, handed over one at a time, so that no second model lies in memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final, final

import torch

from evomerge.virtual.scaffold import Piece, Scaffold, same_place

_BETAS: Final = (0.9, 0.999)
_EPSILON: Final = 1e-8

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


@final
class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1) on one tensor, in fp64.

    Args:
        rate: step size.
    """

    def __init__(self, rate: float) -> None:
        self._rate, self._step = rate, 0
        self._first: Mapping[str, torch.Tensor] = {}
        self._second: Mapping[str, torch.Tensor] = {}

    def moved(self, values: Mapping[str, torch.Tensor], slopes: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The values after one more step down; nothing given is written to."""
        self._step += 1
        one, two = _BETAS
        none = {n: torch.zeros_like(v) for n, v in values.items()}
        self._first = {n: (self._first or none)[n] * one + slopes[n] * (1 - one) for n in values}
        self._second = {n: (self._second or none)[n] * two + slopes[n].square() * (1 - two) for n in values}
        rate = self._rate / (1 - one**self._step)
        spread = 1 - two**self._step
        return {
            n: v - rate * self._first[n] / ((self._second[n] / spread).sqrt() + _EPSILON) for n, v in values.items()
        }

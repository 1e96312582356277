"""Prompts run through a model one layer at a time, so that the layers' weights may change on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final, NamedTuple, final

import torch

from evomerge.errors import ModelError
from evomerge.virtual.deltas import is_matrix
from evomerge.virtual.maker import Prompts
from evomerge.virtual.scaffold import Scaffold

Seen = Callable[[str, torch.Tensor], None]
"""Told a linear map's checkpoint name and its inputs, shape (tokens, inputs)."""

_CHECKED_TOKENS: Final = 16
_TOLERANCE: Final = 1e-4


class Call(NamedTuple):
    """How the model calls one layer, but for the hidden states."""

    rest: tuple[Any, ...]
    named: dict[str, Any]


class State(NamedTuple):
    """One prompt on its way through the layers.

    Attributes:
        hidden: states before the next layer, shape (1, tokens, width).
        calls: one per layer.
    """

    hidden: torch.Tensor
    calls: tuple[Call, ...]


@final
class LayeredPass:
    """Runs a scaffold's layers by themselves.

    What the model does before its layers is done by `start`; what it hands to every layer (masks, positions) is noted
    there. That the layers alone give what the whole model gives is tried on the first prompt.

    Args:
        scaffold: holds some parent.
        prompts: not empty.

    Raises:
        ModelError: for an architecture whose layers are not a plain chain.
    """

    def __init__(self, scaffold: Scaffold, prompts: Prompts) -> None:
        self._model = scaffold.model
        self._layers = scaffold.layers()
        self._prompts = tuple(p for p in prompts if p)
        whole = scaffold.whole()
        self._linears = [dict(_linears(layer, whole)) for layer in self._layers]
        self._lengths: list[int | None] = [None] * len(self._layers)
        self._check(max(self._prompts, key=len)[:_CHECKED_TOKENS])

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return len(self._layers)

    @property
    def n_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(p) for p in self._prompts)

    def linears(self, layer: int) -> tuple[str, ...]:
        """Checkpoint names of the linear maps of a layer whose inputs can be seen."""
        return tuple(self._linears[layer])

    def stores_inputs_first(self, layer: int, name: str) -> bool:
        """Whether the map's weight has shape (inputs, outputs)."""
        return not isinstance(self._linears[layer][name], torch.nn.Linear)

    def start(self) -> list[State]:
        """The prompts before the first layer of what the scaffold holds now."""
        return [self._start(prompt) for prompt in self._prompts]

    def advance(self, states: Sequence[State], layer: int, seen: Seen | None = None) -> list[State]:
        """The prompts behind one layer of what the scaffold holds now.

        Args:
            states: before the layer; not changed.
            layer: its number.
            seen: told what each linear map is given, prompt by prompt.
        """
        with torch.no_grad(), ExitStack() as undo:
            if seen is not None:
                for name, module in self._linears[layer].items():
                    hook = module.register_forward_pre_hook(partial(_tell, name, seen))
                    undo.callback(hook.remove)
            return [State(self._step(state, layer), state.calls) for state in states]

    def _step(self, state: State, layer: int) -> torch.Tensor:
        call = state.calls[layer]
        found: torch.Tensor = _states(self._layers[layer](state.hidden, *call.rest, **call.named))
        return found

    def _start(self, prompt: Sequence[int]) -> State:
        calls: list[Call] = []
        first: list[torch.Tensor] = []

        def note(number: int, hidden: torch.Tensor, *rest: Any, **named: Any) -> Any:
            first.append(hidden)
            calls.append(Call(rest, named))
            length = self._lengths[number]
            return hidden if length is None else (hidden, *(None for _ in range(length - 1)))

        with torch.no_grad(), self._replaced(note):
            self._model(input_ids=torch.tensor([list(prompt)]), use_cache=False)
        return State(first[0], tuple(calls))

    @contextmanager
    def _replaced(self, note: Callable[..., Any]) -> Iterator[None]:
        """The layers do nothing but be noted."""
        try:
            for number, layer in enumerate(self._layers):
                layer.forward = partial(note, number)
            yield
        finally:
            for layer in self._layers:
                vars(layer).pop("forward", None)

    def _check(self, prompt: Sequence[int]) -> None:
        true: list[torch.Tensor] = []

        def note(number: int, _module: Any, _arguments: Any, output: Any) -> None:
            self._lengths[number] = len(output) if isinstance(output, tuple) else None
            true.append(_states(output))

        with torch.no_grad(), ExitStack() as undo:
            for number, layer in enumerate(self._layers):
                undo.callback(layer.register_forward_hook(partial(note, number)).remove)
            self._model(input_ids=torch.tensor([list(prompt)]), use_cache=False)
        try:
            state = self._start(prompt)
            sound = len(true) == len(state.calls) == self.depth
            for number in range(self.depth if sound else 0):
                (state,) = self.advance([state], number)
                sound = sound and torch.allclose(state.hidden, true[number], rtol=_TOLERANCE, atol=_TOLERANCE)
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError):
            sound = False
        if not sound:
            raise ModelError(
                "The layers of a model cannot be run one by one.",
                got=f"{type(self._model).__name__}: its layers alone do not give what the whole model gives",
                allowed="an architecture whose layers are a plain chain",
                fix="make the parent by a method that runs the whole model (fisher, lm_cocktail, adamerging, dam).",
            )


def _states(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def _tell(name: str, seen: Seen, _module: Any, arguments: tuple[Any, ...]) -> None:
    seen(name, arguments[0].reshape(-1, arguments[0].shape[-1]))


def _linears(layer: torch.nn.Module, whole: dict[int, Any]) -> Iterator[tuple[str, torch.nn.Module]]:
    """The linear maps of a layer whose weight is one tensor of the checkpoint, by that tensor's name."""
    from transformers.pytorch_utils import Conv1D

    for module in layer.modules():
        if isinstance(module, torch.nn.Linear | Conv1D):
            info = whole.get(module.weight.data_ptr())
            if info is not None and is_matrix(info):
                yield info.name, module

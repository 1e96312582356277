"""Calls of a causal language model: only the needed logits, in fp32, never NaN."""

from __future__ import annotations

import inspect
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, final

import torch

from evomerge.errors import NonFinite
from evomerge.evaluation.caches import keeps_plain_cache
from evomerge.evaluation.linear import FastLinears

_CHUNK: Final = 1 << 24
"""Logits turned to fp32 at once: 64 MiB."""


class TokenScores(NamedTuple):
    """What the model says about targets.

    Attributes:
        ll: log-probability of each target in nats, fp32, shape `(n,)`.
        top: the most probable token at its position, shape `(n,)`; the first one in a tie.
    """

    ll: torch.Tensor
    top: torch.Tensor


@final
class NeededLogits:
    """A model whose output layer sees only chosen positions, while this context is open.

    The hidden states of the other positions are dropped just before the output layer, so that whatever an
    architecture does behind it (scaling, soft-capping) still happens. Linear layers run as `linear.FastLinears` says.

    Args:
        model: a Hugging Face causal language model in eval mode; left as it was on exit.

    Attributes:
        device: where it lives.
        plain_cache: whether rows can share its cache, see `caches.keeps_plain_cache`.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._places: torch.Tensor | None = None
        self._handle: Any = None
        self._linears = FastLinears(model)
        accepted = inspect.signature(model.forward).parameters
        self._positions = "position_ids" in accepted
        self.device = model.device
        self.plain_cache = keeps_plain_cache(model)

    def __enter__(self) -> Self:
        head = self._model.get_output_embeddings()
        if head is not None:
            self._handle = head.register_forward_pre_hook(self._pick)
        self._linears.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._linears.__exit__(kind, error, traceback)
        if self._handle is not None:
            self._handle.remove()

    def _pick(self, _module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = arguments[0]
        return (hidden.reshape(-1, hidden.shape[-1])[self._places].unsqueeze(0), *arguments[1:])

    def logits(self, ids: torch.Tensor, places: torch.Tensor, **arguments: Any) -> tuple[torch.Tensor, Any]:
        """Logits of flat positions `places` (row * length + column) of `ids`, and the model's cache.

        Returns:
            Logits in the model's dtype, shape `(n, vocabulary)`; the cache, None without `use_cache`.
        """
        if not self._positions:
            arguments.pop("position_ids", None)
        self._places = places
        with torch.no_grad():
            output = self._model(input_ids=ids, **arguments)
        logits = output.logits
        flat = logits.reshape(-1, logits.shape[-1])
        return (flat if self._handle is not None else flat[places]), getattr(output, "past_key_values", None)

    def score(
        self,
        ids: torch.Tensor,
        places: torch.Tensor,
        which: torch.Tensor,
        targets: torch.Tensor,
        **arguments: Any,
    ) -> TokenScores:
        """Log-probabilities of targets in right-padded rows.

        Args:
            ids: shape `(rows, length)`; padding stands on the right, where causal attention never looks.
            places: flat positions whose logits are needed, shape `(n,)`.
            which: for each target its position in `places`, shape `(m,)`.
            targets: token ids, shape `(m,)`.
            arguments: of the model's call, such as a cache that the rows continue.
        """
        logits, _ = self.logits(ids, places, **{"use_cache": False, **arguments})
        step = max(1, _CHUNK // logits.shape[-1])
        parts = [logits[i : i + step] for i in range(0, len(logits), step)]
        normaliser = torch.cat([torch.logsumexp(part.float(), -1) for part in parts])
        ll = logits[which, targets].float() - normaliser[which]
        return TokenScores(ll, logits.argmax(-1)[which])


def check_finite(values: torch.Tensor, where: str) -> None:
    """Raises NonFinite unless every value is finite."""
    if not bool(torch.isfinite(values).all()):
        raise NonFinite(
            f"The model gave logits that are not finite, {where}.",
            got=f"{int((~torch.isfinite(values)).sum())} of {values.numel()} values are NaN or infinite",
            allowed="finite logits",
            fix="look at the weights of this merge: a parent, a strength or a dtype overflows.",
        )

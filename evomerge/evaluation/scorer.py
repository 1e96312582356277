"""Log-likelihoods: requests packed into fixed batches of rows, each prompt run once for the choices that share it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple, Protocol, final

import numpy as np
import numpy.typing as npt
import torch

from evomerge.evaluation.forward import NeededLogits, TokenScores, check_finite
from evomerge.evaluation.packed import PackedBatch, batch_packs, pack_rows, packed_batch
from evomerge.evaluation.shared import Row, SharedBatch, batch_groups, group_rows, shared_batch

Ids = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]
_ENOUGH: Final = 1 / 8
"""Share of the tokens of a batch from which on it is closed before rows that are not alike in length."""
_ALIKE: Final = 15 / 16
"""Rows that have this share of the longest row's length are padded to it."""


class Forced(NamedTuple):
    """A teacher-forced request: what the model predicts at the last `len(targets)` positions of `inputs`.

    Attributes:
        inputs: packed ids.
        targets: what is looked up there, shape `(m,)`, m at least 1 and at most the number of inputs.
    """

    inputs: bytes
    targets: Ids


class ForcedResults(NamedTuple):
    """Results of all requests, one after the other.

    Attributes:
        ll: log-probabilities of the targets in nats, shape `(sum of m,)`.
        top: greedy tokens at the same places.
        equal: where the greedy token is the target.
        offsets: where each request begins, shape `(requests + 1,)`.
    """

    ll: npt.NDArray[np.float64]
    top: npt.NDArray[np.int64]
    equal: npt.NDArray[np.bool_]
    offsets: Offsets

    def sums(self) -> npt.NDArray[np.float64]:
        """Log-likelihood of every request, shape `(requests,)`."""
        return np.add.reduceat(self.ll, self.offsets[:-1])

    def greedy(self) -> npt.NDArray[np.bool_]:
        """Whether greedy decoding would give a request's targets, shape `(requests,)`."""
        return np.logical_and.reduceat(self.equal, self.offsets[:-1])


class _Batch(NamedTuple):
    """Rows of one forward pass; tensors on the model's device, `slots` on the host."""

    ids: torch.Tensor
    places: torch.Tensor
    which: torch.Tensor
    targets: torch.Tensor
    slots: Offsets

    @property
    def n_tokens(self) -> int:
        """Tokens of the pass, padding included."""
        return self.ids.numel()

    def run(self, model: NeededLogits) -> TokenScores:
        """Log-probabilities of the targets."""
        return model.score(self.ids, self.places, self.which, self.targets)


def _rows(requests: Sequence[Forced]) -> list[Row]:
    """Distinct inputs with their requests; inputs that another one begins with are answered by its row.

    In descending order of their bytes a prefix comes right behind its extensions, so one look back is enough.
    """
    order = sorted(range(len(requests)), key=lambda i: requests[i].inputs, reverse=True)
    found: list[tuple[bytes, list[int]]] = []
    for i in order:
        if found and found[-1][0].startswith(requests[i].inputs):
            found[-1][1].append(i)
        else:
            found.append((requests[i].inputs, [i]))
    first = [len(r.inputs) // 4 - len(r.targets) for r in requests]
    return [Row(inputs, tuple(members), min(first[i] for i in members)) for inputs, members in found]


def _grouped(rows: Sequence[Row], batch_tokens: int) -> list[list[Row]]:
    """Rows, longest first, in batches of at most `batch_tokens` tokens with padding; a long row stands alone.

    A batch large enough to keep a processor busy is not filled up with rows that would need much padding.
    """
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda r: (-r.length, r.inputs)):
        longest = batches[-1][0].length if batches else 0
        tokens = longest * len(batches[-1]) if batches else 0
        is_full = tokens + longest > batch_tokens
        if not batches or is_full or (tokens >= batch_tokens * _ENOUGH and row.length < longest * _ALIKE):
            batches.append([])
        batches[-1].append(row)
    return batches


def _batch(rows: Sequence[Row], requests: Sequence[Forced], offsets: Offsets, device: Any) -> _Batch:
    length = rows[0].length
    ids = np.zeros((len(rows), length), np.int64)
    places, targets, slots = [], [], []
    for r, row in enumerate(rows):
        ids[r, : row.length] = np.frombuffer(row.inputs, "<i4")
        for i in row.members:
            m = len(requests[i].targets)
            end = r * length + len(requests[i].inputs) // 4
            places.append(np.arange(end - m, end))
            targets.append(requests[i].targets)
            slots.append(np.arange(offsets[i], offsets[i] + m))
    unique, which = np.unique(np.concatenate(places), return_inverse=True)
    tensors = (ids, unique, which, np.concatenate(targets).astype(np.int64))
    on_device = [torch.from_numpy(t).to(device) for t in tensors]
    return _Batch(on_device[0], on_device[1], on_device[2], on_device[3], np.concatenate(slots))


class Passes(Protocol):
    """Told of the passes of batches; may make a model's layers give back what they gave before, to the bit."""

    def during(self, batches: ForcedBatches, number: int) -> AbstractContextManager[object]:
        """Entered around one pass without cache: batch `number`, whose inputs are the same for every candidate."""


@final
class ForcedBatches:
    """Requests prepared once; run for every candidate in the same batches, in the same order.

    Args:
        requests: any number of them.
        batch_tokens: tokens of one forward pass, padding included.
        device: where the model lives.
        cache_tokens: tokens that the caches of rows with a shared beginning may hold; 0 shares none.
        pack: whether short rows are packed; only for a model that is `packed.packable`.
    """

    def __init__(
        self, requests: Sequence[Forced], batch_tokens: int, device: Any, cache_tokens: int = 0, *, pack: bool = False
    ) -> None:
        lengths = [len(r.targets) for r in requests]
        self._offsets: Offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self._targets = np.concatenate([np.zeros(0, np.int64), *(r.targets for r in requests)]).astype(np.int64)
        rows = _rows(requests)
        packs, rows = pack_rows(rows) if pack else ([], rows)
        groups, rows = group_rows(rows) if cache_tokens else ([], rows)
        self._batches: list[_Batch | SharedBatch | PackedBatch] = [
            _batch(g, requests, self._offsets, device) for g in _grouped(rows, batch_tokens)
        ]
        targets, ends = [r.targets for r in requests], [len(r.inputs) // 4 for r in requests]
        self._batches += [
            packed_batch(p, targets, ends, self._offsets, device) for p in batch_packs(packs, batch_tokens)
        ]
        self._batches += [
            shared_batch(g, targets, ends, self._offsets, device)
            for g in batch_groups(groups, batch_tokens, cache_tokens)
        ]

    @property
    def n_tokens(self) -> int:
        """Tokens of all forward passes, padding included."""
        return sum(b.n_tokens for b in self._batches)

    @property
    def n_uncached_tokens(self) -> int:
        """Tokens of the passes that continue no cache and keep none, padding included."""
        return sum(b.n_tokens for b in self._batches if not isinstance(b, SharedBatch))

    def run(self, model: NeededLogits, passes: Passes | None = None) -> ForcedResults:
        """Scores every request.

        Args:
            model: the candidate.
            passes: told of every pass without cache.

        Raises:
            NonFinite: when a logit is NaN or infinite.
        """
        ll = np.empty(len(self._targets))
        top = np.empty(len(self._targets), np.int64)
        # collected on the device, so that the host waits once
        found = [self._run_one(number, model, passes) for number in range(len(self._batches))]
        for batch, scores in zip(self._batches, found, strict=True):
            check_finite(scores.ll, "where answers are scored")
            ll[batch.slots] = scores.ll.cpu().numpy()
            top[batch.slots] = scores.top.cpu().numpy()
        return ForcedResults(ll, top, top == self._targets, self._offsets)

    def _run_one(self, number: int, model: NeededLogits, passes: Passes | None) -> TokenScores:
        batch = self._batches[number]
        if passes is None or isinstance(batch, SharedBatch):
            return batch.run(model)
        with passes.during(self, number):
            return batch.run(model)

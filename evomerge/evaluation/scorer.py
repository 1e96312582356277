"""Log-likelihoods: requests packed into fixed batches of rows, each prompt run once for the choices that share it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch

from evomerge.evaluation.forward import NeededLogits, check_finite

Ids = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]


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


def _rows(requests: Sequence[Forced]) -> list[tuple[bytes, list[int]]]:
    """Distinct inputs with their requests; inputs that another one begins with are answered by its row.

    In descending order of their bytes a prefix comes right behind its extensions, so one look back is enough.
    """
    order = sorted(range(len(requests)), key=lambda i: requests[i].inputs, reverse=True)
    rows: list[tuple[bytes, list[int]]] = []
    for i in order:
        if rows and rows[-1][0].startswith(requests[i].inputs):
            rows[-1][1].append(i)
        else:
            rows.append((requests[i].inputs, [i]))
    return sorted(rows, key=lambda row: (-len(row[0]), row[0]))


def _grouped(rows: list[tuple[bytes, list[int]]], batch_tokens: int) -> list[list[tuple[bytes, list[int]]]]:
    """Rows, longest first, in batches of at most `batch_tokens` tokens with padding; a long row stands alone."""
    batches: list[list[tuple[bytes, list[int]]]] = []
    for row in rows:
        longest = len(batches[-1][0][0]) // 4 if batches else 0
        if not batches or longest * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def _batch(rows: list[tuple[bytes, list[int]]], requests: Sequence[Forced], offsets: Offsets, device: Any) -> _Batch:
    length = len(rows[0][0]) // 4
    ids = np.zeros((len(rows), length), np.int64)
    places, targets, slots = [], [], []
    for r, (inputs, members) in enumerate(rows):
        ids[r, : len(inputs) // 4] = np.frombuffer(inputs, "<i4")
        for i in members:
            m = len(requests[i].targets)
            end = r * length + len(requests[i].inputs) // 4
            places.append(np.arange(end - m, end))
            targets.append(requests[i].targets)
            slots.append(np.arange(offsets[i], offsets[i] + m))
    index, which = np.unique(np.concatenate(places), return_inverse=True)
    tensors = (ids, index, which, np.concatenate(targets).astype(np.int64))
    on_device = [torch.from_numpy(t).to(device) for t in tensors]
    return _Batch(on_device[0], on_device[1], on_device[2], on_device[3], np.concatenate(slots))


@final
class ForcedBatches:
    """Requests prepared once; run for every candidate in the same batches, in the same order.

    Args:
        requests: any number of them.
        batch_tokens: tokens of one forward pass, padding included.
        device: where the model lives.
    """

    def __init__(self, requests: Sequence[Forced], batch_tokens: int, device: Any) -> None:
        lengths = [len(r.targets) for r in requests]
        self._offsets: Offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self._targets = np.concatenate([np.zeros(0, np.int64), *(r.targets for r in requests)]).astype(np.int64)
        groups = _grouped(_rows(requests), batch_tokens)
        self._batches = [_batch(g, requests, self._offsets, device) for g in groups]

    @property
    def n_tokens(self) -> int:
        """Tokens of all forward passes, padding included."""
        return sum(b.ids.numel() for b in self._batches)

    def run(self, model: NeededLogits) -> ForcedResults:
        """Scores every request.

        Raises:
            NonFinite: when a logit is NaN or infinite.
        """
        ll = np.empty(len(self._targets))
        top = np.empty(len(self._targets), np.int64)
        # collected on the device, so that the host waits once
        found = [model.score(b.ids, b.places, b.which, b.targets) for b in self._batches]
        for batch, scores in zip(self._batches, found, strict=True):
            check_finite(scores.ll, "where answers are scored")
            ll[batch.slots] = scores.ll.cpu().numpy()
            top[batch.slots] = scores.top.cpu().numpy()
        return ForcedResults(ll, top, top == self._targets, self._offsets)

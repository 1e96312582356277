"""Rows that begin alike: the common beginning is run once, and the rest continues from its cache.

The choices of a question share its prompt; with fixed few-shot examples, whole tasks share theirs. A beginning is
shared only where that saves many tokens, because continuing from a cache costs a second pass and a copy of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from evomerge.evaluation.caches import select_rows
from evomerge.evaluation.forward import NeededLogits, TokenScores

Offsets = npt.NDArray[np.int64]

MIN_PREFIX: Final = 32
"""Tokens below which a common beginning is not shared."""
MIN_SAVED: Final = 64
"""Tokens that a group must save."""
_KEPT: Final = 0.8
"""A row joins a group only if the group's common beginning keeps this share of its length."""


class Row(NamedTuple):
    """One sequence of inputs with the requests that it answers.

    Attributes:
        inputs: packed ids.
        members: indices of requests; each needs the last positions of its own, possibly shorter, inputs.
        needed: the first position that any of them needs.
    """

    inputs: bytes
    members: tuple[int, ...]
    needed: int

    @property
    def length(self) -> int:
        """Number of inputs."""
        return len(self.inputs) // 4


class Group(NamedTuple):
    """Rows whose first `prefix` inputs are the same, and needed by none of them."""

    prefix: int
    rows: tuple[Row, ...]

    @property
    def longest(self) -> int:
        """Inputs of the longest row."""
        return max(r.length for r in self.rows)


def _common(a: Row, b: Row) -> int:
    """How many first inputs two rows share."""
    n = min(a.length, b.length)
    different = np.flatnonzero(np.frombuffer(a.inputs, "<i4", n) != np.frombuffer(b.inputs, "<i4", n))
    return int(different[0]) if different.size else n


def group_rows(rows: Sequence[Row]) -> tuple[list[Group], list[Row]]:
    """Rows in groups that pay, and the other rows."""
    groups: list[Group] = []
    prefix, members = 0, list[Row]()
    for row in sorted(rows, key=lambda r: r.inputs):
        joint = min(prefix, _common(members[-1], row), row.needed) if members else 0
        if members and joint >= max(MIN_PREFIX, _KEPT * prefix):
            prefix = joint
            members.append(row)
        else:
            groups += [Group(prefix, tuple(members))] if members else []
            prefix, members = row.needed, [row]
    groups += [Group(prefix, tuple(members))] if members else []
    paying = [g for g in groups if g.prefix >= MIN_PREFIX and (len(g.rows) - 1) * g.prefix >= MIN_SAVED]
    return paying, [row for g in groups if g not in paying for row in g.rows]


def _split(group: Group, cache_tokens: int) -> list[Group]:
    """A group in parts whose caches fit."""
    size = max(1, cache_tokens // group.longest)
    return [Group(group.prefix, group.rows[i : i + size]) for i in range(0, len(group.rows), size)]


def batch_groups(groups: Sequence[Group], batch_tokens: int, cache_tokens: int) -> list[list[Group]]:
    """Groups, longest beginning first, in batches of so many new tokens and so many cached ones."""
    batches: list[list[Group]] = []
    parts = [part for group in groups for part in _split(group, cache_tokens)]
    for part in sorted(parts, key=lambda g: (-g.prefix, -g.longest, g.rows[0].inputs)):
        candidate = [*batches[-1], part] if batches else [part]
        prefix = max(g.prefix for g in candidate)
        suffix = max(g.longest - g.prefix for g in candidate)
        n_rows = sum(len(g.rows) for g in candidate)
        new, cached = len(candidate) * prefix + n_rows * suffix, n_rows * (prefix + suffix)
        if batches and new <= batch_tokens and cached <= cache_tokens:
            batches[-1].append(part)
        else:
            batches.append([part])
    return batches


class SharedBatch(NamedTuple):
    """Two passes: beginnings, padded on the left, then what follows, padded on the right.

    Attributes:
        prefix_ids: shape `(groups, p)`.
        prefix_mask: 0 on padding, same shape.
        owner: group of each row, shape `(rows,)`.
        suffix_ids: shape `(rows, s)`.
        mask: over beginning and suffix, shape `(rows, p + s)`.
        positions: of the suffix in its row, shape `(rows, s)`.
        places: flat positions in the suffix whose logits are needed.
        which: for each target its place in `places`.
        targets: token ids.
        slots: where each target's result goes; on the host.
    """

    prefix_ids: torch.Tensor
    prefix_mask: torch.Tensor
    owner: torch.Tensor
    suffix_ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    places: torch.Tensor
    which: torch.Tensor
    targets: torch.Tensor
    slots: Offsets

    @property
    def n_tokens(self) -> int:
        """Tokens of both passes, padding included."""
        return self.prefix_ids.numel() + self.suffix_ids.numel()

    def run(self, model: NeededLogits) -> TokenScores:
        """Log-probabilities of the targets."""
        positions = (self.prefix_mask.cumsum(-1) - 1).clamp(min=0)
        last = torch.arange(1, len(self.prefix_ids) + 1, device=model.device) * self.prefix_ids.shape[1] - 1
        _, cache = model.logits(
            self.prefix_ids, last, attention_mask=self.prefix_mask, position_ids=positions, use_cache=True
        )
        select_rows(cache, self.owner)
        return model.score(
            self.suffix_ids,
            self.places,
            self.which,
            self.targets,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=cache,
            use_cache=True,
        )


def shared_batch(
    groups: Sequence[Group],
    targets: Sequence[npt.NDArray[np.int32]],
    ends: Sequence[int],
    offsets: Offsets,
    device: Any,
) -> SharedBatch:
    """Tensors of one batch.

    Args:
        groups: the batch.
        targets: per request its targets.
        ends: per request the number of its inputs.
        offsets: per request where its results begin.
        device: where the model lives.
    """
    p = max(g.prefix for g in groups)
    s = max(g.longest - g.prefix for g in groups)
    n_rows = sum(len(g.rows) for g in groups)
    prefix_ids, prefix_mask = np.zeros((len(groups), p), np.int64), np.zeros((len(groups), p), np.int64)
    suffix_ids, mask = np.zeros((n_rows, s), np.int64), np.ones((n_rows, p + s), np.int64)
    positions, owner = np.zeros((n_rows, s), np.int64), np.zeros(n_rows, np.int64)
    places, wanted, slots = [], [], []
    r = 0
    for number, group in enumerate(groups):
        prefix_ids[number, p - group.prefix :] = np.frombuffer(group.rows[0].inputs, "<i4", group.prefix)
        prefix_mask[number, p - group.prefix :] = 1
        for row in group.rows:
            suffix_ids[r, : row.length - group.prefix] = np.frombuffer(row.inputs, "<i4")[group.prefix :]
            mask[r, : p - group.prefix] = 0
            positions[r] = np.arange(group.prefix, group.prefix + s)
            owner[r] = number
            for i in row.members:
                m, end = len(targets[i]), r * s + ends[i] - group.prefix
                places.append(np.arange(end - m, end))
                wanted.append(targets[i])
                slots.append(np.arange(offsets[i], offsets[i] + m))
            r += 1
    unique, which = np.unique(np.concatenate(places), return_inverse=True)
    labels = np.concatenate(wanted).astype(np.int64)

    def place(array: Offsets) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    return SharedBatch(
        prefix_ids=place(prefix_ids),
        prefix_mask=place(prefix_mask),
        owner=place(owner),
        suffix_ids=place(suffix_ids),
        mask=place(mask),
        positions=place(positions),
        places=place(unique),
        which=place(which),
        targets=place(labels),
        slots=np.concatenate(slots),
    )

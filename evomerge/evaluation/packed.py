"""Short rows packed together: what several of them begin with is run once, in the same pass as the rest.

A pack is a tree of tokens laid out in one row. An explicit mask lets every token see its own beginning alone, and its
position is the one that it has there, so that it computes what it would compute in a row of its own. Where questions
are short and alike this saves tokens that are too few for a cache (`shared`), and attention runs over fewer, fuller
rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, final

import numpy as np
import numpy.typing as npt
import torch

from evomerge.evaluation.forward import NeededLogits, TokenScores
from evomerge.evaluation.shared import Row

Offsets = npt.NDArray[np.int64]

ARCHITECTURES: Final = ("gpt2", "gpt_neox", "llama", "mistral", "olmo2", "qwen2", "qwen3")
"""Values of `model_type` for which a test shows that packs change nothing."""
LONGEST_ROW: Final = 32
SIZE: Final = 64
"""Tokens of a pack: attention costs its square."""
_WORTH: Final = 0.9
"""Packs are used when they need at most this share of the rows' tokens."""


def packable(model: Any) -> bool:
    """Whether a model attends to whatever its mask shows, at the positions it is told; fp32 on the CPU, as measured."""
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    plain = kinds == {"full_attention"} and (window is None or window >= SIZE)
    usual = plain and config.model_type in ARCHITECTURES and config._attn_implementation == "sdpa"
    return bool(usual and model.device.type == "cpu" and model.dtype == torch.float32)


@final
class Pack:
    """A growing tree of tokens.

    Attributes:
        ids: token ids, parents before children.
        parents: index of the token before it, -1 at a beginning.
        rows: what it holds.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.parents: list[int] = []
        self.rows: list[Row] = []
        self._nodes: dict[bytes, int] = {b"": -1}

    def __len__(self) -> int:
        return len(self.ids)

    def missing(self, row: Row) -> int:
        """How many tokens a row would add."""
        known = row.length
        while row.inputs[: 4 * known] not in self._nodes:
            known -= 1
        return row.length - known

    def add(self, row: Row) -> None:
        """Put a row into the tree."""
        ids = np.frombuffer(row.inputs, "<i4")
        for n in range(row.length - self.missing(row), row.length):
            self._nodes[row.inputs[: 4 * (n + 1)]] = len(self.ids)
            self.parents.append(self._nodes[row.inputs[: 4 * n]])
            self.ids.append(int(ids[n]))
        self.rows.append(row)

    def last(self, row: Row, end: int, count: int) -> list[int]:
        """The places of the last `count` of a row's first `end` tokens."""
        return [self._nodes[row.inputs[: 4 * n]] for n in range(end - count + 1, end + 1)]

    def sight(self) -> npt.NDArray[np.bool_]:
        """Which tokens each token sees: itself and what comes before it in its rows; shape `(n, n)`."""
        seen = np.eye(len(self), dtype=np.bool_)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


def pack_rows(rows: Sequence[Row]) -> tuple[list[Pack], list[Row]]:
    """Short rows in packs, largest first, and the other rows; no packs when they would save too little."""
    short = sorted((r for r in rows if r.length <= LONGEST_ROW), key=lambda r: r.inputs)
    packs: list[Pack] = []
    for row in short:
        if not packs or len(packs[-1]) + packs[-1].missing(row) > SIZE:
            packs.append(Pack())
        packs[-1].add(row)
    if len(packs) * max(map(len, packs), default=0) > _WORTH * sum(r.length for r in short):
        return [], list(rows)
    packs.sort(key=lambda p: (-len(p), p.rows[0].inputs))
    return packs, [r for r in rows if r.length > LONGEST_ROW]


class PackedBatch(NamedTuple):
    """Packs that run together.

    Attributes:
        ids: shape `(packs, n)`.
        positions: of each token in its row, same shape.
        mask: 0 where a token sees another, else minus infinity, shape `(packs, 1, n, n)`.
        places: flat positions whose logits are needed.
        which: for each target its place in `places`.
        targets: token ids.
        slots: where each target's result goes; on the host.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
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
        tree = {"attention_mask": self.mask, "position_ids": self.positions}
        return model.score(self.ids, self.places, self.which, self.targets, **tree)


def batch_packs(packs: Sequence[Pack], batch_tokens: int) -> list[list[Pack]]:
    """Packs in batches of about so many tokens."""
    size = max(1, batch_tokens // SIZE)
    return [list(packs[i : i + size]) for i in range(0, len(packs), size)]


def packed_batch(
    packs: Sequence[Pack],
    targets: Sequence[npt.NDArray[np.int32]],
    ends: Sequence[int],
    offsets: Offsets,
    device: Any,
) -> PackedBatch:
    """Tensors of one batch.

    Args:
        packs: the batch.
        targets: per request its targets.
        ends: per request the number of its inputs.
        offsets: per request where its results begin.
        device: where the model lives.
    """
    n = max(len(p) for p in packs)
    ids = np.zeros((len(packs), n), np.int64)
    sight = np.broadcast_to(np.eye(n, dtype=np.bool_), (len(packs), n, n)).copy()
    places, wanted, slots = [], [], []
    for number, pack in enumerate(packs):
        ids[number, : len(pack)] = pack.ids
        sight[number, : len(pack), : len(pack)] = pack.sight()
        for row in pack.rows:
            for i in row.members:
                m = len(targets[i])
                places.append(number * n + np.array(pack.last(row, ends[i], m)))
                wanted.append(targets[i])
                slots.append(np.arange(offsets[i], offsets[i] + m))
    unique, which = np.unique(np.concatenate(places), return_inverse=True)
    mask = np.where(sight, np.float32(0), np.float32(-np.inf))[:, None]
    return PackedBatch(
        ids=torch.from_numpy(ids).to(device),
        positions=torch.from_numpy(sight.sum(-1) - 1).to(device),
        mask=torch.from_numpy(mask).to(device),
        places=torch.from_numpy(unique).to(device),
        which=torch.from_numpy(which).to(device),
        targets=torch.from_numpy(np.concatenate(wanted).astype(np.int64)).to(device),
        slots=np.concatenate(slots),
    )

"""Exact match by one teacher-forced pass: the plain scorer that the zoo judges its own models with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from evomerge.zoo.model import BOS, EOS, PAD, encode
from evomerge.zoo.problems import Problem

IGNORED = -100


class Batch(NamedTuple):
    """Right-padded problems. `ids`: [problems, length] int64; `labels`: the same, -100 outside answer and `<eos>`."""

    ids: Tensor
    labels: Tensor


def make_batch(problems: Sequence[Problem]) -> Batch:
    """`<bos> prompt answer <eos>`, padded on the right; causal attention needs no mask for that."""
    rows = [([BOS, *encode(prompt)], [*encode(answer), EOS]) for prompt, answer in problems]
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), length), PAD)
    labels = torch.full((len(rows), length), IGNORED)
    for i, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[i, :end] = torch.tensor(prompt + answer)
        labels[i, len(prompt) : end] = torch.tensor(answer)
    return Batch(ids, labels)


@torch.inference_mode()
def exact_match(model: PreTrainedModel, problems: Sequence[Problem], batch_size: int = 256) -> float:
    """The share of problems whose answer and `<eos>` are all argmax of one forward pass, in [0, 1].

    With a fixed target this equals greedy generation: the pass sees the right prefix exactly as long as every
    earlier token was generated right.
    """
    right = 0
    for start in range(0, len(problems), batch_size):
        ids, labels = make_batch(problems[start : start + batch_size])
        guesses = model(input_ids=ids[:, :-1], use_cache=False).logits.argmax(dim=-1)
        targets = labels[:, 1:]
        right += int(((guesses == targets) | (targets == IGNORED)).all(dim=1).sum())
    return right / len(problems)

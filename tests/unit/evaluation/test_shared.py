"""Shared beginnings change the work, not the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from evomerge.evaluation.forward import NeededLogits
from evomerge.evaluation.plan import pack
from evomerge.evaluation.scorer import Forced, ForcedBatches
from evomerge.evaluation.shared import MIN_PREFIX, Row, batch_groups, group_rows
from evomerge.testing import eval_tasks
from evomerge.testing.tiny import FAMILIES


def requests(rng: np.random.Generator, n_items: int = 5, head: int = 0) -> list[Forced]:
    """Questions of several lengths with three choices each, behind a common head."""
    shared = rng.integers(3, 250, head).tolist()
    found = []
    for i in range(n_items):
        prompt = shared + rng.integers(3, 250, 30 + 11 * i).tolist()
        for m in (1, 3, 2 + i):
            choice = rng.integers(3, 250, m).tolist()
            found.append(Forced(pack((prompt + choice)[:-1]), np.array(choice, np.int32)))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_whole_rows(tmp_path: Path, family: str) -> None:
    """Also behind the sliding window of 64 tokens that two of the families have."""
    folder = eval_tasks.byte_pair_checkpoint(tmp_path, family, seed=2, max_position_embeddings=256)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    asked = requests(np.random.default_rng(1), head=40)
    plain, shared = ForcedBatches(asked, 300, "cpu"), ForcedBatches(asked, 300, "cpu", cache_tokens=2000)
    assert shared.n_tokens < 0.75 * plain.n_tokens
    with NeededLogits(model) as needed:
        a, b = plain.run(needed), shared.run(needed)
    np.testing.assert_allclose(a.ll, b.ll, atol=2e-5)
    np.testing.assert_array_equal(a.top, b.top)


def row(inputs: list[int], needed: int) -> Row:
    return Row(pack(inputs), (0,), needed)


def test_a_beginning_ends_before_the_first_needed_position() -> None:
    head = list(range(50))
    groups, rest = group_rows([row([*head, 1], 45), row([*head, 2], 48), row([*head, 3], 50)])
    assert [g.prefix for g in groups] == [45]
    assert not rest


def test_short_or_lonely_beginnings_are_not_shared() -> None:
    short = list(range(MIN_PREFIX - 1))
    assert group_rows([row([*short, 1], 31), row([*short, 2], 31)])[0] == []
    assert group_rows([row(list(range(80)), 79)])[0] == []


def test_other_questions_with_a_short_common_head_stay_apart() -> None:
    head = list(range(40))
    rows = [row([*head, *([q] * 60), c], 100) for q in (50, 60) for c in (1, 2)]
    groups, _ = group_rows(rows)
    assert [g.prefix for g in groups] == [100, 100]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(0, 60), st.integers(100, 900), st.integers(100, 2000))
def test_batches_hold_every_row_once_within_their_budgets(
    seed: int, head: int, batch_tokens: int, cache_tokens: int
) -> None:
    asked: list[Any] = requests(np.random.default_rng(seed), head=head)
    rows = [Row(r.inputs, (i,), len(r.inputs) // 4 - len(r.targets)) for i, r in enumerate(asked)]
    groups, rest = group_rows(rows)
    batches = batch_groups(groups, batch_tokens, cache_tokens)
    seen = [r.members[0] for b in batches for g in b for r in g.rows] + [r.members[0] for r in rest]
    assert sorted(seen) == list(range(len(asked)))
    for batch in batches:
        prefix, suffix = max(g.prefix for g in batch), max(g.longest - g.prefix for g in batch)
        n_rows = sum(len(g.rows) for g in batch)
        assert len(batch) == 1 or len(batch) * prefix + n_rows * suffix <= batch_tokens
        assert n_rows == 1 or n_rows * (prefix + suffix) <= cache_tokens
        for group in batch:
            heads = {r.inputs[: 4 * group.prefix] for r in group.rows}
            assert len(heads) == 1
            assert all(r.needed >= group.prefix for r in group.rows)

"""Packs change the work, not the scores."""

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
from evomerge.evaluation.packed import ARCHITECTURES, LONGEST_ROW, SIZE, Pack, pack_rows, packable, packed_batch
from evomerge.evaluation.plan import pack, unpack
from evomerge.evaluation.scorer import Forced, ForcedBatches
from evomerge.evaluation.shared import Row
from evomerge.testing import eval_tasks
from evomerge.testing.tiny import FAMILIES

Rows = list[list[int]]
rows_of_tokens = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=LONGEST_ROW), min_size=1, max_size=40)


def forced(inputs: list[int], m: int) -> Forced:
    return Forced(pack(inputs), np.array(inputs[-m:], np.int32))


def alike(rng: np.random.Generator, n: int = 60) -> list[Forced]:
    """Requests of several lengths; many begin alike, some are the beginnings of others."""
    found = []
    for i in range(n):
        inputs = [1, *rng.integers(3, 6, 4 + i % 3), *rng.integers(3, 250, 1 + i % 4)]
        found.append(forced([int(x) for x in inputs], 1 + i % 4))
        if i % 5 == 0:
            found.append(forced([int(x) for x in inputs[:4]], 2))
    return found


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def test_every_architecture_that_is_packed_is_tested() -> None:
    models = {"gpt2": "gpt2", "gpt_neox": "gpt_neox"}
    assert {models.get(f, f) for f in FAMILIES} >= set(ARCHITECTURES)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_whole_rows(tmp_path: Path, family: str) -> None:
    model = load(eval_tasks.byte_pair_checkpoint(tmp_path, family, seed=2))
    assert packable(model) == (family in ARCHITECTURES)
    asked = alike(np.random.default_rng(1))
    plain = ForcedBatches(asked, 300, "cpu")
    packed = ForcedBatches(asked, 300, "cpu", pack=packable(model))
    assert (packed.n_tokens < 0.8 * plain.n_tokens) == packable(model)
    with NeededLogits(model) as needed:
        a, b = plain.run(needed), packed.run(needed)
    np.testing.assert_allclose(a.ll, b.ll, atol=2e-5)
    np.testing.assert_array_equal(a.top, b.top)
    np.testing.assert_array_equal(a.offsets, b.offsets)


def test_a_wrong_mask_would_be_noticed(tmp_path: Path) -> None:
    model = load(eval_tasks.byte_pair_checkpoint(tmp_path, "llama", seed=2))
    asked = alike(np.random.default_rng(1))
    rows = [Row(r.inputs, (i,), 0) for i, r in enumerate(asked)]
    packs, _ = pack_rows(rows)
    offsets = np.concatenate([[0], np.cumsum([len(r.targets) for r in asked])])
    batch = packed_batch(packs, [r.targets for r in asked], [len(r.inputs) // 4 for r in asked], offsets, "cpu")
    everything = batch._replace(mask=torch.zeros_like(batch.mask))
    with NeededLogits(model) as needed:
        assert (batch.run(needed).ll - everything.run(needed).ll).abs().max() > 1e-2


def test_models_that_limit_what_is_seen_are_not_packed(tmp_path: Path) -> None:
    model = load(eval_tasks.byte_pair_checkpoint(tmp_path, "mistral", seed=2))
    assert packable(model)
    for key, value in {"sliding_window": SIZE - 1, "layer_types": ["full_attention", "sliding_attention"]}.items():
        before = getattr(model.config, key, None)
        setattr(model.config, key, value)
        assert not packable(model)
        setattr(model.config, key, before)
    assert not packable(model.to(torch.bfloat16))


@settings(deadline=None, max_examples=100)
@given(rows_of_tokens)
def test_a_tree_holds_its_rows(tokens: Rows) -> None:
    tree = Pack()
    rows = [Row(pack(t), (), 0) for t in tokens]
    for row in rows:
        before, missing = len(tree), tree.missing(row)
        tree.add(row)
        assert len(tree) == before + missing
    distinct = {tuple(t[:n]) for t in tokens for n in range(1, len(t) + 1)}
    assert len(tree) == len(distinct)
    sight = tree.sight()
    for row, t in zip(rows, tokens, strict=True):
        places = tree.last(row, len(t), len(t))
        assert [tree.ids[p] for p in places] == t
        for depth, place in enumerate(places):
            assert np.flatnonzero(sight[place]).tolist() == sorted(places[: depth + 1])


@settings(deadline=None, max_examples=50)
@given(rows_of_tokens, st.integers(1, 4))
def test_rows_are_packed_once_and_within_the_size(tokens: Rows, copies: int) -> None:
    tokens = [[*t, n] for t in tokens for n in range(copies)]
    rows = [Row(i, (), 0) for i in sorted({pack(t) for t in tokens})]
    packs, rest = pack_rows(rows)
    held = [r.inputs for p in packs for r in p.rows] + [r.inputs for r in rest]
    assert sorted(held) == [r.inputs for r in rows]
    assert all(len(p) <= SIZE for p in packs)
    short = sum(r.length for r in rows if r.length <= LONGEST_ROW)
    assert not packs or len(packs) * len(packs[0]) <= 0.9 * short


def test_long_rows_and_rows_with_nothing_in_common_are_not_packed() -> None:
    long = [Row(pack([7] * LONGEST_ROW + [i]), (), 0) for i in range(100)]
    assert pack_rows(long) == ([], long)
    rng = np.random.default_rng(0)
    apart = [Row(pack(rng.integers(0, 30_000, 8)), (), 0) for _ in range(100)]
    assert pack_rows(apart) == ([], apart)
    assert unpack(apart[0].inputs).shape == (8,)

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging.elements import FULL, at_most, hash_indices, hash_range, keep_bound, mix32, salt, tie_hash

words = st.integers(0, FULL)


def unsigned(patterns):
    return patterns.numpy().view(np.uint32)


def test_mix32_is_murmur3s_finaliser():
    assert [mix32(w) for w in (0, 1, 0xDEADBEEF, FULL)] == [0, 0x514E28B7, 0x0DE5C6A9, 0x81F16F39]


@given(st.lists(words, min_size=1, max_size=40), words)
@settings(deadline=None, max_examples=60)
def test_tensor_hash_is_the_hash_of_each_word(indices, salt_word):
    given_indices = torch.tensor(np.array(indices, np.uint32).view(np.int32))
    before = given_indices.clone()
    assert unsigned(hash_indices(given_indices, salt_word)).tolist() == [mix32(i ^ salt_word) for i in indices]
    assert torch.equal(given_indices, before)
    expected = [mix32(i ^ salt_word) ^ 77 for i in indices]
    assert unsigned(tie_hash(given_indices, salt_word, 77)).tolist() == expected


def test_hashes_of_one_tensor_are_all_different():
    hashes = unsigned(hash_range(0, torch.empty(1 << 20), salt("tie", "w")))
    assert len(np.unique(hashes)) == 1 << 20


@given(st.lists(words, min_size=1, max_size=40), words)
@settings(deadline=None, max_examples=60)
def test_at_most_compares_unsigned(values, bound):
    patterns = torch.tensor(np.array(values, np.uint32).view(np.int32))
    assert at_most(patterns, bound).tolist() == [v <= bound for v in values]


def test_ranges_continue_each_other():
    whole = hash_range(0, torch.empty(1000), 5)
    assert torch.equal(torch.cat([hash_range(0, torch.empty(301), 5), hash_range(301, torch.empty(699), 5)]), whole)


def test_keep_bound_at_the_ends_and_in_between():
    assert keep_bound(0.0) is None
    assert keep_bound(1.0) == FULL
    assert keep_bound(0.5) == (1 << 31) - 1
    hashes = hash_range(0, torch.empty(100_000), salt("mask", 3, "w", "p"))
    shares = [at_most(hashes, keep_bound(p)).float().mean().item() for p in (0.1, 0.5, 0.9)]
    np.testing.assert_allclose(shares, [0.1, 0.5, 0.9], atol=0.006)


def test_salts_depend_on_purpose_and_on_each_name_apart():
    salts = {
        salt("tie", "ab", "c"),
        salt("mask", "ab", "c"),
        salt("tie", "a", "bc"),
        salt("tie", "abc"),
        salt("tie", "c", "ab"),
    }
    assert len(salts) == 5

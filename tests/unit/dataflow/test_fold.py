"""Gains as weights: the arithmetic of folding, against the formula in fp64, and what cannot be folded."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.dataflow.families import FAMILIES
from evomerge.dataflow.fold import check_foldable, fold_gain, offsets_of
from evomerge.errors import ModelError

gains = st.floats(-8, 8, allow_nan=False).filter(lambda g: abs(g) > 1e-3)
values = st.lists(st.floats(-4, 4, width=32, allow_subnormal=False), min_size=1, max_size=8)
EPSILON = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@pytest.mark.parametrize("dtype", EPSILON)
@settings(max_examples=60, deadline=None)
@given(values, gains, st.sampled_from([0.0, 1.0]))
def test_a_folded_weight_is_the_formula_rounded(
    dtype: torch.dtype, row: list[float], gain: float, offset: float
) -> None:
    stored = torch.tensor(row).to(dtype)
    folded = fold_gain(stored, gain, offset)
    wanted = gain * (stored.double() + offset) - offset
    assert folded.dtype == dtype
    # half a unit in the last place of the result, and the rounding of gain and product in fp32
    allowed = (1.001 * EPSILON[dtype] + 2.0**-23) * wanted.abs() + 2.0**-25
    assert bool(((folded.double() - wanted).abs() <= allowed).all())


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_gain_of_one_changes_nothing(offset: float) -> None:
    stored = torch.tensor([0.1, -0.0, 3.0]).to(torch.bfloat16)
    assert fold_gain(stored, 1.0, offset) is stored


@pytest.mark.parametrize("gain", [-1.0, 0.5, -4.0])
def test_powers_of_two_are_exact_and_can_be_taken_back(gain: float) -> None:
    stored = torch.randn(64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    assert torch.equal(fold_gain(fold_gain(stored, gain), 1 / gain), stored)


def test_a_gain_of_zero_silences_a_norm_with_an_offset() -> None:
    assert torch.equal(fold_gain(torch.tensor([0.3, -0.2]), 0.0, 1.0), torch.tensor([-1.0, -1.0]))


def test_every_family_folds_into_the_ends_of_its_branches() -> None:
    assert offsets_of(FAMILIES["llama"]) == dict.fromkeys(
        ("self_attn.o_proj.weight", "self_attn.o_proj.bias", "mlp.down_proj.weight", "mlp.down_proj.bias"), 0.0
    )
    gemma = {"post_attention_layernorm.weight": 1.0, "post_feedforward_layernorm.weight": 1.0}
    assert offsets_of(FAMILIES["gemma2"]) == gemma
    assert offsets_of(FAMILIES["olmo2"]) == dict.fromkeys(gemma, 0.0)


@pytest.mark.parametrize(
    ("family", "dtypes", "match"),
    [
        ("llama", {"self_attn.o_proj.weight": "F32"}, r"layer 3: mlp\.down_proj\.weight, absent"),
        ("llama", {"self_attn.o_proj.weight": "I8", "mlp.down_proj.weight": "F32"}, r"self_attn\.o_proj\.weight, I8"),
        (
            "olmo2",
            {
                "post_attention_layernorm.weight": "F32",
                "post_feedforward_layernorm.weight": "F32",
                "post_attention_layernorm.bias": "F32",
            },
            r"post_attention_layernorm\.bias, F32",
        ),
    ],
)
def test_what_cannot_be_multiplied_is_refused(family: str, dtypes: dict[str, str], match: str) -> None:
    with pytest.raises(ModelError, match=match):
        check_foldable(FAMILIES[family], dtypes, {"F32"}, 3)

"""Parents that fit, and every way in which they do not; values that are not finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.checkpoints import finite
from evomerge.checkpoints.compatible import check_compatible, check_finite, differences
from evomerge.checkpoints.finite import non_finite
from evomerge.checkpoints.reader import Checkpoint, open_checkpoint
from evomerge.errors import ConfigError, ModelError
from evomerge.testing.tiny import tiny_checkpoint

Copy = Callable[..., Path]


def parents(*folders: Path) -> dict[str, Checkpoint]:
    return {name: open_checkpoint(folder) for name, folder in zip("abcdef", folders, strict=False)}


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    path = folder / "model.safetensors"
    tensors = {n: t.clone() for n, t in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


@pytest.fixture
def sibling(tmp_path: Path) -> Path:
    """Another Llama of the same shape: stored in bf16, in shards, with a tokenizer."""
    options: dict[str, Any] = {"dtype": "bfloat16", "tokenizer": True, "max_shard_size": "20KB"}
    return tiny_checkpoint(tmp_path / "sibling", "llama", seed=2, **options)


def test_siblings_of_mixed_dtype_sharding_and_tokenizer_fit(zoo: Mapping[str, Path], sibling: Path) -> None:
    both = parents(zoo["llama"], sibling)
    check_compatible(both, "a")
    check_compatible(both, "b")
    check_compatible(both, None)
    check_compatible({"only": both["a"]}, None)


def test_an_unknown_base_and_no_parents(zoo: Mapping[str, Path]) -> None:
    with pytest.raises(ConfigError, match="no such parent"):
        check_compatible(parents(zoo["llama"]), "z")
    with pytest.raises(ConfigError, match="no such parent"):
        check_compatible({}, None)


def test_every_difference_is_listed_with_its_parent(zoo: Mapping[str, Path], copy: Copy, edit_config: Any) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]
        tensors["model.extra.weight"] = torch.zeros(2)
        tensors["lm_head.weight"] = torch.zeros(60, 32)
        tensors["model.layers.0.input_layernorm.weight"] = torch.zeros(32, dtype=torch.int32)

    folder = rewrite(copy(zoo["llama"]), change)
    edit_config(folder, vocab_size=60, rope_parameters={"rope_theta": 5e5, "rope_type": "default"})
    with pytest.raises(ModelError, match="6 differences") as caught:
        check_compatible(parents(zoo["llama"], folder), "a")
    text = str(caught.value)
    for line in (
        "b: config: vocab_size is 60, not 64",
        "b: config: rotary rope_theta is 500000.0, not 10000.0",
        "b: model.norm.weight is missing",
        "b: model.extra.weight is not in the reference",
        "b: lm_head.weight has shape [60, 32], not [64, 32]",
        "b: model.layers.0.input_layernorm.weight is I32, not F32",
    ):
        assert line in text
    assert "'a' is the reference" in text
    assert caught.value.exit_code == 3


def test_long_lists_are_cut_with_the_number_of_the_rest(zoo: Mapping[str, Path]) -> None:
    one, other = open_checkpoint(zoo["llama"]), open_checkpoint(zoo["gpt_neox"])
    total = len(differences(one, other))
    assert total > 30
    with pytest.raises(ModelError, match=rf"{total} differences[\s\S]*and {total - 20} differences more") as caught:
        check_compatible({"one": one, "other": other}, "one")
    assert str(caught.value).count("\n    other: ") == 20


def test_depth_and_type_are_told(zoo: Mapping[str, Path], tmp_path: Path) -> None:
    deep = tiny_checkpoint(tmp_path / "deep", "llama", 1, num_hidden_layers=3)
    found = differences(open_checkpoint(zoo["llama"]), open_checkpoint(deep))
    assert "config: number of layers is 3, not 2" in found
    assert "config: model_type is 'mistral', not 'llama'" in differences(
        open_checkpoint(zoo["llama"]), open_checkpoint(zoo["mistral"])
    )


def test_both_spellings_of_rotary_settings_meet(zoo: Mapping[str, Path], copy: Copy, edit_config: Any) -> None:
    scaled = {"rope_type": "linear", "factor": 4.0}
    new, old, other = (copy(zoo["llama"], name) for name in ("new", "old", "other"))
    edit_config(new, rope_parameters={"rope_theta": 10000.0, **scaled})
    edit_config(old, rope_parameters=None, rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 4.0})
    edit_config(other, rope_parameters=None, rope_theta=10000.0, rope_scaling=None)
    assert differences(open_checkpoint(new), open_checkpoint(old)) == []
    assert differences(open_checkpoint(new), open_checkpoint(other)) == [
        "config: rotary rope_type is 'default', not 'linear'"
    ]
    assert differences(open_checkpoint(other), open_checkpoint(zoo["llama"])) == []


def test_rotary_settings_per_kind_of_layer(zoo: Mapping[str, Path], copy: Copy, edit_config: Any) -> None:
    new, old = copy(zoo["gemma3"], "new"), copy(zoo["gemma3"], "old")
    edit_config(old, rope_parameters=None, rope_theta=1000000.0, rope_local_base_freq=20000.0)
    kinds = {
        k: {"rope_type": "default", "rope_theta": t} for k, t in [("full_attention", 1e6), ("sliding_attention", 1e4)]
    }
    edit_config(new, rope_parameters=kinds)
    assert differences(open_checkpoint(new), open_checkpoint(old)) == [
        "config: rotary sliding_attention.rope_theta is 20000.0, not 10000.0"
    ]


def test_tied_and_untied_do_not_mix(tmp_path: Path) -> None:
    tied = tiny_checkpoint(tmp_path / "tied", "llama", 1, tie=True)
    untied = tiny_checkpoint(tmp_path / "untied", "llama", 1, tie=False)
    found = differences(open_checkpoint(tied), open_checkpoint(untied))
    assert found == ["config: tied embeddings is False, not True", "lm_head.weight is not in the reference"]


def test_a_copy_of_the_tied_head_is_no_difference(zoo: Mapping[str, Path], copy: Copy) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    check_compatible(parents(zoo["gemma2"], rewrite(copy(zoo["gemma2"]), add)), "a")


def test_a_missing_head_that_is_not_tied_is_refused(zoo: Mapping[str, Path], copy: Copy, edit_config: Any) -> None:
    folder = rewrite(copy(zoo["llama"]), lambda tensors: tensors.pop("lm_head.weight"))
    for stated in (False, None):  # Llama unties by default
        edit_config(folder, tie_word_embeddings=stated)
        with pytest.raises(ModelError, match="there is no head"):
            check_compatible(parents(folder), None)


def test_derived_buffers_of_one_parent_are_no_difference(zoo: Mapping[str, Path], copy: Copy) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 4, 4)

    check_compatible(parents(zoo["gpt2"], rewrite(copy(zoo["gpt2"]), add)), "a")


def test_integer_buffers_must_be_equal(zoo: Mapping[str, Path], copy: Copy) -> None:
    def add(value: int) -> Callable[[dict[str, torch.Tensor]], None]:
        return lambda tensors: tensors.update({"model.counter": torch.tensor([value])})

    same = [rewrite(copy(zoo["llama"], f"same{i}"), add(3)) for i in range(2)]
    other = rewrite(copy(zoo["llama"], "other"), add(4))
    check_compatible(parents(*same), "a")
    with pytest.raises(ModelError, match=r"b: model\.counter \(I64.*other values"):
        check_compatible(parents(same[0], other), "a")


def test_quantised_parents_are_refused(zoo: Mapping[str, Path], copy: Copy, edit_config: Any) -> None:
    folder = copy(zoo["llama"])
    edit_config(folder, quantization_config={"quant_method": "gptq"})
    with pytest.raises(ModelError, match="quantised weights cannot be averaged"):
        check_compatible(parents(zoo["llama"], folder), "a")

    def shrink(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.float8_e4m3fn)

    eight = rewrite(copy(zoo["llama"], "eight"), shrink)
    with pytest.raises(ModelError, match="8-bit floats, which need their scales"):
        check_compatible(parents(eight), None)


# ----------------------------------------------------------------------------------------------------------- finite


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_values_that_are_not_finite_are_counted(tmp_path: Path, dtype: str) -> None:
    folder = tiny_checkpoint(tmp_path / "model", "llama", 1, dtype=dtype)
    check_finite(open_checkpoint(folder))

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][3] = float("nan")
        tensors["lm_head.weight"][0, :4] = float("inf")
        tensors["lm_head.weight"][1, 0] = float("-inf")
        tensors["lm_head.weight"][2, 0] = float("nan")

    with pytest.raises(ModelError, match="not finite") as caught:
        check_finite(open_checkpoint(rewrite(folder, spoil)))
    assert "lm_head.weight (1 NaN, 5 Inf); model.norm.weight (1 NaN, 0 Inf)" in caught.value.got


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_value_is_found_wherever_it_stands(dtype: torch.dtype, value: float) -> None:
    for position in range(67):  # beyond one vector register, with a remainder
        tensor = torch.linspace(-1, 1, 67).to(dtype)
        assert finite.is_finite(tensor)
        tensor[position] = value
        assert not finite.is_finite(tensor)


def test_many_spoilt_tensors_are_cut_and_chunks_add_up(
    zoo: Mapping[str, Path], copy: Copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finite, "_CHUNK", 7)

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        for tensor in tensors.values():
            tensor.fill_(float("nan"))

    checkpoint = open_checkpoint(rewrite(copy(zoo["llama"]), spoil))
    faults = non_finite(checkpoint)
    assert [f.nan for f in faults] == [checkpoint.tensor(f.name).numel() for f in faults]
    with pytest.raises(ModelError, match="and 1 tensors more"):
        check_finite(checkpoint)


def test_the_largest_finite_values_and_integers_pass(zoo: Mapping[str, Path], copy: Copy) -> None:
    def extreme(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"].fill_(torch.finfo(torch.float32).max)
        tensors["model.empty"] = torch.zeros(0, 3)
        tensors["model.counter"] = torch.tensor([7])

    check_finite(open_checkpoint(rewrite(copy(zoo["llama"]), extreme)))

"""Where checkpoint tensors lie in memory, against transformers' own loading of tensors with unique elements."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    ConversionOps,
    Interleave,
    MergeModulelist,
    PermuteForRope,
    Split,
    Transpose,
    WeightConverter,
)

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.errors import ModelError
from evomerge.layout import TensorInfo
from evomerge.merging.kernels import Kernels
from evomerge.merging.parents import ParentPool
from evomerge.merging.placement import Place, check_loaded, own_memory, place
from evomerge.merging.placement_converted import Part, Unplaceable, converted_parts
from evomerge.merging.resident import ResidentModel, load_model
from evomerge.testing.tiny import tiny_checkpoint

REARRANGED = (
    "mixtral",
    "deepseek_v3",
    "jamba",
    "lfm2_moe",
    "nemotron_h",
    "olmo_hybrid",
    "longcat_flash",
    "kimi_linear",
)


def number_elements(folder: Path) -> dict[str, torch.Tensor]:
    """Rewrite a checkpoint so that no two elements are equal; returns what was written."""
    stored = load_file(folder / "model.safetensors")
    start, numbered = 1, {}
    for name, tensor in stored.items():
        numbered[name] = torch.arange(start, start + tensor.numel(), dtype=torch.float32).view(tensor.shape)
        start += tensor.numel()
    assert start < 1 << 24
    save_file(numbered, folder / "model.safetensors", {"format": "pt"})
    return numbered


@pytest.mark.parametrize("family", [*REARRANGED, "llama", "gpt2", "gpt_neox", "granitemoe", "gpt_oss"])
def test_places_are_where_transformers_puts_each_element(tmp_path: Path, family: str) -> None:
    numbered = number_elements(tiny_checkpoint(tmp_path, family, 0))
    checkpoint = open_checkpoint(tmp_path)
    model = load_model(str(tmp_path), "auto", "cpu")
    places = place(model, checkpoint.layout.tensors)
    assert list(places) == [t.name for t in checkpoint.layout.tensors]
    for name, found in places.items():
        assert torch.equal(found.read(), numbered[name]), name
        flat = found.flat
        assert flat is not None, name
        assert torch.equal(flat, numbered[name].flatten())
    check_loaded(places, checkpoint, model)


@pytest.mark.parametrize("family", REARRANGED)
def test_places_share_no_element_and_leave_none_out(tmp_path: Path, family: str) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path, family, 0))
    model = load_model(str(tmp_path), "auto", "cpu")
    places = place(model, checkpoint.layout.tensors)
    for i, found in enumerate(places.values()):
        found.write(torch.full(found.shape, float(i + 1000)))  # no other buffer holds such numbers
    counts = {i + 1000: found.read().numel() for i, found in enumerate(places.values())}
    held = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers())}
    marks = torch.cat([t.flatten() for t in held.values() if t.is_floating_point()])
    assert all(int((marks == mark).sum()) == count for mark, count in counts.items())
    parameters = {p.data_ptr(): p for p in model.parameters()}
    assert sum(counts.values()) >= sum(p.numel() for p in parameters.values())


class Holder(torch.nn.Module):
    """A model that only holds tensors, for conversions that no tested family has."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleDict({"mlp": torch.nn.Module()})
        for name, shape in shapes.items():
            self.layers["mlp"].register_parameter(name, torch.nn.Parameter(torch.zeros(shape)))
        self.config = SimpleNamespace(num_attention_heads=2)


def convert(
    model: Holder, operations: list[ConversionOps], sources: Mapping[str, list[torch.Tensor]], targets: list[str]
) -> dict[str, torch.Tensor]:
    """What transformers makes of tensors, by its own chain of operations."""
    current: Any = {pattern: list(tensors) for pattern, tensors in sources.items()}
    for op in operations:
        current = op.convert(
            current,
            source_patterns=list(sources),
            target_patterns=targets,
            full_layer_name=f"layers.{targets[0]}",
            model=model,
            config=model.config,
        )
    return {f"layers.{k}": t[0] if isinstance(t, list) else t for k, t in current.items()}


def numbers(*shape: int, start: int = 0) -> torch.Tensor:
    n = torch.Size(shape).numel()
    return torch.arange(start, start + n, dtype=torch.float32).view(shape)


CHAINS: dict[str, tuple[list[ConversionOps], dict[str, list[torch.Tensor]], list[str]]] = {
    "experts": (
        [MergeModulelist(0), Concatenate(1)],
        {
            "mlp.*.gate": [numbers(3, 4), numbers(3, 4, start=12)],
            "mlp.*.up": [numbers(5, 4, start=24), numbers(5, 4, start=44)],
        },
        ["mlp.a"],
    ),
    "pieces of different sizes": (
        [Concatenate(0)],
        {"mlp.q": [numbers(2, 3)], "mlp.k": [numbers(4, 3, start=6)], "mlp.v": [numbers(1, 3, start=18)]},
        ["mlp.a"],
    ),
    "halves": ([Chunk(0)], {"mlp.ab": [numbers(6, 4)]}, ["mlp.a", "mlp.b"]),
    "halves of the last axis": ([Chunk(-1)], {"mlp.ab": [numbers(3, 4)]}, ["mlp.a", "mlp.b"]),
    "split": ([Split(0)], {"mlp.ab": [numbers(7, 2)]}, ["mlp.a", "mlp.b"]),
    "turned": ([Transpose(0, 1)], {"mlp.x": [numbers(3, 5)]}, ["mlp.a"]),
    "turned where needed": ([Transpose(0, 1, check_dims=True)], {"mlp.x": [numbers(3, 5)]}, ["mlp.a"]),
    "interleaved": ([Interleave(1)], {"mlp.x": [numbers(2, 6, 3)]}, ["mlp.a"]),
    "interleaved back": ([Interleave(0, inverse=True)], {"mlp.x": [numbers(6, 3)]}, ["mlp.a"]),
    "stacked and turned": ([MergeModulelist(0), Transpose(1, 2)], {"mlp.*.x": [numbers(2, 3)] * 2}, ["mlp.a"]),
}
SPLIT: dict[str, tuple[int, ...]] = {"a": (3, 2), "b": (4, 2)}


def build(chain: str) -> tuple[Holder, Any, dict[str, list[TensorInfo]], dict[str, torch.Tensor]]:
    """A model that holds what a chain makes, its converter, and the sources as infos and as tensors."""
    operations, sources, targets = CHAINS[chain]
    shapes = SPLIT
    if chain != "split":
        made = convert(Holder(a=(5, 3)), operations, sources, targets)
        shapes = {name.rpartition(".")[2]: tuple(t.shape) for name, t in made.items()}
    model = Holder(**shapes)
    held = dict(model.named_parameters())
    for name, tensor in convert(model, operations, sources, targets).items():
        held[name].data.copy_(tensor)
    converter = WeightConverter(list(sources), targets, operations)
    tensors = {p.replace("*", str(i)): t for p, group in sources.items() for i, t in enumerate(group)}
    infos = {
        p: [TensorInfo(p.replace("*", str(i)), tuple(t.shape), "F32", None, "other") for i, t in enumerate(group)]
        for p, group in sources.items()
    }
    return model, converter, infos, tensors


@pytest.mark.parametrize("chain", CHAINS)
def test_chains_of_operations_are_undone(chain: str) -> None:
    model, converter, infos, tensors = build(chain)
    held = dict(model.named_parameters())
    found = converted_parts(model, converter, "layers.mlp.a", infos, held)
    assert found.keys() == tensors.keys()
    for name, parts in found.items():
        where = Place(tuple(tensors[name].shape), parts)
        assert torch.equal(where.read(), tensors[name]), name
        assert where.agrees_with(tensors[name])
        where.write(-tensors[name])
    operations, sources, targets = CHAINS[chain]
    minus = {p: [-t for t in group] for p, group in sources.items()}
    for name, tensor in convert(model, operations, minus, targets).items():
        assert torch.equal(held[name], tensor)


def test_one_run_of_memory_is_told_from_other_places() -> None:
    kinds = {}
    for chain in CHAINS:
        model, converter, infos, tensors = build(chain)
        found = converted_parts(model, converter, "layers.mlp.a", infos, dict(model.named_parameters()))
        places = [Place(tuple(tensors[n].shape), parts) for n, parts in found.items()]
        kinds[chain] = all(p.flat is not None for p in places)
        for where, tensor in zip(places, tensors.values(), strict=True):
            assert where.flat is None or torch.equal(where.flat, tensor.flatten())
    assert {c for c, one_run in kinds.items() if one_run} == {"experts", "pieces of different sizes"}


def test_a_wrong_order_of_rows_or_parts_is_noticed() -> None:
    tensor = numbers(4, 6)
    assert not Place((4, 6), (Part((), tensor.flip(0)),)).agrees_with(tensor)
    halves = (Part((slice(0, 2),), tensor[2:]), Part((slice(2, 4),), tensor[:2]))
    assert not Place((4, 6), halves).agrees_with(tensor)
    missing = tensor.clone()
    missing[0, 0] = float("nan")
    assert Place((4, 6), (Part((), missing.clone()),)).agrees_with(missing)


@pytest.mark.parametrize(
    ("operations", "sources", "why"),
    [
        ([PermuteForRope()], {"mlp.x": (4, 3)}, "PermuteForRope, which is not followed"),
        ([MergeModulelist(0)], {"mlp.x": (4, 4)}, "it becomes a part of layers.mlp.a"),
        ([Chunk(0), Concatenate(0)], {"mlp.x": (4, 3)}, "transformers cannot load it"),
        ([Concatenate(0)], {"mlp.x": (4, 3), "mlp.y": (4, 4)}, "transformers cannot load it: RuntimeError"),
    ],
)
def test_what_cannot_be_followed_is_told(
    operations: list[ConversionOps], sources: dict[str, tuple[int, ...]], why: str
) -> None:
    model = Holder(a=(4, 3))
    targets = ["mlp.a", "mlp.b"] if isinstance(operations[0], Chunk) else ["mlp.a"]
    converter = WeightConverter(list(sources), targets, operations)
    infos = {p: [TensorInfo(p, shape, "F32", None, "other")] for p, shape in sources.items()}
    with pytest.raises(Unplaceable, match=why):
        converted_parts(model, converter, "layers.mlp.a", infos, dict(model.named_parameters()))


def test_experts_that_are_missing_or_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path, "mixtral", 0))
    model = load_model(str(tmp_path), "auto", "cpu")
    tensors = checkpoint.layout.tensors
    name = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    with pytest.raises(ModelError, match=r"experts\.0\.w2\.weight .* it becomes a part of .*down_proj"):
        place(model, [t for t in tensors if t.name != name])
    with pytest.raises(ModelError, match=r"it becomes a part of .*down_proj"):
        place(model, [t for t in tensors if "experts.3.w2" not in t.name])
    with pytest.raises(ModelError, match=r"down_proj of MixtralForCausalLM stands in no file \(2 such\)"):
        place(model, [t for t in tensors if ".w2." not in t.name])
    narrow = [TensorInfo(t.name, (32, 47), t.dtype, t.layer, t.role) if t.name == name else t for t in tensors]
    with pytest.raises(ModelError, match="transformers cannot load it: RuntimeError"):
        place(model, narrow)


def test_a_model_that_does_not_hold_its_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path, "mixtral", 0))
    pool = ParentPool({"a": checkpoint})

    def swapped(*loading: Any) -> Any:
        model = load_model(*loading)
        experts = model.model.layers[1].mlp.experts.down_proj
        experts.data.copy_(experts.data.flip(0))
        return model

    monkeypatch.setattr("evomerge.merging.resident.load_model", swapped)
    with pytest.raises(ModelError, match=r"layers\.1.*w2\.weight .* holds other values than its files"):
        ResidentModel(pool, "a", kernels=Kernels())


def test_a_mixture_of_47_billion_weights_is_placed_without_memory() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM
    from transformers.core_model_loading import revert_weight_conversion

    with torch.device("meta"):
        model = MixtralForCausalLM(MixtralConfig())
    stored = revert_weight_conversion(model, model.state_dict())
    tensors = [TensorInfo(n, tuple(t.shape), "BF16", None, "other") for n, t in stored.items()]
    places = place(model, tensors)
    assert len(places) == len(tensors) == 32 * (8 * 3 + 7) + 3
    assert sum(p.parts[0].memory.numel() for p in places.values()) == sum(p.numel() for p in model.parameters())
    assert all(p.flat is not None for p in places.values())


def test_checkpoints_that_hold_the_experts_stacked_are_placed_too(tmp_path: Path) -> None:
    """As mergekit writes them."""
    folder = tiny_checkpoint(tmp_path / "a", "mixtral", 0)
    model = load_model(str(folder), "auto", "cpu")
    model.save_pretrained(tmp_path / "stacked", save_original_format=False)
    checkpoint = open_checkpoint(tmp_path / "stacked")
    assert any(t.name.endswith("mlp.experts.gate_up_proj") for t in checkpoint.layout.tensors)
    again = load_model(str(tmp_path / "stacked"), "auto", "cpu")
    places = place(again, checkpoint.layout.tensors)
    check_loaded(places, checkpoint, again)
    assert all(torch.equal(p.read(), checkpoint.tensor(n)) for n, p in places.items())


def test_weights_lie_in_one_block_and_tied_ones_once(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, "mixtral", 0, tie=True)
    model = load_model(str(tmp_path), "auto", "cpu")
    own_memory(model, "cpu")
    assert len({p.untyped_storage().data_ptr() for p in model.parameters()}) == 1
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    assert all(p.data_ptr() % 64 == next(model.parameters()).data_ptr() % 64 for p in model.parameters())

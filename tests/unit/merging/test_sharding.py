"""A model over several devices: the same bits as on one, and no operation ever sees tensors of two of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.dataflow.models import PathModels
from evomerge.errors import ModelError
from evomerge.evaluation.forward import NeededLogits
from evomerge.evaluation.generation import StopRule, generate
from evomerge.evaluation.plan import GenerationArgs
from evomerge.evaluation.scorer import Forced, ForcedBatches
from evomerge.merging.kernels import Kernels
from evomerge.merging.parents import ParentPool
from evomerge.merging.resident import ResidentModel
from evomerge.merging.sharding import Sharding, balance, connect, layer_bytes, layer_modules, tensor_shards
from evomerge.recipe.path import Hop
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.seeds import generator
from evomerge.testing.tiny import tiny_checkpoint, tiny_model

DEPTH = 4
TWO = Sharding(("cpu", "cpu"), (0, 0, 1, 1))


class FakeDevices(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Pretends that CPU tensors lie on numbered devices: what is computed from one lies there, and nothing mixes.

    A tensor made from nothing (`arange`) belongs nowhere yet, and a scalar may go anywhere, as with CUDA.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moves: list[tuple[int, int]] = []
        self._places: dict[int, int] = {}
        self._kept: list[torch.Tensor] = []

    def put(self, tensor: torch.Tensor, place: int) -> torch.Tensor:
        self._places[tensor.untyped_storage().data_ptr()] = place
        self._kept.append(tensor)  # so that its address is not given to another
        return tensor

    def place(self, tensor: torch.Tensor) -> int | None:
        return self._places.get(tensor.untyped_storage().data_ptr())

    def send(self, tensor: torch.Tensor, place: int) -> torch.Tensor:
        here = self.place(tensor)
        if here == place:
            return tensor
        if here is not None:
            self.moves.append((here, place))
        return self.put(tensor.clone(), place)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        places = {p for t in given if t.dim() and (p := self.place(t)) is not None}
        if len(places) > 1:
            raise RuntimeError(f"{func} on tensors of devices {sorted(map(str, places))}")
        made = func(*args, **(kwargs or {}))
        if places:
            tree_map(lambda t: self.put(t, next(iter(places))) if isinstance(t, torch.Tensor) else t, made)
        return made


@contextmanager
def spread(model: Any, fake: FakeDevices, sharding: Sharding) -> Iterator[None]:
    """Put the tensors of a resident model, each in memory of its own, where the sharding says."""
    shards = tensor_shards(model, sharding)
    for tensor in (*model.parameters(), *model.buffers()):
        shard = shards[id(tensor)]
        tensor.data = tensor.data.clone()
        fake.put(tensor.data, shard)
    with fake:
        yield


def pool(folder: Path, family: str, **rest: Any) -> ParentPool:
    folders = {n: tiny_checkpoint(folder / n, family, i, num_hidden_layers=DEPTH, **rest) for i, n in enumerate("xy")}
    return ParentPool({n: open_checkpoint(f) for n, f in folders.items()})


def recipe(**rest: Any) -> Recipe:
    rule = Rule("linear", {}, {"x": {"weight": 0.25}, "y": {"weight": 0.75}})
    return Recipe((ParentRef("x", "x"), ParentRef("y", "y")), None, (rule,), **rest)


def requests() -> list[Forced]:
    """Rows alone, rows that begin alike and continue from a cache, and short ones."""
    rng = generator(0, "requests")
    stem = rng.integers(3, 64, 40).astype(np.int32)
    long = [np.concatenate([stem, rng.integers(3, 64, 3 + i)]).astype(np.int32) for i in range(4)]
    short = [rng.integers(3, 64, 4 + i).astype(np.int32) for i in range(5)]
    return [Forced(row[:-2].tobytes(), row[-2:]) for row in (*long, *short)]


def scores(model: Any) -> list[Any]:
    with NeededLogits(model) as asked:
        found = ForcedBatches(requests(), 128, asked.device, 4096).run(asked)
    return [found.ll.tolist(), found.top.tolist()]


class Words:
    clean_up_tokenization_spaces = False

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(c) % 60 for c in text]

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return "".join(chr(97 + i % 26) for i in ids)


def answers(model: Any) -> list[tuple[int, ...]]:
    """Of prompts of several lengths, some of which stop early, so that rows are dropped from the cache."""
    rng = generator(1, "prompts")
    prompts = [rng.integers(3, 64, 3 + i).astype(np.int32) for i in range(6)]
    rule = StopRule(Words(), GenerationArgs(("a", "b", "c", "d"), 8), (2,))
    with NeededLogits(model) as asked:
        return [w.ids for w in generate(asked, prompts, rule, pad=0, device=asked.device, cache_tokens=1024)]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gemma3", "gpt2", "qwen3_moe"])
def test_a_spread_model_gives_the_same_bits_and_mixes_no_devices(tmp_path: Path, family: str) -> None:
    depth: dict[str, Any] = {"n_layer" if family == "gpt2" else "num_hidden_layers": DEPTH}
    folders = {n: tiny_checkpoint(tmp_path / n, family, i, **depth) for i, n in enumerate("xy")}
    parents = ParentPool({n: open_checkpoint(f) for n, f in folders.items()})
    whole = ResidentModel(parents, "x", kernels=Kernels())
    whole.apply(recipe())
    wanted = scores(whole.model), answers(whole.model)
    fake = FakeDevices()
    parts = ResidentModel(parents, "x", kernels=Kernels(), sharding=TWO, send=fake.send)
    parts.apply(recipe())
    with spread(parts.model, fake, TWO):
        assert (scores(parts.model), answers(parts.model)) == wanted
    assert {(0, 1), (1, 0)} == set(fake.moves)


def test_the_fake_devices_tell_a_forgotten_move() -> None:
    model, fake = tiny_model("llama", 0, num_hidden_layers=DEPTH), FakeDevices()
    with spread(model, fake, TWO), pytest.raises(RuntimeError, match="on tensors of devices"):
        model(input_ids=torch.tensor([[1, 2, 3]]))


def test_paths_run_through_a_spread_model(tmp_path: Path) -> None:
    parents = pool(tmp_path, "llama")
    path = (Hop(0), Hop(3), Hop(1, "y"), Hop(2, gain=0.5), Hop(0))

    def answered(**rest: Any) -> Any:
        models = PathModels(
            ResidentModel(parents, "x", kernels=Kernels(), **rest),
            lambda: ResidentModel(parents, "x", kernels=Kernels(), **rest),
        )
        return models.model(recipe(path=path)).model

    wanted = answered()
    fake = FakeDevices()
    sharded = answered(sharding=TWO, send=fake.send)
    layers = [0, 3, 1, 2, 0]
    for module, layer in zip(sharded.model.layers, layers, strict=True):
        for tensor in (*module.parameters(), *module.buffers()):
            if fake.place(tensor) is None:
                tensor.data = tensor.data.clone()
                fake.put(tensor.data, TWO.shard(layer))
    for tensor in (*sharded.parameters(), *sharded.buffers()):
        if fake.place(tensor) is None:
            tensor.data = tensor.data.clone()
            fake.put(tensor.data, 0)
    want = scores(wanted), answers(wanted)
    with fake:
        assert (scores(sharded), answers(sharded)) == want
    assert len(fake.moves) > 10


def test_masks_and_positions_are_carried_once_for_a_run_of_layers() -> None:
    sent: list[torch.Tensor] = []

    def send(tensor: torch.Tensor, shard: int) -> torch.Tensor:
        sent.append(tensor)
        return tensor.clone() if shard else tensor

    model = tiny_model("llama", 0, num_hidden_layers=DEPTH)
    connect(model, Sharding(("cpu", "cpu"), (0, 1, 1, 1)), send)
    ids = torch.arange(1, 9).view(2, 4)
    model(input_ids=ids, attention_mask=torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]))
    masks = [t for t in sent if t.dtype == torch.bool or t.dim() == 4]
    assert len(masks) == 2  # once for the first device, once for three layers of the second


def test_tensors_of_a_spread_model_lie_in_blocks_of_their_device() -> None:
    from evomerge.merging.placement import own_memory

    model = tiny_model("llama", 0, num_hidden_layers=DEPTH, tie=True)
    own_memory(model, "cpu", TWO)
    blocks = [{p.untyped_storage().data_ptr() for p in m.parameters()} for m in layer_modules(model, DEPTH)]
    assert blocks[0] == blocks[1] != blocks[2] == blocks[3]
    assert [len(b) for b in blocks] == [1] * DEPTH
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.untyped_storage().data_ptr() in blocks[0]


def test_layers_that_share_a_weight_are_refused() -> None:
    model = tiny_model("llama", 0, num_hidden_layers=DEPTH)
    model.model.layers[3].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(ModelError, match="share a weight"):
        tensor_shards(model, TWO)
    with pytest.raises(ModelError, match="no list of 9 layers"):
        layer_modules(model, 9)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=7), st.integers(0, 30), st.integers(1, 4))
def test_the_fullest_device_holds_as_little_as_it_can(layers: list[int], outside: int, n: int) -> None:
    n = min(n, len(layers))
    sizes: dict[int | None, int] = {None: outside, **dict(enumerate(layers))}
    found = balance(sizes, ("cpu",) * n)

    def fullest(of: Sequence[int]) -> int:
        held = [outside, *[0] * (n - 1)]
        for size, device in zip(layers, of, strict=True):
            held[device] += size
        return max(held)

    cuts = combinations(range(len(layers) + n - 1), n - 1)
    every = [[sum(c - i <= layer for i, c in enumerate(cut)) for layer in range(len(layers))] for cut in cuts]
    assert fullest(found.layers) == min(map(fullest, every))
    assert sum(found.shares(sizes)) == pytest.approx(1 if sum(sizes.values()) else 0)


def test_more_devices_than_layers_are_refused_and_each_tensor_knows_its_device(tmp_path: Path) -> None:
    layout = open_checkpoint(tiny_checkpoint(tmp_path / "m", "llama", 0, num_hidden_layers=DEPTH)).layout
    with pytest.raises(ModelError, match="fewer layers than it should have devices"):
        balance(layer_bytes(layout), ("cuda:0",) * 5)
    devices = Sharding(("cuda:0", "cuda:1"), (0, 0, 1, 1)).tensor_devices(layout)
    assert {devices[t.name] for t in layout.tensors if t.layer is None} == {"cuda:0"}
    assert {devices[t.name] for t in layout.tensors if t.layer == 2} == {"cuda:1"}

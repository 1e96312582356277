"""Candidates that share what their paths begin with: the same bits as without, and fewer layers."""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.dataflow.models import PathModels, source_recipe
from evomerge.dataflow.prefixes import Chain, PrefixMemory, default_budget
from evomerge.errors import RecipeError
from evomerge.evaluation.forward import NeededLogits
from evomerge.evaluation.packed import packable
from evomerge.evaluation.scorer import Forced, ForcedBatches
from evomerge.merging.kernels import Kernels
from evomerge.merging.parents import ParentPool
from evomerge.merging.resident import ResidentModel
from evomerge.recipe.path import Hop, plain_path
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.seeds import generator
from evomerge.testing.tiny import FAMILIES, tiny_checkpoint

DEPTH = 4
PARENTS = (ParentRef("x", "x"), ParentRef("y", "y"))
LARGE = 1 << 26


def soup(weight: float, path=None, **rest) -> Recipe:
    """Half of `x` below, and a share of `y` in layer 3 that may change from candidate to candidate."""
    both = {"x": {"weight": 0.5}, "y": {"weight": 0.5}}
    last = Rule("linear", {}, {"x": {"weight": 1 - weight}, "y": {"weight": weight}}, layers=(3,))
    return Recipe(PARENTS, None, (last, Rule("linear", {}, both)), path=path, **rest)


def hops(text: str):
    """`x0 m1 y2*0.5`: parent (m: merged), layer, gain."""
    found = []
    for word in text.split():
        name, _, gain = word.partition("*")
        found.append(Hop(int(name[1:]), None if name[0] == "m" else name[0], float(gain or 1)))
    return tuple(found)


CANDIDATES = (
    soup(0.1, hops("m0 m1 m2 m3")),
    soup(0.1, hops("m0 m1 m2 m3 m3")),
    soup(0.7, hops("m0 m1 m2 m3 m3")),  # another merge of layer 3, the same of the rest
    soup(0.7, hops("m0 m1 m1 m2 x3")),
    soup(0.7, hops("m0 m1 m1*0.5 m2 x3")),
    soup(0.1, hops("m0 m1 m1*0.5 m2 x3")),  # the merge that does not run does not matter
    soup(0.1, hops("x0 x1 x2 x3")),
    soup(0.1, hops("x0 x1 y2*-0.25 x3 y3")),
    soup(0.1, hops("x0 x1 x2 x0 x1 x2 x3")),
    soup(0.1, hops("m0 m1 m1*0.5 m2 x3 y0")),
    soup(0.1, hops("x0 x1 x2 x3"), dtype="bfloat16"),  # another stored dtype is another layer
    soup(0.1, hops("m0")),
)


class World:
    """Two parents of a family, and questions in plain, packed and shared batches."""

    def __init__(self, folder, family: str, dtype: str) -> None:
        depth = {"n_layer" if family == "gpt2" else "num_hidden_layers": DEPTH}
        folders = {n: tiny_checkpoint(folder / n, family, i, dtype=dtype, **depth) for i, n in enumerate("xy")}
        self.pool = ParentPool({n: open_checkpoint(f) for n, f in folders.items()})
        self.paths = self.new_paths()
        self.batches = self.new_batches(0)

    def new_paths(self) -> PathModels:
        new = partial(ResidentModel, self.pool, "x", kernels=Kernels())
        self.resident = new()
        return PathModels(self.resident, new)

    def new_batches(self, seed: int) -> ForcedBatches:
        rng = generator(seed, "questions")
        stem = rng.integers(3, 64, 70)
        rows = [rng.integers(3, 64, n) for n in (5, 7, 7, 12, 40, 48)] + [
            np.concatenate([stem[:36], rng.integers(3, 64, 4)]) for _ in range(3)
        ]
        rows += [np.concatenate([stem[:10], rng.integers(3, 64, 2)]) for _ in range(5)]
        requests = [Forced(r.astype("<i4").tobytes(), r[-2:].astype(np.int32)) for r in rows]
        return ForcedBatches(requests, 256, "cpu", cache_tokens=4096, pack=packable(self.resident.model))

    def plain(self, recipe: Recipe):
        with NeededLogits(self.paths.model(recipe).model) as needed:
            return self.batches.run(needed)

    def shared(self, recipe: Recipe, memory: PrefixMemory, batches: ForcedBatches | None = None):
        made = self.paths.model(recipe)
        sharing = memory.sharing(made.layers, made.chain, made.token_bytes)
        with sharing as passes, NeededLogits(made.model) as needed:
            return (batches or self.batches).run(needed, passes)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("prefixes"), "llama", "float32")


def assert_same(found, wanted) -> None:
    assert np.array_equal(found.ll, wanted.ll)
    assert np.array_equal(found.top, wanted.top)


KINDS = [*((family, "float32") for family in FAMILIES), *((f, "bfloat16") for f in ("llama", "gemma2", "gpt2"))]


@pytest.mark.parametrize(("family", "dtype"), KINDS)
def test_sharing_changes_no_bit(tmp_path, family, dtype):
    world = World(tmp_path, family, dtype)
    wanted = [world.plain(c) for c in CANDIDATES]
    assert len({w.ll.tobytes() for w in wanted}) == len(CANDIDATES) - 1 - (dtype == "bfloat16")
    boundary = world.batches.n_uncached_tokens * 32 * (4 if dtype == "float32" else 2)
    executed = []
    for budget in (0, boundary // 2, 2 * boundary, LARGE):
        memory = PrefixMemory(budget)
        for candidate, result in zip(CANDIDATES, wanted, strict=True):
            assert_same(world.shared(candidate, memory), result)
            assert memory.n_bytes <= budget
        executed.append(memory.executed)
        assert memory.executed + memory.restored == executed[0]
    assert executed[0] == executed[1] > executed[2] > executed[3]


def test_what_runs_is_the_number_of_different_prefixes(llama):
    """A large memory runs every prefix once; whatever needs a cache always runs."""
    memory = PrefixMemory(LARGE)
    for candidate in CANDIDATES:
        llama.shared(candidate, memory)
    half, whole = ("m0", "m1"), ("m0", "m1", "m1*0.5", "m2", "x3", "y0")
    prefixes = {whole[:n] for n in range(1, 7)} | {(*half, "m2")} | {(*half, "m2", *("m3 0.1",) * n) for n in (1, 2)}
    prefixes |= {(*half, "m2", *("m3 0.7",) * n) for n in (1, 2)} | {
        (*half, *("m1", "m2", "x3")[:n]) for n in (1, 2, 3)
    }
    plain = ("x0", "x1", "x2", "x0", "x1", "x2", "x3")
    prefixes |= {plain[:n] for n in range(1, 8)} | {(*plain[:3], "x3")} | {("x0", "x1", *"zyx"[:n]) for n in (1, 2, 3)}
    n_rounded = 4  # of the candidate in bfloat16
    tokens = llama.batches.n_uncached_tokens
    n_hops = sum(len(c.path) for c in CANDIDATES)
    cached = llama.batches.n_tokens - tokens
    assert cached > 0
    assert memory.executed == tokens * (len(prefixes) + n_rounded) + cached * n_hops
    assert memory.restored == tokens * (n_hops - len(prefixes) - n_rounded)


def test_a_path_over_a_merge_shares_with_the_parent_that_the_merge_is(llama):
    """What names a layer is what merged it, not who asked for it."""
    memory = PrefixMemory(LARGE)
    rules = source_recipe(soup(0.5), "x").rules
    llama.shared(Recipe(PARENTS, None, rules, path=plain_path(DEPTH, "x")), memory)
    before = memory.executed
    llama.shared(Recipe(PARENTS, None, rules, path=plain_path(DEPTH)), memory)
    assert memory.executed - before == (llama.batches.n_tokens - llama.batches.n_uncached_tokens) * DEPTH


def test_a_raw_parent_is_the_merge_of_it_alone(llama):
    candidate = soup(0.3, plain_path(DEPTH, "y"))
    llama.plain(candidate)
    made = llama.paths.model(candidate).model
    other = llama.new_paths()
    resident = llama.resident
    resident.apply(source_recipe(candidate, "y"))
    for hop in range(DEPTH):
        mine, wanted = (dict(m.model.layers[hop].state_dict()) for m in (made, resident.model))
        assert all(torch.equal(mine[n], wanted[n]) for n in wanted)
    with pytest.raises(RecipeError, match="has no path"):
        other.model(soup(0.3))
    with pytest.raises(RecipeError, match="a layer that the parents do not have"):
        other.model(soup(0.3, (Hop(4),)))


def test_where_paths_part_is_kept_when_memory_is_short(llama):
    """Two of four boundaries fit: the second and the fourth, then the third, where the next path left the first."""
    tokens = llama.batches.n_uncached_tokens
    memory = PrefixMemory(2 * tokens * 32 * 4)
    restored = []
    for text in ("m0 x1 x2 x3", "m0 x1 x2 y3", "m0 x1 x2 y2"):
        llama.shared(soup(0.1, hops(text)), memory)
        restored.append(memory.restored // tokens)
    assert restored == [0, 2, 5]


def test_parents_stay_when_memory_is_short(llama):
    """The plain path of a parent outlives candidates that nobody asks for again."""
    boundary = llama.batches.n_uncached_tokens * 32 * 4
    memory = PrefixMemory(10 * boundary)
    llama.shared(soup(0.1, hops("x0 x1 x2 x3")), memory)
    for k in range(12):
        llama.shared(soup(0.1, hops(f"m{k % 4} y0 y1 y2 m{k // 4} m1")), memory)
    before = memory.restored
    llama.shared(soup(0.1, hops("x0 x1 x2 x3 y3")), memory)
    assert memory.restored - before == 4 * llama.batches.n_uncached_tokens


def test_pins_of_old_embeddings_give_way(llama):
    """A parent's path behind an embedding that nobody uses any more does not hold its place for ever."""
    boundary = llama.batches.n_uncached_tokens * 32 * 4
    memory = PrefixMemory(10 * boundary)
    for weight in (0.1, 0.2, 0.3, 0.4):
        rule = Rule("linear", {}, {"x": {"weight": 1 - weight}, "y": {"weight": weight}})
        parent = Recipe(PARENTS, None, (rule,), path=hops("x0 x1 x2 x3"))
        llama.shared(parent, memory)
    for k in range(12):
        llama.shared(replace(parent, path=hops(f"m{k % 4} y0 y1 y2 m{k // 4} m1")), memory)
    before = memory.restored
    llama.shared(replace(parent, path=hops("x0 x1 x2 x3 y3")), memory)
    assert memory.restored - before == 4 * llama.batches.n_uncached_tokens


class Batches:
    """Stands for items that are asked in two batches."""


def pinned_walk(memory, trie, text):
    """Walk a path and pin all of it, batch by batch; whether each prefix was pinned."""
    nodes, _ = trie.walk(text)
    for batch in range(2):
        for node in nodes:
            memory.pin(trie, node, 8)
            memory.keep(trie, node, batch, torch.zeros(1))
    return [node.is_pinned for node in nodes]


def test_a_prefix_is_pinned_once_for_all_its_batches():
    memory, batches = PrefixMemory(32), Batches()
    trie = memory.trie(batches)
    assert pinned_walk(memory, trie, "a") == [True]
    assert pinned_walk(memory, trie, "b") == [True]
    assert trie.n_pinned_bytes == 16
    assert [node.is_pinned for node in trie.walk("a")[0]] == [True], "there was room for both"
    assert pinned_walk(memory, trie, "cd") == [True, True]
    assert [trie.walk(text)[0][0].is_pinned for text in "ab"] == [False, False], "older ones give way"


def test_pins_take_half_of_the_memory_whatever_the_batches():
    """Room is held for a prefix when it is pinned, though its states come later."""
    memory, batches = PrefixMemory(32), Batches()
    trie = memory.trie(batches)
    assert pinned_walk(memory, trie, "abcd") == [True, True, False, False]
    assert (trie.n_pinned_bytes, trie.n_bytes) == (16, 32)


def test_what_is_dropped_or_never_kept_holds_no_room():
    memory, batches = PrefixMemory(16), Batches()
    trie = memory.trie(batches)
    pinned_walk(memory, trie, "a")
    trie.end_walk()
    assert trie.drop_oldest(pinned=True)
    assert (trie.n_pinned_bytes, trie.n_bytes) == (0, 0)
    (node,), _ = trie.walk("b")
    memory.pin(trie, node, 8)
    trie.end_walk()
    assert trie.n_pinned_bytes == 0


def test_batches_that_are_gone_are_forgotten(llama):
    memory = PrefixMemory(LARGE)
    batches = llama.new_batches(1)
    llama.shared(CANDIDATES[0], memory, batches)
    kept = memory.n_bytes
    llama.shared(CANDIDATES[0], memory)
    assert memory.n_bytes > kept > 0
    del batches
    gc.collect()
    assert 0 < memory.n_bytes < 2 * kept
    assert memory.clear()
    assert memory.n_bytes == 0
    assert not memory.clear()


def test_other_selections_make_room(llama):
    boundary = llama.batches.n_uncached_tokens * 32 * 4
    memory = PrefixMemory(5 * boundary)
    others = [llama.new_batches(seed) for seed in (1, 2)]
    for batches in others:
        llama.shared(CANDIDATES[6], memory, batches)
    llama.shared(CANDIDATES[6], memory)
    before = memory.restored
    llama.shared(CANDIDATES[6], memory)
    assert memory.restored - before == 4 * llama.batches.n_uncached_tokens


def test_layers_are_left_as_they_were(llama):
    made = llama.paths.model(CANDIDATES[0])
    made.layers[1].forward = own = made.layers[1].forward
    with PrefixMemory(LARGE).sharing(made.layers, made.chain, made.token_bytes):
        assert all("forward" in vars(layer) for layer in made.layers)
    assert ["forward" in vars(layer) for layer in made.layers] == [False, True, False, False]
    assert made.layers[1].forward is own
    with pytest.raises(ValueError, match="4 layers cannot compute 1 hops"):
        PrefixMemory(0).sharing(made.layers, Chain(None, ("a",)), 4)


def test_the_default_budget_is_a_share_of_memory():
    assert 0 < default_budget("cpu") <= 512 * 1024**2

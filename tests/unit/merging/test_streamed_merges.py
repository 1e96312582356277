"""Merges in parts, parents in other places, and what is merged again: the same bits for every method."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.checkpoints.parts import TensorPart
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.dataflow.export import recipe_tensors, write_recipe
from evomerge.errors import MergeError, NonFinite
from evomerge.merging.export import merge_tensors, stream_merge
from evomerge.merging.foresight import kept_bytes
from evomerge.merging.kernels import Kernels
from evomerge.merging.methods import METHODS, load_method
from evomerge.merging.packed8 import pack, unpack
from evomerge.merging.parents import ParentPool
from evomerge.merging.residence import HOMES, Holding
from evomerge.merging.resident import ResidentModel
from evomerge.recipe.path import Hop
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.testing.tiny import tiny_checkpoint

VALUES = {
    "weight": (0.5, 0.75, -0.3),
    "density": (0.4, 0.6, 0.8),
    "scale": (0.9, 1.1, 1.0),
    "epsilon": (0.1, 0.2, 0.15),
}
SHARED = {"t": 0.3, "gamma": 0.05, "epsilon": 0.1}
NAMES = METHODS.names()


def rule(method, change=0.0, **rest):
    """A rule of two or three parents with a value for everything; `change` moves one of them."""
    spec = load_method(method).spec
    names = "xyz"[: max(spec.min_models, min(3, spec.max_models or 3))]
    shared, per_parent = {}, {n: {} for n in names}
    for name, parameter in spec.parameters.items():
        if parameter.per_parent:
            for i, n in enumerate(names):
                per_parent[n][name] = VALUES[name][i] if name in VALUES else parameter.default
        elif parameter.kind == "real" and name in SHARED:
            shared[name] = SHARED[name]
    if change:
        column = next((n for n, p in spec.parameters.items() if p.per_parent), None)
        real = next((n for n, p in spec.parameters.items() if not p.per_parent and p.kind == "real"), None)
        if column is not None:
            per_parent["x"][column] += change
        elif real is not None:
            value = shared.get(real, spec.parameters[real].default)
            shared[real] = value + change if spec.parameters[real].accepts(value + change) else value - change
    return Rule(method, shared, per_parent, **rest)


def recipe(method, rules=None, **rest):
    spec = load_method(method).spec
    names = "b" * spec.needs_base + "".join((rules or [rule(method)])[0].per_parent)
    return Recipe(
        tuple(ParentRef(n, n) for n in names), "b" if spec.needs_base else None, tuple(rules or [rule(method)]), **rest
    )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Parents that share a tensor with the base, and differ in most places."""
    folder = tmp_path_factory.mktemp("streamed")
    base = open_checkpoint(tiny_checkpoint(folder / "b", "llama", 0, dtype="bfloat16"))
    found = {"b": base}
    for i, name in enumerate("xyz"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_bytes((folder / "b" / "config.json").read_bytes())
        generator = torch.Generator().manual_seed(i)
        tensors = {
            n: t if n.endswith("down_proj.weight") else
            (t.float() + 2e-3 * torch.randn(t.shape, generator=generator)).bfloat16()
            for n, t in load_file(folder / "b" / "model.safetensors").items()
        }  # fmt: skip
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
        found[name] = open_checkpoint(folder / name)
    return found


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return Kernels(tmp_path_factory.mktemp("kernels"))


def joined(parts):
    """Streamed parts as whole tensors, flat; they must come in order and leave no gap."""
    found = {}
    for name, part in parts:
        assert part.start == sum(p.numel() for p in found.get(name, []))
        found.setdefault(name, []).append(part.values.clone())
    return {name: torch.cat(p) for name, p in found.items()}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    assert [n for n in left if not torch.equal(left[n].reshape(-1), right[n].reshape(-1))] == []


@pytest.mark.parametrize("method", NAMES)
def test_parts_of_any_size_have_the_bits_of_the_whole(checkpoints, kernels, method):
    made = recipe(method, seed=3)
    whole = dict(merge_tensors(made, ParentPool(checkpoints), kernels))
    for used, size in ((Kernels(), 777), (kernels, 1000), (kernels, 1 << 22)):
        assert_equal(joined(stream_merge(made, ParentPool(checkpoints), used, size)), whole)


@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic", "ties", "dare_ties"])
def test_parts_in_mergekits_arithmetic_are_whole_tensors(checkpoints, method):
    made = recipe(method, compat="mergekit")
    parts = list(stream_merge(made, ParentPool(checkpoints), size=100))
    assert all(part.is_last and part.start == 0 for _, part in parts)
    assert_equal({n: p.values for n, p in parts}, dict(merge_tensors(made, ParentPool(checkpoints))))


def test_a_stream_forgets_what_it_measured(checkpoints):
    pool = ParentPool(checkpoints)
    list(stream_merge(recipe("della"), pool))
    assert pool.measured_bytes() == 0
    list(merge_tensors(recipe("della"), pool))
    assert pool.measured_bytes() >= kept_bytes(recipe("della"), pool) > 0


def test_ranks_are_what_is_kept(checkpoints):
    matrices = [t for t in checkpoints["b"].layout.tensors if len(t.shape) == 2]
    wanted = 3 * sum(t.shape[0] * t.shape[1] for t in matrices)
    assert kept_bytes(recipe("della"), ParentPool(checkpoints)) == wanted
    assert kept_bytes(recipe("ties"), ParentPool(checkpoints)) == 0
    assert kept_bytes(recipe("ties", compat="mergekit"), ParentPool(checkpoints)) == 0


def test_given_back_pages_are_read_again(checkpoints):
    pool = ParentPool(checkpoints)
    name = "lm_head.weight"
    before = pool.flat("x", name).clone()
    pool.release(name)
    assert torch.equal(pool.flat("x", name), before)
    checkpoints["x"].release("not there")


@pytest.mark.parametrize("place", HOMES)
@pytest.mark.parametrize("method", ["ties", "della", "slerp"])
def test_the_place_does_not_matter(checkpoints, kernels, method, place):
    whole = dict(merge_tensors(recipe(method), ParentPool(checkpoints), kernels))
    pool = ParentPool(checkpoints, "cpu", Holding(place))
    assert_equal(dict(merge_tensors(recipe(method), pickle.loads(pickle.dumps(pool)), kernels)), whole)
    mapped = pool.flat("x", "lm_head.weight").data_ptr() == checkpoints["x"].tensor("lm_head.weight").data_ptr()
    assert mapped == (place != "host")


def rounded(checkpoints, name):
    """What a parent is after packing, as tensors."""
    base, x = checkpoints["b"], checkpoints[name]
    return {
        t.name: unpack(pack(base.tensor(t.name).reshape(-1), x.tensor(t.name).reshape(-1)),
                       base.tensor(t.name).reshape(-1), 0, x.tensor(t.name).numel()).view(t.shape)
        for t in x.layout.tensors
    }  # fmt: skip


@pytest.mark.parametrize("place", HOMES)
def test_packed_task_vectors_are_merged_as_what_they_stand_for(checkpoints, kernels, tmp_path, place):
    standing = {"b": checkpoints["b"]}
    for name in "xyz":
        write_checkpoint(tmp_path / name, rounded(checkpoints, name).items(), template=checkpoints["b"])
        standing[name] = open_checkpoint(tmp_path / name)
    pool = ParentPool(checkpoints, "cpu", Holding(place, "b"))
    for method in ("linear", "task_arithmetic", "dare_ties", "magmax"):
        made = recipe(method)
        assert_equal(dict(merge_tensors(made, pool, kernels)), dict(merge_tensors(made, ParentPool(standing), kernels)))
    pool.pack_when(False)
    made = recipe("dare_ties")
    assert_equal(dict(merge_tensors(made, pool, kernels)), dict(merge_tensors(made, ParentPool(checkpoints), kernels)))


def test_measurements_are_taken_on_the_originals(checkpoints):
    packing, exact = ParentPool(checkpoints, "cpu", Holding("disk", "b")), ParentPool(checkpoints)
    cuts = [p.cut("lm_head.weight", "x", "b", 1000, Kernels()) for p in (packing, exact)]
    assert cuts[0] == cuts[1]


@pytest.mark.parametrize("method", NAMES)
def test_only_what_changed_is_merged_again(checkpoints, kernels, method):
    pool = ParentPool(checkpoints)
    resident = ResidentModel(pool, "b" if load_method(method).spec.needs_base else "x", kernels=kernels)
    resident.apply(recipe(method))
    total = resident.n_merged
    assert total == len(checkpoints["b"].layout.tensors)
    resident.apply(recipe(method))
    assert resident.n_merged == 0
    changed = (rule(method, 0.05, roles=("mlp",)), rule(method))
    if changed[0] != rule(method, roles=("mlp",)):  # some methods have nothing to set
        resident.apply(recipe(method, changed))
        mlp = [t for t in checkpoints["b"].layout.tensors if t.role == "mlp"]
        before = dict(merge_tensors(recipe(method), ParentPool(checkpoints)))
        expected = dict(merge_tensors(recipe(method, changed), ParentPool(checkpoints)))
        differ = sum(not torch.equal(before[n], expected[n]) for n in before)
        assert differ <= resident.n_merged <= len(mlp)
        assert_equal({n: p.read() for n, p in resident._places.items()}, expected)


def test_packed_and_exact_candidates_are_told_apart(checkpoints, kernels):
    resident = ResidentModel(pool := ParentPool(checkpoints, "cpu", Holding("disk", "b")), "b", kernels=kernels)
    made = recipe("task_arithmetic")
    resident.apply(made)
    assert resident.packs
    resident.apply(made)
    assert resident.n_merged == 0
    packed_key = resident.key(0)
    pool.pack_when(False)
    resident.apply(made)
    assert resident.n_merged == len(checkpoints["b"].layout.tensors)
    assert resident.key(0) != packed_key
    assert_equal({n: p.read() for n, p in resident._places.items()}, dict(merge_tensors(made, ParentPool(checkpoints))))


def test_written_in_parts(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr("evomerge.merging.export.stream_tensor.__defaults__", (100,))
    made = recipe("ties")
    write_recipe(made, ParentPool(checkpoints), tmp_path / "out", kernels=Kernels())
    written = open_checkpoint(tmp_path / "out")
    assert_equal({t.name: written.tensor(t.name) for t in written.layout.tensors},
                 dict(merge_tensors(made, ParentPool(checkpoints))))  # fmt: skip


def test_paths_are_written_in_parts(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr("evomerge.merging.export.stream_tensor.__defaults__", (100,))
    hops = (Hop(0, None), Hop(1, None, 0.5), Hop(1, None), Hop(0, "x"))
    made = recipe("ties", path=hops)
    write_recipe(made, ParentPool(checkpoints), tmp_path / "out", kernels=Kernels())
    written = open_checkpoint(tmp_path / "out")
    assert_equal({t.name: written.tensor(t.name) for t in written.layout.tensors},
                 dict(recipe_tensors(made, ParentPool(checkpoints))))  # fmt: skip


def test_overflow_in_a_part_is_a_failure(checkpoints, tmp_path):
    huge = Rule("linear", {"normalize": False}, {"x": {"weight": 3e38}, "y": {"weight": 3e38}})
    with pytest.raises(NonFinite, match="holds NaN or infinity"):
        write_recipe(recipe("linear", (huge,)), ParentPool(checkpoints), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("wrong", [
    [TensorPart(0, torch.zeros(4, dtype=torch.bfloat16), 10)],
    [TensorPart(0, torch.zeros(4, dtype=torch.bfloat16), 32), TensorPart(5, torch.zeros(4, dtype=torch.bfloat16), 32)],
    [TensorPart(0, torch.zeros(4), 32)],
    [TensorPart(0, torch.zeros(33, dtype=torch.bfloat16), 32)],
])  # fmt: skip
def test_parts_that_do_not_fit_are_refused(checkpoints, tmp_path, wrong):
    assert checkpoints["b"].tensor("model.norm.weight").shape == (32,)
    with pytest.raises(MergeError, match="part of a tensor cannot be written"):
        write_checkpoint(tmp_path / "out", (("model.norm.weight", p) for p in wrong), template=checkpoints["b"])
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_ends_early_is_refused(checkpoints, tmp_path):
    b = checkpoints["b"]
    tensors = {t.name: b.tensor(t.name) for t in b.layout.tensors}
    norm = tensors.pop("model.norm.weight")
    parts = [("model.norm.weight", TensorPart(0, norm[:30], 32))]
    with pytest.raises(MergeError, match="Tensors are missing"):
        write_checkpoint(tmp_path / "out", [*tensors.items(), *parts], template=b)

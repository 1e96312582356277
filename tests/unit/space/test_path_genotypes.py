"""Every genotype against a slow and obvious reading of the same values."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from path_cases import GENOTYPES

from evomerge.space.dimension import holds
from evomerge.space.free import NONE, Free
from evomerge.space.skips import Skips
from evomerge.space.slots import Slots
from evomerge.space.steps import Ground, Step, Wanted
from evomerge.space.windows import Windows

grounds = st.builds(
    lambda n, sources, first, ends, extra: Ground(sources, sources[first % len(sources)], n, ends, n + extra),
    st.integers(2, 5),
    st.sampled_from([("a",), ("a", "b"), ("merged", "b", "a")]),
    st.integers(0, 2),
    st.booleans(),
    st.sampled_from([0, 1, 3, 99]),
)


def pairs(steps):
    return [(s.source, s.layer) for s in steps]


def plain(ground):
    return [(ground.first, i) for i in range(ground.n_layers)]


def finished(ground, inside):
    """Fixed ends, the limit, and never nothing."""
    if ground.fixed_ends:
        return [(ground.first, 0), *inside[: ground.max_hops - 2], (ground.first, ground.n_layers - 1)]
    return inside[: ground.max_hops] or plain(ground)


def drawn(data, genotype):
    values = {}
    for _, dimension in genotype.genes:
        index = data.draw(st.integers(0, dimension.n_values - 1))
        values[dimension.name] = dimension.value_at(index)
    return values


def check(genotype, ground, values, expected):
    steps = genotype.steps(values)
    assert pairs(steps) == expected
    assert 0 < len(steps) <= ground.max_hops
    assert {s.place for s in steps} <= {p.name for p in genotype.places} or pairs(steps) == plain(ground)
    again = genotype.encode([Wanted((source,), layer) for source, layer in expected])
    assert again is not None
    assert pairs(genotype.steps(again)) == expected
    assert set(again) == {g.dimension.name for g in genotype.genes}
    assert all(holds(g.dimension, again[g.dimension.name]) for g in genotype.genes)


def starts(genotype):
    return {g.dimension.name: g.dimension.start_value for g in genotype.genes}


@settings(deadline=None, max_examples=60)
@given(grounds, st.integers(1, 3), st.data())
def test_slots(ground, repeats, data):
    genotype = Slots(ground, repeats)
    values = drawn(data, genotype)
    on = list(values.values())
    inside, k = [], 0
    for _ in range(repeats):
        for source in ground.sources:
            for layer in range(ground.n_layers):
                if on[k]:
                    inside.append((source, layer))
                k += 1
    assert k == len(on)
    check(genotype, ground, values, finished(ground, inside))
    check(genotype, ground, starts(genotype), plain(ground))


@settings(deadline=None, max_examples=60)
@given(grounds, st.data())
def test_skips(ground, data):
    genotype = Skips(ground)
    values = drawn(data, genotype)
    layers = range(1, ground.n_layers - 1) if ground.fixed_ends else range(ground.n_layers)
    inside = [(ground.first, i) for i, on in zip(layers, values.values(), strict=True) if on]
    check(genotype, ground, values, finished(ground, inside))
    check(genotype, ground, starts(genotype), plain(ground))


@settings(deadline=None, max_examples=60)
@given(grounds, st.integers(0, 2), st.sampled_from([None, 0, 1, 2]), st.data())
def test_free(ground, extra, reach, data):
    ends = int(ground.fixed_ends)
    length = min(ground.n_layers + extra, ground.max_hops)
    if reach is not None:
        length = min(length, ground.n_layers + reach + ends)
    genotype = Free(ground, length, reach)
    values = drawn(data, genotype)
    inside = []
    for name, value in values.items():
        if value != NONE:
            source, layer = str(value).rsplit(".", 1)
            assert reach is None or abs(int(layer) - int(name.removeprefix("step"))) <= reach
            inside.append((source, int(layer)))
    check(genotype, ground, values, finished(ground, inside))
    check(genotype, ground, starts(genotype), plain(ground))


def slow_windows(ground, windows, source_of):
    """Each layer belongs to the first window that covers it and does not begin again behind another."""
    first, last = (1, ground.n_layers - 2) if ground.fixed_ends else (0, ground.n_layers - 1)
    owner, taken = {}, first - 1
    acting = [(min(i, j), max(i, j), times, k) for k, (i, j, times) in enumerate(windows) if times != 1]
    for start, end, times, k in sorted(acting, key=lambda w: w[0]):
        for layer in range(start, end + 1):
            if layer > taken:
                owner[layer] = (times, k)
        taken = max(taken, end)
    single = sum(layer not in owner or owner[layer][0] > 0 for layer in range(first, last + 1))
    room = ground.max_hops - single - (2 if ground.fixed_ends else 0)
    inside, layer = [], first
    while layer <= last:
        if layer not in owner:
            inside.append((ground.first, layer))
            layer += 1
            continue
        times, k = owner[layer]
        run = [n for n in range(layer, last + 1) if owner.get(n) == (times, k)]
        layer = run[-1] + 1
        if times > 0:
            inside += [(ground.first, n) for n in run]
        for _ in range(times - 1):
            if len(run) <= room:
                inside += [(source_of(k), n) for n in run]
                room -= len(run)
    return inside


@settings(deadline=None, max_examples=120)
@given(grounds, st.integers(1, 3), st.integers(2, 4), st.sampled_from(["first", "last", "any"]), st.data())
def test_windows(ground, count, max_times, source, data):
    if ground.fixed_ends and ground.n_layers < 4:
        ground = Ground(ground.sources, ground.first, 5, True, ground.max_hops + 3)
    named = {"first": ground.first, "last": ground.sources[-1], "any": "any"}[source]
    genotype = Windows(ground, count, max_times, named)
    values = drawn(data, genotype)
    prefix = [f"window{k + 1}" if count > 1 else "window" for k in range(count)]
    windows = [(values[f"{p}.start"], values[f"{p}.end"], values[f"{p}.times"]) for p in prefix]

    def source_of(k):
        return values.get(f"{prefix[k]}.from", ground.first) if source == "any" else named

    check(genotype, ground, values, finished(ground, slow_windows(ground, windows, source_of)))
    check(genotype, ground, starts(genotype), plain(ground))


def test_windows_one_by_one():
    ground = Ground(("a", "b"), "a", 6, False, 12)

    def run(*windows, source="a", ground=ground):
        genotype = Windows(ground, len(windows), 4, source)
        parts = zip(genotype.genes, (v for w in windows for v in w), strict=True)
        return [
            s.layer if s.source == "a" else s.source + str(s.layer)
            for s in genotype.steps({g.dimension.name: v for g, v in parts})
        ]

    assert run((2, 3, 2)) == [0, 1, 2, 3, 2, 3, 4, 5]
    assert run((3, 2, 2)) == run((2, 3, 2))
    assert run((2, 3, 0)) == [0, 1, 4, 5]
    assert run((0, 5, 0)) == [0, 1, 2, 3, 4, 5]
    assert run((2, 3, 2), source="b") == [0, 1, 2, 3, "b2", "b3", 4, 5]
    assert run((1, 3, 2), (2, 4, 3)) == [0, 1, 2, 3, 1, 2, 3, 4, 4, 4, 5]
    assert run((1, 4, 2), (2, 3, 0)) == [0, 1, 2, 3, 4, 1, 2, 3, 4, 5]
    assert run((2, 3, 0), (1, 4, 2)) == run((1, 4, 2), (2, 3, 0))
    assert run((1, 4, 1), (2, 3, 0)) == [0, 1, 4, 5]
    assert run((0, 3, 4)) == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5], "a second repetition would have 14 hops"


def test_paths_that_a_genotype_cannot_say_are_refused():
    ground = Ground(("a", "b"), "a", 4, False, 6)
    fixed = Ground(("a", "b"), "a", 4, True, 6)

    def wanted(text):
        return [Wanted((t[0],), int(t[1])) for t in text.split()]

    assert Slots(ground, 1).encode(wanted("b0 a0")) is None
    assert Slots(ground, 2).encode(wanted("b0 a0")) is not None
    assert Slots(fixed, 1).encode(wanted("b0 a1 a3")) is None
    assert Slots(fixed, 1).encode(wanted("a0 a1 b3")) is None
    assert Slots(fixed, 1).encode(wanted("a0")) is None
    assert Slots(ground, 9).encode(wanted("a0 a0 a0 a0 a0 a0 a0")) is None, "seven hops"
    assert Skips(ground).encode(wanted("a1 a0")) is None
    assert Skips(ground).encode(wanted("a1 a1")) is None
    assert Skips(ground).encode(wanted("a1 b2")) is None
    assert Skips(ground).encode(wanted("a1 a9")) is None
    assert Free(ground, 4, 1).encode(wanted("a3 a0")) is None
    assert Free(ground, 4).encode(wanted("a3 a0 a0 a0 a0")) is None
    assert Free(ground, 4).encode(wanted("c3")) is None
    assert Free(ground, 4).encode(()) is None
    assert Windows(ground, 1, 3, "a").encode(wanted("a0 a0 a1 a2 a2 a3")) is None
    assert Windows(ground, 2, 3, "a").encode(wanted("a0 a0 a1 a2 a2 a3")) is not None
    assert Windows(ground, 2, 2, "a").encode(wanted("a0 a0 a0 a1 a2 a3")) is None
    assert Windows(ground, 9, 2, "a").encode(wanted("a0 b0 a1 a2 a3")) is None
    assert Windows(ground, 9, 2, "any").encode(wanted("a0 b0 a1 a2 a3")) is not None


def test_a_hop_that_may_be_of_several_sources_takes_any_of_them():
    ground = Ground(("merged", "a"), "merged", 3, False, 9)
    either = [Wanted(("a", "merged"), i) for i in range(3)]
    for genotype in (Slots(ground, 1), Skips(ground), Free(ground, 3), Windows(ground, 1, 2, "any")):
        assert genotype.encode(either) == starts(genotype)


@pytest.mark.parametrize("named", sorted({g["genotype"] for g in GENOTYPES}))
def test_names_of_genes_and_places_are_unique(named):
    ground = Ground(("a", "b"), "b", 6, True, 20)
    genotype = {
        "slots": Slots(ground, 2),
        "windows": Windows(ground, 2, 3, "any"),
        "skips": Skips(ground),
        "free": Free(ground, 8, 3),
    }[named]
    for names in ([g.gene.name for g in genotype.genes], [p.name for p in genotype.places]):
        assert len(set(names)) == len(names) > 0
    assert all(g.gene.name == g.dimension.name for g in genotype.genes)
    assert Step("b", 0, "first") in genotype.steps(starts(genotype))

"""The YAML language of paths and of both: what it accepts, and what it says about the rest."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from path_cases import MERGE, decoded, parse, path

from evomerge.errors import SpaceError
from evomerge.recipe.path import MAX_HOPS
from evomerge.space.both import BothSpace
from evomerge.space.path_space import PathSpace

SLOTS = {
    "kind": "path",
    "about": "An example.",
    "genotype": "slots",
    "sources": ["b", "base"],
    "embeddings": "base",
    "fixed_ends": True,
    "max_hops": 9,
    "repeats": 2,
    "scales": {"low": 0.5, "high": 1.5, "step": 0.1, "per": "hop"},
}
WINDOWS = {"kind": "path", "genotype": "windows", "windows": 2, "times": 3, "from": "any", "gains": "none"}
FREE = {"kind": "path", "genotype": "free", "length": 6, "reach": 1, "gains": {"low": 0.5, "high": 2}}
BOTH = {"kind": "both", "about": "Both.", "merge": MERGE, "path": {"genotype": "windows", "sources": ["merged"]}}


def test_everything_at_once():
    space = parse(SLOTS)
    assert isinstance(space, PathSpace)
    ground = space.paths.ground
    assert (ground.sources, ground.first, ground.fixed_ends, ground.max_hops) == (("b", "base"), "base", True, 9)
    assert space.paths.gains.range.value_at(1) == 0.6
    assert space.space.dim == 2 * 2 * 5 + 2 * 2 * 5 + 2


def test_defaults():
    assert path(genotype="slots") == path(
        genotype="slots", repeats=1, fixed_ends=True, max_hops=MAX_HOPS, gains="none", scales="none"
    )
    assert path(genotype="windows") == path(genotype="windows", windows=1, times=3, fixed_ends=False)
    assert path(genotype="free") == path(genotype="free", length=5)
    assert path(genotype="free", length={"extra": 2}) == path(genotype="free", length=7)
    assert path(genotype="skips", max_hops={"extra": 1}) == path(genotype="skips", max_hops=6)
    gains, scales = {"low": 0.5, "high": 2}, {"low": 0.4, "high": 1.5}
    assert path(genotype="skips", gains=gains) == path(genotype="skips", gains={**gains, "step": "1/64", "per": "hop"})
    assert path(genotype="skips", scales=scales) == path(
        genotype="skips", scales={**scales, "step": 0.02, "per": "hop"}
    )
    assert path(genotype="slots").paths.sources == ("a", "b")
    both = parse(BOTH)
    assert isinstance(both, BothSpace)
    assert both.paths.sources == ("merged",)
    every = parse({**BOTH, "path": {"genotype": "windows"}})
    assert every.paths.sources == ("merged", "a", "b")
    assert parse({**BOTH, "merge": {**MERGE, "kind": "merge"}}) == both


def changed(mapping, place, value):
    mapping = copy.deepcopy(mapping)
    inner = mapping
    for key in place[:-1]:
        inner = inner[key]
    if value is None:
        inner.pop(place[-1], None)
    else:
        inner[place[-1]] = value
    return mapping


BAD = [
    (SLOTS, ("genotype",), None, r"genotype is missing.*free, skips, slots, windows"),
    (SLOTS, ("genotype",), "slot", r"genotype: 'slot'.*Did you mean 'slots'"),
    (SLOTS, ("genotype",), ["slots"], r"genotype is unknown"),
    (SLOTS, ("repeat",), 2, r"repeat: 'repeat'.*Did you mean 'repeats'"),
    (SLOTS, ("windows",), 2, r"the key 'windows' is unknown"),
    (WINDOWS, ("length",), 2, r"the key 'length' is unknown"),
    (SLOTS, ("about",), 3, r"about: 3"),
    (SLOTS, ("sources",), "a", r"sources: 'a'.*a list of models"),
    (SLOTS, ("sources",), [], r"sources: \[\]"),
    (SLOTS, ("sources",), ["a", "aa"], r"sources\.1: 'aa'.*Did you mean 'a'"),
    (SLOTS, ("sources",), ["b", "b"], r"stands twice.*sources\.1: 'b'"),
    (SLOTS, ("sources",), [["b"]], r"sources\.0: \['b'\]"),
    (SLOTS, ("embeddings",), "a", r"of no source.*embeddings: 'a'.*b, base"),
    (SLOTS, ("fixed_ends",), "yes", r"fixed_ends: 'yes'.*true or false"),
    (SLOTS, ("max_hops",), 4, r"max_hops: 4.*from 5 to 1024"),
    (SLOTS, ("max_hops",), 2000, r"max_hops: 2000"),
    (SLOTS, ("max_hops",), True, r"max_hops: True"),
    (SLOTS, ("max_hops",), {"extra": -1}, r"max_hops\.extra: -1"),
    (SLOTS, ("max_hops",), {"extra": 1.5}, r"max_hops\.extra: 1\.5"),
    (SLOTS, ("max_hops",), {"extar": 1}, r"Did you mean 'extra'"),
    (SLOTS, ("repeats",), 0, r"repeats: 0.*from 1 to 64"),
    (SLOTS, ("repeats",), 2.0, r"repeats: 2\.0"),
    (SLOTS, ("gains",), {"low": 0.5, "high": 2}, r"scales: both.*gains or scales"),
    (SLOTS, ("scales",), 0.5, r"scales: 0\.5.*mapping"),
    (SLOTS, ("scales", "low"), None, r"'low' is missing"),
    (SLOTS, ("scales", "low"), "1e-1", r"write 1\.0e-01 with a decimal point"),
    (SLOTS, ("scales", "low"), -1, r"low -1.*<= low <= 1 <= high"),
    (SLOTS, ("scales", "low"), float("nan"), r"low nan"),
    (SLOTS, ("scales", "high"), float("inf"), r"high inf"),
    (SLOTS, ("scales", "low"), 1.2, r"low 1\.2"),
    (SLOTS, ("scales", "step"), 0.3, r"no whole number of steps"),
    (SLOTS, ("scales", "step"), 1.0, r"grid does not hold 1.*low 0\.5, step 1"),
    (SLOTS, ("scales", "per"), "hops", r"per: 'hops'.*Did you mean 'hop'"),
    (SLOTS, ("scales", "lwo"), 1, r"scales\.lwo.*Did you mean 'low'"),
    (FREE, ("gains", "per"), "transition", r"gains\.per: 'transition'.*hop"),
    (FREE, ("gains", "step"), 0.001, r"gains\.step: 0\.001"),
    (FREE, ("gains", "step"), "1/0", r"gains\.step: '1/0'"),
    (FREE, ("gains", "high"), 1e9, r"high 1e\+09"),
    (FREE, ("gains", "start"), 1, r"gains\.start"),
    (FREE, ("gains",), {"low": 1, "high": 1}, r"gains: low 1, high 1"),
    (FREE, ("length",), 4, r"length: 4.*from 5"),
    (FREE, ("length",), 7, r"steps behind layer 4 reach no layer.*at most 6 steps"),
    (FREE, ("max_hops",), 5, r"more steps than hops.*at most max_hops = 5"),
    (FREE, ("reach",), -1, r"reach: -1"),
    (WINDOWS, ("windows",), 0, r"windows: 0.*from 1 to 64"),
    (WINDOWS, ("times",), 1, r"times: 1.*from 2 to 64"),
    (WINDOWS, ("from",), "anny", r"from: 'anny'.*Did you mean 'any'"),
    (WINDOWS, ("from",), "base", r"source is unknown.*a, any, b, merged"),
    (BOTH, ("kind",), "boht", r"Did you mean 'both'"),
    (BOTH, ("merge",), None, r"the merge is missing"),
    (BOTH, ("path",), None, r"the path is missing"),
    (BOTH, ("path",), "repeat-window", r"path: 'repeat-window'.*mapping"),
    (BOTH, ("genotype",), "slots", r"the key 'genotype' is unknown"),
    (BOTH, ("about",), 3, r"about: 3"),
    (BOTH, ("merge", "kind"), "path", r"merge\.kind: 'path'.*merge"),
    (BOTH, ("path", "kind"), "both", r"path\.kind: 'both'.*path"),
    (BOTH, ("path", "sources"), ["a"], r"runs nothing of the merge"),
    (BOTH, ("path", "sources"), ["merged", "x"], r"path\.sources\.1: 'x'"),
    (BOTH, ("merge", "method"), "slurp", r"merge\.method: 'slurp'.*slerp"),
]


@pytest.mark.parametrize(("mapping", "place", "value", "message"), BAD, ids=range(len(BAD)))
def test_problems_name_their_path(mapping, place, value, message):
    with pytest.raises(SpaceError, match=f"(?s){message}"):
        parse(changed(mapping, place, value))


def test_lines_are_told_where_they_are_known():
    lines = {("path", "sources", 1): 8, ("scales",): 4}
    with pytest.raises(SpaceError, match=r"path\.sources\.1: 'x' \(line 8\)"):
        parse(changed(BOTH, ("path", "sources"), ["merged", "x"]), line_of=lines.get)
    with pytest.raises(SpaceError, match=r"step 0\.3 \(line 4\)"):
        parse(changed(SLOTS, ("scales", "step"), 0.3), line_of=lines.get)


def test_small_models():
    with pytest.raises(SpaceError, match="one layer cannot be both ends"):
        path(1, genotype="slots")
    with pytest.raises(SpaceError, match="windows have no room"):
        path(3, genotype="windows", fixed_ends=True)
    with pytest.raises(SpaceError, match="nothing to search"):
        path(2, genotype="skips", fixed_ends=True)
    assert path(1, genotype="skips").space.dim == 1
    assert path(2, genotype="skips", fixed_ends=True, gains={"low": 0.5, "high": 2}).space.dim == 2


def test_too_many_genes_are_refused_before_any_is_made():
    with pytest.raises(SpaceError, match=r"(?s)9410 genes with 3 sources of 32 layers.*per: transition"):
        path(32, genotype="slots", repeats=2, scales={"low": 0.4, "high": 1.5, "per": "transition"}, models=("a", "b"))
    fits = path(24, genotype="slots", scales={"low": 0.4, "high": 1.5, "per": "transition"})
    assert fits.space.dim == 48 + 48**2


def test_no_parent_is_called_merged():
    with pytest.raises(SpaceError, match=r"(?s)name that paths need.*rename the parent in parents\.models"):
        path(genotype="slots", models=("a", "merged"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=120)
@given(st.sampled_from([(mapping, place) for mapping, place, _, _ in BAD]), JSON)
def test_anything_is_a_space_or_a_space_error(where, value):
    try:
        space = parse(changed(*where, value))
    except SpaceError:
        return  # the one error that a malformed space may raise
    assert space.space.dim >= 1
    if "merged" not in getattr(space, "paths", space).sources or isinstance(space, BothSpace):
        decoded(space, space.space.start)

"""Paths as passthrough slices and back. (What mergekit makes of them: tests/parity.)"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import RecipeError
from evomerge.layout import Layout, Role, TensorInfo
from evomerge.recipe.baselines import parent_recipe
from evomerge.recipe.mergekit import from_mergekit, to_mergekit
from evomerge.recipe.path import Hop, Hops, plain_path
from evomerge.recipe.recipe import ParentRef, Recipe, Rule

INSIDE: tuple[tuple[str, Role], ...] = (
    ("self_attn.q_proj.weight", "attention"),
    ("self_attn.o_proj.weight", "attention"),
    ("mlp.up_proj.weight", "mlp"),
    ("mlp.down_proj.weight", "mlp"),
    ("mlp.down_proj.bias", "mlp"),
    ("input_layernorm.weight", "norm"),
)
OUTSIDE: tuple[tuple[str, Role], ...] = (
    ("model.embed_tokens.weight", "embedding"),
    ("model.norm.weight", "norm"),
    ("lm_head.weight", "head"),
)
LAYERS = 12
PARENTS = {n: ParentRef(n, f"/zoo/{n}", "v1" if n == "b" else None) for n in "abc"}


def layout(n_layers: int = LAYERS, dtype: str = "BF16") -> Layout:
    tensors = [TensorInfo(name, (4, 4), dtype, None, role) for name, role in OUTSIDE]
    for i in range(n_layers):
        tensors += [TensorInfo(f"model.layers.{i}.{name}", (4, 4), dtype, i, role) for name, role in INSIDE]
    return Layout(n_layers, tuple(sorted(tensors, key=lambda t: t.name)))


def is_end(name: str) -> bool:
    return ".o_proj." in name or ".down_proj." in name


def own(parent: str, *where: Any) -> Rule:
    return Rule("linear", {"normalize": True}, {parent: {"weight": 1.0}}, *where)


def recipe(*hops: Hop, first: str = "a", last: str | None = None, template: str | None = None) -> Recipe:
    """As a file gives it back: config's parent first, then the parents in the order in which the file names them."""
    last = first if last is None else last
    order = [template or first, first, *(hop.parent for hop in hops), last]
    rules = (own(last),) if first == last else (own(first, (), ("embedding",)), own(last))
    parents = tuple(PARENTS[name] for name in dict.fromkeys(order) if name is not None)
    return Recipe(parents, None, rules, path=hops)


def slices_of(made: Recipe, **more: Any) -> list[Any]:
    found = yaml.safe_load(to_mergekit(made, layout(), **more))["slices"]
    assert all(list(entry) == ["sources"] and len(entry["sources"]) == 1 for entry in found)
    return [entry["sources"][0] for entry in found]


def read(text: str, **more: Any) -> Recipe:
    return from_mergekit(text, lambda ref: layout(), is_end=is_end, **more)


names = st.sampled_from(sorted(PARENTS))
gains = st.one_of(st.just(1.0), st.sampled_from([-1.0, 0.0, 1e-5]), st.floats(-4, 4, allow_nan=False))
runs = st.builds(
    lambda parent, start, n, gain: [Hop(layer, parent, gain) for layer in range(start, min(start + n, LAYERS))],
    names,
    st.integers(0, LAYERS - 1),
    st.integers(1, 5),
    gains,
)
paths = st.lists(runs, min_size=1, max_size=6).map(lambda found: tuple(hop for run in found for hop in run))


@settings(max_examples=150, deadline=None)
@given(paths, names, names, names, st.sampled_from(["parent", "float32", "bfloat16"]))
def test_what_is_written_is_read(path: Hops, first: str, last: str, template: str, dtype: Any) -> None:
    made = replace(recipe(*path, first=first, last=last, template=template), dtype=dtype)
    plain = first == last and path == plain_path(LAYERS, first)
    wanted = replace(made, path=None) if plain else made
    text = to_mergekit(made, layout(), is_end=is_end)
    back = read(text, names={p.source: p.name for p in PARENTS.values()})
    assert back == replace(wanted, dtype="bfloat16" if dtype == "parent" else dtype)  # the file always says it
    if not plain:
        assert to_mergekit(back, layout(), is_end=is_end) == text


def test_neighbouring_layers_of_one_parent_share_a_slice() -> None:
    found = slices_of(recipe(Hop(0, "a"), Hop(1, "a"), Hop(1, "a"), Hop(2, "a"), Hop(3, "b"), Hop(2, "b"), first="a"))
    ranges = [(entry["model"], entry["layer_range"]) for entry in found]
    a, b = "/zoo/a", "/zoo/b@v1"
    assert ranges == [(a, [0, 2]), (a, [1, 3]), (b, [3, 4]), (b, [2, 3]), (a, [0, 0])]


def test_empty_slices_give_what_stands_outside_the_layers() -> None:
    text = to_mergekit(recipe(Hop(0, "b"), first="a", last="c"), layout())
    found = yaml.safe_load(text)
    assert [s["sources"][0]["layer_range"] for s in found["slices"]] == [[0, 0], [0, 1], [0, 0]]
    assert "# An empty slice gives" in text
    assert (found["merge_method"], found["base_model"], found["dtype"]) == ("passthrough", "/zoo/a", "bfloat16")


def test_gains_are_scales_of_what_ends_the_branches() -> None:
    (first, second) = slices_of(recipe(Hop(0, "a"), Hop(1, "a", -0.5), first="a"), is_end=is_end)
    assert "parameters" not in first
    filters = {".o_proj.": -0.5, ".down_proj.": -0.5, None: 1.0}
    assert {entry.get("filter"): entry["value"] for entry in second["parameters"]["scale"]} == filters


def test_a_merged_layer_that_is_one_parent_is_written_as_it() -> None:
    made = replace(parent_recipe(PARENTS["a"]), path=(Hop(1), Hop(1)))
    assert [entry["layer_range"] for entry in slices_of(made)] == [[1, 2], [1, 2]]


SOUP = Rule("linear", {}, {"a": {"weight": 0.5}, "b": {"weight": 0.5}})
A, B = PARENTS["a"], PARENTS["b"]


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (Recipe((A, B), None, (own("a", ()), SOUP), path=(Hop(0, "a"), Hop(1))), r"hop 1, layer 1, is merged.*linear"),
        (Recipe((A, B), None, (SOUP,), path=(Hop(0, "a"),)), "the embedding is merged.*of a, b"),
        (
            Recipe((A, B), None, (own("a", (), ("head",)), own("b")), path=(Hop(0, "a"),)),
            "what follows the layers comes from several parents.*a, b",
        ),
        (recipe(Hop(0, "a", 0.5)), r"its path has gains.*0\.5"),
        (recipe(Hop(12, "a")), "layers that the parents do not have|hop 0: layer 12"),
    ],
)
def test_what_slices_cannot_say_is_refused(made: Recipe, match: str) -> None:
    with pytest.raises(RecipeError, match=f"(?s){match}"):
        to_mergekit(made, layout())


def test_the_whole_of_one_model_is_no_path() -> None:
    for text in (
        "models: [{model: x/a}]",
        "slices: [{sources: [{model: x/a, layer_range: [0, 5]}]}, {sources: [{model: x/a, layer_range: [5, 12]}]}]",
    ):
        found = read(f"merge_method: passthrough\n{text}")
        assert found == parent_recipe(ParentRef("a", "x/a"))


FRANKEN = """
merge_method: passthrough
dtype: float16
slices:
  - sources: [{model: x/a, layer_range: [0, 4]}]
  - sources:
      - model: y/b
        layer_range: [2, 6]
        parameters:
          scale: [{filter: o_proj, value: [0.5, 2]}, {filter: down_proj, value: [0.5, 2.0]}, {value: 1}]
  - sources: [{model: x/a, layer_range: [4, 4]}]
"""


def test_overlapping_ranges_and_gradients_of_scales_are_a_path() -> None:
    found = read(FRANKEN)
    assert found.path == (
        *(Hop(i, "a") for i in range(4)),
        Hop(2, "b", 0.5),
        Hop(3, "b", 1.0),
        Hop(4, "b", 1.5),
        Hop(5, "b", 2.0),
    )
    assert (found.rules, found.dtype, found.compat) == ((own("a"),), "float16", "off")
    assert [p.source for p in found.parents] == ["x/a", "y/b"]
    assert read(FRANKEN, compat="mergekit").compat == "mergekit"
    assert [p.source for p in read(f"base_model: y/b\n{FRANKEN}").parents] == ["y/b", "x/a"]


HEAD = "merge_method: passthrough\n"
ONE = HEAD + "slices: [{sources: [{model: a, layer_range: [0, 2]%s}]}]\n"
REFUSED = [
    (HEAD + "slices: []", "names no models"),
    (HEAD + "models: [{model: a}, {model: b}]", "one model at a time.*a, b"),
    (HEAD + "models: [{model: a}]\nbase_model: b", "one model at a time.*a, b"),
    (
        HEAD + "slices: [{sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]}]",
        "one model at a time.*2 sources",
    ),
    (ONE.replace("[0, 2]", "[0, 13]") % "", r"does not have.*\[0, 13\]"),
    (ONE.replace("[0, 2]", "[2, 0]") % "", r"does not have.*\[2, 0\]"),
    (ONE.replace("[0, 2]", "[1, 1]") % "", "A path has no hops"),
    (ONE % "" + "parameters: {weight: 1}", "'weight'"),
    (ONE % ", parameters: {scale: 0.5}", r"no gain of a layer.*input_layernorm\.weight by 0\.5"),
    (ONE % ", parameters: {scale: {filter: o_proj, value: 0.5}}", r"no gain of a layer.*down_proj\.bias by 1"),
    (
        ONE % ", parameters: {scale: [{filter: o_proj, value: 0.5}, {filter: down_proj, value: 0.25}]}",
        r"o_proj\.weight by 0\.5",
    ),
    (
        ONE % ", parameters: {scale: [{filter: _proj.weight, value: 0.5}]}",
        r"q_proj\.weight by 0\.5",
    ),
    (ONE % "" + "parameters: {scale: {filter: lm_head, value: 2}}", "outside the layers.*lm_head.weight by 2"),
    (ONE % ", parameters: {scale: {filter: o_proj, value: wide}}", "illegal value.*'wide'"),
    (ONE % "" + "dtype: float64", "unknown dtype"),
    (ONE % "" + "tokenizer_source: union", "changes the tokenizer"),
    (ONE % "" + "dtype: float16\nout_dtype: float32", "--compat off"),
    (ONE % "" + "modules: {default: {}}", "names no models|both or neither"),
]


@pytest.mark.parametrize(("text", "match"), REFUSED, ids=str)
def test_what_a_path_cannot_say_is_refused(text: str, match: str) -> None:
    with pytest.raises(RecipeError, match=f"(?s){match}"):
        read(text)


def test_scales_need_somebody_who_knows_where_branches_end() -> None:
    with pytest.raises(RecipeError, match=r"(?s)no gain of a layer.*no scale for these models"):
        from_mergekit(FRANKEN, lambda ref: layout())


def test_merged_slices_still_keep_their_layers() -> None:
    text = FRANKEN.replace("passthrough", "linear").replace("[4, 4]", "[4, 12]")
    with pytest.raises(RecipeError, match=r"(?s)moves, repeats or drops layers.*passthrough slices"):
        read(text)

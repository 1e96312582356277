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
from evomerge.recipe.mergekit import Models, from_mergekit, to_mergekit
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
    return from_mergekit(text, Models(lambda ref: layout(), is_end), **more)


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
    assert back == replace(wanted, dtype="parent" if dtype == "bfloat16" else dtype)  # all parents are bfloat16
    if not plain and dtype != "bfloat16":
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
    assert (found["merge_method"], found["base_model"], "dtype" in found) == ("passthrough", "/zoo/a", False)


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
    (HEAD + "slices: []", "none or several of its forms"),
    (HEAD + "models: [{model: a}, {model: b}]", "another number of models.*a, b.*exactly 1"),
    (HEAD + "models: [{model: a}]\nbase_model: b", "another number of models.*base_model b is not listed"),
    (
        HEAD + "slices: [{sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]}]",
        "another number of models.*a, b",
    ),
    (ONE.replace("[0, 2]", "[0, 13]") % "", r"do not have.*\[0, 13\]"),
    (ONE.replace("[0, 2]", "[2, 0]") % "", r"do not have.*\[2, 0\]"),
    (ONE.replace("[0, 2]", "[1, 1]") % "", "no layers"),
    (ONE % "" + "parameters: {scales: 1}", "'scales'.*Did you mean 'scale'"),
    (ONE % ", parameters: {scale: {filter: o_proj, value: wide}}", "illegal value.*'wide'"),
    (ONE % "" + "dtype: float64", "unknown dtype"),
    (ONE % "" + "tokenizer_source: base", "from the base, and there is none"),
    (ONE % "" + "modules: {default: {}}", "none or several of its forms"),
    (
        HEAD + "slices: [{sources: [{model: a, layer_range: [0, 2]}]}, {sources: [{model: a, layer_range: [1, 3], "
        "parameters: {scale: {filter: q_proj, value: 0.5}}}]}, {sources: [{model: a, layer_range: [1, 2], "
        "parameters: {scale: {filter: q_proj, value: 0.25}}}]}]",
        r"several times, and its scales are no gain.*layer 1, as layer 4: self_attn\.q_proj\.weight by 0\.25",
    ),
]


@pytest.mark.parametrize(("text", "match"), REFUSED, ids=str)
def test_what_a_path_cannot_say_is_refused(text: str, match: str) -> None:
    with pytest.raises(RecipeError, match=f"(?s){match}"):
        read(text)


def scales_of(found: Recipe) -> dict[str, float]:
    """The factors of the rules, of all tensors that have one."""
    rules = {t.name: found.rule_for(t) for t in layout().tensors}
    return {n: float(r.per_parent["a"]["scale"]) for n, r in rules.items() if r.method == "passthrough"}


def test_scales_that_are_no_gain_are_rules() -> None:
    scale = ", parameters: {scale: [{filter: q_proj, value: [0.5, 0.25]}, {filter: k_proj, value: 3}]}"
    text = ONE % scale + "parameters: {scale: {filter: lm_head, value: 2}}\n"
    found = read(text)
    assert found.path == (Hop(0), Hop(1))
    factors = {n: f for n, f in scales_of(found).items() if f != 1.0}
    assert factors == {
        "lm_head.weight": 2.0,
        "model.layers.0.self_attn.q_proj.weight": 0.5,
        "model.layers.1.self_attn.q_proj.weight": 0.25,
    }
    assert read(to_mergekit(found, layout(), is_end=is_end)) == found


def test_scales_need_somebody_who_knows_where_branches_end() -> None:
    """Without, they are rules, which a layer that runs twice has only once."""
    found = from_mergekit(FRANKEN, Models(lambda ref: layout()))
    assert [hop.parent for hop in found.path or ()] == ["a"] * 4 + [None, "b", None, None]
    twice = FRANKEN + "  - sources: [{model: y/b, layer_range: [2, 3]}]\n"
    assert from_mergekit(twice, Models(lambda ref: layout())).path is not None
    other = FRANKEN + "  - sources: [{model: y/b, layer_range: [2, 3], parameters: {scale: 2}}]\n"
    with pytest.raises(RecipeError, match=r"(?s)its scales are no gain.*equal scales wherever"):
        from_mergekit(other, Models(lambda ref: layout()))


def test_factors_that_would_round_otherwise_are_multiplied_in_mergekits_arithmetic() -> None:
    text = FRANKEN.replace("dtype: float16", "dtype: float32\nout_dtype: bfloat16")
    found = read(text)  # the models are in bfloat16: nothing is rounded before the factor, and once behind it
    assert (found.compat, found.dtype) == ("off", "parent")
    assert {hop.gain for hop in found.path or ()} == {1.0, 0.5, 1.5, 2.0}
    wide = read(text.replace("out_dtype: bfloat16", "out_dtype: float16"))
    assert (wide.compat, wide.arithmetic, wide.dtype) == ("mergekit", "float32", "float16")
    ruled = FRANKEN.replace("dtype: float16", "dtype: float16\nparameters: {scale: [{filter: q_proj, value: 0.5}]}")
    assert (read(ruled).compat, read(FRANKEN).compat) == ("mergekit", "off")
    narrow = read(FRANKEN.replace("dtype: float16", "dtype: float16\nout_dtype: float32"))
    assert (narrow.compat, narrow.arithmetic, narrow.dtype) == ("mergekit", "float16", "float32")


MERGED = """
merge_method: linear
slices:
  - sources: [{model: a, layer_range: [4, 8], parameters: {weight: 1}}, {model: b, layer_range: [4, 8]}]
  - sources: [{model: a, layer_range: [0, 6], parameters: {weight: 1}}, {model: b, layer_range: [0, 6]}]
parameters: {weight: [{filter: mlp, value: 0.25}, {value: 0.5}]}
"""


def test_merged_slices_may_move_repeat_and_drop_layers() -> None:
    found = read(MERGED)
    assert found.path == tuple(Hop(layer) for layer in (4, 5, 6, 7, 0, 1, 2, 3, 4, 5))
    weights = {t.name: found.rule_for(t).per_parent["b"]["weight"] for t in layout().tensors}
    assert {weight for name, weight in weights.items() if "mlp" in name} == {0.25}
    assert {weight for name, weight in weights.items() if "mlp" not in name} == {0.5}
    assert to_mergekit(found, layout()).count("layer_range") == 4
    assert read(to_mergekit(found, layout())) == found


def test_shared_parameters_see_the_result_s_names_and_a_source_s_its_own() -> None:
    text = """
merge_method: slerp
base_model: a
slices: [{sources: [{model: a, layer_range: [6, 8]}, {model: b, layer_range: [6, 8]}]}]
parameters: {t: [{filter: layers.0., value: 0.75}, {value: 0.25}]}
"""
    inside = [t for t in layout().tensors if t.layer in {6, 7}]
    assert [read(text).rule_for(t).shared["t"] for t in inside] == [0.75] * 6 + [0.25] * 6
    own = text.replace("slerp", "linear").replace("}, {model: b", ", parameters: {weight: 1}}, {model: b")
    own = own.replace("t: [", "weight: [").replace("layers.0.", "layers.6.")
    found = [read(own).rule_for(t).per_parent["b"]["weight"] for t in inside]
    assert found == [0.75] * 6 + [0.25] * 6


def test_a_path_that_merges_and_copies_is_written_where_the_method_can_copy() -> None:
    soup = Rule("linear", {"normalize": True}, {"a": {"weight": 0.5}, "b": {"weight": 0.5}})
    path = (Hop(0), Hop(1, "a"), Hop(1), Hop(2))
    text = to_mergekit(Recipe((A, B), None, (soup,), path=path), layout())
    ranges = [[(s["model"], s["layer_range"]) for s in p["sources"]] for p in yaml.safe_load(text)["slices"]]
    assert ranges[1] == [("/zoo/a", [1, 2])]
    assert [len(r) for r in ranges] == [2, 1, 2]
    deltas = Rule("task_arithmetic", {}, {"b": {"weight": 0.5}})
    with pytest.raises(RecipeError, match=r"(?s)copies a layer, and task_arithmetic merges.*hop 1: layer 1 of a"):
        to_mergekit(Recipe((A, B), "a", (deltas,), path=path), layout())
    with pytest.raises(RecipeError, match=r"(?s)has gains, and merges.*hop 0: 0\.5"):
        to_mergekit(Recipe((A, B), None, (soup,), path=(Hop(0, None, 0.5),)), layout(), is_end=is_end)

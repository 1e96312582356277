"""Every recipe that mergekit can express is what its file reads as."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import RecipeError
from evomerge.layout import Layout, Role, TensorInfo
from evomerge.recipe.mergekit import Models, from_mergekit, mergekit_models, mergekit_told, to_mergekit
from evomerge.recipe.mergekit_file import MERGEKIT
from evomerge.recipe.mergekit_models import Files, Model, model_named, model_text
from evomerge.recipe.method_spec import MethodSpec, ParameterSpec
from evomerge.recipe.named_rules import rules_of_tensors
from evomerge.recipe.path import Hop
from evomerge.recipe.recipe import Making, ParentRef, Recipe, Rule
from evomerge.recipe.retokenizing import TokenRule, retokenized
from evomerge.recipe.rules import Assignment

INSIDE: tuple[tuple[str, Role], ...] = (
    ("self_attn.q_proj.weight", "attention"),
    ("self_attn.k_proj.weight", "attention"),
    ("mlp.up_proj.weight", "mlp"),
    ("input_layernorm.weight", "norm"),
)
OUTSIDE: tuple[tuple[str, Role], ...] = (
    ("model.embed_tokens.weight", "embedding"),
    ("model.norm.weight", "norm"),
    ("lm_head.weight", "head"),
)
LAYERS = 3
MODELS = tuple(
    ParentRef(n, f"/zoo/{n}" if n != "c" else "org/c+c", "v1" if n == "b" else None) for n in ("base", "a", "b", "c")
)


def layout(dtype: str = "BF16") -> Layout:
    tensors = [TensorInfo(name, (4, 4), dtype, None, role) for name, role in OUTSIDE]
    for i in range(LAYERS):
        tensors += [TensorInfo(f"model.layers.{i}.{name}", (4, 4), dtype, i, role) for name, role in INSIDE]
    return Layout(LAYERS, tuple(sorted(tensors, key=lambda t: t.name)))


def values(spec: ParameterSpec, name: str, compat: str) -> st.SearchStrategy[float | bool]:
    if name == "weight" and compat == "off":
        return st.floats(0.5, 2)  # normalised weights of both signs are refused
    if spec.kind == "flag":
        return st.booleans()
    low, high = max(spec.low, -2.0), min(spec.high, 2.0)
    if spec.kind == "integer":
        return st.integers(int(low), 20).map(float)
    return st.floats(low, high, allow_nan=False).map(lambda v: v + 0.0)


@st.composite
def rows(draw: Callable[..., Any], method: MethodSpec, merged: Sequence[str], compat: str) -> Assignment:
    shared = {n: draw(values(method.parameters[n], n, compat)) for n in method.shared()}
    own = {p: {n: draw(values(method.parameters[n], n, compat)) for n in method.per_parent()} for p in merged}
    return Assignment.of(shared, own)


@st.composite
def recipes(draw: Callable[..., Any]) -> Recipe:
    """Of a few assignments, handed out to tensors at random; parents and names as a file gives them back."""
    method = MERGEKIT[draw(st.sampled_from(sorted(set(MERGEKIT) - {"passthrough"})))]
    has_base = method.needs_base or (method.takes_base and draw(st.booleans()))
    most = method.max_models or 3
    # one alone is a copy, which is written as such
    least = 2 if method.name in {"linear", "karcher", "multislerp"} else method.min_models
    number = draw(st.integers(least, max(most, least)))
    merged = MODELS[1 : 1 + number]
    compat = draw(st.sampled_from(["off", "mergekit"]))
    known = draw(st.lists(rows(method, [p.name for p in merged], compat), min_size=1, max_size=3))
    found = {t.name: draw(st.sampled_from(known)) for t in layout().tensors}
    path = None
    if draw(st.booleans()):
        layers = draw(st.lists(st.integers(0, LAYERS - 1), min_size=1, max_size=5))
        path = None if layers == list(range(LAYERS)) else tuple(Hop(layer) for layer in layers)
        for tensor in layout().tensors:  # a layer that does not run has the numbers of the first that does
            if path is not None and tensor.layer not in (None, *layers):
                found[tensor.name] = found[tensor.name.replace(f".{tensor.layer}.", f".{min(layers)}.")]
    dtype = draw(st.sampled_from(["parent", "float32", "float16"]))
    arithmetic = draw(st.sampled_from(["stored", "float32", "bfloat16"]))
    if compat == "off" or dtype in {"parent", arithmetic}:
        arithmetic = "stored"
    return Recipe(
        (*(MODELS[:1] if has_base else ()), *merged),
        "base" if has_base else None,
        rules_of_tensors(method.name, layout(), found),
        dtype=dtype,
        compat=compat,
        path=path,
        arithmetic=arithmetic,
        chat_template=draw(st.sampled_from([None, "{{ messages }}, and so on\n"])),
    )


NAMES = {"/zoo/base": "base", "/zoo/a": "a", "/zoo/b": "b", "org/c+c": "c"}


def read(text: str, compat: Any = None, **more: Any) -> Recipe:
    return from_mergekit(text, Models(lambda ref: layout(), **more), names=NAMES, compat=compat)


@settings(deadline=None, max_examples=50)
@given(recipes())
def test_what_is_written_is_read(recipe: Recipe) -> None:
    text = to_mergekit(recipe, layout())
    widened = recipe.rules[0].method in {"arcee_fusion", "ramplus_tl"} and recipe.compat == "mergekit"
    if widened and recipe.dtype != "parent" and recipe.arithmetic == "stored":
        recipe = replace(recipe, dtype="parent", arithmetic=recipe.dtype)  # what mergekit does: it stores fp32
    assert read(text, recipe.compat) == recipe
    assert to_mergekit(read(text, recipe.compat), layout()) == text


def test_weightless_methods_merge_other_models_in_other_slices() -> None:
    refs = {p.name: p for p in MODELS}
    first, rest = Rule("slerp", {"t": 0.25}, {"a": {}, "b": {}}, (0,)), Rule("slerp", {"t": 0.5}, {"a": {}, "c": {}})
    recipe = Recipe((refs["a"], refs["b"], refs["c"]), None, (first, rest), compat="mergekit")
    back = read(to_mergekit(recipe, layout()))
    assert set(back.parents) == set(recipe.parents)
    for tensor in layout().tensors:
        ours, theirs = recipe.rule_for(tensor), back.rule_for(tensor)
        assert (ours.shared, ours.per_parent) == (theirs.shared, theirs.per_parent), tensor.name
    mixed = replace(recipe, rules=(replace(first, roles=("mlp",)), rest))
    with pytest.raises(RecipeError, match=r"(?s)slerp has no weights.*a, b; a, c"):
        to_mergekit(mixed, layout())


def test_a_slice_may_have_another_t_of_zero() -> None:
    refs = {p.name: p for p in MODELS}
    rules = (Rule("slerp", {"t": 0.25}, {"a": {}, "b": {}}, (0,)), Rule("slerp", {"t": 0.5}, {"b": {}, "c": {}}))
    recipe = Recipe((refs["a"], refs["b"], refs["c"]), None, rules, compat="mergekit")
    text = to_mergekit(recipe, layout())
    pieces = yaml.safe_load(text)["slices"]
    assert [piece.get("base_model") for piece in pieces] == ["/zoo/b@v1", None, "/zoo/b@v1"]
    assert [piece["sources"][0]["layer_range"] for piece in pieces] == [[0, 0], [0, 1], [1, 3]]
    back = read(text)
    assert all(back.rule_for(t).per_parent == recipe.rule_for(t).per_parent for t in layout().tensors)


def test_config_and_tokenizer_may_come_from_a_later_model() -> None:
    weights = {p.name: {"weight": 0.5} for p in MODELS[1:3]}
    recipe = Recipe(MODELS[1:3], "b", (Rule("linear", {"normalize": True}, weights),), compat="mergekit")
    assert yaml.safe_load(to_mergekit(recipe, layout()))["base_model"] == "/zoo/b@v1"
    assert read(to_mergekit(recipe, layout())) == recipe
    third = replace(recipe, parents=MODELS[:3], base=None)
    assert yaml.safe_load(to_mergekit(third, layout()))["base_model"] == "/zoo/base"
    assert read(to_mergekit(third, layout())) == third


def test_without_a_base_nobody_says_where_config_and_tokenizer_come_from() -> None:
    weights = {p.name: {"weight": 0.5} for p in MODELS[1:3]}
    recipe = Recipe(MODELS[1:3], None, (Rule("nuslerp", {}, weights),))
    text = to_mergekit(recipe, layout())
    assert "base_model" not in yaml.safe_load(text)
    assert "# mergekit takes config and tokenizer from any of the models, evomerge from a.\n" in text


def test_more_models_at_the_end_than_at_the_beginning_cannot_be_said() -> None:
    rules = (
        Rule("linear", {}, {"a": {"weight": 1.0}}, (), ("embedding",)),
        Rule("linear", {}, {"a": {"weight": 0.5}, "b": {"weight": 0.5}}),
    )
    with pytest.raises(RecipeError, match=r"(?s)leave some out of norm and head.*a; a, b"):
        to_mergekit(Recipe(MODELS[1:3], None, rules), layout())


ON = ParentRef("on", "/zoo/base", "v2")
ADAPTED = ParentRef("lora", "/zoo/lora", None, made=Making("adapter", (), ON))


def test_adapters_are_written_as_mergekit_names_them() -> None:
    rule = Rule("linear", {"normalize": True}, {"lora": {"weight": 1.0}, "a": {"weight": 0.5}})
    recipe = Recipe((ADAPTED, MODELS[1]), None, (rule,), dtype="float32", compat="mergekit")
    text = to_mergekit(recipe, layout())
    assert yaml.safe_load(text)["models"][0]["model"] == "/zoo/base@v2+/zoo/lora"
    assert read(text) == recipe
    assert [p.source for p in mergekit_models(text)] == ["/zoo/lora", "/zoo/a"]
    bare = read(text.replace("dtype: float32", ""))  # mergekit merges the adapter in the model's dtype
    assert (bare.dtype, bare.arithmetic) == ("bfloat16", "stored")


@pytest.mark.parametrize(
    ("made", "got"),
    [
        (Making("adapter", (), ON, {"weight": 0.5}), r"lora, by adapter, weight 0\.5"),
        (Making("tsv_m", (MODELS[1], MODELS[2]), ON), "lora, by tsv_m"),
        (Making("adapter", (), ADAPTED), "lora, by adapter"),
    ],
)
def test_other_made_parents_are_refused(made: Making, got: str) -> None:
    recipe = Recipe((replace(ADAPTED, made=made),), None, (Rule("linear", {}, {"lora": {"weight": 1.0}}),))
    with pytest.raises(RecipeError, match=f"(?s)a parent is made from others.*{got}"):
        to_mergekit(recipe, layout())


@pytest.mark.parametrize(
    ("value", "model"),
    [
        ("org/m@v1", Model(Files("org/m", "v1"))),
        ("m@v1+l@v2", Model(Files("m", "v1"), Files("l", "v2"))),
        ({"model": "m"}, Model(Files("m"))),
        ({"model": {"path": "m", "revision": 3}, "lora": None}, Model(Files("m", "3"))),
        ({"model": "m@v1", "lora": {"path": "l+l"}}, Model(Files("m", "v1"), Files("l+l"))),
    ],
)
def test_models_are_named_in_several_ways(value: Any, model: Model) -> None:
    assert model_named(value) == model
    (ref,) = mergekit_models(yaml.safe_dump({"merge_method": "linear", "models": [{"model": value}]}))
    assert model_named(model_text(ref)) == model


RULES = {
    "<x>": TokenRule(1, force=True),
    "<y>": TokenRule(0, token="z"),
    "<v>": TokenRule(1, row=7),
    "<w>": TokenRule(),
}


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([None, 0, 1]),
    st.sets(st.sampled_from(sorted(RULES))),
    st.sampled_from([1, 8]),
    st.sampled_from(["off", "mergekit"]),
)
def test_vocabularies_come_back(source: int | None, tokens: set[str], multiple: int, compat: Any) -> None:
    exact = compat == "mergekit"
    asked: Mapping[str, Any] = {
        "tokens": {token: RULES[token] for token in sorted(tokens)},
        "pad_to_multiple_of": multiple,
        "wide": not exact,
        "keep_rows": not exact,
    }
    parents = retokenized(MODELS[:2], base=0, source=source, **asked)
    rule = Rule("task_arithmetic", {"normalize": False, "lambda": 1.0}, {"a": {"weight": 0.5}})
    recipe = Recipe(parents, "base", (rule,), compat=compat)
    text = to_mergekit(recipe, layout())
    assert ("cut off by mergekit" in text) != exact
    assert read(text, compat) == recipe


def test_vocabularies_that_are_alike_are_left_alone() -> None:
    seen: list[tuple[list[str], bool]] = []

    def same(refs: Sequence[ParentRef], cut: bool) -> bool:
        seen.append(([ref.name for ref in refs], cut))
        return not cut

    text = "merge_method: ties\nbase_model: /zoo/base\nmodels: [{model: /zoo/a, parameters: {weight: 1}}]\n"
    text += "tokenizer_source: base"
    assert read(text, "off", same_tokens=same).parents == MODELS[:2]
    assert [p.made is None for p in read(text, same_tokens=same).parents] == [False, False]
    assert seen == [(["base", "a"], False), (["base", "a"], True)]


def test_parents_that_a_job_has_aligned_share_the_base_s_tokenizer() -> None:
    other = ParentRef("a", "/zoo/a", made=Making("aligned", (MODELS[1],), MODELS[0]))
    rule = Rule("task_arithmetic", {}, {"a": {"weight": 0.5}})
    text = to_mergekit(Recipe((MODELS[0], other), "base", (rule,)), layout())
    config = yaml.safe_load(text)
    assert (config["tokenizer_source"], config["models"][0]["model"]) == ("base", "/zoo/a")
    strange = replace(other, made=Making("aligned", (MODELS[1],), MODELS[2]))
    with pytest.raises(RecipeError, match=r"(?s)vocabulary comes from another parent.*a has that of /zoo/b"):
        to_mergekit(Recipe((MODELS[0], strange), "base", (rule,)), layout())
    mixed = retokenized(MODELS[:2], base=0, source=0)
    with pytest.raises(RecipeError, match=r"(?s)do not share one vocabulary.*a"):
        to_mergekit(Recipe((mixed[0], MODELS[1]), "base", (rule,)), layout())


def test_tied_models_beside_others_get_heads() -> None:
    text = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: /zoo/a}, {model: /zoo/b@v1}]"
    found = read(text, is_tied=lambda ref: ref.name == "b")
    assert [p.made for p in found.parents] == [None, Making("untied", (MODELS[2],), MODELS[1])]
    assert read(to_mergekit(found, layout()), is_tied=lambda ref: ref.name == "b") == found
    assert read(text, is_tied=lambda ref: True).parents == MODELS[1:3]


def test_chat_templates_are_texts() -> None:
    text = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: /zoo/a}, {model: /zoo/b}, {model: c}]\n"
    own = {"a": "{{ one }}", "b": " {{ two }}", "c": "{{ two }}\n"}
    templates = {"chat_template": lambda ref: own.get(ref.name)}
    assert read(text + "chat_template: auto", **templates).chat_template == "{{ two }}"
    assert "<|im_start|>" in (read(text + "chat_template: chatml").chat_template or "")
    assert read(text + "chat_template: ''").chat_template is None
    short = replace(read(text), chat_template="{x}")
    with pytest.raises(RecipeError, match=r"(?s)no text that mergekit takes.*20 characters"):
        to_mergekit(short, layout())


TOLD = [
    ("parameters: {weight: 1, int8_mask: true}", "int8_mask has no effect"),
    ("parameters: {weight: 1, density: 0.5}", "density has no effect: linear has no such parameter"),
    ("parameters: {weight: 1}", "without base_model mergekit takes any"),
    ("parameters: {weight: 1}\nbase_model: c", "base_model c is not listed, and linear merges it"),
]


@pytest.mark.parametrize(("more", "line"), TOLD)
def test_what_has_no_effect_is_told(more: str, line: str) -> None:
    told = mergekit_told(f"merge_method: linear\nmodels: [{{model: a}}, {{model: b}}]\n{more}")
    assert any(line in found for found in told)
    assert len(set(told)) == len(told)


def test_nothing_is_told_about_a_plain_file() -> None:
    assert mergekit_told("merge_method: ties\nbase_model: b\nmodels: [{model: a, parameters: {weight: 1}}]") == ()

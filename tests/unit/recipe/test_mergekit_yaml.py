"""mergekit files: filters, forms, comments, and what is refused. (What mergekit makes of them: tests/parity.)"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import RecipeError
from evomerge.layout import Layout, TensorInfo
from evomerge.recipe.mergekit import Models, from_mergekit, mergekit_models, to_mergekit
from evomerge.recipe.mergekit_file import MERGEKIT
from evomerge.recipe.mergekit_settings import evaluate_filters, filters_for, number_of
from evomerge.recipe.methods import BUILTIN
from evomerge.recipe.recipe import ParentRef, Recipe, Rule

INSIDE = [("self_attn.q_proj.weight", "attention"), ("mlp.up_proj.weight", "mlp"), ("input_layernorm.weight", "norm")]
BASE, A, B = (ParentRef(n, f"/zoo/{n}") for n in ("base", "a", "b"))


def llama(n_layers=3, dtype="BF16"):
    tensors = [
        TensorInfo("model.embed_tokens.weight", (4,), dtype, None, "embedding"),
        TensorInfo("model.norm.weight", (4,), dtype, None, "norm"),
        TensorInfo("lm_head.weight", (4,), dtype, None, "head"),
    ]
    for i in range(n_layers):
        tensors += [TensorInfo(f"model.layers.{i}.{name}", (4,), dtype, i, role) for name, role in INSIDE]
    return Layout(n_layers, tuple(sorted(tensors, key=lambda t: t.name)))


def weights(a, b=0.5):
    return {"a": {"weight": a}, "b": {"weight": b}}


def arithmetic(*rules, **more):
    return Recipe((BASE, A, B), "base", rules or (Rule("task_arithmetic", {}, weights(0.3)),), **more)


def config_of(recipe, layout=None):
    return yaml.safe_load(to_mergekit(recipe, layout or llama()))


NAMES = st.lists(
    st.lists(st.sampled_from(["a", "b", "ab", "layers", "1", "11", "w"]), min_size=1, max_size=3).map(".".join),
    min_size=1,
    max_size=8,
    unique=True,
)


@settings(deadline=None, max_examples=150)
@given(NAMES, st.data())
def test_filters_give_every_tensor_its_number(names, data):
    numbers = st.sampled_from([0.0, 0.5, 1.0, True])
    wanted = {name: data.draw(numbers) for name in names}
    setting = filters_for(wanted)
    assert {name: evaluate_filters(name, setting) for name in names} == wanted
    assert isinstance(setting, list) == (len(set(wanted.values())) > 1)


def test_filters_are_short_where_a_part_of_the_name_tells_tensors_apart():
    names = [t.name for t in llama().tensors if t.layer == 1]
    assert filters_for({n: 0.1 if "attn" in n else 0.2 for n in names}) == [
        {"filter": ".self_attn.", "value": 0.1},
        {"value": 0.2},
    ]


def test_settings_are_read_as_mergekit_reads_them():
    setting = [{"filter": "mlp", "value": [0, 1]}, {"filter": "*", "value": 0.5}]
    assert evaluate_filters("x.mlp.y", setting, 0.25) == 0.25
    assert evaluate_filters("x.attn.y", setting, 0.25) == 0.5
    assert evaluate_filters("x", [{"filter": "mlp", "value": 1}]) is None
    assert evaluate_filters("x", {"value": 3}) == 3
    assert evaluate_filters("x", [0, 1, 0.5], 0.75) == 0.75
    assert evaluate_filters("x", [0, 1], 1.0) == 1
    assert evaluate_filters("x", ["1e-1", 0.3], 0.5) == pytest.approx(0.2)
    assert evaluate_filters("x", [True, False], 0.9) is True
    assert evaluate_filters("x", []) is None


def test_one_value_makes_one_models_block():
    config = config_of(arithmetic())
    assert config == {
        "merge_method": "task_arithmetic",
        "base_model": "/zoo/base",
        "parameters": {"normalize": False, "lambda": 1.0},
        "models": [
            {"model": "/zoo/a", "parameters": {"weight": 0.3}},
            {"model": "/zoo/b", "parameters": {"weight": 0.5}},
        ],
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }


def test_layers_of_equal_rules_share_a_slice():
    recipe = arithmetic(
        Rule("task_arithmetic", {}, weights(0.9), (), ("embedding",)),
        Rule("task_arithmetic", {}, weights(0.1), (), None),
        Rule("task_arithmetic", {}, weights(0.2), (0, 1)),
        Rule("task_arithmetic", {"lambda": 2.0}, weights(0.3), (2,)),
    )
    slices = config_of(recipe)["slices"]
    assert [s["sources"][0]["layer_range"] for s in slices] == [[0, 2], [2, 3]]
    assert all([source["model"] for source in s["sources"]] == ["/zoo/a", "/zoo/b", "/zoo/base"] for s in slices)
    first, last = (s["sources"][0]["parameters"]["weight"] for s in slices)
    assert first == [{"filter": ".embed_tokens.", "value": 0.9}, {"value": 0.2}]
    assert evaluate_filters("model.norm.weight", last) == evaluate_filters("lm_head.weight", last) == 0.1
    assert evaluate_filters("model.layers.2.mlp.up_proj.weight", last) == 0.3
    assert evaluate_filters("lm_head.weight", slices[1]["parameters"]["lambda"]) == 1.0
    assert slices[0]["sources"][1]["parameters"]["weight"] == 0.5


def test_base_models_are_what_each_method_needs():
    linear = Recipe((BASE, A, B), None, (Rule("linear", {}, weights(1.0)),))
    found = config_of(linear)
    assert found["base_model"] == "/zoo/base"  # gives config and tokenizer; under `models` it would be merged in
    assert [m["model"] for m in found["slices"][0]["sources"]] == ["/zoo/a", "/zoo/b"]
    assert [m["model"] for m in config_of(replace(linear, parents=(A, B)))["models"]] == ["/zoo/a", "/zoo/b"]
    slerp = config_of(Recipe((B, A), None, (Rule("slerp", {"t": 0.3}),)))
    assert slerp["base_model"] == "/zoo/b"
    assert [m["model"] for m in slerp["models"]] == ["/zoo/b", "/zoo/a"]
    assert slerp["parameters"] == {"t": 0.3}


@pytest.mark.parametrize(
    ("recipe", "stored", "dtypes"),
    [
        (arithmetic(), "BF16", ("float32", "bfloat16")),
        (arithmetic(), "F32", ("float32", None)),
        (arithmetic(dtype="float16"), "BF16", ("float32", "float16")),
        (arithmetic(compat="mergekit"), "BF16", (None, None)),
        (arithmetic(compat="mergekit", dtype="float16", arithmetic="float32"), "BF16", ("float32", "float16")),
        (arithmetic(compat="mergekit", arithmetic="float32"), "BF16", ("float32", None)),
        (arithmetic(compat="mergekit", dtype="float32"), "BF16", ("float32", None)),
    ],
)
def test_dtypes_follow_the_arithmetic(recipe, stored, dtypes):
    config = config_of(recipe, llama(dtype=stored))
    assert (config.get("dtype"), config.get("out_dtype")) == dtypes


def test_mixed_dtypes_are_told():
    tensors = [replace(t, dtype="F32") if t.role == "norm" else t for t in llama().tensors]
    mixed = Layout(3, tuple(tensors))
    assert "parents mix dtypes (bfloat16, float32)" in to_mergekit(arithmetic(), mixed)
    assert "dtype" not in config_of(arithmetic(compat="mergekit"), mixed)


def example(method, **more):
    """A recipe of the method with its defaults."""
    spec = MERGEKIT[method]
    shared = {"t": 0.5} if "t" in spec.parameters else {}
    models = (A, B)[: spec.max_models]
    parents = (BASE, *models) if spec.needs_base else models
    own = {p.name: {"weight": 0.5} for p in models} if "weight" in spec.parameters else {}
    return Recipe(parents, "base" if spec.needs_base else None, (Rule(method, shared, own),), **more)


@pytest.mark.parametrize("method", MERGEKIT)
def test_the_first_lines_say_what_is_exact(method):
    recipe = example(method, seed=11)
    text = to_mergekit(recipe, llama(), notes=["3 elements differ."])
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert "mergekit-yaml THIS_FILE OUTPUT_FOLDER" in head[1]
    is_random = method.startswith(("dare", "della"))
    assert ("--random-seed 11" in head[1]) == ("not equal" in text) == is_random
    assert head[-1] == "# 3 elements differ."
    assert ("weighted deltas cancel" in text) == (method in {"ties", "breadcrumbs_ties"})
    if method != "passthrough":
        assert "--compat off" in head[2]
        exact = to_mergekit(replace(recipe, compat="mergekit"), llama())
        assert ("equal bit for bit" in exact) != is_random
        assert "--compat off" not in exact


def test_the_first_lines_name_the_parents_weights():
    known = replace(arithmetic(), parents=(BASE, replace(A, revision="v1", content="c0ffee"), B))
    assert "#   a: /zoo/a@v1, weights sha256 c0ffee\n" in to_mergekit(known, llama())
    assert "Parents" not in to_mergekit(arithmetic(), llama())


@pytest.mark.parametrize("method", sorted(set(BUILTIN) - set(MERGEKIT)))
def test_other_methods_are_refused_unless_they_are_a_sum_that_mergekit_has(method):
    spec = BUILTIN[method]
    models = (A, B)[: spec.max_models]
    own = {p.name: {"weight": 0.5} for p in models} if "weight" in spec.per_parent() else {}
    parents, base = ((BASE, *models), "base") if spec.needs_base else (models, None)
    recipe = Recipe(parents, base, (Rule(method, {}, own),))
    if method in {"lines", "expo", "fedlaw"}:
        assert f"{method} is written as" in to_mergekit(recipe, llama())
        return
    with pytest.raises(RecipeError, match=rf"not mergekit's\.\n  Got: {method}"):
        to_mergekit(recipe, llama())


def test_sums_of_other_names_keep_their_coefficients():
    lines = Recipe((BASE, A, B), "base", (Rule("lines", {"alpha": 0.5, "beta": 1.0}, weights(1.0)),))
    back = read(to_mergekit(lines, llama()), compat="off")
    found = [back.rule_for(t).per_parent["a"]["weight"] for t in llama().tensors if "up_proj" in t.name]
    assert found == [0.5, 1.0, 1.5]
    outside = next(t for t in llama().tensors if t.role == "head")
    assert back.rule_for(outside).per_parent["b"]["weight"] == 0.25
    expo = Recipe((BASE, A), "base", (Rule("expo", {"alpha": 0.25}, {}),))
    assert read(to_mergekit(expo, llama()), compat="off").rules[0].per_parent["a"]["weight"] == 1.25
    law = Recipe((A, B), None, (Rule("fedlaw", {"gamma": 0.9}, {"a": {"logit": 0.0}, "b": {"logit": math.log(2)}}),))
    rule = read(to_mergekit(law, llama()), compat="off").rules[0]
    assert (rule.method, rule.shared["normalize"]) == ("linear", False)
    assert [rule.per_parent[p]["weight"] for p in "ab"] == pytest.approx([0.3, 0.6])


def test_what_mergekit_cannot_express_is_refused():
    mixed = Recipe((A, B), None, (Rule("linear", {}, weights(1.0), (0,)), Rule("slerp", {"t": 0.5})))
    with pytest.raises(RecipeError, match=r"several methods\.\n  Got: linear, slerp"):
        to_mergekit(mixed, llama())
    with pytest.raises(RecipeError, match=r"plug-in's\.\n  Got: mine"):
        to_mergekit(Recipe((A,), None, (Rule("mine"),)), llama())
    heavy = arithmetic(Rule("task_arithmetic", {}, {"base": {"weight": 0.5}, "a": {"weight": 0.5}}))
    with pytest.raises(RecipeError, match="base is missing or has a weight"):
        to_mergekit(heavy, llama())
    partial = Recipe((A, B), None, (Rule("linear", {}, weights(1.0), (0,)),))
    with pytest.raises(RecipeError, match="selected by no rule"):
        to_mergekit(partial, llama())


def ties(a, b, **shared):
    values = {"a": {"weight": a, "density": 0.5}, "b": {"weight": b, "density": 0.4}}
    return Recipe((BASE, A, B), "base", (Rule("ties", shared, values),))


def test_the_default_arithmetic_leaves_vectors_dense():
    shaped = [replace(t, shape=(4,) if t.role == "norm" else (4, 4)) for t in llama().tensors]
    layout = Layout(3, tuple(shaped))
    (a, _) = config_of(ties(1.0, 1.0), layout)["models"]
    wanted = {t.name: 1.0 if t.role == "norm" else 0.5 for t in layout.tensors}
    assert {name: evaluate_filters(name, a["parameters"]["density"]) for name in wanted} == wanted
    assert [e.get("filter") for e in a["parameters"]["density"]] == [".input_layernorm.", ".norm.", None]
    (a, _) = config_of(replace(ties(1.0, 1.0), compat="mergekit"), layout)["models"]
    assert a["parameters"]["density"] == 0.5


def test_biases_do_not_stop_our_own_files_from_being_read():
    names = {"model.layers.0.q_proj.weight": (4, 4), "model.layers.0.q_proj.bias": (4,)}
    tensors = [TensorInfo(n, shape, "F32", 0, "attention") for n, shape in sorted(names.items())]
    layout = Layout(1, tuple(tensors))
    text = to_mergekit(ties(1.0, 0.5), layout)
    back = from_mergekit(text, Models(lambda ref: layout), compat="off")
    assert [r.per_parent["a"]["density"] for r in back.rules] == [0.5]
    exact = from_mergekit(text, Models(lambda ref: layout), compat="mergekit")
    assert [(r.names, r.per_parent["a"]["density"]) for r in exact.rules] == [(("q_proj.bias",), 1.0), (None, 0.5)]


def test_normalised_weights_of_both_signs_are_refused_where_the_divisors_differ():
    with pytest.raises(RecipeError, match=r"weights of both signs\.\n  Got: 1, -0\.5"):
        to_mergekit(ties(1.0, -0.5), llama())
    assert to_mergekit(ties(1.0, -0.5, normalize=False), llama())
    assert to_mergekit(replace(ties(1.0, -0.5), compat="mergekit"), llama())
    linear = Recipe((A, B), None, (Rule("linear", {}, weights(1.0, -0.5)),))
    assert to_mergekit(linear, llama())
    with pytest.raises(RecipeError, match=r"Got: 1, -0\.95"):
        to_mergekit(replace(linear, rules=(Rule("linear", {}, weights(1.0, -0.95)),)), llama())


@pytest.mark.parametrize(
    ("source", "revision"),
    [("org/model", None), ("org/model", "v1.0"), ("/tmp/a+b", None), ("/tmp/a@b", None), ("/tmp/é ü: #", "r")],
)
def test_model_names_come_back(source, revision):
    parent = ParentRef("a", source, revision)
    text = to_mergekit(Recipe((parent,), None, (Rule("linear", {}, {"a": {"weight": 1.0}}),)), llama())
    (found,) = mergekit_models(text)
    assert (found.source, found.revision) == (source, revision)


def read(text, **more):
    return from_mergekit(text, Models(lambda ref: llama()), **more)


MODELS = "models: [{model: x/a, parameters: {weight: 0.5}}, {model: y/a, parameters: {weight: 0.25}}]"
LINEAR = f"merge_method: linear\n{MODELS}\n"


def test_short_names_are_unique_and_may_be_given():
    assert [p.name for p in read(LINEAR).parents] == ["a", "a-2"]
    assert [p.name for p in read(LINEAR, names={"y/a": "mine"}).parents] == ["a", "mine"]
    seen = []
    from_mergekit(f"base_model: y/a\n{LINEAR}", Models(lambda ref: (seen.append(ref.source), llama())[1]))
    assert list(dict.fromkeys(seen)) == ["y/a", "x/a"]


@pytest.mark.parametrize(
    ("text", "compat", "wanted"),
    [
        ("", None, ("parent", "stored", "mergekit")),
        ("dtype: float16", None, ("float16", "stored", "mergekit")),
        ("dtype: torch.float16", None, ("float16", "stored", "mergekit")),
        ("out_dtype: bfloat16", None, ("bfloat16", "stored", "mergekit")),
        ("out_dtype: float16", None, ("float16", "bfloat16", "mergekit")),
        ("dtype: float32\nout_dtype: bfloat16", None, ("bfloat16", "float32", "mergekit")),
        ("dtype: float16\nout_dtype: float32", "mergekit", ("float32", "float16", "mergekit")),
        ("dtype: float32\nout_dtype: bfloat16", "off", ("parent", "stored", "off")),
        ("dtype: float16", "off", ("float16", "stored", "off")),
    ],
)
def test_dtypes_choose_the_arithmetic(text, compat, wanted):
    recipe = read(LINEAR + text, compat=compat)
    assert (recipe.dtype, recipe.arithmetic, recipe.compat) == wanted


def test_parents_of_several_dtypes_need_one_to_compute_in():
    mixed = {"x/a": llama(), "y/a": llama(dtype="F32")}
    models = Models(lambda ref: mixed[ref.source])
    assert from_mergekit(LINEAR, models).dtype == "parent"  # each tensor what its parents promote to, as in mergekit
    assert from_mergekit(LINEAR, models, compat="off").dtype == "float32"
    found = from_mergekit(LINEAR + "out_dtype: float16", models)
    assert (found.dtype, found.arithmetic) == ("float16", "float32")
    norms = Layout(3, tuple(replace(t, dtype="F32") if t.role == "norm" else t for t in llama().tensors))
    mixed["y/a"] = norms
    for more, compat in (("out_dtype: float16", None), ("", "off")):
        with pytest.raises(RecipeError, match=r"several dtypes.*float32, bfloat16|several dtypes"):
            from_mergekit(LINEAR + more, models, compat=compat)


def test_two_methods_store_fp32_whatever_they_compute_in():
    text = "merge_method: arcee_fusion\nbase_model: b\nmodels: [{model: a}]\ndtype: bfloat16\n"
    assert [getattr(read(text), k) for k in ("dtype", "arithmetic")] == ["parent", "bfloat16"]
    assert config_of(read(text))["dtype"] == "bfloat16"
    stored = read(text + "out_dtype: bfloat16")
    assert (stored.dtype, stored.arithmetic) == ("bfloat16", "stored")


def test_the_expanded_form_that_mergekit_saves_is_read():
    slices = "slices: [{sources: [{model: x/a, layer_range: [0, 3], parameters: {weight: 1}}]}]"
    text = f"merge_method: linear\nmodules: {{default: {{{slices}, parameters: {{normalize: false}}}}}}\n"
    recipe = read(text)
    assert recipe.rules == (Rule("linear", {"normalize": False}, {"a": {"weight": 1.0}}),)


TIES = "merge_method: ties\nbase_model: x/base\nmodels: [{model: x/a, parameters: {weight: 1}}]\n"
SLICE = "merge_method: linear\nslices: [{sources: [{model: a, layer_range: %s, parameters: {weight: 1}}]}]\n"
TWO = "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 2], parameters: {weight: %s}}]}, {sources: [{model: a, layer_range: [1, 3], parameters: {weight: 1}}]}]\n"  # fmt: skip  # noqa: E501
SLERP = "merge_method: slerp\nbase_model: c\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.5}"
BOMB = "merge_method: &a [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdef", "bcdefg", strict=True)
)

REFUSED = [
    ("", "nor a mergekit file"),
    ("- 1", "nor a mergekit file"),
    ("models: []", "nor a mergekit file"),
    ("{", "not YAML"),
    ("[" * 5000, "nested too deeply"),
    ("a: !!python/object/apply:os.system [echo]\nmerge_method: linear", "not YAML"),
    ("x" * 6_000_000, "too long"),
    (BOMB, "aliases grow without bound"),
    ("merge_method: &m {a: *m}", "aliases grow without bound"),
    ("merge_method: linear\n---\nmerge_method: ties\nname: x", "mergekit-multi runs them.*2 documents: x"),
    ("base_model: a\ngate_mode: random\nexperts: []", "for mergekit-moe.*experts"),
    ("genome: {models: [a]}", "for mergekit-evolve"),
    ("merge_method: linear\nmerge_method: ties", "stands twice.*'merge_method' at line 2"),
    (LINEAR.replace("linear", "dare-ties"), "no such merge method.*'dare-ties'.*Did you mean 'dare_ties'"),
    (LINEAR.replace("linear", "lines"), "no such merge method.*'lines'"),
    (LINEAR.replace("linear", "[linear]"), "no such merge method"),
    (LINEAR + "name: x", "no such key in the file.*'name'"),
    (LINEAR + "tokenizer_source: base", "from the base, and there is none"),
    (LINEAR + "tokenizer_source: base\ntokenizer: {source: base}", "says twice"),
    (LINEAR + "tokenizer_source: z", "tokenizer comes from a model that is not merged.*z.*x/a, y/a"),
    (LINEAR + "tokenizer: {tokens: {<x>: {force: true}}}", "row of '<x>' comes from is not understood"),
    (LINEAR + "tokenizer: {tokens: {<x>: {source: z}}}", "row of '<x>' comes from a model that is not merged.*z"),
    (LINEAR + "tokenizer: {tokens: {<x>: {source: {kind: one}}}}", "is not understood.*'one'"),
    (LINEAR + "tokenizer: {tokens: {<x>: {source: {kind: model_token, model: x/a}}}}", "is not understood"),
    (LINEAR + "tokenizer: {tokens: {<x>: {forse: true}}}", "no such key in the token '<x>'.*'forse'"),
    (LINEAR + "tokenizer: {pad_to_multiple_of: 0}", "padding is not understood.*0"),
    (LINEAR + "tokenizer: {sauce: base}", "no such key in tokenizer.*'sauce'.*Did you mean 'source'"),
    (LINEAR + "chat_template: llama3", "part of mergekit.*'llama3'"),
    (LINEAR + "chat_template: short {", "is no template.*'short {'"),
    (LINEAR + "chat_template: auto", "No model has a chat template"),
    (LINEAR + "dtype: float64", "unknown dtype.*'float64'"),
    (LINEAR + "parameters: {normalise: true}", "'normalise'.*Did you mean 'normalize'"),
    (LINEAR + "parameters: {normalize: maybe}", "illegal value.*normalize of .* = 'maybe'"),
    (LINEAR + "base_model: z", "has no value.*in z, the base_model, which mergekit merges"),
    (LINEAR.replace("weight: 0.5", "weight: x"), "weight of .* = 'x'"),
    (LINEAR.replace("weight: 0.5", "weight: .nan"), "weight of .* = nan"),
    (LINEAR.replace("{weight: 0.5}", "{}"), "has no value.*weight of .* in x/a"),
    (LINEAR.replace("x/a", "x/a+y+z"), r"not understood.*x/a\+y\+z"),
    (LINEAR.replace("x/a", "x/a@1@2"), "not understood"),
    (LINEAR.replace("model: x/a", "model: {path: x/a}"), "not understood"),
    (LINEAR.replace("model: x/a", "model: {model: x/a, override_architecture: L}"), "another architecture.*'L'"),
    (LINEAR.replace("model: x/a", "model: [x]"), "not understood"),
    (LINEAR.replace("model: x/a", "modell: x/a"), "names no model"),
    (LINEAR.replace("x/a", "y/a"), "twice in one slice"),
    (LINEAR.replace("weight: 0.5", "weight: [{filter: a}]"), "setting is not understood"),
    (LINEAR.replace("weight: 0.5", "weight: {filter: 3, value: 1}"), "setting is not understood"),
    (LINEAR.replace("weight: 0.5", "weight: {value: {value: 1}}"), "setting is not understood"),
    (LINEAR.replace("weight: 0.5", "weight: {value: null}"), "setting is not understood"),
    (LINEAR + "slices: [{sources: []}]", "none or several of its forms.*models, slices"),
    ("merge_method: linear\nmodels: {a: 1}", "a list of mappings"),
    ("merge_method: linear\nmodels: []", "none or several of its forms"),
    ("merge_method: linear\nmodules: {vision: {models: []}, text: {models: []}}", "does not have.*vision, text"),
    ("merge_method: linear\nmodules: {default: {models: [], slices: []}}", "names no models|two forms"),
    ("merge_method: slerp\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.5}", "needs a base_model"),
    (SLERP, r"another number of models.*a, b, c \(base_model c is not listed"),
    (TIES.replace("base_model: x/base\n", ""), "needs a base_model"),
    (TIES.replace("x/a", "x/base"), "another number of models.*1 or more beside the base"),
    (TIES.replace("ties", "nearswap").replace("model: x/a", "model: x/a}, {model: x/b"), "exactly 1 beside the base"),
    (SLICE % "[2, 0]", r"does not have|layers that the models.*\[2, 0\]"),
    (SLICE % "3", "layers that the models"),
    (SLICE % "[0, 4]", r"layers that the models.*0 <= start <= end <= 3"),
    (SLICE % "[1, 1]", "no layers"),
    (TWO % "2", r"runs several times, with other numbers.*layers\.1\..*as model\.layers\.2\."),
    (
        "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [1, 3]}]}]",
        "different layers from its sources",
    ),
    (
        "merge_method: ties\nbase_model: c\nslices: [{base_model: b, sources: [{model: a, layer_range: [0, 3]}]}]",
        "needs its base among the sources of every slice.*base b; sources a",
    ),
    (
        "merge_method: ties\nbase_model: c\nparameters: {weight: 1}\n"
        "slices: [{base_model: b, sources: [{model: a, layer_range: [0, 3]}, {model: b, layer_range: [0, 3]}]}]",
        "another base than the file's.*b and c",
    ),
    (
        "merge_method: ties\nparameters: {weight: 1}\nslices: ["
        + ", ".join(
            f"{{base_model: {b}, sources: [{{model: a, layer_range: {r}}}, {{model: {b}, layer_range: {r}}}]}}"
            for b, r in (("b", "[0, 1]"), ("c", "[1, 3]"))
        )
        + "]",
        "bases of their own.*b, c",
    ),
    (
        "merge_method: linear\nparameters: {weight: 1}\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}, "
        "{sources: [{model: a, layer_range: [1, 3]}, {model: b, layer_range: [1, 3]}]}]",
        "more sources than the first.*left out: b",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_files_that_ask_for_something_else_are_refused(text, message):
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        read(text)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (("weight: 0.5", "weight: 1" + "0" * 400), "too large.*line"),
        (("weight: 0.5", "weight: 0x" + "f" * 9000), "too large"),
        (("weight: 0.5", "weight: 1" + "0" * 5000), "not YAML"),
        (("weight: 0.5", "weight: .nan"), "weight of .* = nan"),
        (("weight: 0.5", 'weight: "1e999"'), "weight of .* = '1e999'"),
        (("weight: 0.5", "weight: [0, .inf]"), "weight of "),
        (("merge_method", "dtype: [float32]\nmerge_method"), "unknown dtype"),
        (("merge_method", "out_dtype: {a: 1}\nmerge_method"), "unknown dtype"),
        (("merge_method", "tokenizer: {pad_to_multiple_of: 1000000000000}\nmerge_method"), "from 1 to 65536"),
        (("merge_method", "tokenizer: {tokens: {5: {}}}\nmerge_method"), "wrong type"),
    ],
)
def test_numbers_without_measure_are_refused(edit, message):
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        read(LINEAR.replace(*edit))


def test_whole_numbers_that_no_float_holds_are_refused():
    spec = BUILTIN["linear"].parameters["weight"]
    assert spec.accepts(10**300)
    assert not spec.accepts(10**400)
    with pytest.raises(RecipeError, match="illegal value"):
        number_of(10**400, spec, "weight", "weight")


def test_a_density_that_is_no_number_is_refused():
    text = "merge_method: ties\nbase_model: b\nmodels: [{model: a, parameters: {weight: 1, density: .nan}}]"
    with pytest.raises(RecipeError, match=r"density of .* = nan"):
        read(text)


def test_gradients_and_filters_make_rules():
    settings_ = "weight: [{filter: lm_head, value: 1}, {filter: model.norm, value: 2}, {value: [0, 1]}]"
    rules = read(LINEAR.replace("weight: 0.5", settings_)).rules
    found = [(r.layers, r.roles, r.per_parent["a"]["weight"]) for r in rules]
    assert found == [
        ((), ("embedding",), 0.0),
        ((), ("norm",), 2.0),
        ((), ("head",), 1.0),
        ((0,), None, 0.0),
        ((1,), None, 0.5),
        ((2,), None, 1.0),
    ]


def test_filters_that_tell_tensors_of_one_role_apart_make_rules_of_names():
    tensors = [
        TensorInfo(f"model.layers.{i}.self_attn.{n}", (4, 4), "F32", i, "attention")
        for i in range(2)
        for n in ("k_proj.weight", "q_proj.weight", "v_proj.weight")
    ]
    layout = Layout(2, tuple(tensors))
    weight = "weight: [{filter: q_proj, value: [1, 2]}, {filter: k_, value: 3}, {value: 0}]"
    text = LINEAR.replace("weight: 0.5", weight)
    recipe = from_mergekit(text, Models(lambda ref: layout))
    found = [(r.layers, r.names, r.per_parent["a"]["weight"]) for r in recipe.rules if r.names]
    q, k = ("self_attn.q_proj.weight",), ("self_attn.k_proj.weight",)
    assert [recipe.rule_for(t).per_parent["a"]["weight"] for t in tensors] == [3.0, 1.0, 0.0, 3.0, 2.0, 0.0]
    assert {n for _, n, _ in found} <= {q, k, ("self_attn.v_proj.weight",)}
    assert from_mergekit(to_mergekit(recipe, layout), Models(lambda ref: layout)) == recipe


def test_slices_must_agree_on_the_order_of_their_sources():
    def piece(a, b, layers):
        sources = [f"{{model: {m}, layer_range: {layers}, parameters: {{weight: 1}}}}" for m in (a, b)]
        return f"{{sources: [{', '.join(sources)}]}}"

    text = f"merge_method: linear\nslices: [{piece('a', 'b', [0, 1])}, {piece('b', 'a', [1, 3])}]"
    with pytest.raises(RecipeError, match=r"(?s)order their sources differently.*a, b; b, a"):
        read(text)
    assert len(read(text.replace(piece("b", "a", [1, 3]), piece("a", "b", [1, 3]))).rules) == 1

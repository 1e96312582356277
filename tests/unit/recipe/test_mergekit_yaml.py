"""mergekit files: filters, forms, comments, and what is refused. (What mergekit makes of them: tests/parity.)"""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import RecipeError
from evomerge.layout import Layout, TensorInfo
from evomerge.recipe.mergekit import from_mergekit, mergekit_models, to_mergekit
from evomerge.recipe.mergekit_settings import evaluate_filters, filters_for
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
    assert config_of(linear)["base_model"] == "/zoo/a"  # an unlisted base would be merged in
    assert [m["model"] for m in config_of(linear)["models"]] == ["/zoo/a", "/zoo/b"]
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
        (arithmetic(compat="mergekit"), "BF16", ("bfloat16", None)),
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


@pytest.mark.parametrize("method", BUILTIN)
def test_the_first_lines_say_what_is_exact(method):
    shared = {"t": 0.5} if method == "slerp" else {}
    parents = (A, B) if method == "slerp" else (BASE, A, B)
    base = "base" if BUILTIN[method].needs_base else None
    recipe = Recipe(parents, base, (Rule(method, shared, {} if method == "slerp" else weights(0.5)),), seed=11)
    text = to_mergekit(recipe, llama(), notes=["3 elements differ."])
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert "mergekit-yaml THIS_FILE OUTPUT_FOLDER" in head[1]
    assert ("--random-seed 11" in head[1]) == ("not equal" in text) == method.startswith("dare")
    assert head[-1] == "# 3 elements differ."
    assert ("ties: where weighted deltas cancel" in text) == (method == "ties")
    exact = to_mergekit(replace(recipe, compat="mergekit"), llama())
    assert ("equal bit for bit" in exact) != method.startswith("dare")


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
    back = from_mergekit(text, lambda ref: layout, compat="off")
    assert back.rules[0].per_parent["a"]["density"] == 0.5
    with pytest.raises(RecipeError, match="tells tensors of one role apart"):
        from_mergekit(text, lambda ref: layout, compat="mergekit")


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
    return from_mergekit(text, lambda ref: llama(), **more)


MODELS = "models: [{model: x/a, parameters: {weight: 0.5}}, {model: y/a, parameters: {weight: 0.25}}]"
LINEAR = f"merge_method: linear\n{MODELS}\n"


def test_short_names_are_unique_and_may_be_given():
    assert [p.name for p in read(LINEAR).parents] == ["a", "a-2"]
    assert [p.name for p in read(LINEAR, names={"y/a": "mine"}).parents] == ["a", "mine"]
    seen = []
    from_mergekit(f"base_model: y/a\n{LINEAR}", lambda ref: (seen.append(ref.source), llama())[1])
    assert seen == ["y/a"]


def test_dtypes_choose_the_arithmetic():
    assert (read(LINEAR).dtype, read(LINEAR).compat) == ("parent", "mergekit")
    assert read(LINEAR + "dtype: float16").dtype == "float16"
    assert read(LINEAR + "out_dtype: bfloat16").compat == "mergekit"
    ours = read(LINEAR + "dtype: float32\nout_dtype: bfloat16")
    assert (ours.dtype, ours.compat) == ("bfloat16", "off")
    assert read(LINEAR + "dtype: bfloat16", compat="off").compat == "off"
    for text, compat in (
        ("dtype: float32\nout_dtype: float16", "mergekit"),
        ("dtype: float16\nout_dtype: float32", None),
    ):
        with pytest.raises(RecipeError, match="--compat off"):
            read(LINEAR + text, compat=compat)


def test_the_expanded_form_that_mergekit_saves_is_read():
    slices = "slices: [{sources: [{model: x/a, layer_range: [0, 3], parameters: {weight: 1}}]}]"
    text = f"merge_method: linear\nmodules: {{default: {{{slices}, parameters: {{normalize: false}}}}}}\n"
    recipe = read(text)
    assert recipe.rules == (Rule("linear", {"normalize": False}, {"a": {"weight": 1.0}}),)


TIES = "merge_method: ties\nbase_model: x/base\nmodels: [{model: x/a, parameters: {weight: 1}}]\n"
SLICE = "merge_method: linear\nslices: [{sources: [{model: a, layer_range: %s, parameters: {weight: 1}}]}]\n"
TWO = "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 2], parameters: {weight: 1}}]}, {sources: [{model: a, layer_range: [1, 3], parameters: {weight: 1}}]}]\n"  # fmt: skip  # noqa: E501

REFUSED = [
    ("", "nor a mergekit file"),
    ("- 1", "nor a mergekit file"),
    ("models: []", "nor a mergekit file"),
    ("{", "not YAML"),
    ("[" * 5000, "not YAML"),
    ("a: !!python/object/apply:os.system [echo]\nmerge_method: linear", "not YAML"),
    ("x" * 6_000_000, "too long"),
    ("merge_method: linear\nmodels: &m [{model: a}]\nslices: *m", "uses an alias"),
    ("merge_method: linear\nmerge_method: ties", "stands twice.*'merge_method' at line 2"),
    (LINEAR.replace("linear", "breadcrumbs"), "does not know the merge method.*'breadcrumbs'"),
    (LINEAR + "tokenizer_source: union", "changes the tokenizer.*'union'"),
    (LINEAR + "tokenizer: {source: base}", "something else in the file.*'tokenizer'"),
    (LINEAR + "chat_template: chatml", "'chat_template'"),
    (LINEAR + "dtype: float64", "unknown dtype.*'float64'"),
    (LINEAR + "parameters: {normalise: true}", "'normalise'.*Did you mean 'normalize'"),
    (LINEAR + "parameters: {normalize: maybe}", "illegal value.*normalize of .* = 'maybe'"),
    (LINEAR + "base_model: z", "linear has no base.*'z'"),
    (LINEAR.replace("weight: 0.5", "weight: x"), "weight of .* = 'x'"),
    (LINEAR.replace("{weight: 0.5}", "{}"), "has no value.*weight of"),
    (LINEAR.replace("x/a", "x/a+lora"), r"has a LoRA.*x/a\+lora"),
    (LINEAR.replace("model: x/a", "model: [x]"), "not understood"),
    (LINEAR.replace("model: x/a", "modell: x/a"), "names no model"),
    (LINEAR.replace("x/a", "y/a"), "twice in one slice"),
    (LINEAR.replace("weight: 0.5", "weight: [{filter: a}]"), "setting is not understood"),
    (LINEAR + "slices: []", "both or neither"),
    ("merge_method: linear\nmodels: {a: 1}", "a list of mappings"),
    ("merge_method: linear\nmodels: []", "names no models"),
    ("merge_method: linear\nmodules: {vision: {models: []}, text: {models: []}}", "several towers.*vision, text"),
    ("merge_method: slerp\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.5}", "needs its base"),
    ("merge_method: slerp\nbase_model: c\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.5}", "exactly 2 models"),
    (TIES.replace("base_model: x/base\n", ""), "needs its base"),
    (TIES.replace("x/a", "x/base"), "1 or more models"),
    (SLICE % "[1, 3]", r"moves, repeats or drops layers.*\[1, 3\)"),
    (SLICE % "[0, 2]", r"\[0, 2\).*layers 0 to 3"),
    (SLICE % "[2, 0]", "different layers"),
    (SLICE % "3", "different layers"),
    (TWO, r"moves, repeats or drops layers.*\[0, 2\), \[1, 3\)"),
    (
        "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 3]}, {model: b, layer_range: [1, 4]}]}]",
        "different layers from its sources",
    ),
    (
        "merge_method: linear\nslices: [{base_model: b, sources: [{model: a, layer_range: [0, 3]}]}]",
        "base of its own",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_files_that_ask_for_something_else_are_refused(text, message):
    with pytest.raises(RecipeError, match=f"(?s){message}"):
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


def test_filters_that_tell_tensors_of_one_role_apart_are_refused():
    tensors = [TensorInfo(f"model.layers.0.{n}", (4,), "F32", 0, "attention") for n in ("k_proj", "q_proj")]
    text = LINEAR.replace("weight: 0.5", "weight: [{filter: q_proj, value: 1}, {value: 0}]")
    with pytest.raises(RecipeError, match=r"layers\.0\.k_proj and model\.layers\.0\.q_proj, both attention"):
        from_mergekit(text, lambda ref: Layout(1, tuple(tensors)))


def test_slices_must_agree_on_the_order_of_their_sources():
    def piece(a, b, layers):
        sources = [f"{{model: {m}, layer_range: {layers}, parameters: {{weight: 1}}}}" for m in (a, b)]
        return f"{{sources: [{', '.join(sources)}]}}"

    text = f"merge_method: linear\nslices: [{piece('a', 'b', [0, 1])}, {piece('b', 'a', [1, 3])}]"
    with pytest.raises(RecipeError, match="order their sources differently"):
        read(text)
    assert len(read(text.replace(piece("b", "a", [1, 3]), piece("a", "b", [1, 3]))).rules) == 1

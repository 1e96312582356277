"""What is said about mergekit files that are wrong, and how exported ones are replayed."""

from __future__ import annotations

import pytest

from evomerge.errors import RecipeError
from evomerge.layout import Layout, TensorInfo
from evomerge.recipe.mergekit import Models, from_mergekit, mergekit_models, to_mergekit
from evomerge.recipe.recipe import Making, ParentRef, Recipe, Rule
from evomerge.recipe.retokenizing import ROW_DTYPES

LINEAR = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]\n"
TIES = "merge_method: ties\nbase_model: a\nmodels: [{model: b, parameters: {weight: 1, densty: 0.5}}]\n"


def layout(ref: ParentRef) -> Layout:
    del ref
    tensors = [TensorInfo("model.embed_tokens.weight", (4, 4), "F32", None, "embedding")]
    tensors += [TensorInfo(f"model.layers.{i}.mlp.up_proj.weight", (4, 4), "F32", i, "mlp") for i in range(2)]
    return Layout(2, tuple(tensors))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge_method: linear\n\tmodels: x\n", r"not YAML.*line 2, column 1.*Fix: correct the mergekit file\."),
        ("", r"an empty file.*Fix: write a merge into it"),
        ("a: 1\n", r"keys a.*Fix: .*add `merge_method: NAME`"),
        ("merge_method: linear\nmodels: /some/model\n", r"wrong type.*Fix: write models as a list.*- model: NAME"),
    ],
)
def test_broken_files_are_to_be_corrected(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        mergekit_models(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TIES, r"'densty'\n  Allowed: density, lambda, normalize, rescale, weight\. Did you mean 'density'"),
        (LINEAR + "tokenizer_source: unoin\n", r"unoin\n  Allowed: a, b, base, union\. Did you mean 'union'"),
    ],
)
def test_the_right_word_is_suggested(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        from_mergekit(text, Models(layout))


@pytest.mark.parametrize("method", ["linear", "passthrough"])
def test_files_with_adapters_name_the_option_that_mergekit_needs(method: str) -> None:
    adapter = ParentRef("b", "/b", made=Making("adapter", (), ParentRef("on", "/a"), {"weight": 1.0}))
    rule = Rule("passthrough", {}, {"b": {"scale": 0.5}}) if method == "passthrough" else Rule("linear", {}, {})
    rule = rule if method == "passthrough" else Rule("linear", {}, {"a": {"weight": 0.5}, "b": {"weight": 0.5}})
    option = "mergekit-yaml THIS_FILE OUTPUT_FOLDER --lora-merge-cache CACHE_FOLDER\n"
    first = ParentRef("a", "/a")
    assert option in to_mergekit(Recipe((first, adapter), None, (rule,)), layout(first))
    plain = Recipe((first, ParentRef("b", "/b")), None, (rule,))
    assert "lora" not in to_mergekit(plain, layout(first))


@pytest.mark.parametrize("dtype", [None, *ROW_DTYPES])
def test_rows_of_a_union_have_the_dtype_of_the_file(dtype: str | None) -> None:
    text = LINEAR + "tokenizer_source: union\n" + (f"dtype: {dtype}\n" if dtype else "")
    parent = from_mergekit(text, Models(layout)).parents[0]
    assert parent.made is not None
    wanted = 0 if dtype in (None, "float32") else 1 + ROW_DTYPES.index(dtype)  # the models are in float32
    assert parent.made.settings.get("arithmetic", 0) == wanted

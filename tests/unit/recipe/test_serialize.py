"""Recipe files: round trips, digests, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.digest import canonical_json
from evomerge.errors import RecipeError
from evomerge.layout import ROLES
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.recipe.serialize import (
    recipe_digest,
    recipe_from_json,
    recipe_from_text,
    recipe_to_json,
    recipe_to_text,
)

MODEST = settings(deadline=None, max_examples=80)
NUMBERS = st.one_of(st.booleans(), st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([5e-324, -0.0]))
VALUES = st.dictionaries(st.text(min_size=1, max_size=8), NUMBERS, max_size=3)


@st.composite
def recipes(draw):
    names = draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4, unique=True))
    optional = st.none() | st.text(max_size=8)
    parents = tuple(ParentRef(n, draw(st.text(max_size=8)), draw(optional), draw(optional)) for n in names)
    layers = st.none() | st.lists(st.integers(0, 99), max_size=4).map(tuple)
    roles = st.none() | st.lists(st.sampled_from(ROLES), max_size=3).map(tuple)
    rules = tuple(
        Rule(
            draw(st.text(min_size=1, max_size=8)),
            draw(VALUES),
            draw(st.dictionaries(st.sampled_from(names), VALUES, max_size=3)),
            draw(layers),
            draw(roles),
            draw(st.none() | st.lists(st.text(max_size=8), max_size=2).map(tuple)),
        )
        for _ in range(draw(st.integers(1, 3)))
    )
    return Recipe(
        parents,
        draw(st.none() | st.sampled_from(names)),
        rules,
        draw(st.sampled_from(["parent", "float32", "bfloat16", "float16"])),
        draw(st.sampled_from(["off", "mergekit"])),
        draw(st.integers(0, 2**40)),
        arithmetic=draw(st.sampled_from(["stored", "float32", "bfloat16", "float16"])),
        chat_template=draw(optional),
    )


@MODEST
@given(recipes())
def test_round_trip(recipe):
    assert recipe_from_json(recipe_to_json(recipe)) == recipe
    text = recipe_to_text(recipe)
    back = recipe_from_text(text)
    assert back == recipe
    assert recipe_to_text(back) == text
    assert recipe_digest(back) == recipe_digest(recipe)
    assert text == canonical_json(json.loads(text)) + "\n"


def example(**parent):
    a = ParentRef("a", "zoo/a", **{"content": "c0ffee", **parent})
    rule = Rule("linear", {"normalize": True}, {"a": {"weight": 0.5}, "b": {"weight": 1}}, layers=(0, 1))
    rest = Rule("linear", {"normalize": True}, {"a": {"weight": 0.25}, "b": {"weight": 1.0}})
    return Recipe((a, ParentRef("b", "zoo/b")), None, (rule, rest))


def test_the_file_is_what_the_contract_says():
    value = json.loads(recipe_to_text(example()))
    assert value["format"] == "evomerge.recipe"
    assert value["version"] == 1
    assert value["parents"][0] == {"name": "a", "source": "zoo/a", "revision": None, "content": "c0ffee"}
    assert value["rules"][0]["layers"] == [0, 1]
    assert value["rules"][1]["layers"] is None


def test_one_and_one_point_zero_are_one_recipe():
    one, other = Rule("linear", {}, {"a": {"weight": 1}}), Rule("linear", {}, {"a": {"weight": 1.0}})
    recipe = Recipe((ParentRef("a", "a"),), None, (one,))
    assert recipe == replace(recipe, rules=(other,))
    assert recipe_digest(recipe) == recipe_digest(replace(recipe, rules=(other,)))


def test_a_moved_parent_is_the_same_parent_when_its_content_is_known():
    moved = replace(example(), parents=(ParentRef("a", "elsewhere", "main", "c0ffee"), example().parents[1]))
    assert recipe_digest(moved) == recipe_digest(example())
    unknown = replace(example(), parents=(example().parents[0], ParentRef("b", "elsewhere")))
    assert recipe_digest(unknown) != recipe_digest(example())


@pytest.mark.parametrize(
    "change",
    [
        {"base": "a"},
        {"dtype": "float16"},
        {"compat": "mergekit"},
        {"seed": 1},
        {"parents": example().parents[::-1]},
        {"rules": example().rules[::-1]},
        {"rules": example().rules[:1]},
        {"rules": (replace(example().rules[0], names=("x",)), example().rules[1])},
        {"arithmetic": "float32"},
        {"chat_template": ""},
        {"parents": example(content="beef").parents},
    ],
    ids=str,
)
def test_digests_tell_recipes_apart(change):
    assert recipe_digest(replace(example(), **change)) != recipe_digest(example())


def test_the_digest_never_changes():
    """A golden value: recorded runs and exported checkpoints name recipes by it."""
    assert recipe_digest(example()) == "a84977b95166d3d8f634d60e5d52ddc4ea1f39509fe8f7a4f14658c63f2334df"


NEWER = [
    (("version",), 2, r"unknown key in rules\.0.*'names'|unknown key.*'arithmetic'"),
    (("arithmetic",), "float64", "arithmetic = 'float64'"),
    (("chat_template",), 3, "chat_template = 3"),
    (("rules", 0, "names"), "x", r"rules\.0\.names = 'x'"),
    (("rules", 0, "names"), [3], r"rules\.0\.names\.0 = 3"),
]


@pytest.mark.parametrize(("path", "value", "message"), NEWER)
def test_what_version_3_adds_is_checked(path, value, message):
    named = replace(example().rules[0], names=("x",))
    recipe = replace(example(), rules=(named,), arithmetic="float32", chat_template="{{ messages }}")
    whole = recipe_to_json(recipe)
    assert whole["version"] == 3
    place = whole
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        recipe_from_json(whole)


def changed(path, value):
    whole = recipe_to_json(example())
    place = whole
    for key in path[:-1]:
        place = place[key]
    if value is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return whole


BAD = [
    (("format",), "mergekit", "not a recipe.*mergekit"),
    (("version",), 4, "newer evomerge.*version 1 to 3"),
    (("version",), 0, "no usable version.*version 0"),
    (("version",), True, "version True"),
    (("version",), "1", "version '1'"),
    (("note",), "x", "unknown key.*'note'"),
    (("seed",), KeyError, "no 'seed'"),
    (("seed",), -1, "seed = -1.*>= 0"),
    (("seed",), 1.0, r"seed = 1\.0"),
    (("base",), "c", "base is not among.*'c'"),
    (("base",), 3, "base = 3"),
    (("dtype",), "bf16", "bf16.*Did you mean 'bfloat16'"),
    (("compat",), None, "compat = None"),
    (("parents",), [], "at least one"),
    (("parents",), {}, "parents = {}"),
    (("parents", 0, "name"), "b", "distinct names"),
    (("parents", 0, "path"), "x", r"unknown key in parents\.0.*'path'"),
    (("parents", 0, "content"), 5, r"parents\.0\.content = 5"),
    (("parents", 0, "name"), "\ud800", r"parents\.0\.name"),
    (("rules",), [], "at least one rule"),
    (("rules", 0), 7, r"rules\.0 = 7"),
    (("rules", 0, "method"), None, r"rules\.0\.method = None"),
    (("rules", 0, "layers"), [-1], r"rules\.0\.layers\.0 = -1"),
    (("rules", 0, "layers"), [True], r"layers\.0 = True"),
    (("rules", 0, "roles"), ["atention"], "Did you mean 'attention'"),
    (("rules", 0, "shared"), {"normalize": "yes"}, r"shared\.normalize = 'yes'"),
    (("rules", 0, "shared"), {"x": 10**400}, r"shared\.x = 1000"),
    (("rules", 0, "shared"), {"x": math.nan}, r"shared\.x = nan"),
    (("rules", 0, "per_parent"), {"z": {"weight": 1}}, "unknown parent.*'z'"),
    (("rules", 0, "per_parent", "a"), [1], r"per_parent\.a = \[1\]"),
    (("rules", 0, "note"), 1, r"unknown key in rules\.0"),
    (("rules", 0, "names"), ["x"], r"unknown key in rules\.0.*'names'"),
    (("arithmetic",), "float32", "unknown key.*'arithmetic'"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD)
def test_malformed_recipes_are_refused(path, value, message):
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        recipe_from_json(changed(path, value))


@pytest.mark.parametrize("value", [None, 3, "x", [], {}])
def test_other_json_is_no_recipe(value):
    with pytest.raises(RecipeError, match="not a recipe"):
        recipe_from_json(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"seed": 1' + "0" * 5000 + "}", "not JSON"),
        ('{"seed": NaN}', "not finite.*NaN"),
        ('{"format": "evomerge.recipe", "format": "evomerge.recipe"}', "stands twice.*'format'"),
    ],
    ids=["empty", "open", "deep", "long number", "nan", "twice"],
)
def test_bad_texts_are_refused(text, message):
    with pytest.raises(RecipeError, match=f"(?s){message}"):
        recipe_from_text(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@MODEST
@given(st.sampled_from([p for p, _, _ in BAD if p[0] not in ("format", "version")]), JSON)
def test_anything_is_a_recipe_or_a_recipe_error(path, value):
    try:
        recipe = recipe_from_json(changed(path, value))
    except RecipeError:
        return  # the one error that a malformed recipe may raise
    assert recipe_from_text(recipe_to_text(recipe)) == recipe

"""Paths as values: what is refused, how they are written, and gains as the other form of input scales."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import RecipeError
from evomerge.recipe.baselines import parent_recipe
from evomerge.recipe.path import MAX_HOPS, Hop, check_layers, gains_of_scales, plain_path
from evomerge.recipe.recipe import ParentRef
from evomerge.recipe.serialize import recipe_digest, recipe_from_json, recipe_from_text, recipe_to_json, recipe_to_text

PLAIN = parent_recipe(ParentRef("math", "zoo/math"))
hops = st.builds(
    Hop, st.integers(0, 99), st.sampled_from([None, "math"]), st.floats(-4, 4, allow_nan=False, allow_infinity=False)
)


def test_a_recipe_without_a_path_is_written_as_before() -> None:
    written = recipe_to_json(PLAIN)
    assert (written["version"], "path" in written) == (1, False)


@settings(max_examples=30, deadline=None)
@given(st.lists(hops, min_size=1, max_size=12).map(tuple))
def test_paths_survive_being_written(path: tuple[Hop, ...]) -> None:
    recipe = replace(PLAIN, path=path)
    assert recipe_from_text(recipe_to_text(recipe)) == recipe
    assert recipe_digest(recipe) != recipe_digest(PLAIN)
    assert recipe_to_json(recipe)["version"] == 2


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ((), "no hops"),
        (plain_path(MAX_HOPS + 1), "too long"),
        ((Hop(0), Hop(1, "string")), "hop 1: 'string'"),
    ],
)
def test_bad_paths_are_refused(path: tuple[Hop, ...], match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        replace(PLAIN, path=path)


@pytest.mark.parametrize(("layer", "gain", "match"), [(-1, 1.0, "no layer"), (0, math.nan, "not finite")])
def test_bad_hops_are_refused(layer: int, gain: float, match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        Hop(layer, None, gain)


@pytest.mark.parametrize("row", [["math", 0], ["math", "0", 1.0], ["math", 0, True], [3, 0, 1.0], ["math", True, 1.0]])
def test_malformed_rows_are_refused(row: list[object]) -> None:
    written = recipe_to_json(replace(PLAIN, path=(Hop(0),)))
    written["path"] = [row]
    with pytest.raises(RecipeError, match=r"path\.0"):
        recipe_from_json(written)


def test_a_path_through_unknown_layers_is_refused() -> None:
    check_layers(plain_path(4), 4)
    with pytest.raises(RecipeError, match=r"(?s)hop 4: layer 4.*layers 0 to 3"):
        check_layers(plain_path(5), 4)


def test_gains_are_inverse_cumulative_products() -> None:
    assert gains_of_scales([0.5, 1.0, 4.0]) == (2.0, 2.0, 0.5)
    with pytest.raises(RecipeError, match="positive finite"):
        gains_of_scales([1.0, -1.0])
    with pytest.raises(RecipeError, match="no usable number"):
        gains_of_scales([1e-300, 1e-300])

"""What is kept of many models is equal to what came, and small."""

from __future__ import annotations

import json
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.execution.keeping import PackedRecipe, shared
from evomerge.execution.ledger import Request
from evomerge.types import CandidateId, Digest, Evaluation, TaskAnswers

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_a_packed_recipe_is_the_recipe(recipe: dict[str, object]) -> None:
    packed = PackedRecipe(recipe)
    assert packed.unpacked() == recipe
    assert list(packed) == list(recipe)
    assert packed == recipe
    assert len(packed) == len(recipe)
    request = Request(CandidateId("a"), Digest("b"), recipe)
    assert request.packed().unpacked() == request
    assert request.packed().packed() == request.packed()
    assert request.unpacked() is request


def test_a_packed_recipe_is_small() -> None:
    weights = [{m: {"weight": i / 7} for m in "abc"} for i in range(30)]
    rules = [{"method": "linear", "layers": [i], "per_parent": w} for i, w in enumerate(weights)]
    recipe = {"format": "evomerge.recipe", "rules": rules}
    assert len(json.dumps(recipe)) > 4 * len(PackedRecipe(recipe)._packed)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from([0.0, 1.0, -0.0, 1 / 3, 2.0]), min_size=1, max_size=9), st.booleans())
def test_shared_answers_are_the_answers(scores: list[float], planned: bool) -> None:
    items = tuple(f"i{k}" for k in range(len(scores)))
    order = {"t": tuple(f"i{k}" for k in range(len(scores)))} if planned else {}
    came = Evaluation("search", {"t": TaskAnswers("t", items, tuple(float(str(s)) for s in scores))}, {"total": 1.0})
    kept = shared(came, order)
    assert kept == came
    assert kept.timing_s == came.timing_s
    found = kept.answers["t"].scores
    assert [math.copysign(1.0, s) for s in found] == [math.copysign(1.0, s) for s in scores]
    assert len({id(s) for s in found if s == 1.0}) <= 1
    assert not planned or kept.answers["t"].items is order["t"]

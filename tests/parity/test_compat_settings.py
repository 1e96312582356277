"""`compat: mergekit` against mergekit 0.1.5 at settings, shapes and dtypes that nobody chose."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import MergeError, RecipeError
from evomerge.merging.compat import merge_compat
from evomerge.merging.compat_rules import check_compat_rule
from evomerge.merging.plan import MERGEKIT_METHODS
from evomerge.recipe.methods import method_spec
from evomerge.seeds import generator
from evomerge.testing.peer import GlobalDraws, agreement, mergekit_tensor, models_of, parameters_of, rows_of, shared_of

pytest.importorskip("mergekit")
pytestmark = pytest.mark.parity

SHARE = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
WEIGHT = st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(-2, 2))
NUMBERS = {
    "weight": WEIGHT,
    "density": SHARE,
    "gamma": SHARE,
    "epsilon": st.floats(1e-6, 0.5),
    "scale": WEIGHT,
    "lambda": WEIGHT,
    "t": st.one_of(SHARE, st.floats(0, 1e-3)),
    "eps": st.floats(1e-9, 1e-3),
    "tol": st.floats(1e-7, 0.1),
    "max_iter": st.integers(0, 12),
    "select_topk": SHARE,
    "r": st.floats(0, 2),
    "alpha": st.floats(0, 2),
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@st.composite
def merges(draw):
    """A method, its base, models and setting."""
    method = draw(st.sampled_from(MERGEKIT_METHODS))
    spec = method_spec(method)
    most = 4 if spec.max_models is None else spec.max_models
    count = draw(st.integers(spec.min_models, most))
    setting = {}
    for name, parameter in spec.parameters.items():
        values = st.booleans() if parameter.kind == "flag" else NUMBERS[name]
        setting[name] = tuple(draw(values) for _ in range(count)) if parameter.per_parent else draw(values)
    shape = draw(st.sampled_from([(), (1,), (9,), (1, 6), (6, 1), (17, 23), (2, 5, 8), (70, 70)]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    noise = torch.from_numpy(generator(draw(st.integers(0, 5)), str(shape)).standard_normal((5, *shape)))
    spread = draw(st.sampled_from([0.0, 1e-6, 4e-4, 0.1]))
    base = (noise[0] * 0.02).to(dtype)
    models = [(base.double() + spread * x).to(dtype) for x in noise[1 : count + 1]]
    with_base = spec.needs_base or (spec.takes_base and draw(st.booleans()))
    return method, base if with_base else None, models, setting


def outcome(merge):
    torch.manual_seed(0)
    try:
        return merge()
    except (MergeError, RecipeError, ValueError, RuntimeError, IndexError) as error:
        return error


@settings(deadline=None, max_examples=150)
@given(merges())
def test_any_merge(merge):
    method, base, models, setting = merge
    spec = method_spec(method)
    if models_of(spec, setting) != len(models):  # a setting without values per model is one of three
        models = (models * 3)[: models_of(spec, setting)]
    parameters = parameters_of(method, setting)

    def ours():
        check_compat_rule(method, shared_of(spec, setting), rows_of(spec, setting), parameters.parents)
        return merge_compat(method, base, models, parameters, GlobalDraws())

    theirs, mine = outcome(lambda: mergekit_tensor(method, base, models, setting)), outcome(ours)
    if isinstance(mine, Exception):
        assert isinstance(mine, MergeError | RecipeError)
        assert isinstance(theirs, Exception) or not theirs.isfinite().all()
        return
    assert not isinstance(theirs, Exception)
    assert mine.dtype == theirs.dtype
    assert agreement(mine, theirs).share == 1

"""The YAML language: what it accepts, and what it says about the rest."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import SpaceError
from evomerge.space.dimensions import Choice, Gate, Real
from evomerge.space.language import parse_space

GOOD = {
    "kind": "merge",
    "about": "An example.",
    "method": "ties",
    "depth": "each",
    "modules": "together",
    "parameters": {
        "weight": {"low": -0.5, "high": 1.5, "start": 0.6, "step": 0.05, "spread": 0.2},
        "density": {"low": 0.05, "high": 1, "scale": "log", "step": 0.1, "start": 0.5, "depth": "model"},
        "normalize": {"choices": [True, False], "start": False, "depth": {"blocks": 2}},
        "lambda": {
            "choices": [0.5, 1, 2],
            "start": 1,
            "modules": [["attention"], ["mlp", "norm", "embedding", "head"]],
        },
    },
    "starts": [0.3, 1],
}


def parse(llama, mapping, models=("a", "b"), base="base", line_of=None):
    return parse_space(mapping, models=models, base=base, layout=llama(4), line_of=line_of)


def test_everything_at_once(llama):
    space = parse(llama, GOOD)
    plans = {p.name: p for p in space.plans}
    assert plans["weight"].searched == Real("parameters.weight", -0.5, 1.5, 0.05, start=0.6, spread=0.2)
    assert plans["density"].searched == Real("parameters.density", 0.05, 1, 0.1, "log", start=0.5)
    assert plans["normalize"].searched == Gate("parameters.normalize", False)
    assert plans["lambda"].searched == Choice("parameters.lambda", (0.5, 1.0, 2.0), 1.0)
    assert space.starts == (0.3, 1.0)
    assert space.space.dim == 2 * 6 + 2 * 1 + 2 + (4 + 4 + 2)


def test_defaults(llama):
    short = parse(llama, {"method": "linear", "parameters": {"weight": {"low": 0, "high": 1}}}, base=None)
    long = parse(
        llama,
        {
            "kind": "merge",
            "method": "linear",
            "depth": "each",
            "modules": "together",
            "parameters": {"weight": {"low": 0, "high": 1, "step": 0.01, "scale": "linear"}, "normalize": True},
        },
        base=None,
    )
    assert short == long
    assert short.starts == ()
    assert parse(llama, {"method": "linear", "parameters": {"weight": {"low": 0, "high": 1}}}).starts == (0.3, 0.5, 0.7)


def changed(path, value):
    mapping = copy.deepcopy(GOOD)
    place = mapping
    for key in path[:-1]:
        place = place[key]
    if value is None:
        place.pop(path[-1], None)
    else:
        place[path[-1]] = value
    return mapping


W = ("parameters", "weight")
BAD = [
    (("kind",), "paths", r"kind: 'paths'.*Did you mean 'path'"),
    (("depht",), "each", r"depht: 'depht'.*Did you mean 'depth'"),
    (("about",), 3, r"about: 3"),
    (("method",), None, r"method is missing.*dare_linear, dare_ties.*linear.*slerp, task_arithmetic, .*ties"),
    (("method",), "dare-ties", r"method: 'dare-ties'.*Did you mean 'dare_ties'"),
    (("method",), ["ties"], r"method is unknown"),
    (("method",), "slerp", r"exactly 2 models|parameters"),
    (("depth",), "layers", r"depth: 'layers'.*knots: N"),
    (("depth",), {"knots": 0}, r"depth\.knots: 0.*>= 1"),
    (("depth",), {"knots": True}, r"depth\.knots: True"),
    (("depth",), {"knots": 2, "blocks": 2}, r"depth is not understood"),
    (("depth",), ["each"], r"depth: \['each'\]"),
    (("modules",), "alone", r"modules: 'alone'"),
    (("modules",), [["attention"]], r"without embedding, mlp, norm, head"),
    (("modules",), [["attention"], []], r"modules are not understood"),
    (("modules",), [["attention", "mpl"]], r"modules\.0\.1: 'mpl'.*Did you mean 'mlp'"),
    (("modules",), [["attention"], ["attention"]], r"modules\.1\.0.*'attention'"),
    (("modules",), [["attention", 3]], r"modules\.0\.1: 3"),
    (("parameters",), [1], r"parameters: \[1\].*mapping"),
    (("parameters", "wieght"), {"low": 0, "high": 1}, r"parameters\.wieght.*Did you mean 'weight'"),
    (W, None, r"parameter 'weight' is missing"),
    (W, "half", r"parameters\.weight: 'half'.*finite number"),
    ((*W, "lwo"), 0, r"parameters\.weight\.lwo.*Did you mean 'low'"),
    ((*W, "low"), None, r"parameters\.weight\.low.*nothing"),
    ((*W, "low"), "abc", r"parameters\.weight\.low: 'abc'"),
    ((*W, "low"), "1e-1", r"write 1\.0e-01 with a decimal point"),
    ((*W, "low"), True, r"parameters\.weight\.low: True"),
    ((*W, "low"), 2, r"empty range"),
    ((*W, "step"), "1/0", r"parameters\.weight\.step: '1/0'"),
    ((*W, "step"), 0.07, r"high 1\.46 for instance"),
    ((*W, "scale"), "lin", r"Did you mean 'linear'"),
    ((*W, "scale"), "log", r"low > 0"),
    ((*W, "start"), 9, r"starts outside its range.*\n  Got: 9"),
    ((*W, "spread"), -1, r"unusable spread"),
    ((*W, "depth"), 4, r"parameters\.weight\.depth: 4"),
    (("parameters", "density", "low"), -0.1, r"parameters\.density\.low: -0\.1.*\[0, 1\]"),
    (("parameters", "density"), 1.5, r"parameters\.density: 1\.5.*\[0, 1\]"),
    (("parameters", "normalize"), 1, r"parameters\.normalize: 1.*true or false"),
    (("parameters", "normalize", "low"), 0, r"parameters\.normalize\.low"),
    (("parameters", "normalize", "choices"), [True], r"two or more, distinct"),
    (("parameters", "normalize", "choices"), [True, 0], r"choices\.1: 0"),
    (("parameters", "normalize", "depth"), {"knots": 2}, r"choices cannot be interpolated"),
    (("parameters", "lambda", "choices"), 3, r"parameters\.lambda\.choices: 3"),
    (("parameters", "lambda", "choices"), [], r"two or more, distinct"),
    (("parameters", "lambda", "start"), 3, r"does not hold a value"),
    (("starts",), 0.3, r"starts: 0\.3"),
    (("starts",), [0.3, "x"], r"starts\.1: 'x'"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD, ids=lambda x: ".".join(x) if isinstance(x, tuple) else None)
def test_problems_name_their_path(llama, path, value, message):
    with pytest.raises(SpaceError, match=f"(?s){message}"):
        parse(llama, changed(path, value), models=("a", "b", "c"))


def test_lines_are_told_where_they_are_known(llama):
    lines = {("parameters", "weight"): 8, ("parameters", "weight", "low"): 9}
    with pytest.raises(SpaceError, match=r"weight\.low: 'abc' \(line 9\)"):
        parse(llama, changed((*W, "low"), "abc"), line_of=lines.get)
    with pytest.raises(SpaceError, match=r"low 2\.0, high 1\.5 \(line 8\)"):
        parse(llama, changed((*W, "low"), 2), line_of=lines.get)


def test_methods_say_which_parents_they_need(llama):
    with pytest.raises(SpaceError, match="takes deltas from a base"):
        parse(llama, GOOD, base=None)
    slerp = {"method": "slerp", "parameters": {"t": {"low": 0, "high": 1}}}
    with pytest.raises(SpaceError, match=r"3 models \(a, b, c\)"):
        parse(llama, slerp, models=("a", "b", "c"))
    with pytest.raises(SpaceError, match=r"starts only where parents\.base is given"):
        parse(llama, {**slerp, "starts": [0.5]}, base=None)


def test_a_space_without_genes_is_refused(llama):
    with pytest.raises(SpaceError, match="nothing to search"):
        parse(llama, {"method": "linear", "parameters": {"weight": 1}})


@pytest.mark.parametrize("value", [None, 3, "ties", [], {1: 2}])
def test_only_mappings_are_spaces(llama, value):
    with pytest.raises(SpaceError, match="a mapping is expected"):
        parse(llama, value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from([path for path, _, _ in BAD]), JSON)
def test_anything_is_a_space_or_a_space_error(llama, path, value):
    try:
        space = parse(llama, changed(path, value))
    except SpaceError:
        return  # the one error that a malformed space may raise
    assert space.space.dim >= 1

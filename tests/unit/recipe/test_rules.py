"""Rules from parameters per kind of tensor: they give each kind its own, and are few."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError, PluginError
from evomerge.layout import Layout, TensorInfo
from evomerge.recipe.mergekit_specs import LINEAR
from evomerge.recipe.method_spec import MethodSpec, ParameterSpec
from evomerge.recipe.methods import BUILTIN, method_names, method_spec
from evomerge.recipe.recipe import ParentRef, Recipe
from evomerge.recipe.rules import Assignment, Kind, kinds_of, rules_of

ROLES = ("attention", "mlp", "norm")


def layout(n_layers):
    outside = [("e", "embedding"), ("n", "norm"), ("h", "head")]
    tensors = [TensorInfo(name, (1,), "F32", None, role) for name, role in outside]
    tensors += [TensorInfo(f"l{i:02}.{r}", (1,), "F32", i, r) for i in range(n_layers) for r in ROLES]
    return Layout(n_layers, tuple(sorted(tensors, key=lambda t: t.name)))


def assignment(number):
    return Assignment.of({"normalize": False}, {"a": {"weight": float(number)}})


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 5), st.integers(1, 4), st.randoms(use_true_random=False))
def test_every_kind_keeps_its_numbers(n_layers, n_numbers, random):
    whole = layout(n_layers)
    wanted = {kind: random.randrange(n_numbers) for kind in kinds_of(whole)}
    rules = rules_of("linear", {kind: assignment(n) for kind, n in wanted.items()})
    recipe = Recipe((ParentRef("a", "a"),), None, rules)
    for tensor in whole.tensors:
        assert recipe.rule_for(tensor).per_parent["a"]["weight"] == wanted[Kind(tensor.layer, tensor.role)]
    assert len(rules) <= len(wanted)
    assert len({(r.layers, r.roles) for r in rules}) == len(rules)


def test_equal_numbers_make_one_rule():
    rules = rules_of("linear", {kind: assignment(1) for kind in kinds_of(layout(9))})
    assert [(r.layers, r.roles) for r in rules] == [(None, None)]


def test_equal_layers_share_a_rule():
    kinds = kinds_of(layout(4))
    rules = rules_of("linear", {k: assignment(0 if k.layer is None else k.layer % 2) for k in kinds})
    assert [(r.layers, r.roles) for r in rules] == [((), None), ((0, 2), None), ((1, 3), None)]
    rules = rules_of("linear", {k: assignment(k.role == "mlp") for k in kinds})
    assert [(r.layers, r.roles) for r in rules] == [
        ((), None),
        ((0, 1, 2, 3), ("attention", "norm")),
        ((0, 1, 2, 3), ("mlp",)),
    ]


def test_kinds_are_ordered_and_complete():
    assert kinds_of(layout(1)) == (
        Kind(None, "embedding"),
        Kind(None, "norm"),
        Kind(None, "head"),
        Kind(0, "attention"),
        Kind(0, "mlp"),
        Kind(0, "norm"),
    )


def test_methods_are_listed_and_suggested():
    assert set(method_names()) >= set(BUILTIN)
    assert method_spec("linear") is LINEAR
    with pytest.raises(ConfigError, match=r"(?s)'tise'.*Did you mean 'ties'"):
        method_spec("tise")


class _Point:
    """An installed plug-in, as importlib.metadata presents it."""

    def __init__(self, name, loaded):
        self.name, self._loaded, self.dist = name, loaded, None

    def load(self):
        return self._loaded


def test_plugins_bring_their_spec(monkeypatch):
    mine = MethodSpec("mine", False, 1, None, {"weight": ParameterSpec(True, "real", None)})
    holder = type("Method", (), {"spec": mine})
    points = [_Point("mine", holder), _Point("broken", object())]
    monkeypatch.setattr("evomerge.registry.entry_points", lambda group: points)
    assert method_spec("mine") is mine
    assert "mine" in method_names()
    with pytest.raises(PluginError, match="'broken' does not say what it asks for"):
        method_spec("broken")


@pytest.mark.parametrize(
    ("spec", "good", "bad"),
    [
        (ParameterSpec(True, "real", None), [0, -1.5, 1e9], [True, "1", float("nan"), float("inf"), None]),
        (ParameterSpec(True, "real", 1.0, 0.0, 1.0), [0, 1, 0.5], [-0.1, 1.1]),
        (ParameterSpec(False, "flag", True), [True, False], [0, 1.0, "true", None]),
    ],
)
def test_parameters_accept_what_they_say(spec, good, bad):
    assert all(spec.accepts(v) for v in good)
    assert not any(spec.accepts(v) for v in bad)
    assert spec.allowed


def test_methods_say_how_many_models():
    assert BUILTIN["slerp"].models_allowed() == "exactly 2"
    assert LINEAR.models_allowed() == "1 or more"
    assert MethodSpec("m", False, 1, 3).models_allowed() == "1 to 3"

"""Every preset of merges in search_spaces/ has the genes that its comment promises, and builds legal recipes."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.recipe.baselines import parent_recipe, soup_recipe, task_arithmetic_recipe
from evomerge.recipe.methods import method_spec
from evomerge.recipe.recipe import ParentRef
from evomerge.resources import data_folder
from evomerge.space.language import parse_space
from evomerge.space.method_choice import together

ALL = sorted(data_folder("search_spaces").rglob("*.yaml"))
FILES = [f for f in ALL if yaml.safe_load(f.read_text())["kind"] == "merge"]
WANTED = {
    "model-wise-linear",
    "layer-wise-task-arithmetic",
    "layer-wise-ties",
    "layer-and-module-wise",
    "dare-ties",
    "slerp",
    "smooth-task-arithmetic",
    "smooth-ties",
    "universal",
    "method-per-block",
}
GENES = {
    "one per model": lambda m, _: m,
    "models x (layers + 2)": lambda m, layers: m * (layers + 2),
    "2 x models x (layers + 2)": lambda m, layers: 2 * m * (layers + 2),
    "models x (3 x layers + 2)": lambda m, layers: m * (3 * layers + 2),
    "2 x models": lambda m, _: 2 * m,
    "4 x models": lambda m, _: 4 * m,
    "5 x models": lambda m, _: 5 * m,
    "layers + 2": lambda _, layers: layers + 2,
    "6 x models + 3": lambda m, _: 6 * m + 3,
    "5 x models + 14": lambda m, _: 5 * m + 14,
}
MAX_GENES = {"smooth-task-arithmetic": 4 * 3, "smooth-ties": 5 * 3, "dare-ties": 2 * 3, "model-wise-linear": 3}
MAX_GENES |= {"universal": 6 * 3 + 3, "method-per-block": 5 * 3 + 14}


def test_the_presets_that_users_are_promised_exist():
    assert {f.stem for f in FILES} >= WANTED


@cache
def text(path):
    return path.read_text()


def spec_of(path):
    """What the preset's method asks for; of several together."""
    method = yaml.safe_load(text(path))["method"]
    return method_spec(method) if isinstance(method, str) else together([method_spec(m) for m in method["choices"]])


class Case(NamedTuple):
    path: Path
    n: int
    layers: int


def cases():
    found = []
    for path in FILES:
        spec = spec_of(path)
        counts = [n for n in (2, 3, 16) if spec.max_models is None or n <= spec.max_models]
        found += [
            pytest.param(Case(path, n, layers), id=f"{path.stem}-{n}-{layers}") for n in counts for layers in (4, 48)
        ]
    return found


def names(n):
    return [f"m{i}" for i in range(n)]


def refs(n):
    return tuple(ParentRef(name, name) for name in ["base", *names(n)])


@cache
def space_of(path, n, llama, layers):
    return parse_space(yaml.safe_load(text(path)), models=names(n), base="base", layout=llama(layers))


@pytest.mark.parametrize("case", cases())
def test_genes_are_as_many_as_the_comment_says(llama, case):
    path, n, layers = case
    promised = re.search(r"Genes: (.*)\.\n", text(path)).group(1)
    assert space_of(path, n, llama, layers).space.dim == GENES[promised](n, layers)
    assert text(path).startswith(f"# evomerge search job.yaml --set space={path.stem}\n")


@pytest.mark.parametrize("case", cases())
@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 2**32 - 1), corner=st.sampled_from([None, 0.0, 1.0]))
def test_every_vector_is_a_legal_recipe(llama, case, seed, corner):
    path, n, layers = case
    space = space_of(path, n, llama, layers)
    vector = np.random.default_rng(seed).random(space.space.dim) if corner is None else np.full(space.space.dim, corner)
    recipe = space.build(space.space.decode(vector), parents=refs(n), base="base", seed=1)
    for tensor in space.layout.tensors:
        rule = recipe.rule_for(tensor)
        spec = method_spec(rule.method)
        assert all(spec.parameters[k].accepts(v) for k, v in rule.shared.items())
        assert all(spec.parameters[k].accepts(v) for values in rule.per_parent.values() for k, v in values.items())


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_generation_zero_lies_on_the_grid(llama, path, n):
    spec = spec_of(path)
    if spec.max_models is not None and n > spec.max_models:
        pytest.skip(f"{spec.name} merges {spec.models_allowed()}")
    space = space_of(path, n, llama, 4)
    models = refs(n)[1:]
    held = [parent_recipe(m) for m in models]
    if spec.name in ("linear", "task_arithmetic", "universal") or "|" in spec.name:
        held.append(soup_recipe(models))
    if spec.name in ("task_arithmetic", "universal") or "|" in spec.name:
        held += [task_arithmetic_recipe(models, refs(n)[0], s) for s in space.starts]
        assert len(space.starts) == 3
    assert all(space.encode_recipe(recipe, seed=1) is not None for recipe in held)


@pytest.mark.parametrize("name", MAX_GENES)
def test_small_genomes_stay_small_on_deep_models(llama, name):
    path = next(f for f in FILES if f.stem == name)
    assert space_of(path, 3, llama, 48).space.dim == MAX_GENES[name]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_presets_write_every_default_and_describe_themselves(path):
    mapping = yaml.safe_load(text(path))
    spec = spec_of(path)
    assert {"kind", "about", "method", "depth", "modules", "parameters"} <= set(mapping)
    assert set(mapping["parameters"]) == set(spec.parameters)


def test_the_example_in_the_documentation_is_what_it_says(llama):
    page = (Path(__file__).parents[3] / "docs" / "spaces.md").read_text()
    example = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    promised = int(re.search(r"(\d+) genes for any number of layers", page).group(1))
    for layers in (4, 48):
        space = parse_space(example, models=names(3), base="base", layout=llama(layers))
        assert space.space.dim == promised

"""Every preset of paths in search_spaces/ has the genes that its comment promises, and starts from a plain model."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from path_cases import MODELS, REFS, build, decoded, parse

from evomerge.recipe.baselines import parent_recipe
from evomerge.recipe.path import check_layers, plain_path
from evomerge.resources import data_folder
from evomerge.space.path_language import COMMON, OWN

FILES = {f.stem: f.read_text() for f in sorted(data_folder("search_spaces").rglob("*.yaml"))}
SPACES = {name: yaml.safe_load(text) for name, text in FILES.items()}
PATHS = [name for name, mapping in SPACES.items() if mapping["kind"] != "merge"]
GENES = {
    "layer-path-slots": ("2 x 3 x models x layers + 2", lambda m, n: 2 * 3 * m * n + 2),
    "repeat-window": ("3", lambda m, n: 3),
    "repeat-windows": ("9", lambda m, n: 9),
    "layer-skips": ("layers", lambda m, n: n),
    "layer-gains": ("2 x layers", lambda m, n: 2 * n),
    "layer-path-free": ("layers + 2", lambda m, n: n + 2),
    "layer-stack": ("layers", lambda m, n: n),
    "weights-and-path": ("models x (layers + 2) + 6", lambda m, n: m * (n + 2) + 6),
}


def test_the_presets_that_users_are_promised_exist():
    assert set(PATHS) == set(GENES)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("n_layers", [4, 32])
def test_genes_are_as_many_as_the_comment_says(name, n_layers):
    promised, count = GENES[name]
    assert re.search(r"Genes: (.*)\.\n", FILES[name]).group(1) == promised
    assert FILES[name].startswith(f"# evomerge search job.yaml --set space={name}\n")
    assert parse(SPACES[name], n_layers).space.dim == count(len(MODELS), n_layers)


@pytest.mark.parametrize("name", PATHS)
def test_every_vector_is_legal_and_the_first_parent_is_held(name):
    space = parse(SPACES[name], 6)
    random = np.random.default_rng(1)
    for corner in (random.random(space.space.dim), np.zeros(space.space.dim), np.ones(space.space.dim)):
        check_layers(decoded(space, corner).path or plain_path(6), 6)
    assert build(space, space.space.decode(space.encode_recipe(parent_recipe(REFS[1]), seed=0))).path is None


@pytest.mark.parametrize("name", PATHS)
def test_presets_describe_themselves_and_write_what_matters(name):
    mapping = SPACES[name]
    assert len(mapping["about"]) < 110
    inner = mapping["path"] if mapping["kind"] == "both" else mapping
    optional = {"about", "sources", "embeddings", "max_hops", "gains", "scales", "reach", "length", "from"}
    assert set(COMMON) | set(OWN[inner["genotype"]]) >= set(inner)
    assert set(inner) >= {*COMMON, *OWN[inner["genotype"]]} - optional
    assert {"gains", "scales"} & set(inner)


def test_the_examples_in_the_documentation_are_spaces():
    page = (Path(__file__).parents[3] / "docs" / "spaces.md").read_text()
    examples = [yaml.safe_load(block.split("```")[0]) for block in page.split("```yaml\n")[1:]]
    kinds = {e["kind"]: e for e in examples}
    assert list(kinds) == ["merge", "path", "both"]
    assert parse(kinds["path"], models=("math", "code")).space.dim == 2 * 4 + 5 + 5 * 2
    both = {**kinds["both"], "merge": SPACES[kinds["both"]["merge"]]}
    assert parse(both).space.dim == 2 * 4 + 3

"""Path spaces over small models, for the tests of paths."""

from __future__ import annotations

from itertools import product

import numpy as np

from evomerge.layout import Layout, TensorInfo
from evomerge.recipe.recipe import ParentRef
from evomerge.space.language import parse_space

MODELS = ("a", "b")
REFS = tuple(ParentRef(name, f"/models/{name}") for name in ("base", *MODELS))
MERGE = {
    "method": "task_arithmetic",
    "depth": "each",
    "parameters": {"weight": {"low": 0, "high": 1.5, "step": "1/60", "start": 0.6}},
}

GENOTYPES = (
    {"genotype": "slots", "repeats": 2},
    {"genotype": "slots", "fixed_ends": False, "max_hops": 6},
    {"genotype": "windows", "windows": 3, "from": "any", "max_hops": 9},
    {"genotype": "windows", "fixed_ends": True, "times": 4},
    {"genotype": "windows", "windows": 2, "from": "b"},
    {"genotype": "skips"},
    {"genotype": "skips", "fixed_ends": True},
    {"genotype": "free", "length": {"extra": 2}, "reach": 2},
    {"genotype": "free", "reach": 0, "sources": ["b", "base", "a"], "embeddings": "base"},
    {"genotype": "free", "fixed_ends": True, "length": 7},
)
ADDS = (
    {},
    {"gains": {"low": 0.25, "high": 2}},
    {"scales": {"low": 0.4, "high": 1.5}},
    {"scales": {"low": 0.4, "high": 1.5, "per": "transition"}},
)
MAPPINGS = tuple({"kind": "path", **genotype, **adds} for genotype, adds in product(GENOTYPES, ADDS))


def layout(n_layers):
    """Two roles per layer, embeddings and a head."""
    tensors = [TensorInfo("embed", (4,), "F32", None, "embedding"), TensorInfo("head", (4,), "F32", None, "head")]
    for i in range(n_layers):
        tensors += [TensorInfo(f"layers.{i}.{role}", (4,), "F32", i, role) for role in ("attention", "mlp")]
    return Layout(n_layers, tuple(sorted(tensors, key=lambda t: t.name)))


def parse(mapping, n_layers=5, models=MODELS, base="base", line_of=None):
    return parse_space(mapping, models=models, base=base, layout=layout(n_layers), line_of=line_of)


def path(n_layers=5, models=MODELS, **mapping):
    return parse({"kind": "path", **mapping}, n_layers, models)


def build(space, values, parents=REFS):
    return space.build(values, parents=parents, base="base", seed=3)


def decoded(space, vector):
    return build(space, space.space.decode(np.asarray(vector, dtype=float)))


def some_vector(space, random):
    """Genes that often keep their start, so that short and plain paths occur too."""
    keep = random.random(space.space.dim) < random.choice([0.0, 0.5, 0.9])
    return np.where(keep, space.space.start, random.random(space.space.dim))


def hops(recipe):
    """(parent, layer) of every hop."""
    return [(h.parent, h.layer) for h in recipe.path]

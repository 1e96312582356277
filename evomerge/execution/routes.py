"""Which candidates begin alike: the route of a recipe, and how far two routes agree.

Routes decide in which order candidates are scored and by which worker, never what comes out: workers keep what the
first layers of a path compute (`dataflow.prefixes`), and find it again when the next candidate begins the same way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

Route = tuple[str, ...]


def route_of(recipe: Mapping[str, Any]) -> Route:
    """What a candidate computes, step by step, as short texts; empty for a recipe without a path.

    Args:
        recipe: its JSON object.
    """
    path = recipe.get("path")
    if not path:
        return ()
    rules = recipe["rules"]
    form = [recipe[key] for key in ("base", "dtype", "compat", "seed")]
    merged = {layer: _short(_of_layer(rules, layer)) for layer in {layer for parent, layer, _ in path if not parent}}
    hops = [f"{merged[layer] if parent is None else parent} {layer} {gain!r}" for parent, layer, gain in path]
    return (_short([form, _of_embedding(rules)]), *hops)


def _of_layer(rules: Sequence[Mapping[str, Any]], layer: int) -> list[Any]:
    """What the rules say of one layer."""
    return [_said(r) for r in rules if r["layers"] is None or layer in r["layers"]]


def _of_embedding(rules: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What the rules say of what stands before the layers."""
    return [_said(r) for r in rules if not r["layers"] and "embedding" in (r["roles"] or ("embedding",))]


def _said(rule: Mapping[str, Any]) -> list[Any]:
    return [rule["method"], rule["shared"], rule["per_parent"], rule["roles"]]


def _short(value: list[Any]) -> str:
    return hashlib.blake2b(repr(value).encode(), digest_size=6).hexdigest()


def agreement(a: Route, b: Route) -> int:
    """How many first steps two routes share."""
    for n, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return n
    return min(len(a), len(b))

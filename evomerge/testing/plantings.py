"""Parents in which a model is hidden: its layers among noise, in another order, or with others in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from torch import nn
from transformers import LlamaForCausalLM

from evomerge.seeds import derive_seed, generator
from evomerge.space.path_plan import PathPlan
from evomerge.testing.deep_model import noise_like
from evomerge.testing.planted_paths import Planting


def _noise(layer: nn.Module, planting: str, seed: int, *where: int) -> nn.Module:
    return noise_like(layer, derive_seed(seed, "planted", planting, *where))


def complementary(model: LlamaForCausalLM, seed: int = 0) -> Planting:
    """Two parents, each with noise in place of half of the layers, the other half of the other one's.

    Free paths with a reach of 1.
    """
    layers = list(model.model.layers)
    rng = generator(seed, "planted", "complementary")
    kept = {int(i) for i in rng.permutation(len(layers))[: len(layers) // 2]}
    a = tuple(x if i in kept else _noise(x, "complementary", seed, 0, i) for i, x in enumerate(layers))
    b = tuple(_noise(x, "complementary", seed, 1, i) if i in kept else x for i, x in enumerate(layers))
    hidden = tuple(("a" if i in kept else "b", i) for i in range(len(layers)))
    return Planting("noise", model, {"a": a, "b": b}, PathPlan("free", reach=1), hidden)


def permuted(model: LlamaForCausalLM, seed: int = 0) -> Planting:
    """Two parents with the layers in another order, no layer further than 2 from its place.

    Free paths with a reach of 2.
    """
    layers = list(model.model.layers)
    n = len(layers)
    rng = generator(seed, "planted", "permuted")
    orders = []
    for _ in range(2):
        while True:
            order = sorted(range(n), key=lambda i: i + float(rng.uniform(-1.5, 1.5)))
            moved = sum(o != i for i, o in enumerate(order))
            if max(abs(o - i) for i, o in enumerate(order)) <= 2 and moved >= n // 2:
                break
        orders.append(order)
    parents = {name: tuple(layers[i] for i in order) for name, order in zip("ab", orders, strict=True)}
    hidden = tuple(("a", orders[0].index(i)) for i in range(n))
    return Planting("permuted", model, parents, PathPlan("free", reach=2), hidden)


def stacked(model: LlamaForCausalLM, seed: int = 0) -> Planting:
    """Three parents: the first layers are right in one, the middle ones in another, the last ones in the third.

    Slots: all layers of the three in sequence, each on or off.
    """
    layers = list(model.model.layers)
    n = len(layers)
    owner = {i: "abc"[3 * i // n] for i in range(n)}
    parents = {
        name: tuple(x if owner[i] == name else _noise(x, "stacked", seed, k, i) for i, x in enumerate(layers))
        for k, name in enumerate("abc")
    }
    return Planting("stacked", model, parents, PathPlan("slots"), tuple((owner[i], i) for i in range(n)))


def inserted(model: LlamaForCausalLM, seed: int = 0) -> Planting:
    """One parent with layers that do not belong: two runs of three, noise but for a copy in the middle.

    Three repeat windows, which may leave their layers out; two of them suffice.
    """
    layers = list(model.model.layers)
    n = len(layers)
    stack: list[tuple[nn.Module, int | None]] = []
    for i, layer in enumerate(layers):
        stack.append((layer, i))
        if i in (0, n // 4):  # behind later layers noise is small beside what the stream holds
            noise = (_noise(layer, "inserted", seed, i, k) for k in range(2))
            foreign = (next(noise), layers[(i + n // 2) % n], next(noise))
            stack += [(other, None) for other in foreign]
    hidden = tuple(("a", k) for k, (_, i) in enumerate(stack) if i is not None)
    parents = {"a": tuple(layer for layer, _ in stack)}
    return Planting("inserted", model, parents, PathPlan("windows", windows=3), hidden)


PLANTINGS: Final[Mapping[str, Callable[[LlamaForCausalLM], Planting]]] = {
    "noise": complementary,
    "permuted": permuted,
    "stacked": stacked,
    "inserted": inserted,
}
"""Problems by name, each of at least a million genotypes for a model of eight layers."""

"""Search problems over real models whose best path is known: it was planted.

A small Llama-style model is trained on one skill of the zoo until it is right almost always, and so that every layer is
needed (`train_deep`). Its layers are then hidden in parents that are worth little by themselves: replaced by noise,
permuted, or mixed with layers that do not belong. A path that runs the right layers in the right order restores the
model; of at least a million paths only few do.

Fitness is what a job would measure: the log-likelihood of the right answers, or the share of items answered
right. Paths run layer by layer, prefixes that were run lately are remembered, and every path is scored once.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer as TorchOptimizer
from transformers import LlamaForCausalLM

from evomerge.optimizers.base import Optimizer, Problem, Told
from evomerge.recipe.path import Hop, Hops
from evomerge.seeds import derive_seed, generator
from evomerge.space.path_plan import PathPlan
from evomerge.space.path_space import Paths
from evomerge.space.space import SearchSpace
from evomerge.space.steps import Wanted
from evomerge.types import Vector
from evomerge.zoo.model import make_model
from evomerge.zoo.problems import draw_batch, draw_distinct
from evomerge.zoo.scoring import IGNORED, make_batch
from evomerge.zoo.spec import ModelSize

NEEDED: Final = 0.3
"""Cross-entropy per token that a model must at least have per layer left out, or when two are exchanged.

One layer that is missing makes some two answers in three wrong. What is missing adds up: otherwise training finds
pairs of layers of which the second repairs what the first spoils, and either alone is worse than none.
"""

MOST_MISSING: Final = 4
"""So many layers are left out at most while training."""

WITHIN: Final = 0.02
"""A path restores the model when its held-out accuracy is lower by at most this: two standard errors on 400 items."""

REMEMBERED: Final = 400
"""Prefixes of paths whose hidden states are kept."""


class Training(NamedTuple):
    """How a model is trained; a pure function of its fields and the machine."""

    size: ModelSize
    skill: str = "rev"
    steps: int = 500
    batch: int = 64
    seed: int = 0


DEEP: Final = Training(ModelSize(hidden=32, intermediate=64, layers=8, heads=4))
"""Right on all of 200 held-out items; half a minute on one core."""


def _turned(model: LlamaForCausalLM, length: int) -> tuple[Tensor, Tensor]:
    """Cosines of the rotary embedding, and sines with the first half negated; `[length, head width]` each."""
    cos, sin = model.model.rotary_emb(torch.zeros(1), torch.arange(length)[None])
    half = sin.shape[-1] // 2
    return cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)


def run_layer(layer: Any, hidden: Tensor, turned: tuple[Tensor, Tensor], gain: float = 1.0) -> Tensor:
    """Hidden states behind a Llama layer whose branches are multiplied by `gain`, `[items, length, width]`.

    The layer's own arithmetic in fewer operations: models of this size spend their time between them.
    """
    attention, mlp = layer.self_attn, layer.mlp
    cos, sin = turned
    n, length, width = hidden.shape
    x = _normed(layer.input_layernorm, hidden)
    q, k, v = (
        functional.linear(x, part.weight).view(n, length, -1, attention.head_dim).transpose(1, 2)
        for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    q, k = (t * cos + torch.cat(t.chunk(2, -1)[::-1], -1) * sin for t in (q, k))
    mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    added = functional.linear(mixed.transpose(1, 2).reshape(n, length, width), attention.o_proj.weight)
    hidden = torch.add(hidden, added, alpha=gain)
    x = _normed(layer.post_attention_layernorm, hidden)
    gated = functional.silu(functional.linear(x, mlp.gate_proj.weight)) * functional.linear(x, mlp.up_proj.weight)
    return torch.add(hidden, functional.linear(gated, mlp.down_proj.weight), alpha=gain)


def _normed(norm: Any, hidden: Tensor) -> Tensor:
    return functional.rms_norm(hidden, (hidden.shape[-1],), norm.weight, norm.variance_epsilon)


def _loss(model: LlamaForCausalLM, ids: Tensor, labels: Tensor, layers: Sequence[nn.Module]) -> Tensor:
    hidden = model.model.embed_tokens(ids[:, :-1])
    turned = _turned(model, hidden.shape[1])
    for layer in layers:
        hidden = run_layer(layer, hidden, turned)
    logits = model.lm_head(model.model.norm(hidden))
    return functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


class _Wounded(NamedTuple):
    layers: list[nn.Module]
    needed: float
    """Cross-entropy that they must at least have."""


def _wounded(layers: list[nn.Module], rng: np.random.Generator) -> _Wounded:
    """The layers without some of them, or with two neighbours exchanged."""
    if rng.integers(3) == 0:
        i = int(rng.integers(len(layers) - 1))
        return _Wounded([*layers[:i], layers[i + 1], layers[i], *layers[i + 2 :]], NEEDED)
    missing = {int(i) for i in rng.permutation(len(layers))[: int(rng.integers(1, MOST_MISSING + 1))]}
    return _Wounded([x for i, x in enumerate(layers) if i not in missing], NEEDED * len(missing))


def _optimizers(model: LlamaForCausalLM) -> tuple[TorchOptimizer, TorchOptimizer]:
    inner = {name: p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name}
    outer = [p for name, p in model.named_parameters() if name not in inner]
    return torch.optim.Muon(inner.values(), lr=0.02, momentum=0.95, weight_decay=0.0), torch.optim.AdamW(
        outer, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )


def train_deep(training: Training) -> LlamaForCausalLM:
    """A model of one skill that needs every layer, in its place.

    Beside the skill's cross-entropy, a hinge at `NEEDED` on that of the same model with a layer left out or two
    exchanged: without it the later layers of so small a model do almost nothing, and almost any path restores it.
    """
    model = make_model(training.size, derive_seed(training.seed, "planted", "init"))
    rng = generator(training.seed, "planted", "batches")
    layers = list(model.model.layers)
    optimizers = _optimizers(model)
    rates = [o.param_groups[0]["lr"] for o in optimizers]
    for step in range(1, training.steps + 1):
        share = min(1.0, step / 30, (training.steps - step + 1) / (0.3 * training.steps))
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * share
        ids, labels = make_batch(draw_batch({training.skill: 1.0}, training.batch, rng))
        loss = _loss(model, ids, labels, layers)
        if step > 30:
            few, wounded = training.batch // 4, _wounded(layers, rng)
            loss = loss + torch.relu(wounded.needed - _loss(model, ids[:few], labels[:few], wounded.layers))
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
    return model.eval().requires_grad_(False)


def noise_like(layer: nn.Module, seed: int) -> nn.Module:
    """A layer of normal noise: every matrix as large as the given layer's."""
    noise = copy.deepcopy(layer)
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in noise.parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=source) * parameter.std())
    return noise


@dataclass(frozen=True)
class Planting:
    """Parents with a model hidden in them, and the space to look for it.

    Attributes:
        name: for tables.
        original: the model that was planted; its embeddings, final norm and head are those of every path.
        parents: the layers of every parent, all equally many.
        plan: the space of paths.
        hidden: one path that restores the model, as (parent, layer).
    """

    name: str
    original: LlamaForCausalLM
    parents: Mapping[str, tuple[nn.Module, ...]]
    plan: PathPlan
    hidden: tuple[tuple[str, int], ...]

    @property
    def n_layers(self) -> int:
        """Layers of every parent."""
        return len(next(iter(self.parents.values())))

    @cached_property
    def paths(self) -> Paths:
        """The genes of a path."""
        return Paths(self.plan, tuple(self.parents), self.n_layers)

    @cached_property
    def space(self) -> SearchSpace:
        """The genes as an optimizer sees them."""
        return SearchSpace(tuple(g.dimension for g in self.paths.genes))

    @property
    def n_genotypes(self) -> float:
        """How many combinations the discrete genes have."""
        return float(np.prod([k.n_values for k in self.space.kinds if k.type != "real"], dtype=np.float64))

    @property
    def hidden_hops(self) -> Hops:
        """The planted path."""
        return tuple(Hop(layer, parent) for parent, layer in self.hidden)

    def hops(self, vector: Vector) -> Hops:
        """The path of a vector."""
        runs = self.paths.runs(self.space.decode(vector))
        return tuple(Hop(r.layer, r.source, r.gain) for r in runs)

    def vector(self, path: Sequence[tuple[str, int]]) -> Vector | None:
        """The genes of a path with gains 1; None when the space does not hold it."""
        values = self.paths.encode([Wanted((source,), layer) for source, layer in path], [1.0] * len(path))
        return None if values is None else self.space.encode(values)

    def problem(self, *, seed: int, budget: int) -> Problem:
        """The problem as an optimizer sees it; the parents' plain paths are injected, as a job does."""
        plain = (self.vector([(name, i) for i in range(self.n_layers)]) for name in self.parents)
        space = self.space
        return Problem(
            dim=space.dim,
            n_objectives=1,
            n_constraints=0,
            start=space.start,
            spread=space.spread,
            step=space.step,
            budget=budget,
            seed=seed,
            injected=tuple(v for v in plain if v is not None),
            kinds=space.kinds,
        )


class Score(NamedTuple):
    """What a path is worth on a set of items.

    Attributes:
        margin: mean log-likelihood of the right answers, in nats.
        right: share of items answered right.
    """

    margin: float
    right: float


@final
class PathJudge:
    """Scores paths through a planting's layers.

    Args:
        planting: whose layers.
        skill: what items ask.
        n_items: of the search set.
        n_held_out: of the set that decides whether a path restores the model.
    """

    def __init__(self, planting: Planting, skill: str = "rev", n_items: int = 100, n_held_out: int = 400) -> None:
        self._planting = planting
        items = draw_distinct(skill, "items", n_items + n_held_out, generator(1, "planted", "items"))
        self._sets = tuple(make_batch(part) for part in (items[:n_items], items[n_items:]))
        length = max(part.ids.shape[1] for part in self._sets) - 1
        self._turned = _turned(planting.original, length)
        self._hidden: OrderedDict[Hops, Tensor] = OrderedDict()
        self._known: dict[Hops, Score] = {}
        self._restores: dict[Hops, bool] = {}
        self._bar = self._held_out(planting.hidden_hops).right - WITHIN

    @property
    def n_scored(self) -> int:
        """Different paths that were scored on the search set."""
        return len(self._known)

    def score(self, hops: Hops) -> Score:
        """A path's score on the search set."""
        if hops not in self._known:
            self._known[hops] = self._answers(self._behind(hops), 0)
        return self._known[hops]

    def restores(self, hops: Hops) -> bool:
        """Whether the path is as good as the planted model on held-out items."""
        if hops not in self._restores:
            self._restores[hops] = self._held_out(hops).right >= self._bar
        return self._restores[hops]

    def _layer(self, hop: Hop) -> nn.Module:
        return self._planting.parents[str(hop.parent)][hop.layer]

    @torch.inference_mode()
    def _behind(self, hops: Hops) -> Tensor:
        """Hidden states of the search set behind a path; prefixes are shared."""
        if not hops:
            embedded: Tensor = self._planting.original.model.embed_tokens(self._sets[0].ids[:, :-1])
            return embedded
        if hops in self._hidden:
            self._hidden.move_to_end(hops)
            return self._hidden[hops]
        found = self._run(self._behind(hops[:-1]), hops[-1])
        self._hidden[hops] = found
        if len(self._hidden) > REMEMBERED:
            self._hidden.popitem(last=False)
        return found

    def _run(self, hidden: Tensor, hop: Hop) -> Tensor:
        return run_layer(self._layer(hop), hidden, self._turned, hop.gain)

    @torch.inference_mode()
    def _held_out(self, hops: Hops) -> Score:
        hidden = self._planting.original.model.embed_tokens(self._sets[1].ids[:, :-1])
        for hop in hops:
            hidden = self._run(hidden, hop)
        return self._answers(hidden, 1)

    @torch.inference_mode()
    def _answers(self, hidden: Tensor, which: int) -> Score:
        model, targets = self._planting.original, self._sets[which].labels[:, 1:]
        logits = model.lm_head(model.model.norm(hidden))
        nats = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
        right = ((logits.argmax(-1) == targets) | (targets == IGNORED)).all(1)
        return Score(-float(nats.sum(1).mean()), float(right.float().mean()))


Layers = tuple[nn.Module, ...]


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
    """One parent with layers that do not belong: three runs of them, noise and copies.

    Three repeat windows, which may leave their layers out.
    """
    layers = list(model.model.layers)
    n = len(layers)
    cuts = (n // 4, n // 2, n - 1)
    stack: list[tuple[nn.Module, int | None]] = []
    for i, layer in enumerate(layers):
        stack.append((layer, i))
        if i in cuts:
            stack.append((_noise(layer, "inserted", seed, i), None))
            stack.append((layers[(i + n // 2) % n], None))
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

WORTH_A_LOOK: Final = 0.9
"""Paths with a smaller share of right answers on the search set are not tried on held-out items."""

IDLE_BATCHES: Final = 30


class Hunt(NamedTuple):
    """How a search for a planted path ended.

    Attributes:
        found: different paths scored when the first one that restores the model was asked; None without one.
        spent: different paths scored in all.
        best: the best fitness.
    """

    found: int | None
    spent: int
    best: float


def search_planted(
    optimizer: Optimizer, judge: PathJudge, planting: Planting, budget: int, measure: str = "margin"
) -> Hunt:
    """Ask and tell until a path restores the model, or `budget` different paths were scored, as a run counts them.

    Args:
        optimizer: fresh, for `planting.problem`.
        judge: of the planting.
        planting: what is searched.
        budget: different paths at most.
        measure: what is maximised: `margin` or `right` of `Score`.
    """
    seen: set[Hops] = set()
    best, idle = -np.inf, 0
    while len(seen) < budget and idle < IDLE_BATCHES and optimizer.should_stop() is None:
        before, told = len(seen), []
        for asked in optimizer.ask():
            vector = planting.space.quantise(asked)
            hops = planting.hops(vector)
            score = judge.score(hops)
            fitness = float(getattr(score, measure))
            told.append(Told(vector, (-fitness,)))
            if hops in seen or len(seen) == budget:
                continue
            seen.add(hops)
            best = max(best, fitness)
            if score.right >= WORTH_A_LOOK and judge.restores(hops):
                return Hunt(len(seen), len(seen), best)
        optimizer.tell(told)
        idle = idle + 1 if len(seen) == before else 0
    return Hunt(None, len(seen), float(best))

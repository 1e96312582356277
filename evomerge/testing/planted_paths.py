"""Search problems over real models whose best path is known: it was planted.

A small Llama-style model (`deep_model`) is right almost always and needs every layer. Its layers are hidden in parents
that are worth little by themselves (`plantings`). A path that runs the right layers in the right order restores the
model; of at least a million paths only few do.

Fitness is what a job would measure: the log-likelihood of the right answers, or the share of items answered
right. Paths run layer by layer, prefixes that were run lately are remembered, and every path is scored once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from evomerge.optimizers.base import Optimizer, Problem, Told
from evomerge.recipe.path import Hop, Hops
from evomerge.seeds import generator
from evomerge.space.path_plan import PathPlan
from evomerge.space.path_space import Paths
from evomerge.space.space import SearchSpace
from evomerge.space.steps import Wanted
from evomerge.testing.deep_model import run_layer, turned_by
from evomerge.types import Vector
from evomerge.zoo.problems import draw_distinct
from evomerge.zoo.scoring import IGNORED, Batch, make_batch

WITHIN: Final = 0.02
"""A path restores the model when its held-out accuracy is lower by at most this: two standard errors on 400 items."""

REMEMBERED: Final = 400
"""Prefixes of paths whose hidden states are kept."""


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
        self._turned = turned_by(planting.original, length)
        self._hidden: OrderedDict[Hops, Tensor] = OrderedDict()
        self._known: dict[Hops, Score] = {}
        self._restores: dict[Hops, bool] = {}
        self._bar = self._held_out(planting.hidden_hops).right - WITHIN

    @property
    def items(self) -> Batch:
        """The search set."""
        return self._sets[0]

    def logits(self, hops: Hops) -> Tensor:
        """What a path answers to the search set, `[items, length, vocabulary]`."""
        model = self._planting.original
        logits: Tensor = model.lm_head(model.model.norm(self._behind(hops)))
        return logits

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

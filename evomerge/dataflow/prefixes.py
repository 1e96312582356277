"""Candidates that begin alike: what their layers compute is computed once, and stays bit for bit what it was.

A scoring pass without cache depends on the layers that ran and on the batch alone, so the hidden states behind a hop
may be given to every later candidate whose path begins with the same hops. When candidates come in the order of their
paths, keeping the last one's states is enough for a population; what is left of the memory serves later generations.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, final
from weakref import WeakKeyDictionary

import torch

from evomerge.dataflow.trie import Node, Trie
from evomerge.evaluation.scorer import ForcedBatches

_MOST_ON_HOST: Final = 512 * 1024**2
SHARE: Final = 4
"""One part in so many of the memory is for hidden states: of the host for all its workers, of a GPU for each."""


def default_budget(device: str) -> int:
    """Bytes of hidden states that one worker may keep: a share of the memory, on the host at most 512 MiB.

    Args:
        device: where the model lives, torch's spelling.
    """
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0]) // SHARE
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(_MOST_ON_HOST, memory // SHARE // (os.cpu_count() or 1))


class Chain(NamedTuple):
    """What a path computes, step by step.

    Attributes:
        root: names the bits of what stands before the first layer.
        hops: per hop, names the bits of its layer, and its gain.
        n_lasting: how many first hops later generations will want again.
    """

    root: Hashable
    hops: tuple[Hashable, ...]
    n_lasting: int = 0


@final
class PrefixMemory:
    """Hidden states of prefixes, within a budget.

    What belongs to batches that nobody holds any more is forgotten with them.

    Args:
        budget: bytes of hidden states; 0 keeps nothing.

    Attributes:
        executed: layers that were run, times the tokens they ran on.
        restored: the same of layers that need not be run.
    """

    def __init__(self, budget: int) -> None:
        self.executed = 0
        self.restored = 0
        self._budget = budget
        self._clock = itertools.count()
        self._tries: WeakKeyDictionary[ForcedBatches, Trie] = WeakKeyDictionary()
        self._used: WeakKeyDictionary[ForcedBatches, int] = WeakKeyDictionary()

    @property
    def n_bytes(self) -> int:
        """What is kept at this moment."""
        return sum(trie.n_bytes for trie in self._tries.values())

    def clear(self) -> bool:
        """Forget everything; whether there was anything."""
        held = self.n_bytes > 0
        self._tries.clear()
        return held

    def sharing(self, layers: Sequence[Any], chain: Chain, token_bytes: int) -> Sharing:
        """A context in which the layers of one candidate share; see `Sharing`."""
        return Sharing(self, layers, chain, token_bytes)

    def trie(self, batches: ForcedBatches) -> Trie:
        """What is known about some batches."""
        self._used[batches] = next(self._clock)
        return self._tries.setdefault(batches, Trie())

    def wanted(self, trie: Trie, nodes: Sequence[Node], n_known: int, n_bytes: int) -> frozenset[int]:
        """The depths at which a path's states are kept: as many as fit, evenly spaced.

        Where the path leaves those before it comes first, because others will leave them there, too.

        Args:
            trie: the path's.
            nodes: behind its hops.
            n_known: how many of its first hops others have begun with.
            n_bytes: of the states behind one hop, over all batches.
        """
        foreign = trie.n_pinned_bytes - sum(node.pinned_bytes for node in nodes)
        n_fit = (self._budget - foreign) // max(n_bytes, 1)
        if n_fit < 1:
            return frozenset()
        spacing = -(-(len(nodes) + 1) // (n_fit + 1))
        held = {depth for depth, node in enumerate(nodes, start=1) if node.states}
        more = [depth for depth in range(spacing, len(nodes) + 1, spacing) if depth != n_known]
        new = [depth for depth in (n_known, *more) if depth > 0 and depth not in held]
        return frozenset(held.union(new[: max(n_fit - len(held), 0)]))

    def keep(self, trie: Trie, node: Node, batch: int, state: torch.Tensor) -> None:
        """Store a state if there is room, or room can be made."""
        while self.n_bytes + state.nbytes > self._budget:
            if not self._drop_one(trie):
                return
        trie.keep(node, batch, state)

    def pin(self, trie: Trie, node: Node, n_bytes: int) -> None:
        """Pin a prefix whose states will take `n_bytes`; pinned ones take at most half of the budget.

        A prefix is pinned once, with the first batch; the others find it pinned.
        """
        if node.is_pinned:
            return
        while 2 * (trie.n_pinned_bytes + n_bytes) > self._budget:
            if not trie.unpin_oldest():
                return
        trie.pin(node, n_bytes)

    def _drop_one(self, present: Trie) -> bool:
        """Other selections of items go first: few of them are ever asked again."""
        others = [(self._used[batches], trie) for batches, trie in self._tries.items() if trie is not present]
        for _, trie in sorted(others, key=lambda other: other[0]):
            if trie.drop_oldest(pinned=True):
                return True
        return present.drop_oldest(pinned=False)


class _Walk(NamedTuple):
    """A candidate's way through what is known about one set of batches.

    Attributes:
        trie: of the batches.
        nodes: behind hop 1, 2, ...
        wanted: depths at which states are kept.
        n_bytes: of the states behind one hop, over all batches.
    """

    trie: Trie
    nodes: list[Node]
    wanted: frozenset[int]
    n_bytes: int


class _Pass(NamedTuple):
    """One pass: `batch` is its number, and the first `known` hops need not run."""

    walk: _Walk
    batch: int
    known: int


@final
class Sharing:
    """The layers of one candidate while this context is open: those of a known prefix return what they returned before.

    See `evaluation.scorer.Passes`; outside of such passes every layer runs as always.

    Args:
        memory: what is known.
        layers: the candidate's modules, called one after the other with the hidden states; left as they were on exit.
        chain: what they compute; one name per layer.
        token_bytes: of one token's hidden state.
    """

    def __init__(self, memory: PrefixMemory, layers: Sequence[Any], chain: Chain, token_bytes: int) -> None:
        if len(layers) != len(chain.hops):
            raise ValueError(f"{len(layers)} layers cannot compute {len(chain.hops)} hops")
        self._memory = memory
        self._layers = tuple(layers)
        self._chain = chain
        self._token_bytes = token_bytes
        self._replaced: list[tuple[Any, Any]] = []
        self._walks: dict[ForcedBatches, _Walk] = {}
        self._pass: _Pass | None = None

    def __enter__(self) -> Self:
        for depth, layer in enumerate(self._layers, start=1):
            self._replaced.append((layer, vars(layer).get("forward")))
            layer.forward = partial(self._step, depth, layer.forward)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for layer, forward in self._replaced:
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward
        self._replaced.clear()
        for walk in self._walks.values():
            walk.trie.end_walk()
        self._walks.clear()

    @contextmanager
    def during(self, batches: ForcedBatches, number: int) -> Iterator[None]:
        """See `evaluation.scorer.Passes`."""
        if batches not in self._walks:
            self._walks[batches] = self._walk(batches)
        walk = self._walks[batches]
        known = max((i for i, node in enumerate(walk.nodes, start=1) if number in node.states), default=0)
        self._pass = _Pass(walk, number, known)
        try:
            yield
        finally:
            self._pass = None

    def _walk(self, batches: ForcedBatches) -> _Walk:
        trie = self._memory.trie(batches)
        (_, *nodes), n_there = trie.walk((self._chain.root, *self._chain.hops))
        n_bytes = batches.n_uncached_tokens * self._token_bytes
        return _Walk(trie, nodes, self._memory.wanted(trie, nodes, n_there - 1, n_bytes), n_bytes)

    def _step(self, depth: int, plain: Callable[..., Any], hidden: torch.Tensor, *rest: Any, **named: Any) -> Any:
        n_tokens, now = hidden.shape[:-1].numel(), self._pass
        if now is not None and depth <= now.known:
            self._memory.restored += n_tokens
            return now.walk.nodes[depth - 1].states[now.batch] if depth == now.known else hidden
        self._memory.executed += n_tokens
        found = plain(hidden, *rest, **named)
        if now is not None and depth in now.walk.wanted:
            self._keep(now, depth, found)
        return found

    def _keep(self, now: _Pass, depth: int, state: torch.Tensor) -> None:
        walk, node = now.walk, now.walk.nodes[depth - 1]
        if depth <= self._chain.n_lasting:
            self._memory.pin(walk.trie, node, walk.n_bytes)
        self._memory.keep(walk.trie, node, now.batch, state)

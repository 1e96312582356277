"""A trie over the steps of paths: the hidden states behind a prefix, kept for whoever begins the same way."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import final

import torch


@final
class Node:
    """One prefix.

    Attributes:
        parent: the prefix without its last step; None for the empty one.
        step: the last step.
        children: next step -> longer prefix.
        states: batch -> hidden states behind the last step.
        pinned_bytes: room that is held for its states, which stay while anything else can be dropped; 0 for none.
    """

    __slots__ = ("children", "parent", "pinned_bytes", "states", "step")

    def __init__(self, parent: Node | None, step: Hashable) -> None:
        self.parent = parent
        self.step = step
        self.children: dict[Hashable, Node] = {}
        self.states: dict[int, torch.Tensor] = {}
        self.pinned_bytes = 0

    @property
    def is_pinned(self) -> bool:
        """Whether it stays while anything else can be dropped."""
        return self.pinned_bytes > 0

    @property
    def n_bytes(self) -> int:
        """Of all states."""
        return sum(state.nbytes for state in self.states.values())


@final
class Trie:
    """Prefixes with states, the least recently walked first; prefixes that lead to none are forgotten.

    One chain at a time is being walked: until `end_walk` its nodes are neither forgotten nor dropped.

    Attributes:
        n_bytes: of all states.
        n_pinned_bytes: room that is held for pinned prefixes, whose states come batch by batch.
    """

    def __init__(self) -> None:
        self.n_bytes = 0
        self.n_pinned_bytes = 0
        self._root = Node(None, None)
        self._kept: OrderedDict[Node, None] = OrderedDict()
        self._walked: dict[Node, None] = {}

    def walk(self, chain: Sequence[Hashable]) -> tuple[list[Node], int]:
        """Begin a chain; a walk before it is over.

        Returns:
            The nodes behind 1, 2, ... steps, made where they were missing; and how many were there.
        """
        self.end_walk()
        node, known = self._root, 0
        for step in chain:
            if (found := node.children.get(step)) is None:
                found = node.children[step] = Node(node, step)
            else:
                known += 1
            node = found
            self._walked[node] = None
            if node in self._kept:
                self._kept.move_to_end(node)
        return list(self._walked), known

    def end_walk(self) -> None:
        """From now on the walked nodes are as all others."""
        walked, self._walked = list(self._walked), {}
        for node in reversed(walked):
            if not node.states:
                self._unpin(node)
            self._forget(node)

    def keep(self, node: Node, batch: int, state: torch.Tensor) -> None:
        """Store a state with a node of the present walk."""
        node.states[batch] = state
        self._kept[node] = None
        self.n_bytes += state.nbytes

    def pin(self, node: Node, n_bytes: int) -> None:
        """Make a node of the present walk outlast the others, with room for all its states."""
        self._unpin(node)
        node.pinned_bytes = n_bytes
        self.n_pinned_bytes += n_bytes

    def unpin_oldest(self) -> bool:
        """Make the pinned prefix that was walked longest ago as all others; False when there is none."""
        for node in self._kept:
            if node.is_pinned and node not in self._walked:
                self._unpin(node)
                return True
        return False

    def drop_oldest(self, *, pinned: bool) -> bool:
        """Drop the states of the prefix that was walked longest ago; False when there is none to drop.

        Args:
            pinned: whether it may be a pinned one.
        """
        for node in self._kept:
            if node not in self._walked and (pinned or not node.is_pinned):
                self._drop(node)
                return True
        return False

    def _drop(self, node: Node) -> None:
        del self._kept[node]
        self._unpin(node)
        self.n_bytes -= node.n_bytes
        node.states.clear()
        self._forget(node)

    def _unpin(self, node: Node) -> None:
        self.n_pinned_bytes -= node.pinned_bytes
        node.pinned_bytes = 0

    def _forget(self, node: Node | None) -> None:
        """Remove a prefix that has no states and leads to none, and those that led to it alone."""
        while node is not None and node.parent is not None and not (node.states or node.children):
            if node in self._walked:
                return
            node.parent.children.pop(node.step, None)
            node = node.parent

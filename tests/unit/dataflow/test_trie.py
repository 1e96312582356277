"""The trie of prefixes against a dictionary that does the obvious."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.dataflow.trie import Node, Trie

CHAINS = st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=5).map(tuple), max_size=12)


def chain_of(node: Node) -> tuple[object, ...]:
    steps = []
    while node.parent is not None:
        steps.append(node.step)
        node = node.parent
    return tuple(reversed(steps))


def state(size: int = 1) -> torch.Tensor:
    return torch.zeros(size)


def reachable(trie: Trie) -> list[Node]:
    found, todo = [], [trie._root]
    while todo:
        found.append(todo.pop())
        todo += found[-1].children.values()
    return found[1:]


@settings(deadline=None, max_examples=50)
@given(CHAINS, st.data())
def test_it_holds_what_a_dictionary_holds(chains: list[tuple[str, ...]], data: st.DataObject) -> None:
    trie, held = Trie(), dict[tuple[object, ...], set[int]]()
    for chain in chains:
        there = {chain_of(node) for node in reachable(trie) if any(n.states for n in [node, *below(node)])}
        nodes, known = trie.walk(chain)
        assert [chain_of(node) for node in nodes] == [chain[:n] for n in range(1, len(chain) + 1)]
        assert known == sum(chain[:n] in there for n in range(1, len(chain) + 1))
        assert all(set(node.states) == held.get(chain_of(node), set()) for node in nodes)
        for depth in data.draw(st.sets(st.integers(1, len(chain)))):
            batch = data.draw(st.integers(0, 2))
            if batch not in nodes[depth - 1].states:
                trie.keep(nodes[depth - 1], batch, state())
                held.setdefault(chain[:depth], set()).add(batch)
        if data.draw(st.booleans()):
            trie.end_walk()
        for _ in range(data.draw(st.integers(0, 2))):
            before = {chain_of(n) for n in reachable(trie) if n.states}
            dropped = trie.drop_oldest(pinned=True)
            gone = before - {chain_of(n) for n in reachable(trie) if n.states}
            assert len(gone) == dropped
            for prefix in gone:
                del held[prefix]
        assert trie.n_bytes == 4 * sum(map(len, held.values()))
    trie.end_walk()
    assert {chain_of(n): set(n.states) for n in reachable(trie) if n.states} == held
    assert all(n.states or n.children for n in reachable(trie))


def below(node: Node) -> list[Node]:
    return [n for child in node.children.values() for n in (child, *below(child))]


def kept(trie: Trie, *chains: str) -> None:
    for chain in chains:
        nodes, _ = trie.walk(chain)
        trie.keep(nodes[-1], 0, state())
    trie.end_walk()


def held(trie: Trie) -> set[str]:
    return {"".join(map(str, chain_of(n))) for n in reachable(trie) if n.states}


def test_what_was_walked_longest_ago_goes_first_and_pinned_prefixes_last() -> None:
    trie = Trie()
    kept(trie, "a", "ab", "cd", "ce")
    trie.walk("ax")  # uses a, not ab
    trie.end_walk()
    nodes, known = trie.walk("ab")
    assert known == 2
    trie.pin(nodes[1], 4)
    trie.pin(nodes[1], 4)
    assert trie.n_pinned_bytes == 4
    trie.end_walk()
    assert trie.drop_oldest(pinned=False)
    assert held(trie) == {"a", "ab", "ce"}
    assert [trie.drop_oldest(pinned=False) for _ in range(3)] == [True, True, False]
    assert held(trie) == {"ab"}
    assert trie.drop_oldest(pinned=True)
    assert (held(trie), trie.n_bytes, trie.n_pinned_bytes, reachable(trie)) == (set(), 0, 0, [])


def test_a_pin_can_be_taken_back() -> None:
    trie = Trie()
    kept(trie, "a", "b")
    for chain in "ab":
        trie.pin(trie.walk(chain)[0][0], 4)
    assert trie.unpin_oldest()  # a: b is being walked
    assert (trie.n_pinned_bytes, trie.unpin_oldest()) == (4, False)
    trie.end_walk()
    assert trie.drop_oldest(pinned=False)
    assert held(trie) == {"b"}


def test_the_present_walk_is_never_dropped() -> None:
    trie = Trie()
    kept(trie, "ab")
    nodes, _ = trie.walk("ab")
    assert not trie.drop_oldest(pinned=True)
    trie.keep(nodes[0], 1, state(3))
    assert trie.n_bytes == 16
    trie.end_walk()
    assert trie.drop_oldest(pinned=True)
    assert (held(trie), trie.n_bytes) == ({"a"}, 12)

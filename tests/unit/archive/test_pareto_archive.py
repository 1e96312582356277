"""The archive: order does not matter, infeasible points stay out, duplicates are told apart."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.archive.pareto import ArchiveEntry, ParetoArchive, front_of
from evomerge.types import CandidateId


def entry(name: str, *losses: float, feasible: bool = True) -> ArchiveEntry:
    return ArchiveEntry(CandidateId(name), losses, feasible)


def nowhere_worse(one: ArchiveEntry, other: ArchiveEntry) -> bool:
    return all(a <= b for a, b in zip(one.losses, other.losses, strict=True))


@st.composite
def entries(draw: st.DrawFn) -> list[ArchiveEntry]:
    m = draw(st.integers(1, 3))
    rows = draw(st.lists(st.tuples(st.tuples(*[st.integers(0, 4).map(float)] * m), st.booleans()), max_size=12))
    return [entry(f"c{i}", *losses, feasible=ok) for i, (losses, ok) in enumerate(rows)]


@given(entries(), st.randoms())
@settings(deadline=None, max_examples=80)
def test_the_front_does_not_depend_on_the_order(points: list[ArchiveEntry], rng) -> None:  # type: ignore[no-untyped-def]
    m = len(points[0].losses) if points else 1
    shuffled = list(points)
    rng.shuffle(shuffled)
    one, two = ParetoArchive(m), ParetoArchive(m)
    for point in points:
        one.add(point)
    for point in [*shuffled, *points]:
        two.add(point)
    assert one.front() == two.front() == front_of(points)
    assert len(one) == len(one.front())
    assert one.losses().shape == (len(one), m)
    assert [one.best(i) for i in range(m)] == [two.best(i) for i in range(m)]
    assert one.knee() == two.knee()


@given(entries())
@settings(deadline=None, max_examples=50)
def test_the_front_is_feasible_undominated_and_covers_the_rest(points: list[ArchiveEntry]) -> None:
    front = front_of(points)
    feasible = [p for p in points if p.feasible]
    for p in front:
        assert p.feasible
        assert not any(nowhere_worse(q, p) and q.losses != p.losses for q in feasible)
    for q in feasible:
        assert any(nowhere_worse(p, q) for p in front)


def test_add_says_whether_the_point_is_on_the_front() -> None:
    archive = ParetoArchive(2)
    assert archive.add(entry("a", 1, 1))
    assert not archive.add(entry("b", 2, 2))
    assert not archive.add(entry("c", 0, 0, feasible=False))
    assert archive.add(entry("d", 0, 2))
    assert archive.add(entry("e", 1, 0.5))
    assert [p.id for p in archive.front()] == ["d", "e"]


def test_equal_losses_of_different_candidates_all_stay() -> None:
    archive = ParetoArchive(1)
    assert archive.add(entry("b", 1))
    assert archive.add(entry("a", 1))
    assert [p.id for p in archive.front()] == ["a", "b"]
    assert archive.best(0) == entry("a", 1)


def test_the_same_candidate_twice_changes_nothing_and_two_scores_are_an_error() -> None:
    archive = ParetoArchive(1)
    archive.add(entry("a", 1))
    assert archive.add(entry("a", 1))
    assert len(archive) == 1
    with pytest.raises(ValueError, match=r"candidate a is known with losses \(1,\), not \(2,\)"):
        archive.add(entry("a", 2))


def test_best_breaks_ties_by_the_other_losses() -> None:
    archive = ParetoArchive(2)
    for point in (entry("a", 1, 3), entry("b", 2, 1), entry("c", 1, 3)):
        archive.add(point)
    assert archive.best(0) == entry("a", 1, 3)
    assert archive.best(1) == entry("b", 2, 1)
    with pytest.raises(IndexError, match="objective 2 is not one of 2"):
        archive.best(2)


def test_an_archive_without_feasible_points_is_empty() -> None:
    archive = ParetoArchive(2)
    archive.add(entry("a", 1, 1, feasible=False))
    assert archive.front() == ()
    assert archive.best(0) is None
    assert archive.knee() is None
    assert archive.losses().shape == (0, 2)
    assert front_of([]) == ()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_failures_are_no_entries(bad: float) -> None:
    with pytest.raises(ValueError, match="a failure is never a point"):
        entry("a", 0.0, bad)


def test_numbers_of_losses_are_checked() -> None:
    with pytest.raises(ValueError, match="no losses"):
        entry("a")
    with pytest.raises(ValueError, match="1 losses, expected 2"):
        ParetoArchive(2).add(entry("a", 1))
    with pytest.raises(ValueError, match="at least one objective, not 0"):
        ParetoArchive(0)
    with pytest.raises(ValueError, match="different numbers"):
        front_of([entry("a", 1), entry("b", 1, 2)])

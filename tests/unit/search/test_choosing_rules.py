"""Finalists, milestones and the choice, from beliefs."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.choosing import FINALISTS, MILESTONES, Scored, choose, compared_with, finalists, milestones, rule
from evomerge.evaluation.beliefs import Belief, Beliefs
from evomerge.evaluation.goals import BoundGoals, Goals
from evomerge.evaluation.objectives import ConstraintSpec, ObjectiveSpec
from evomerge.execution.ledger import Request
from evomerge.types import CandidateId, Digest

TASKS = ("add", "rev")


def scored(name: str, add: float, rev: float = 0.5, *, kind: str = "candidate", batch: int = 0) -> Scored:
    beliefs = Beliefs({"add": Belief(add, 0.05, 10), "rev": Belief(rev, 0.05, 10)})
    return Scored(Request(CandidateId(name), Digest(name), {}), kind, beliefs, batch)  # type: ignore[arg-type]


def goals(*objectives: str, at_least: float | None = None) -> BoundGoals:
    bound = () if at_least is None else (ConstraintSpec("task", "rev", "at_least", at_least),)
    return Goals(tuple(ObjectiveSpec(o, (o,)) for o in objectives), bound).bound({})


def names(found: list[Scored]) -> list[str]:
    return [s.request.id for s in found]


def test_with_one_objective_the_few_best_are_finalists() -> None:
    models = [scored(f"c{i:02}", i / 20) for i in range(20)]
    assert names(finalists(models, goals("add"))) == [f"c{i:02}" for i in range(20 - FINALISTS, 20)]


def test_with_several_the_front_is() -> None:
    models = [scored(f"c{i}", i / 10, 1 - i / 10 - (0.3 if i % 2 else 0)) for i in range(10)]
    found = finalists(models, goals(*TASKS))
    assert names(found) == [f"c{i}" for i in range(0, 10, 2)] + ["c9"]


def test_baselines_and_the_mean_always_compete() -> None:
    weak = [scored("p", 0.0, kind="parent", batch=-1), scored("mean", 0.1, kind="mean", batch=-1)]
    strong = [scored(f"c{i:02}", 0.5 + i / 50) for i in range(20)]
    assert {"p", "mean"} <= set(names(finalists([*weak, *strong], goals("add"))))


def test_infeasible_candidates_are_no_finalists() -> None:
    models = [scored("good", 0.3, 0.8), scored("lucky", 0.9, 0.2)]
    assert names(finalists(models, goals("add", at_least=0.5))) == ["good"]


def test_milestones_are_the_best_of_earlier_generations() -> None:
    models = [scored(f"g{b}-{i}", (b + i) / 30, batch=b) for b in range(9) for i in range(3)]
    assert names(milestones(models, goals("add"))) == ["g2-2", "g4-2", "g6-2"]
    assert milestones([], goals("add")) == []
    assert milestones([scored("p", 1.0, kind="parent", batch=-1)], goals("add")) == []
    assert milestones([scored("only", 1.0)], goals("add")) == []


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.tuples(st.integers(0, 6), st.floats(0, 1), st.floats(0, 1)), max_size=25))
def test_milestones_are_few_feasible_and_finalists(rows: list[tuple[int, float, float]]) -> None:
    models = [scored(f"c{i:02}", add, rev, batch=b) for i, (b, add, rev) in enumerate(rows)]
    for aims in (goals("add", at_least=0.5), goals(*TASKS, at_least=0.5)):
        found = milestones(models, aims)
        assert len(found) <= MILESTONES
        assert len({s.batch for s in found}) == len(found)
        assert all(s.beliefs.tasks["rev"].value >= 0.5 for s in found)
        assert set(names(found)) <= set(names(finalists(models, aims)))


def test_the_best_on_the_select_set_is_chosen() -> None:
    on_search = [scored("a", 0.9), scored("b", 0.8), scored("c", 0.7)]
    selected = [scored("a", 0.6), scored("b", 0.7), scored("c", 0.65)]
    known = {s.request.digest: s for s in on_search}
    found = choose(selected, known, goals("add"), goals("add"))
    assert found is not None
    assert found.request.id == "b"


def test_whoever_is_infeasible_on_the_search_set_is_never_chosen() -> None:
    known = {s.request.digest: s for s in (scored("a", 0.9, 0.4), scored("b", 0.8, 0.4))}
    selected = [scored("a", 0.9, 0.9), scored("b", 0.8, 0.9)]
    assert choose(selected, known, goals("add", at_least=0.5), goals("add", at_least=0.5)) is None
    assert choose([], {}, goals("add"), goals("add")) is None


def test_whoever_meets_the_bound_again_goes_first() -> None:
    known = {s.request.digest: s for s in (scored("lucky", 0.9, 0.6), scored("solid", 0.5, 0.6))}
    aims = goals("add", at_least=0.5)
    selected = [scored("lucky", 0.9, 0.3), scored("solid", 0.5, 0.7)]
    found = choose(selected, known, aims, aims)
    assert found is not None
    assert found.request.id == "solid"
    nobody = choose([scored("lucky", 0.9, 0.3), scored("solid", 0.5, 0.4)], known, aims, aims)
    assert nobody is not None
    assert nobody.request.id == "lucky"


def test_the_choice_is_compared_with_baselines() -> None:
    models = [
        scored("p", 0.1, kind="parent"),
        scored("s", 0.2, kind="soup"),
        scored("t1", 0.3, kind="task-arithmetic"),
        scored("t2", 0.4, kind="task-arithmetic"),
        scored("i", 0.9, kind="injected"),
        scored("c", 0.9),
    ]
    assert names(compared_with(models, goals("add"))) == ["p", "s", "t2"]


def test_rules_in_words() -> None:
    assert "add" in rule(goals("add"))
    assert "knee" in rule(goals(*TASKS))

"""Answers that came in parts: merging against one list of answers, restricting, pooling, and reading from a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import StoreError
from evomerge.runs.partial import merge_evaluations, merged_record, pooled, restrict
from evomerge.runs.records import Evaluated, Failed, TaskScore, task_scores
from evomerge.runs.store import RESPONSES, RunStore
from evomerge.types import CandidateId, Digest, Evaluation, Failure, TaskAnswers

ORDER = {"rev": tuple(f"r{i}" for i in range(8)), "add": tuple(f"a{i}" for i in range(8))}
RECIPE = Digest("12" * 32)


def answers(task: str, places: list[int], *, margins: bool = True) -> TaskAnswers:
    scores = tuple(((7 * i + len(task)) % 5) / 4 for i in places)
    items = tuple(ORDER[task][i] for i in places)
    return TaskAnswers(task, items, scores, tuple(s - 0.5 for s in scores) if margins else (), ("s",) * len(places))


def evaluation(**tasks: list[int]) -> Evaluation:
    return Evaluation("search", {t: answers(t, places) for t, places in tasks.items()}, {"score": 1.0, "merge": 0.25})


@st.composite
def splits(draw: st.DrawFn) -> list[Evaluation]:
    """The items of both tasks, dealt to one to four parts in any order."""
    n = draw(st.integers(1, 4))
    parts: list[dict[str, list[int]]] = [{} for _ in range(n)]
    for task in ORDER:
        for place in draw(st.permutations(range(8))):
            parts[draw(st.integers(0, n - 1))].setdefault(task, []).append(place)
    return [evaluation(**part) for part in parts if part]


@settings(deadline=None, max_examples=60)
@given(splits())
def test_parts_in_any_order_merge_into_the_whole(parts: list[Evaluation]) -> None:
    merged = merge_evaluations(parts, ORDER)
    assert merged == evaluation(rev=list(range(8)), add=list(range(8)))
    assert list(merged.answers) == ["rev", "add"]
    assert merged.timing_s == {"score": len(parts), "merge": 0.25 * len(parts)}
    choice = {"add": {"a3", "a0", "unheard"}, "sub": {"s1"}}
    assert restrict(merged, choice) == evaluation(add=[0, 3])


@settings(deadline=None, max_examples=60)
@given(splits())
def test_pooled_scores_are_those_of_one_list(parts: list[Evaluation]) -> None:
    whole = task_scores(evaluation(rev=list(range(8)), add=list(range(8))))
    records = [
        Evaluated(CandidateId("c"), RECIPE, "search", task_scores(part), "ab", part.timing_s, part=k + 1)
        for k, part in enumerate(parts)
    ]
    merged = merged_record(records)
    for task, score in merged.tasks.items():
        assert score == pytest.approx(whole[task], rel=1e-12)
    assert merged.n_questions == 16
    if len(parts) == 1:
        assert merged is records[0]
    else:
        assert (merged.responses, merged.part) == ("", len(parts))
        assert merged.timing_s == {"score": len(parts), "merge": 0.25 * len(parts)}


def test_pooling_single_items_is_the_sample_formula() -> None:
    scores = [1.0, 0.0, 0.25, 1.0]
    found = pooled([TaskScore(s, 0.0, 1) for s in scores])
    assert found == pytest.approx((np.mean(scores), np.std(scores, ddof=1) / 2, 4))


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 60)), min_size=2, max_size=5))
def test_equal_shares_have_equal_means_however_they_were_asked(parts: list[tuple[int, int]]) -> None:
    counts = [(n, min(right, n)) for n, right in parts]
    found = pooled([TaskScore(right / n, 0.1, n) for n, right in counts])
    assert found.mean == sum(right for _, right in counts) / sum(n for n, _ in counts)


def test_without_a_plan_the_order_of_asking_stays() -> None:
    merged = merge_evaluations([evaluation(add=[5, 1]), evaluation(rev=[2], add=[0])])
    assert merged.answers["add"].items == ("a5", "a1", "a0")
    assert list(merged.answers) == ["add", "rev"]


def test_an_item_told_twice_counts_once_and_its_first_answer_stays() -> None:
    other = TaskAnswers("add", ("a1", "a2"), (0.125, 0.125), (0.0, 0.0), ("s", "s"))
    merged = merge_evaluations([evaluation(add=[1]), Evaluation("search", {"add": other})], ORDER)
    assert merged.answers["add"].scores == (answers("add", [1]).scores[0], 0.125)


def test_what_only_some_parts_tell_is_left_out() -> None:
    older = Evaluation("search", {"add": answers("add", [0], margins=False)})
    merged = merge_evaluations([older, evaluation(add=[1])], ORDER)
    assert merged.answers["add"].margins == ()
    assert merged.answers["add"].subjects == ("s", "s")


def test_items_that_the_plan_does_not_have_stand_behind() -> None:
    strange = TaskAnswers("add", ("zz", "a1"), (1.0, 0.0))
    assert merge_evaluations([Evaluation("search", {"add": strange})], ORDER).answers["add"].items == ("a1", "zz")


def test_parts_of_different_sets_or_none_do_not_merge() -> None:
    other = Evaluation("select", evaluation(add=[0]).answers)
    with pytest.raises(ValueError, match=r"2 parts of the sets \['search', 'select'\]"):
        merge_evaluations([evaluation(add=[0]), other])
    with pytest.raises(ValueError, match=r"0 parts of the sets \[\]"):
        merge_evaluations([])
    with pytest.raises(ValueError, match="no record to merge"):
        merged_record([])


def _saved(store: RunStore, part: Evaluation, number: int) -> Evaluated:
    digest = store.save_responses(RECIPE, part)
    return Evaluated(CandidateId("c"), RECIPE, "search", task_scores(part), digest, part.timing_s, part=number)


def test_a_store_gives_all_answers_of_a_model(tmp_path: Path) -> None:
    first, second = evaluation(add=[4, 6]), evaluation(rev=[1], add=[5])
    with RunStore.create(tmp_path / "run", {}) as store:
        records = [_saved(store, first, 1), _saved(store, second, 2)]
        failed = Failed(CandidateId("c"), RECIPE, "search", Failure("nan", "m"))
        merged = store.load_answers([*records, failed], ORDER)
        assert merged == evaluation(rev=[1], add=[4, 5, 6])
        assert merged.timing_s == {"score": 2.0, "merge": 0.5}
        assert store.load_answers(records).answers["add"].items == ("a4", "a6", "a5")
        whole = evaluation(rev=list(range(8)), add=list(range(8)))
        assert store.load_answers([*records, _saved(store, whole, 0)]) == whole
        with pytest.raises(ValueError, match="0 parts"):
            store.load_answers([failed])
        for path in (store.folder / RESPONSES).glob("1212*"):
            path.unlink()
        with pytest.raises(StoreError, match="is lost"):
            store.load_answers(records)

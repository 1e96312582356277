from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import EvaluationError
from evomerge.evaluation.split import Question, document_hash, split_items
from evomerge.evaluation.suite import Split
from evomerge.types import SET_NAMES


def question(prompt: str, target: str = "t", extra: str = "") -> Question:
    return Question(document_hash({"p": prompt, "t": target, "e": extra}), prompt, f"{prompt}/{target}")


def split(questions: list[Question], search: float, select: float, report: float, salt: str = "") -> dict[str, tuple]:
    return split_items(questions, Split(search, select, report), salt=salt, task="quiz")


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2), st.integers(0, 2)), min_size=8, max_size=60), st.data()
)
def test_sets_are_disjoint_exact_and_keep_duplicates_together(
    keys: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    questions = [question(str(p), str(t), str(e)) for p, t, e in keys]
    # every prompt gives at least one item
    n = len({q.prompt for q in questions})
    counts = [data.draw(st.integers(1, max(1, (n + 2) // 3))) for _ in range(3)]
    if sum(counts) > n:
        return
    sets = split(questions, *counts)
    assert [len(sets[s]) for s in SET_NAMES] == counts
    fulls = [questions[i].full for s in SET_NAMES for i in sets[s]]
    assert len(set(fulls)) == len(fulls)
    prompts = [{questions[i].prompt for i in sets[s]} for s in SET_NAMES]
    assert not prompts[0] & prompts[1]
    assert not prompts[0] & prompts[2]
    assert not prompts[1] & prompts[2]


def test_order_of_the_data_does_not_move_items_between_sets() -> None:
    questions = [question(f"q{i}") for i in range(50)]
    sets = split(questions, 10, 15, 20)
    back = split(questions[::-1], 10, 15, 20)
    for name in SET_NAMES:
        assert {questions[i].prompt for i in sets[name]} == {questions[::-1][i].prompt for i in back[name]}


def test_more_search_items_leave_the_report_set_as_it_was() -> None:
    questions = [question(f"q{i}") for i in range(50)]
    assert split(questions, 5, 10, 20)["report"] == split(questions, 18, 10, 20)["report"]
    assert set(split(questions, 5, 10, 20)["search"]) < set(split(questions, 18, 10, 20)["search"])


def test_salt_changes_the_sets() -> None:
    questions = [question(f"q{i}") for i in range(50)]
    assert split(questions, 10, 10, 10, "a") != split(questions, 10, 10, 10, "b")


def test_equal_documents_and_equal_questions_are_counted_once() -> None:
    questions = [
        question("same"),
        question("same"),
        question("same", "t", "another document"),
        question("other"),
        question("x"),
    ]
    sets = split(questions, 1, 1, 1)
    assert sorted(i for ids in sets.values() for i in ids) == [0, 3, 4]


def test_items_without_a_prompt_are_told_apart_by_their_documents() -> None:
    questions = [Question(document_hash({"page": str(i)}), "", str(i)) for i in range(9)]
    sets = split(questions, 3, 3, 3)
    assert sum(map(len, sets.values())) == 9


def test_fractions_are_rounded_down_but_never_to_nothing() -> None:
    assert {k: len(v) for k, v in split([question(str(i)) for i in range(10)], 0.05, 0.25, 0.5).items()} == {
        "search": 1,
        "select": 2,
        "report": 5,
    }


def test_fractions_give_way_to_prompts_that_stay_together() -> None:
    questions = [question(f"q{i // 3}", str(i)) for i in range(30)]
    sets = split(questions, 0.25, 0.25, 0.5)
    assert (len(sets["search"]), len(sets["report"])) == (7, 15)
    assert 0 < len(sets["select"]) <= 7
    with pytest.raises(EvaluationError, match="fewer items") as caught:
        split(questions, 10, 10, 10)
    assert "30 of them different, 10 with different prompts" in caught.value.allowed


def test_too_few_items_tell_both_numbers() -> None:
    with pytest.raises(EvaluationError, match=r"quiz.*fewer items") as caught:
        split([question(str(i)) for i in range(10)] + [question("1")], 5, 5, 5)
    assert "15 in all" in caught.value.got
    assert "at most 10: the task has 11 items, 10 of them different" in caught.value.allowed

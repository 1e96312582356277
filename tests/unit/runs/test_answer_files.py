"""Margins and subjects in the files of per-item answers, and files from before there were any."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.digest import canonical_json, digest_text
from evomerge.errors import StoreError
from evomerge.runs.records import Evaluated, task_scores
from evomerge.runs.responses import load_responses, response_path, save_responses
from evomerge.types import CandidateId, Digest, Evaluation, TaskAnswers

RECIPE = Digest("ab" * 32)
POOLED = TaskAnswers("mmlu", ("a", "b"), (1.0, 0.0), (0.25, -3.5), ("x", "y"))
PLAIN = TaskAnswers("add", ("a", "c"), (1.0, 1 / 3))


def record(evaluation: Evaluation, responses: str) -> Evaluated:
    return Evaluated(CandidateId("m"), RECIPE, evaluation.set_name, task_scores(evaluation), responses, {})


def test_margins_and_subjects_come_back(tmp_path: Path) -> None:
    evaluation = Evaluation("search", {"mmlu": POOLED, "add": PLAIN})
    responses = save_responses(tmp_path, RECIPE, evaluation)
    assert load_responses(tmp_path, record(evaluation, responses)) == evaluation


def test_subjects_are_written_once_for_all_models(tmp_path: Path) -> None:
    for score in (0.0, 1.0):
        answers = TaskAnswers("mmlu", ("a", "b"), (score, 0.0), (), ("x", "y"))
        save_responses(tmp_path, RECIPE, Evaluation("search", {"mmlu": answers}))
    assert len(list(tmp_path.glob("subjects-*.json"))) == len(list(tmp_path.glob("items-*.json"))) == 1
    assert len(list(tmp_path.glob("*-search-*.json"))) == 2


def test_answers_without_them_are_written_as_ever(tmp_path: Path) -> None:
    """Runs of before there were margins go on with the digests that their journals have."""
    evaluation = Evaluation("search", {"add": PLAIN})
    items = canonical_json({"add": PLAIN.items})
    older = canonical_json(
        {
            "format": "evomerge.responses",
            "version": 1,
            "recipe": RECIPE,
            "set": "search",
            "items": digest_text(items),
            "tasks": ["add"],
            "scores": {"add": PLAIN.scores},
        }
    )
    assert save_responses(tmp_path, RECIPE, evaluation) == digest_text(older)
    assert response_path(tmp_path, RECIPE, "search", digest_text(older)).read_text() == older
    assert load_responses(tmp_path, record(evaluation, digest_text(older))) == evaluation


def test_altered_subjects_are_noticed(tmp_path: Path) -> None:
    evaluation = Evaluation("search", {"mmlu": POOLED})
    responses = save_responses(tmp_path, RECIPE, evaluation)
    (path,) = tmp_path.glob("subjects-*.json")
    path.write_text('{"mmlu":["y","y"]}')
    with pytest.raises(StoreError, match=r"altered[\s\S]*Fix: `evomerge resume RUN` asks those questions again"):
        load_responses(tmp_path, record(evaluation, responses))
    path.unlink()
    with pytest.raises(StoreError, match="lost"):
        load_responses(tmp_path, record(evaluation, responses))

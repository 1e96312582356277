"""What `optimizer.asynchronous` means for a job: questions, optimizers, stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evomerge.config.assemble import Assembled, assemble
from evomerge.config.load import job_document, resolve_job
from evomerge.errors import ConfigError

pytestmark = pytest.mark.zoo

WEIGHTS = {"name": "weights", "space": "layer-wise-task-arithmetic", "evaluations": 10}


def assembled(zoo: Path, questions: Any = None, **changed: Any) -> Assembled:
    suite = {"include": [zoo / "tasks"], "tasks": ["add_mc"], "split": {"search": 60, "select": 6, "report": 6}}
    job = {
        "parents": {"base": zoo / "base", "models": {"math": zoo / "math", "lang": zoo / "lang"}},
        "space": "layer-wise-task-arithmetic",
        "suite": suite if questions is None else {**suite, "questions": questions},
        "objectives": [{"name": "sums", "task": "add_mc"}],
        "optimizer": {"asynchronous": True},
        "cluster": {"backend": "local", "workers": 1, "compile": "never"},
        **changed,
    }
    return assemble(resolve_job(job_document({k: v for k, v in job.items() if v is not None}), zoo))


def test_the_default_asks_everybody_everything(small_zoo: Path) -> None:
    generational = assembled(small_zoo, optimizer="auto")
    assert generational.questions.partial
    assert not generational.setup(accept_history=False).asynchronous
    found = assembled(small_zoo)
    assert not found.questions.partial
    assert any("no generations that could race" in note for note in found.questions.notes)
    assert found.setup(accept_history=False).asynchronous
    assert assembled(small_zoo, questions="all").questions.notes == ()


@pytest.mark.parametrize("questions", [8, 0.3, {"number": 0.5, "race": "none"}, {"race": "halving"}])
def test_questions_that_need_generations_are_refused(small_zoo: Path, questions: Any) -> None:
    with pytest.raises(ConfigError, match=r"(?s)asynchronous search cannot ask.*suite.questions.*split.search"):
        assembled(small_zoo, questions=questions)


def test_an_optimizer_that_needs_generations_is_refused(small_zoo: Path) -> None:
    objectives = [{"name": "sums", "task": "add_mc"}, {"name": "again", "task": "add_mc"}]
    optimizer = {"name": "como-catcmawm", "asynchronous": True}
    with pytest.raises(ConfigError, match=r"(?s)'como-catcmawm' needs whole.*cma, sep-cma"):
        assembled(small_zoo, optimizer=optimizer, objectives=objectives)
    later = {**WEIGHTS, "name": "again", "optimizer": optimizer}
    with pytest.raises(ConfigError, match=r"(?s)'como-catcmawm' needs whole.*stages\.1"):
        assembled(small_zoo, space=None, stages=[WEIGHTS, later], optimizer="nsga2", objectives=objectives)


def test_stages_choose_for_themselves(small_zoo: Path) -> None:
    later = {**WEIGHTS, "name": "again", "optimizer": {"name": "random", "asynchronous": True}}
    found = assembled(small_zoo, space=None, stages=[WEIGHTS, later], optimizer="random")
    setup = found.setup(accept_history=False)
    assert not setup.asynchronous
    merges = tuple(k.recipe for k in setup.known if k.kind == "task-arithmetic")[:1]
    assert [plan.open(merges).asynchronous for plan in setup.stages] == [False, True]
    assert not found.questions.partial

"""A task's answers, or those to the items of one of the lm-eval tasks that it pools."""

from __future__ import annotations

from evomerge.errors import EvaluationError, suggest
from evomerge.types import Evaluation, TaskAnswers


def answers_of(evaluation: Evaluation, task: str) -> TaskAnswers:
    """A task's answers.

    Raises:
        EvaluationError: when the task was not scored.
    """
    if task not in evaluation.answers:
        raise EvaluationError(
            f"The task {task!r} was not scored on the {evaluation.set_name} set.",
            got=repr(task),
            allowed=suggest(task, evaluation.answers),
            fix="correct the name, or add the task to suite.tasks.",
        )
    return evaluation.answers[task]


def of_subject(answers: TaskAnswers, subject: str) -> TaskAnswers:
    """The answers to one subject's items; all of them for the empty subject.

    Raises:
        EvaluationError: when no item is of that subject.
    """
    if not subject:
        return answers
    places = [i for i, name in enumerate(answers.subjects) if name == subject]
    if not places:
        raise EvaluationError(
            f"The task {answers.task!r} has no items of the subject {subject!r} here.",
            got=repr(subject),
            allowed=suggest(subject, set(answers.subjects)),
            fix="correct the name; subjects are the lm-eval tasks that a group pools.",
        )
    return answers.at(places)

"""Surveys as files."""

from __future__ import annotations

import json
from pathlib import Path

from evomerge.survey.values import Survey, SurveyError, survey_from_json


def read_survey(path: Path) -> Survey | None:
    """The survey of a file; None where there is none.

    Raises:
        SurveyError: when the file holds something else.
    """
    if not path.is_file():
        return None
    try:
        return survey_from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise SurveyError(
            "A stored survey of parents cannot be read.",
            got=f"{path}: {error}",
            allowed="the file as it was written",
            fix="remove it; it is measured again.",
        ) from error

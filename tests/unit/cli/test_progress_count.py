"""What the progress says of how many models are scored."""

from __future__ import annotations

from typing import cast

import pytest

from evomerge.cli.console import make_console
from evomerge.cli.running import Bars
from evomerge.execution.ledger import Request
from evomerge.types import Evaluation


def test_answers_that_are_asked_again_are_not_counted_twice(capsys: pytest.CaptureFixture[str]) -> None:
    bars = Bars(make_console(width=300))
    bars.phase("search", 20, 19)
    for number in range(2):  # the last one, and one whose file of answers was lost
        bars.outcome(cast("Request", None), "search", Evaluation("search", {}))
        bars.batch(number)
        task = bars._progress.tasks[-1]
        assert (task.fields["count"], task.completed) == ("20/20", 20)
    assert "21/20" not in capsys.readouterr().out

"""evomerge's conformance suites, run on the plug-ins: `pytest conformance.py` where both are installed."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from evomerge_example.evaluator import CorrectSums
from evomerge_example.maker import EXAMPLE_AGREED
from evomerge_example.method import EXAMPLE_MEDIAN

from evomerge.testing.evaluator_suite import check_item_task
from evomerge.testing.maker_suite import MakerSuite
from evomerge.testing.merge_suite import MergeMethodSuite
from evomerge.testing.optimizer_suite import OptimizerSuite


class TestMedian(MergeMethodSuite):
    method = EXAMPLE_MEDIAN
    shared: ClassVar = {"strength": 0.5}


class TestAgreed(MakerSuite):
    maker = EXAMPLE_AGREED
    settings: ClassVar = {"scale": 0.5}


class TestClimber(OptimizerSuite):
    factory = "evomerge_example.optimizer:climber"
    options: ClassVar = {"population": 6}


def test_correct_sums(tmp_path: Path) -> None:
    check_item_task(lambda: CorrectSums(n=20), tmp_path)

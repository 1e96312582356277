"""Objectives that are costs, in status, tables and differences."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from evomerge.cli.render import show_status
from evomerge.evaluation.goals import Goals
from evomerge.evaluation.objectives import ConstraintSpec, CostObjective, ObjectiveSpec, Relative
from evomerge.report.collect import summarise
from evomerge.report.details import run_details
from evomerge.report.html import render_report
from evomerge.report.intervals import difference_rows
from evomerge.report.marks import FULL
from evomerge.report.summary import Difference
from evomerge.report.svg import number, text_width, tick
from evomerge.report.tables import scored
from evomerge.report.words import NOT_JUDGED, plainly, recommendation, separability, signed, with_interval
from evomerge.testing import sample_journal
from evomerge.types import Evaluation, SetName

HOPS = {"parent-math": 4, "parent-lang": 4, "soup": 4, "g0000-i00": 3, "g0001-i00": 6, "g0001-i01": 1}
GOALS = Goals(
    (ObjectiveSpec("add", ("add",)), CostObjective("depth", "hops"), CostObjective("speed", "latency")),
    (ConstraintSpec("cost", "hops", "at_most", Relative("best_parent", 2.0)),),
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sample run with models that run these many layers, each in 10 microseconds."""
    plain = sample_journal.sample_answers

    def told(model: str, set_name: SetName) -> Evaluation:
        costs = {"hops": (float(HOPS[model]), 0.0), "latency": (1e-5 * HOPS[model], 1e-6)}
        return replace(plain(model, set_name), costs=costs)

    monkeypatch.setattr(sample_journal, "sample_answers", told)
    return sample_journal.write_sample_run(tmp_path / "run", goals=GOALS)


def test_status_tells_costs_as_any_objective(run: Path) -> None:
    summary = summarise(run)
    assert [o.direction for o in summary.objectives] == ["maximize", "minimize", "minimize"]
    entries = summary.entries()
    depth = entries["g0001-i00"].search.objectives["depth"]
    assert (depth.value, depth.se, depth.low, depth.high) == (6.0, 0.0, 6.0, 6.0)
    speed = entries["soup"].search.objectives["speed"]
    assert (speed.value, speed.se) == (4e-5, 1e-6)
    assert speed.high - speed.value == pytest.approx(1.96e-6, rel=1e-3)
    (bound,) = summary.constraints
    assert (bound.on, bound.name, bound.rule, bound.at_most) == ("cost", "hops", "hops <= best_parent + 2", 6.0)
    assert all(e.feasible for e in entries.values())


def test_shorter_models_are_on_the_front(run: Path) -> None:
    assert {e.id for e in summarise(run).front} == {"g0001-i00", "parent-math", "g0000-i00", "g0001-i01"}


def test_the_terminal_shows_costs_without_idle_zeros(run: Path) -> None:
    out = io.StringIO()
    show_status(summarise(run), run, Console(file=out, width=100))
    assert "4e-05 ±1e-06" in out.getvalue()
    assert "6.000" not in out.getvalue()
    assert "hops <= best_parent + 2 (= 6)" in out.getvalue()


def test_differences_of_costs_have_axes_of_their_own(run: Path) -> None:
    details = run_details(run)
    found = {(d.what, d.against): d for d in details.differences}
    worse = found[("depth", "soup")]
    assert (worse.mean, worse.low, worse.high, worse.verdict) == (2.0, 2.0, 2.0, "worse")
    speed = found[("speed", "soup")]
    assert (speed.verdict, speed.low < speed.mean < speed.high) == ("not judged", True)
    assert details.costs == {"depth": "layers that run", "speed": "seconds per token"}
    page = render_report(summarise(run), details)
    assert "depth: layers that run" in page
    assert "speed: seconds per token" in page
    learned = page.split("learned by heart?</h2>")[1].split("<section>")[0]
    assert "speed" not in learned


def test_nothing_is_called_better_or_worse_for_its_latency(run: Path) -> None:
    """Intervals far from zero: the machine may have been busy."""
    summary, details = summarise(run), run_details(run)
    apart = tuple(replace(d, mean=-1.0, low=-1.1, high=-0.9) if d.what == "speed" else d for d in details.differences)
    details = replace(details, differences=apart)
    assert "speed" not in recommendation(summary, details)
    for told in (plainly(summary, details), separability(details)):
        (about,) = (s for s in told if "speed" in s)
        assert about == f"speed: no verdict; {NOT_JUDGED}."
    page = render_report(summary, details)
    rows = [title for title in re.findall("<title>(speed, against[^<]*)", page) if "[" in title]
    assert rows
    assert all(title.endswith(", no verdict") for title in rows)


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-12])
def test_no_verdict_stands_on_an_interval(scale: float) -> None:
    ends = (-2.36 * scale, -4.14 * scale, -0.983 * scale)
    svg = difference_rows([Difference("a", "p", *ends, "better"), Difference("b", "p", *ends, "not separable")])
    told = with_interval(*ends)
    intervals = [float(x) for x in re.findall(rf'<text class="label number" x="([\d.]+)"[^>]*>{re.escape(told)}', svg)]
    verdicts = re.findall(r'<text class="label (?:good|neutral)" x="([\d.]+)"[^>]*>([^<]*)<', svg)
    assert len(intervals) == len(verdicts) == 2
    for left, (right, words) in zip(intervals, verdicts, strict=True):
        assert left + text_width(told) < float(right)
        assert float(right) + text_width(words) < FULL
    whiskers = [float(x) for x in re.findall(r'class="whisker[^>]* x2="([\d.]+)"', svg)]
    assert max(whiskers) < intervals[0]


def test_numbers_of_costs() -> None:
    assert [tick(v) for v in (0, 0.5, 12, 2e6, 1.5e9, 2e-5, 1.25e-4)] == [
        "0",
        "0.5",
        "12",
        "2 M",
        "1.5 G",
        "2e-5",
        "1.25e-4",
    ]
    assert [signed(v) for v in (0.0, 0.0321, -2.0, 2e-5, -1_179_648.0)] == [
        "+0.000",
        "+0.032",
        "-2",
        "+2e-05",
        "-1,179,648",
    ]
    assert with_interval(2.0, 2.0, 2.0) == "+2"
    assert with_interval(0.1, 0.05, 0.15) == "+0.100 [+0.050, +0.150]"
    assert scored(1.0, 1.0, 1.0) == "1"
    assert scored(7_241_732_096.0, 7_241_732_096.0, 7_241_732_096.0) == number(7_241_732_096.0) == "7.242 G"

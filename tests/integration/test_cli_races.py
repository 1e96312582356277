"""A search that asks in part, killed inside a race and resumed by the command line: the undisturbed result digest."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from cli_life import Life, begun, journal, recorded

pytestmark = [pytest.mark.zoo, pytest.mark.kill]

RACES = (
    *("--set", "budget.evaluations=26", "--set", "suite.split={search: 12, select: 4, report: 4}"),
    *("--set", "optimizer={name: nsga2, population: 8}", "--set", "cluster={backend: local, workers: 1}"),
    *("--set", "suite.questions={number: 3, race: halving, calibrate: 12}"),
)


DECIDED = ("batch", "rung", "alive", "items")


def records(run: Path, tag: str) -> list[dict[str, Any]]:
    """The whole lines of a journal with a tag."""
    lines = journal(run).split(b"\n")[:-1]
    return [found for line in lines if (found := json.loads(line))["t"] == tag]


def test_kills_inside_races_lead_to_the_undisturbed_result(home, command):
    search = ("search", home.job, *RACES)
    calm, run, log = home.folder / "calm", home.folder / "run", home.folder / "log"
    done = command(*search, "--run-dir", calm)
    assert done.code == 0, done.err
    rungs = records(calm, "rung")
    assert len({(r["batch"], r["rung"]) for r in rungs}) == len(rungs) >= 4
    parts = [r for r in records(calm, "evaluated") if r.get("part")]
    assert len(parts) > len({(r["recipe"], r["set_name"]) for r in parts})  # some were asked in several rungs

    before, inside = b"", 0
    last_race = max(i for i, r in enumerate(rungs) if r["rung"] == 0)
    for group, n_rungs, more in ((False, 1, 3), (True, last_race + 1, 1)):
        life = Life(*search, "--run-dir", run, "--resume", "auto", log=log)
        assert life.until(lambda n=n_rungs: len(records(run, "rung")) >= n), log.read_text()
        at = recorded(run)
        assert life.until(lambda n=more, at=at: recorded(run) >= at + n), log.read_text()
        life.signal(signal.SIGKILL, group=group)
        assert life.end() == -signal.SIGKILL
        assert journal(run).startswith(before)
        before = journal(run)
        killed_in = records(run, "rung")[-1]["batch"]
        inside += killed_in not in {r["batch"] for r in records(run, "told")}
    assert inside  # a slow machine may miss one

    done = command("resume", run)
    assert done.code == 0, done.err
    assert journal(run).startswith(before)
    assert begun(run) - recorded(run) <= 2
    ours, theirs = (json.loads(command("status", r, "--json").out) for r in (run, calm))
    assert ours["result_digest"] == theirs["result_digest"]
    assert ours["chosen"] == theirs["chosen"]
    assert ours["counts"] == theirs["counts"]
    for ran, expected in zip(records(run, "rung"), rungs, strict=True):
        assert [ran[key] for key in DECIDED] == [expected[key] for key in DECIDED]

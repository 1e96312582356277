"""Whole searches with an engine: the same result as without one, also when the engine goes wrong on the way."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import evomerge
from evomerge.errors import ConfigError, EvaluationError, SelfCheckError
from evomerge.evaluation.engine_names import FALLBACK
from evomerge.report.details import run_details
from evomerge.testing.engine_suite import SHAPE
from evomerge.testing.eval_tasks import byte_pair_checkpoint, metric, write_choice_task, write_generation_task
from evomerge.testing.fake_vllm import Fault, fake_vllm

SIZES = {"search": 4, "select": 2, "report": 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three random models, and a task that is scored by what they write: whether there is an `e` in it."""
    folder = tmp_path_factory.mktemp("engines")
    for seed, name in enumerate(("base", "a", "b")):
        byte_pair_checkpoint(folder / name, "llama", seed, **SHAPE)
    contains = {"filter_list": [{"name": "e", "filter": [{"function": "regex", "regex_pattern": "(e)"}]}]}
    write_generation_task(
        folder / "tasks", n=8, answers=["e"] * 8, **{**contains, "metric_list": [metric("exact_match")]}
    )
    write_choice_task(folder / "tasks", n=8)
    return folder


def job(home: Path, engine: str, **changed: Any) -> dict[str, Any]:
    return {
        "parents": {"base": home / "base", "models": {n: home / n for n in "ab"}},
        "space": {"method": "task_arithmetic", "depth": "model", "parameters": {"weight": {"low": 0, "high": 1}}},
        "suite": {"include": [home / "tasks"], "tasks": ["say", "pick"], "split": SIZES, "engine": engine},
        "objectives": [{"name": "both", "tasks": ["say", "pick"]}],
        "optimizer": {"name": "random"},
        "budget": {"evaluations": 7},
        "cluster": {"backend": "local", "workers": 1, "compile": "never", "device": "cpu"},
        **changed,
    }


def scores(run: Path) -> list[Any]:
    """What every model scored, in order; and how often the reference had to answer."""
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [(r["id"], r["set_name"], r["tasks"], r["responses"]) for r in lines if r["t"] == "evaluated"]


def install(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    for name, module in fake_vllm(fault).items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_NO_USAGE_STATS", "VLLM_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "")


def test_a_search_with_an_engine_scores_what_one_without_scores(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evomerge.search(job(home, "transformers"), run_dir=tmp_path / "plain")
    fault = Fault("stale", first=6, loads=4)  # behind the check before the run
    install(monkeypatch, fault)
    evomerge.search(job(home, "vllm"), run_dir=tmp_path / "engine")
    assert scores(tmp_path / "engine") == scores(tmp_path / "plain")
    assert fault.seen > 12
    found = json.loads((tmp_path / "engine" / "manifest.json").read_text())
    assert found["suite"]["engine"] == "vllm"
    told = [n for n in run_details(tmp_path / "engine").notes if "written by vllm" in n]
    assert "2 of " in told[0]
    assert run_details(tmp_path / "plain").notes == ()
    lines = (tmp_path / "engine" / "journal.jsonl").read_text().splitlines()
    timings = [r["timing_s"] for r in map(json.loads, lines) if "timing_s" in r]
    assert sum(FALLBACK in t for t in timings) == 2
    log = "".join(p.read_text() for p in (tmp_path / "engine" / "logs").iterdir())
    assert log.count("The engine does not answer as the candidate does") == 4
    assert log.count("this candidate is answered by transformers") == 2
    with pytest.raises(ConfigError, match=r"(?s)has changed.*engine"):
        evomerge.search(job(home, "transformers"), run_dir=tmp_path / "engine", resume="must")


def test_an_engine_that_fails_the_check_before_a_run_stops_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, Fault("stale", first=2))
    with pytest.raises(SelfCheckError, match="The engine's answers differ"):
        evomerge.search(job(home, "vllm"), run_dir=tmp_path / "run")


def test_an_engine_that_is_not_there_is_refused_before_anything_is_built(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evomerge.config.engines.find_spec", lambda name: None)
    with pytest.raises(EvaluationError, match=r"(?s)not installed.*evomerge\[vllm\]"):
        evomerge.search(job(home, "vllm"), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    scored = {**job(home, "vllm")["suite"], "tasks": ["pick"]}  # nothing is generated: no engine is needed
    small = job(home, "vllm", suite=scored, objectives=[{"name": "pick", "task": "pick"}], budget={"evaluations": 4})
    evomerge.search(small, run_dir=tmp_path / "scored")

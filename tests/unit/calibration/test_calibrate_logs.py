"""Sample logs of lm-eval: names, metrics, hashes; and a log that the installed lm-eval writes itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evomerge.calibration.logs import log_file, members, read_log, shown_model
from evomerge.calibration.sources import gather
from evomerge.errors import ConfigError
from evomerge.evaluation.split import document_hash
from evomerge.testing import eval_tasks

Writer = Callable[..., Path]
Line = Callable[..., dict[str, Any]]


def test_scores_are_filed_under_our_hashes(log: Writer) -> None:
    path = log([1.0, False, 0.25])
    sheet = read_log(log_file(path, "logs"), "pick")
    assert sheet.items == tuple(document_hash({"q": f"pick {i}"}) for i in range(3))
    assert sheet.scores.tolist() == [[1.0, 0.0, 0.25]]
    assert (sheet.metric, sheet.keys, sheet.names) == ("acc,none", ("org__tiny",), ("org/tiny",))


def test_results_beside_a_log_name_model_metric_and_groups(log: Writer, sample: Line) -> None:
    results = {
        "model_name": "/home/me/models/tiny",
        "configs": {"pick": {"metric_list": [{"metric": "acc_norm"}]}},
        "group_subtasks": {"all": ["half"], "half": ["pick", "other"]},
    }
    lines = [{**sample({"q": 1}, 1.0), "metrics": ["acc", "acc_norm"], "acc_norm": 0.0}]
    file = log_file(log([], results=results, lines=lines), "logs")
    sheet = read_log(file, "pick")
    assert sheet.scores.tolist() == [[0.0]]
    assert (sheet.metric, sheet.keys, sheet.names) == ("acc_norm,none", ("/home/me/models/tiny",), ("tiny",))
    assert members("all", [file]) == {"pick"}
    assert members("other", [file]) == frozenset()


@pytest.mark.parametrize("results", [[], {"configs": []}, {"configs": {"pick": {"metric_list": [3]}}, "model_name": 0}])
def test_odd_results_are_passed_over(log: Writer, results: object) -> None:
    path = log([1.0], results=results)
    assert read_log(log_file(path, "logs"), "pick").metric == "acc,none"


def test_the_first_filter_counts_unless_another_is_named(log: Writer, sample: Line) -> None:
    lines = [sample({"q": i}, s, "em", f) for f, s in (("strict", 0.0), ("flexible", 1.0)) for i in range(2)]
    file = log_file(log([], lines=lines), "logs")
    assert read_log(file, "pick").scores.tolist() == [[0.0, 0.0]]
    assert read_log(file, "pick", "em,flexible").scores.tolist() == [[1.0, 1.0]]
    with pytest.raises(ConfigError, match=r"no line with filter 'loose'"):
        read_log(file, "pick", "em,loose")
    with pytest.raises(ConfigError, match=r"no 'ex'(.|\n)*em"):
        read_log(file, "pick", "ex")


def test_a_document_that_occurs_twice_is_one_item(log: Writer, sample: Line) -> None:
    lines = [sample({"q": 1}, 1.0), sample({"q": 1}, 0.0), sample({"q": 2}, 0.0)]
    assert read_log(log_file(log([], lines=lines), "logs"), "pick").scores.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("{", "line 1: JSONDecodeError"),
        ("[1]", "line 1 has no document"),
        ('{"doc": "x", "metrics": ["acc"], "acc": 1}', "line 1 has no document"),
        ('{"doc": {}, "acc": 1}', "does not name its filter and metrics"),
        ('{"doc": {}, "metrics": ["acc"], "acc": NaN}', "acc is nan"),
        ('{"doc": {}, "metrics": ["acc"], "acc": [-3.5, 12]}', r"no score per item(.|\n)*\[-3.5, 12\]"),
        ('{"doc": {}, "metrics": [], "acc": 1}', "does not hold the metric"),
        ("", "is empty"),
    ],
)
def test_bad_lines_are_refused(tmp_path: Path, line: str, match: str) -> None:
    path = tmp_path / "samples_pick.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(ConfigError, match=match):
        read_log(log_file(path, "logs"), "pick")


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("org/tiny-7b", "org/tiny-7b"),
        ("gpt2", "gpt2"),
        ("org__tiny", "org/tiny"),
        ("__home__me__tiny", "tiny"),
        ("/home/me/tiny/", "tiny"),
        ("runs/a/exports/best", "best"),
        ("./tiny", "tiny"),
        ("~/tiny", "tiny"),
    ],
)
def test_no_path_is_shown(model: str, shown: str) -> None:
    assert shown_model(model) == shown


def test_the_newest_log_of_a_model_counts(log: Writer, tmp_path: Path) -> None:
    log([0, 0, 0], date="2026-01-01T00-00-00.0")
    log([1, 1], date="2026-02-01T00-00-00.0")
    log([0, 1, 1], model="org__other")
    found = gather([tmp_path / "logs"]).pools[0]
    assert found.responses.models == ("org/tiny", "org/other")
    assert found.responses.scores.tolist() == [[1, 1, 0], [0, 1, 1]]
    assert [(s.name, s.models) for s in found.sources] == [("logs", 2)]


def test_a_group_is_one_task(log: Writer, tmp_path: Path) -> None:
    for model, score in (("a", 1), ("b", 0)):
        for task in ("left", "right", "alone"):
            results = {"group_subtasks": {"both": ["left", "right"]}}
            log([score, 1], task=task, model=model, results=results)
    (pool,) = gather([tmp_path / "logs"], task="both").pools
    assert (pool.task, pool.responses.scores.tolist()) == ("both", [[1, 1, 1, 1], [0, 1, 0, 1]])
    assert [p.task for p in gather([tmp_path / "logs"]).pools] == ["alone", "left", "right"]
    with pytest.raises(ConfigError, match=r"no answers to task 'lift'(.|\n)*Did you mean 'left'"):
        gather([tmp_path / "logs"], task="lift")


@pytest.mark.parity
def test_items_of_a_real_log_are_those_of_a_plan(tmp_path: Path) -> None:
    """lm-eval writes the log with its own code; floats, nesting, dates and other scripts survive the way there."""
    from lm_eval.evaluator import evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.dummy import DummyLM
    from lm_eval.tasks import TaskManager

    from evomerge.evaluation.lm_eval import compile_plan
    from evomerge.evaluation.lm_eval_guard import quiet
    from evomerge.evaluation.suite import load_suite

    documents = [
        {
            "question": f"häufig {i} \u4f60\u597d \u2028",
            "choices": ["yes", "no"],
            "label": i % 2,
            "weight": 0.1 * i,
            "nested": {"b": [1.5, None], "a": i},
            "date": "2024-05-06 07:08:09",
            "rest": None if i % 3 else "there",
        }
        for i in range(12)
    ]
    documents.append(documents[3])  # counted once, in both
    eval_tasks.write_task(
        tmp_path / "tasks",
        "odd",
        documents,
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_choice="{{choices}}",
        doc_to_target="{{label}}",
        metric_list=[eval_tasks.metric("acc"), eval_tasks.metric("acc_norm")],
    )
    checkpoint = eval_tasks.byte_pair_checkpoint(tmp_path / "model")
    suite = {"include": ["tasks"], "tasks": ["odd"], "split": {"search": 4, "select": 4, "report": 4}}
    plan = compile_plan(load_suite(suite, tmp_path), checkpoint)
    with quiet():
        manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
        results = evaluate(DummyLM(), manager.load(["odd"]), bootstrap_iters=0, log_samples=True)
        samples = results.pop("samples")
        tracker = EvaluationTracker(output_path=str(tmp_path / "logs"))
        tracker.general_config_tracker.log_experiment_args("hf", "pretrained=/home/me/tiny", None, None, False)
        tracker.save_results_aggregated(results, samples=samples)
        tracker.save_results_samples("odd", samples["odd"])
    (path,) = (tmp_path / "logs").rglob("samples_odd_*.jsonl")
    sheet = read_log(log_file(path, "logs"), "odd")
    assert set(sheet.items) == {item.hash for item in plan.task("odd").items}
    assert (sheet.metric, sheet.names) == ("acc,none", ("tiny",))
    assert set(sheet.scores[0]) <= {0.0, 1.0}

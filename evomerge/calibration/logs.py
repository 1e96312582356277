"""Per-item scores from the sample logs of lm-eval (`--log_samples`), with the item hashes of our own plans.

A log names a document by a hash of its own; ours is `document_hash` of the document that every line carries.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from evomerge.calibration.sheets import Sheet
from evomerge.errors import ConfigError, suggest
from evomerge.evaluation.split import document_hash

_NAME: Final = re.compile(r"samples_(?P<task>.+?)(?:_(?P<date>\d{4}-\d{2}-\d{2}T[\d.\-]+))?\.jsonl")
_MOST_CHARACTERS: Final = 16_000_000
"""Of one line: one document, its prompt and the model's answers."""
_FORM: Final = "lines that lm-eval wrote with --log_samples: JSON objects with doc, filter, metrics and the metrics"


@dataclass(frozen=True)
class LogFile:
    """One samples file, not read yet.

    Attributes:
        path: the file.
        source: name of the source it was found in.
        task: lm-eval's name of the task.
        date: when lm-eval ran, as text that sorts; empty when the name does not say.
        model: key of the model: its full name or path.
        metric: the task's first metric, where results beside the log say so.
        groups: group -> members, where results beside the log say so.
    """

    path: Path
    source: str
    task: str
    date: str = ""
    model: str = ""
    metric: str = ""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def model_name(self) -> str:
        """The model's name for people: hub ids whole, of paths only the last part."""
        return shown_model(self.model)


def shown_model(model: str) -> str:
    """A hub id as it is, the last part of a path; `__` stands for `/` in folder names of lm-eval."""
    name = model.replace("__", "/") if "/" not in model else model
    is_hub_id = name.count("/") <= 1 and name[:1] not in ("/", ".", "~")
    return name if is_hub_id else name.rstrip("/").rpartition("/")[2]


def log_file(path: Path, source: str) -> LogFile:
    """What name, folder and results beside it say of a samples file; nothing is read but the results."""
    match = _NAME.fullmatch(path.name)
    task = match["task"] if match else path.stem
    date = (match["date"] or "") if match else ""
    results = _results(path.with_name(f"results_{date}.json")) if date else {}
    model = results.get("model_name") or path.resolve().parent.name
    metrics = _dict(_dict(results, "configs"), task).get("metric_list")
    first = metrics[0].get("metric") if isinstance(metrics, list) and metrics and isinstance(metrics[0], dict) else ""
    groups = {
        name: tuple(map(str, members))
        for name, members in _dict(results, "group_subtasks").items()
        if isinstance(members, list)
    }
    return LogFile(path, source, task, date, str(model), first if isinstance(first, str) else "", groups)


def _dict(of: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = of.get(key)
    return found if isinstance(found, dict) else {}


def _results(path: Path) -> Mapping[str, Any]:
    """The results file, or nothing: a log is usable without it."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_CHARACTERS:
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def members(task: str, files: Sequence[LogFile]) -> frozenset[str]:
    """The logged tasks that a task or group consists of, through groups within groups."""
    groups = {name: parts for file in files for name, parts in file.groups.items()}
    logged = {file.task for file in files}
    found: set[str] = set()
    waiting, known = [task], set[str]()
    while waiting:
        name = waiting.pop()
        if name in known:
            continue
        known.add(name)
        found |= {name} & logged
        waiting += groups.get(name, ())
    return frozenset(found)


def read_log(file: LogFile, task: str, metric: str = "") -> Sheet:
    """One model's scores.

    Args:
        file: the samples file.
        task: the name under which the answers are filed (the file's own task or its group).
        metric: `NAME` or `NAME,FILTER`; empty takes the task's first metric behind its first filter, as a suite does.

    Raises:
        ConfigError: the file cannot be read, a line is no sample, the metric or filter is not in it, or a score is no
            finite number.
    """
    name, _, chain = (metric or file.metric).partition(",")
    scores: dict[str, float] = {}
    for number, sample in _samples(file.path):
        chain = chain or sample["filter"]
        if not name:
            name = next(iter(sample["metrics"]), "")
        if sample["filter"] != chain:
            continue
        # a document that the data hold twice is one item; the first counts, as in a plan
        scores.setdefault(document_hash(sample["doc"]), _score(file.path, number, sample, name))
    if not scores:
        raise ConfigError(
            "A sample log has no answer behind the filter that was asked for.",
            got=f"{file.path}: no line with filter {chain!r}" if chain else f"{file.path} is empty",
            allowed=_FORM,
            fix="leave the filter out of --metric, or name one of the log's.",
        )
    told = f"{name},{chain}"
    row = np.array([list(scores.values())], dtype=np.float64)
    return Sheet(file.source, "log", task, told, (file.model,), (file.model_name,), tuple(scores), row)


def _samples(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and sample of every line that is not empty; `filter` and `metrics` are always there."""
    number = 0
    try:
        with path.open(encoding="utf-8") as f:
            for number, line in enumerate(iter(lambda: f.readline(_MOST_CHARACTERS), ""), start=1):
                if len(line) == _MOST_CHARACTERS:
                    raise _bad(path, f"line {number} has over {_MOST_CHARACTERS} characters")
                if not line.strip():
                    continue
                sample = json.loads(line)
                if not isinstance(sample, dict) or not isinstance(sample.get("doc"), dict):
                    raise _bad(path, f"line {number} has no document")
                sample.setdefault("filter", "none")
                if not isinstance(sample["filter"], str) or not isinstance(sample.get("metrics"), list):
                    raise _bad(path, f"line {number} does not name its filter and metrics")
                yield number, sample
    except (OSError, ValueError, RecursionError) as error:
        raise _bad(path, f"line {max(number, 1)}: {type(error).__name__}: {error}") from error


def _score(path: Path, number: int, sample: Mapping[str, Any], metric: str) -> float:
    value = sample.get(metric)
    if metric not in sample["metrics"]:
        raise ConfigError(
            "A sample log does not hold the metric.",
            got=f"{path}, line {number}: no {metric!r}",
            allowed=suggest(metric, map(str, sample["metrics"])),
            fix="name one of these with --metric.",
        )
    if not isinstance(value, bool | int | float):
        raise ConfigError(
            f"Metric {metric!r} has no score per item that could be calibrated.",
            got=f"{path}, line {number}: {json.dumps(value)[:80]}",
            allowed="metrics with one number per item; perplexities per word or byte depend on the whole item set",
            fix="name another metric with --metric, or calibrate from run directories.",
        )
    if not math.isfinite(value):
        raise _bad(path, f"line {number}: {metric} is {value}")
    return float(value)


def _bad(path: Path, got: str) -> ConfigError:
    return ConfigError(
        "A sample log cannot be used.",
        got=f"{path}: {got}",
        allowed=_FORM,
        fix="run lm-eval again with --log_samples and --output_path, or leave the file out.",
    )

"""The two peers of `candidates.py`: mergekit and lm-eval in one warm process, and their commands one by one.

The warm one serves `paths.py` too, which writes its candidates otherwise.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import yaml
from candidate_material import Scores, sample_scores

Materialise = Callable[[], Path]
"""Writes a candidate to a new folder."""


class Scored(NamedTuple):
    """A peer's answer.

    Attributes:
        scores: per item.
        timing_s: seconds by stage.
    """

    scores: Scores
    timing_s: dict[str, float]

    @property
    def total_s(self) -> float:
        """Seconds of the whole candidate."""
        return sum(self.timing_s.values())


class Questions(NamedTuple):
    """What the peers ask.

    Attributes:
        folder: lm-eval task files that hold the asked items alone.
        metrics: task -> the metric that is its score.
        tokenizer: folder of the tokenizer.
        dtype: of the model in memory.
        seed: handed to mergekit.
        device: where the warm peer asks.
    """

    folder: Path
    metrics: dict[str, str]
    tokenizer: Path
    dtype: str
    seed: int
    device: str = "cpu"


@final
class WarmPeer:
    """Everything that can be kept is kept: imports, tokenizer, lm-eval's task objects, mergekit's open parents.

    Per candidate: a new folder (`merge` makes it from a fresh mergekit configuration with `run_merge`),
    `from_pretrained`, lm-eval's `evaluate` without bootstrap, and the folder is removed.
    """

    def __init__(self, questions: Questions, scratch: Path) -> None:
        from lm_eval.tasks import TaskManager
        from transformers import AutoTokenizer

        from evomerge.evaluation.lm_eval_tasks import quiet

        self._questions = questions
        self._scratch = scratch
        self._tokenizer = AutoTokenizer.from_pretrained(questions.tokenizer)
        with quiet():
            manager = TaskManager(include_path=str(questions.folder), include_defaults=False)
            self._tasks = manager.load(list(questions.metrics))
        for task in self._tasks["tasks"].values():
            task.set_fewshot_seed(seed=1234)

    def merge(self, mergekit: str) -> Path:
        """A merged model in a new folder."""
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions

        folder = tempfile.mkdtemp(dir=self._scratch)
        options = MergeOptions(
            quiet=True, copy_tokenizer=False, write_model_card=False, random_seed=self._questions.seed
        )
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(mergekit)), folder, options)
        return Path(folder)

    def score(self, materialise: Materialise, batch_size: int) -> Scored:
        """To disk, load, ask."""
        from transformers import AutoModelForCausalLM

        from evomerge.evaluation.lm_eval_tasks import quiet

        with quiet():
            started = time.perf_counter()
            folder = materialise()
            merged = time.perf_counter()
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=self._questions.dtype)
            model.to(self._questions.device)
            loaded = time.perf_counter()
            results = self._evaluate(model, batch_size)
            asked = time.perf_counter()
            shutil.rmtree(folder)
            ended = time.perf_counter()
        scores: Scores = {}
        for task, metric in self._questions.metrics.items():
            scores |= sample_scores(task, results["samples"][task], metric)
        timing = {"merge": merged - started, "load": loaded - merged, "score": asked - loaded, "remove": ended - asked}
        return Scored(scores, timing)

    def _evaluate(self, model: Any, batch_size: int) -> Any:
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        lm = HFLM(pretrained=model, tokenizer=self._tokenizer, batch_size=batch_size)
        return evaluate(lm, self._tasks, bootstrap_iters=0)

    def best_batch_size(self, materialise: Materialise, sizes: Sequence[int]) -> int:
        """The size with the shortest scoring time; every size runs once before it is timed."""
        times = {}
        for size in sizes:
            self.score(materialise, size)
            times[size] = min(self.score(materialise, size).timing_s["score"] for _ in range(2))
        return min(sizes, key=lambda size: times[size])


def _command(name: str) -> str:
    """A command of this Python environment."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise SystemExit(f"the command {name} is not installed beside {sys.executable}")
    return found


def _run(arguments: Sequence[str]) -> float:
    """Runs a command on one thread; seconds of it."""
    started = time.perf_counter()
    done = subprocess.run(arguments, env=os.environ, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return seconds


def score_cold(mergekit: str, questions: Questions, scratch: Path, batch_size: int) -> Scored:
    """What a script of commands does: `mergekit-yaml`, then `lm_eval`, each in a process of its own."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    config, model, out = folder / "merge.yml", folder / "model", folder / "out"
    config.write_text(mergekit, encoding="utf-8")
    options = ("--no-copy-tokenizer", "--no-write-model-card", "--quiet", "--random-seed", str(questions.seed))
    merge_s = _run([_command("mergekit-yaml"), str(config), str(model), *options, "-j", "1"])
    arguments = f"pretrained={model},tokenizer={questions.tokenizer},dtype={questions.dtype}"
    score_s = _run(
        [
            *(_command("lm_eval"), "--model", "hf", "--model_args", arguments),
            *("--include_path", str(questions.folder), "--tasks", ",".join(questions.metrics)),
            *("--batch_size", str(batch_size), "--device", "cpu", "--log_samples", "--output_path", str(out)),
        ]
    )
    scores: Scores = {}
    for task, metric in questions.metrics.items():
        (path,) = out.rglob(f"samples_{task}_2*.jsonl")
        samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        scores |= sample_scores(task, samples, metric)
    shutil.rmtree(folder)
    return Scored(scores, {"merge": merge_s, "score": score_s})

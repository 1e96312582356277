"""Workers score recipes with a path: the same answers whatever was scored before, and failures that harm nobody."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.evaluation.plan import (
    EvalPlan,
    GenerationArgs,
    Item,
    MetricPlan,
    Prompted,
    Scored,
    Source,
    TaskPlan,
    pack,
)
from evomerge.evaluation.suite import SuiteSpec, TaskSpec
from evomerge.execution.routes import route_of
from evomerge.execution.scoring import MergeScorer, ScoringSpec, build_scorer
from evomerge.execution.worker import Worker, WorkerSpec
from evomerge.merging.kernels import Kernels
from evomerge.recipe.path import Hop, Hops, plain_path
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.recipe.serialize import recipe_to_json
from evomerge.seeds import generator
from evomerge.testing.tiny import tiny_checkpoint
from evomerge.types import CandidateId, Digest, EvalTask, Evaluation, Failure

DEPTH = 4
LARGE = 1 << 26


def sets(n: int) -> dict[Any, tuple[int, ...]]:
    return {"search": tuple(range(n - 4)), "select": (n - 4, n - 3), "report": (n - 2, n - 1)}


def plan() -> EvalPlan:
    """Log-likelihoods, which show every bit, of rows that begin alike; and answers that must be generated."""
    rng = generator(0, "plan")
    said, stem = [], list(range(10, 20))
    for i in range(20):
        context, answer = (rng.integers(3, 64, n).tolist() for n in (3 + i % 7, 2))
        said.append(Item(Digest(f"s{i}"), 0, i, (Scored(pack(stem + context), pack(answer)),)))
    asked = [
        Item(Digest(f"g{i}"), 0, i, (Prompted(pack(rng.integers(3, 64, 4).tolist())),), targets=("ab",))
        for i in range(8)
    ]
    source = (Source("t", 0),)
    tasks = (
        TaskPlan("said", "loglikelihood", MetricPlan("perplexity"), tuple(said), sets(20), source),
        TaskPlan(
            "asked", "generate_until", MetricPlan("exact_match"), tuple(asked), sets(8), source, GenerationArgs((), 4)
        ),
    )
    return EvalPlan(tasks, SuiteSpec((TaskSpec("said"), TaskSpec("asked"))), 128, (2,), 0, None, {})


def spec(folder: Path, family: str = "llama", **rest: Any) -> ScoringSpec:
    config = {"num_hidden_layers": DEPTH, **rest.pop("config", {})}
    folders = {n: tiny_checkpoint(folder / n, family, i, tokenizer=True, **config) for i, n in enumerate("xy")}
    checkpoints = {n: open_checkpoint(f) for n, f in folders.items()}
    return ScoringSpec(checkpoints, "x", plan(), Kernels(), device="cpu", self_check=False, **rest)


def task(weight: float, path: Hops | None = None, **rest: Any) -> EvalTask:
    rule = Rule("linear", {}, {"x": {"weight": 1 - weight}, "y": {"weight": weight}})
    recipe = Recipe((ParentRef("x", "x"), ParentRef("y", "y")), None, (rule,), path=path)
    return EvalTask(CandidateId("c"), recipe_to_json(recipe), "search", **rest)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> ScoringSpec:
    return spec(tmp_path_factory.mktemp("scored"))


def population() -> list[EvalTask]:
    x, m = plain_path(DEPTH, "x"), plain_path(DEPTH)
    paths: list[Hops | None] = [None, x, (*x[:2], *x[1:]), (*x[:3], Hop(3, "y", 0.5)), (*m[:2], *x[:2]), (*x[:3], m[3])]
    paths += [None, (*x[:3], m[3]), (m[0], x[1]), x]
    return [task((k % 3 + 1) / 4, path) for k, path in enumerate(paths)]


def test_answers_depend_on_the_task_alone(asked: ScoringSpec) -> None:
    tasks = population()
    plain = build_scorer(replace(asked, prefix_bytes=0))
    wanted = [plain(t) for t in tasks]
    assert plain.memory.restored == 0
    assert len({e.answers["said"].scores for e in wanted}) == len(tasks) - 1  # the first parent's path stands twice
    shared = build_scorer(replace(asked, prefix_bytes=LARGE))
    for k in np.random.default_rng(0).permutation(len(tasks)):
        assert shared(tasks[k]) == wanted[k]
    assert shared.memory.restored > 0
    assert shared.memory.executed + shared.memory.restored == plain.memory.executed


def edited(hops: Hops, rng: np.random.Generator) -> Hops:
    """A layer of the other parent, twice, or left out."""
    k = int(rng.integers(len(hops)))
    put = ((Hop(hops[k].layer, "y"),), (hops[k], hops[k]), ())[int(rng.integers(3))]
    return (*hops[:k], *put, *hops[k + 1 :])


def test_offspring_with_two_edits_save_a_quarter_of_the_layers(tmp_path: Path) -> None:
    rng, depth = np.random.default_rng(0), 12
    made = spec(tmp_path, config={"num_hidden_layers": depth})
    paths = {edited(edited(plain_path(depth, "x"), rng), rng): None for _ in range(32)}
    tasks = [task(0.0, path, items={"said": made.plan.items("search")["said"]}) for path in paths]
    tasks.sort(key=lambda t: route_of(t.recipe))
    plain, shared = (build_scorer(replace(made, prefix_bytes=n)) for n in (0, LARGE))
    for asked in tasks:
        assert shared(asked) == plain(asked)
    assert shared.memory.executed <= 0.75 * plain.memory.executed


def test_the_plain_path_is_the_merge_without_a_path(asked: ScoringSpec) -> None:
    scorer = build_scorer(asked)
    assert scorer(task(0.25)).answers == scorer(task(0.25, plain_path(DEPTH))).answers
    alone = scorer(task(0.0)).answers  # x alone
    assert scorer(task(0.0, plain_path(DEPTH, "x"))).answers == alone
    assert scorer(task(1.0, plain_path(DEPTH, "x"))).answers != alone  # another's embedding


def test_batches_do_not_depend_on_which_path_comes_first(tmp_path: Path) -> None:
    """Rows may be packed for a path through full attention alone, but not for the parent's other layers."""
    kinds = ["sliding_attention", "full_attention"] * 2
    config = {"use_sliding_window": True, "sliding_window": 64, "layer_types": kinds}
    mixed = spec(tmp_path, "qwen2", config=config)
    full, whole = task(0.5, (Hop(1), Hop(3))), task(0.5, plain_path(DEPTH))
    one, other = build_scorer(mixed), build_scorer(mixed)
    found = [one(full), one(whole)]
    assert [other(whole), other(full)] == found[::-1]


def test_failures_along_a_path_are_the_candidates_own(asked: ScoringSpec) -> None:
    worker = Worker(WorkerSpec(arguments={"spec": replace(asked, prefix_bytes=LARGE)}), "w")
    good = task(0.5, (Hop(0), Hop(1, "y"), Hop(1)))
    wanted = worker.run(good)
    assert isinstance(wanted, Evaluation)
    missing = worker.run(task(0.5, (Hop(0), Hop(9))))
    assert isinstance(missing, Failure)
    assert (missing.kind, missing.message) == (
        "merge",
        "RecipeError: A hop names a layer that the parents do not have.",
    )
    loud = worker.run(task(0.5, (Hop(0), Hop(1, "y", 1e38), Hop(1, None, 1e38))))
    assert isinstance(loud, Failure)
    assert loud.kind == "nan"
    assert worker.run(good) == wanted


def test_what_others_left_in_memory_is_no_reason_to_fail(asked: ScoringSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = build_scorer(replace(asked, prefix_bytes=LARGE))
    wanted = scorer(task(0.5, plain_path(DEPTH)))
    plain = scorer.evaluator.evaluate

    def short_of_memory(*arguments: Any) -> Evaluation:
        if scorer.memory.n_bytes:
            raise MemoryError
        return plain(*arguments)

    monkeypatch.setattr(scorer.evaluator, "evaluate", short_of_memory)
    assert scorer(task(0.5, plain_path(DEPTH))) == wanted
    monkeypatch.setattr(scorer.evaluator, "evaluate", lambda *_: (_ for _ in ()).throw(MemoryError("really")))
    with pytest.raises(MemoryError, match="really"):
        scorer(task(0.5, plain_path(DEPTH)))


def test_costs_are_told_where_they_are_wanted(asked: ScoringSpec) -> None:
    scorer = build_scorer(replace(asked, costs=("hops", "latency")))
    path = (Hop(0), Hop(1), Hop(1))
    costs = scorer(task(0.5, path)).costs
    assert costs["hops"] == (3.0, 0.0)
    assert costs["latency"][0] > 0
    assert scorer(task(0.5, path, costs=False)).costs == {}
    assert MergeScorer(asked, "cpu")(task(0.5)).costs == {}


def test_a_spec_crosses_process_borders_whole(asked: ScoringSpec) -> None:
    made = replace(asked, prefix_bytes=7, costs=("hops",), dtype="bfloat16")
    back = pickle.loads(pickle.dumps(made))
    assert (back.prefix_bytes, back.costs, back.dtype, back.template, back.self_check) == (
        7,
        ("hops",),
        "bfloat16",
        "x",
        False,
    )
    assert back.checkpoints.keys() == made.checkpoints.keys()

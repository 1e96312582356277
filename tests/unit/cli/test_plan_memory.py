"""What the plan of a job says about the memory of its workers."""

from __future__ import annotations

import math
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evomerge.cli import render_plan
from evomerge.cli.render_plan import show_plan
from evomerge.config.assemble import Assembled, assemble
from evomerge.config.load import job_document, resolve_job
from evomerge.config.workers import hop_parents, measured_bytes, runs_paths
from evomerge.dataflow.prefixes import default_budget
from evomerge.errors import ConfigError
from evomerge.execution.memory import model_bytes

pytestmark = pytest.mark.zoo

WINDOWS = {"kind": "path", "genotype": "windows"}
WEIGHTS = {"name": "weights", "space": "layer-wise-task-arithmetic", "evaluations": 10}


def assembled(zoo: Path, *stages: dict[str, Any], **changed: Any) -> Assembled:
    job = {
        "parents": {"base": zoo / "base", "models": {"math": zoo / "math", "lang": zoo / "lang"}},
        "suite": {
            "include": [zoo / "tasks"],
            "tasks": ["add_mc"],
            "split": {"search": 6, "select": 6, "report": 6},
        },
        "objectives": [{"name": "sums", "task": "add_mc"}],
        "cluster": {"backend": "local", "workers": 1, "compile": "never", "device": "cpu"},
        **({"stages": list(stages)} if stages else {}),
        **changed,
    }
    return assemble(resolve_job(job_document(job), zoo))


def then(space: dict[str, Any]) -> dict[str, Any]:
    return {"name": f"path{len(space)}", "space": space, "evaluations": 10, "optimizer": "nsga2"}


def told(plan: Assembled, monkeypatch: pytest.MonkeyPatch) -> str:
    """The plan as one line of words."""
    out = StringIO()
    monkeypatch.setattr(render_plan, "make_console", lambda: Console(file=out, width=2000))
    show_plan(plan)
    return " ".join(out.getvalue().split())


def test_a_merge_is_one_model(small_zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = assembled(small_zoo, space="layer-wise-task-arithmetic")
    assert (hop_parents(plan), runs_paths(plan)) == ((), False)
    words = told(plan, monkeypatch)
    assert "MiB for the merged model, and activations" in words
    assert "that paths share" not in words


def test_every_parent_of_a_path_is_one_more_model(small_zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = assembled(small_zoo, space=WINDOWS, optimizer="nsga2")
    one = model_bytes(plan.parents.template, "auto")
    assert one == 4 * plan.parents.n_parameters
    words = told(plan, monkeypatch)
    expected = f"up to 3 models of {one / 2**20:.1f} MiB, together {3 * one / 2**20:.1f} MiB"
    assert f"{expected}: the merged one, and one for each parent that a path may name (math, lang)" in words
    assert f"up to {default_budget('cpu') / 2**20:,.1f} MiB of hidden states that paths share" in words


def test_the_models_are_as_wide_as_the_suite_wants_them(small_zoo: Path) -> None:
    plan = assembled(small_zoo, space=WINDOWS, optimizer="nsga2")
    assert [model_bytes(plan.parents.template, d) for d in ("float32", "bfloat16")] == [
        width * plan.parents.n_parameters for width in (4, 2)
    ]


@pytest.mark.parametrize(
    ("later", "names"),
    [
        ([then({**WINDOWS, "sources": ["lang"]})], ("lang",)),
        ([then({**WINDOWS, "sources": ["lang"]}), then({**WINDOWS, "sources": ["math"], "times": 2})],
         ("math", "lang")),
        ([then({**WINDOWS, "sources": ["merged"]})], ("base", "math", "lang")),  # the best merge may be a parent
    ],
)  # fmt: skip
def test_a_worker_keeps_the_parents_of_all_stages(
    small_zoo: Path, later: list[dict[str, Any]], names: tuple[str, ...]
) -> None:
    plan = assembled(small_zoo, WEIGHTS, *later)
    assert (hop_parents(plan), runs_paths(plan)) == (names, True)


def test_the_share_of_a_gpu_is_told_without_one() -> None:
    assert render_plan._shared_states("cuda") == "1/4 of the free GPU memory of hidden states"


def test_packed_task_vectors_are_told(small_zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = {"backend": "local", "workers": 1, "compile": "never", "device": "cpu", "task_vectors": "int8"}
    plan = assembled(small_zoo, space="layer-wise-task-arithmetic", cluster=cluster)
    words = told(plan, monkeypatch)
    assert "of them task vectors in 8 bits in every worker's memory, the rest mapped and shared by" in words
    assert (
        "of the deltas (root mean square) is lost. What is chosen is scored, and exported, from the originals" in words
    )


def test_packed_task_vectors_need_a_base(small_zoo: Path) -> None:
    models = {"math": small_zoo / "math", "lang": small_zoo / "lang"}
    with pytest.raises(ConfigError, match="Task vectors need a base"):
        assembled(small_zoo, space="model-wise-linear", parents={"models": models}, cluster={"task_vectors": "int8"})


def test_ranks_are_counted_among_what_a_worker_keeps(small_zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = assembled(
        small_zoo,
        space={
            "method": "della",
            "parameters": {"weight": {"low": 0, "high": 1}, "density": {"low": 0.2, "high": 0.8}},
        },
    )
    matrices = [t for t in plan.parents.template.layout.tensors if len(t.shape) > 1]
    kept = 2 * sum(math.prod(t.shape) for t in matrices)
    assert measured_bytes(plan) == kept
    assert f"{kept / 2**20:,.1f} MiB that methods measure once and keep" in told(plan, monkeypatch)

"""Jobs in stages: spaces inlined, parts of the budget, and what is said about mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evomerge.config.load import ResolvedJob, load_job
from evomerge.errors import ConfigError

Resolve = Callable[..., ResolvedJob]

STAGES = """\
stages:
  - {name: weights, space: layer-wise-task-arithmetic, evaluations: 60}
  - {name: path, space: repeat-window, optimizer: {name: nsga2, population: 12}}
  - name: both
    space: {kind: both, merge: layer-wise-ties, path: repeat-window}
    evaluations: 50"""
SPACE = "space: model-wise-linear"


def test_stages_inline_what_they_name_and_share_the_budget(resolve: Resolve) -> None:
    found = resolve(SPACE, STAGES)
    assert [(s.name, s.evaluations) for s in found.stages] == [("weights", 60), ("path", 50), ("both", 50)]
    assert [s.space.mapping["kind"] for s in found.stages] == ["merge", "path", "both"]
    assert found.stages[2].space.mapping["merge"]["method"] == "ties"
    assert [s.optimizer.population for s in found.stages] == [16, 12, 16]
    assert found.origins["stages.path"].name == "repeat-window"
    assert found.job.budget.evaluations == 160


def test_without_a_budget_it_is_the_sum_of_the_parts(resolve: Resolve) -> None:
    parts = STAGES.replace("repeat-window, optimizer: {name: nsga2, population: 12}", "repeat-window, evaluations: 40")
    path = resolve(SPACE, parts).document
    assert path.value["budget"] == {"evaluations": 160}
    found = resolve(SPACE, parts, "budget={}")
    assert found.job.budget.evaluations == 150


def test_a_resolved_job_in_stages_resolves_to_itself(resolve: Resolve, tmp_path: Path) -> None:
    first = resolve(SPACE, STAGES)
    copy = tmp_path / "again.yaml"
    copy.write_text(first.to_yaml(), encoding="utf-8")
    again = load_job(copy)
    assert again.job == first.job
    assert [s.space.mapping for s in again.stages] == [s.space.mapping for s in first.stages]


def test_a_larger_budget_leaves_the_parts_as_they_were(resolve: Resolve, tmp_path: Path) -> None:
    copy = tmp_path / "again.yaml"
    copy.write_text(resolve(SPACE, STAGES).to_yaml(), encoding="utf-8")
    longer = load_job(copy, ["budget.evaluations=300"])
    assert [s.evaluations for s in longer.stages] == [60, 50, 50]
    assert longer.job.budget.evaluations == 300


@pytest.mark.parametrize(
    ("new", "match"),
    [
        (f"{SPACE}\n{STAGES}", r"(?s)\(space\): both `space` and `stages`.*remove one"),
        ("stages: []", r"(?s)stages.*at least one"),
        (STAGES.replace("name: path", "name: weights"), r"(?s)Two stages have one name.*stages\.1\.name\): 'weights'"),
        (STAGES.replace("evaluations: 60", "evaluations: 111"), r"(?s)more evaluations than.*161 in stages"),
        (STAGES.replace("evaluations: 60", "evaluations: 110"), r"(?s)160 in stages that state theirs, 1 more"),
        (STAGES.replace("repeat-window,", "repeat-windo,"), r"(?s)stages\.1\.space\).*repeat-window"),
        (STAGES.replace("layer-wise-ties", "layer-wise-tie"), r"(?s)merge.*Did you mean 'layer-wise-ties'"),
        (STAGES.replace("evaluations: 60", "budget: 60"), r"(?s)stages\.0\.budget.*unknown"),
    ],
)
def test_what_is_said_about_bad_stages(resolve: Resolve, new: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        resolve(SPACE, new)

"""`--set a.b=value`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from evomerge.config.overrides import apply_overrides
from evomerge.errors import ConfigError
from evomerge.strict_yaml import parse_yaml

Resolve = Callable[..., Any]


@pytest.mark.parametrize(
    ("option", "path", "value"),
    [
        ("a=2", ("a",), 2),
        ("a.b.c=x=y", ("a", "b", "c"), "x=y"),
        ("new.deep={k: [1, 2]}", ("new", "deep"), {"k": [1, 2]}),
        ("l.0=z", ("l", 0), "z"),
        ("l.1.k=3", ("l", 1, "k"), 3),
        ("n.x=1", ("n", "x"), 1),
        ("a=", ("a",), None),
        ("0=zero", ("0",), "zero"),
        ("a=1e-4", ("a",), "1e-4"),
    ],
)
def test_values_are_laid_over(option: str, path: tuple[str | int, ...], value: object) -> None:
    document = parse_yaml("a: {b: {c: 1, d: 2}}\nl: [x, {k: 1}]\nn: null\n", "job.yaml")
    before = repr(document.value)
    found = apply_overrides(document, [option]).value
    for step in path:
        found = found[step]
    assert found == value
    assert repr(document.value) == before  # the document itself is as it was


def test_later_options_win_and_others_stay() -> None:
    document = parse_yaml("a: {b: 1, c: 2}\n", "job.yaml")
    assert apply_overrides(document, ["a.b=5", "a.b=6"]).value == {"a": {"b": 6, "c": 2}}
    assert apply_overrides(parse_yaml("", "job.yaml"), ["a=1"]).value == {"a": 1}


@pytest.mark.parametrize(
    ("option", "match"),
    [
        ("a", "not of the form"),
        ("=3", "not of the form"),
        ("a..b=3", "not of the form"),
        (".a=3", "not of the form"),
        ("a.b.c=3", r"'b' inside|'c' inside 1"),
        ("l.5=x", r"5 inside a list of 1[\s\S]*an index from 0 to 0"),
        ("l.-1=x", r"'-1' inside a list of 1"),
        ("l.k=x", r"'k' inside a list of 1"),
        ("a=[1", r"--set a is not usable YAML: it does not parse"),
        ("a=1: 2: 3", r"--set a is not usable YAML"),
        ("a={x: 1, x: 2}", r"--set a is not usable YAML: a key stands twice"),
        ("a=\udcff", r"--set a is not usable YAML[\s\S]*control character"),
    ],
)
def test_what_is_no_setting(option: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        apply_overrides(parse_yaml("a: {b: 1}\nl: [x]\n", "job.yaml"), [option])


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("budget.evaluatoins=3", r"Got: --set \(budget\.evaluatoins\): unknown key[\s\S]*Did you mean 'evaluations'"),
        ("budget.evaluations=many", r"Got: --set \(budget\.evaluations\): 'many'"),
        ("budget={evaluations: 1.5}", r"Got: --set \(budget\.evaluations\): 1\.5"),
        ("suite.tasks.1.num_fewshot=-1", r"Got: --set \(suite\.tasks\.1\.num_fewshot\): -1"),
        ("²=3", r"Got: --set \(²\): unknown key"),
        ("space=slurp", r"Got: --set \(space\): 'slurp'[\s\S]*Did you mean 'slerp'"),
    ],
)
def test_problems_of_settings_name_the_option_and_no_line(resolve: Resolve, option: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        resolve("", "", option)


def test_other_lines_are_still_known(resolve: Resolve) -> None:
    with pytest.raises(ConfigError, match=r"job\.yaml:26 \(seed\)"):
        resolve("seed: 7", "seed: x", "budget.evaluations=3")
    assert resolve("", "", "suite.tasks.1.num_fewshot=5").suite.tasks[1].num_fewshot == 5

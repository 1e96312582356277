"""From a job file to a resolved job, and what is said about bad ones: where, what is allowed, what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.cli.job import EXAMPLE
from evomerge.config.load import job_document, load_job, load_run_job, present_text, resolve_job
from evomerge.config.schema import Job
from evomerge.config.texts import read_text
from evomerge.errors import ConfigError
from evomerge.strict_yaml import Document, parse_yaml

Resolve = Callable[..., Any]


def refusal(resolve: Resolve, old: str, new: str) -> str:
    """The whole message of the job that is wrong, checked for its four parts."""
    with pytest.raises(ConfigError, match=r"\n  Got: [\s\S]+\n  Allowed: [\s\S]+\n  Fix: [\s\S]+") as caught:
        resolve(old, new)
    return str(caught.value)


def test_a_job_is_resolved(resolve: Resolve, tmp_path: Path) -> None:
    resolved = resolve()
    job = resolved.job
    assert job.parents.base == str(tmp_path / "parents/base")
    assert list(job.parents.models) == ["math", "lang"]
    assert job.parents.models["lang"] == str(tmp_path / "parents/lang")
    assert resolved.stages[0].space.mapping["method"] == "linear"
    assert resolved.origins["space"].name == "model-wise-linear"
    assert present_text("space", resolved.origins["space"]) == resolved.origins["space"].text
    assert resolved.origins["suite"].name == "inline"
    assert present_text("suite", resolved.origins["suite"]) is None
    assert resolved.suite.include == [str(tmp_path / "tasks")]
    assert (resolved.suite.split.search, resolved.suite.split.select) == (10, 0.25)
    assert resolved.stages[0].optimizer.options == {"spread": 1.5}
    assert job.inject == [str(tmp_path / "recipes/old.json")]


def test_a_resolved_job_is_a_job_that_resolves_to_itself(resolve: Resolve, tmp_path: Path) -> None:
    first = resolve("name: first", "name: first\n")
    other = tmp_path / "elsewhere" / "job.yaml"
    other.parent.mkdir()
    other.write_text(first.to_yaml(), encoding="utf-8")
    second = load_job(other)
    assert second.job == first.job
    assert second.stages[0].space.mapping == first.stages[0].space.mapping
    assert second.to_yaml() == first.to_yaml()
    assert load_run_job(other.parent).job == first.job


def test_nothing_in_free_settings_is_lost_or_changed(tmp_path: Path) -> None:
    odd = {"until": None, "text": "1e-4", "n": 8, "dates": ["2026-01-01", "12:30"], "é\x85": "\x00"}
    suite = {"tasks": ["add"], "gen_kwargs": odd, "system_instruction": "日本\u2028\n"}
    job = job_document(
        {
            "parents": {"models": {"a": tmp_path / "a"}},
            "space": {"method": "linear", "parameters": {"weight": 1e-05}},
            "suite": suite,
            "objectives": ({"name": "o", "task": "add"},),
            "optimizer": {"name": "cma", "options": {"x": None, "y": 1e300}},
        }
    )
    first = resolve_job(job, tmp_path)
    assert first.suite.gen_kwargs == odd
    again = resolve_job(parse_yaml(first.to_yaml(), "again"), tmp_path / "other")
    assert again.job == first.job


def test_the_example_of_init_is_a_job(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(EXAMPLE.format(name="job.yaml"), encoding="utf-8")
    job = load_job(path).job
    assert job.budget.evaluations == 160
    assert job.cluster.workers is None, "a launched copy uses whatever the cluster holds"


def test_the_schema_is_json_and_names_every_key() -> None:
    schema = json.loads(json.dumps(Job.model_json_schema()))
    assert {"parents", "space", "suite", "objectives", "constraints", "budget", "cluster"} <= set(schema["properties"])
    assert schema["additionalProperties"] is False


def test_hub_ids_stay_and_folders_become_absolute(resolve: Resolve, tmp_path: Path) -> None:
    job = resolve("base: parents/base", "base: org/model-7b@v1.0").job
    assert job.parents.base == "org/model-7b@v1.0"
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "model-7b@v1.0").mkdir()
    assert resolve("base: parents/base", "base: org/model-7b@v1.0").job.parents.base.startswith(str(tmp_path))
    for folder in ("./org/model", "../org/model", "model", "a/b/c"):
        assert Path(resolve("base: parents/base", f"base: {folder}").job.parents.base).is_absolute()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: first", "nam: first", ["job.yaml:1 (nam): unknown key 'nam'", "Did you mean 'name'?"]),
        ("  models:", "  modles:", ["job.yaml:4 (parents.modles)", "Did you mean 'models'?", "models is required"]),
        ("num_fewshot: 2", "num_fewshots: 2", ["job.yaml:12 (suite.tasks.1.num_fewshots)", "'num_fewshot'?"]),
        ("z: 1", "zz: 1", ["job.yaml:20 (constraints.0.zz)", "Did you mean 'z'?"]),
        ("minus: 0.01", "mins: 0.01", ["job.yaml:21 (constraints.1.at_least.mins)", "Did you mean 'minus'?"]),
        ("population: 16", "popsize: 16", ["job.yaml:22 (optimizer.popsize)", "name, options, population"]),
        ("seed: 7", "name: second", ["a key stands twice", "'name' at line 26, and before at line 1"]),
        ("    math: parents/math", "    lang: parents/math", ["'lang' at line 6, and before at line 5"]),
        ("evaluations: 160", "evaluations: 1e3", ["job.yaml:24 (budget.evaluations): '1e3' is text", "write 1000."]),
        ("seed: 7", "seed: 1e-4", ["job.yaml:26 (seed): '1e-4' is text to YAML", "a whole number"]),
        ("at_least: 0.8", "at_least: 1e-4", ["'1e-4' is text to YAML, not a number", "write 1.0e-4 (with point and"]),
        ("drain_s: 0", "drain_s: -.5E3", ["write -0.5e+3 (with point and sign)"]),
        ("rev: 0.5", "rev: 5e-1", ["(objectives.0.weights.rev): '5e-1'", "write 5.0e-1"]),
        ("at_least: 0.8", "at_least: most", ["(constraints.0.at_least): 'most'", "a number or a mapping"]),
        ("search: 10", "search: true", ["(suite.split.search): True", "Allowed: a number"]),
        ("search: 10", "search: ten", ["(suite.split.search): 'ten'", "Allowed: a number"]),
        ("seed: 7", "seed: 7.5", ["(seed): 7.5", "a whole number"]),
        ("seed: 7", "seed: -1", ["(seed): -1", "greater than or equal to 0"]),
        ("evaluations: 160", "evaluations: 0", ["(budget.evaluations): 0", "greater than or equal to 1"]),
        ("evaluations: 160", "failures: 1.5", ["(budget.failures): 1.5", "less than or equal to 1"]),
        ("name: first", "name: a/b", ["job.yaml:1 (name): 'a/b'", "letters, digits"]),
        ("name: first", "name: ../up", ["(name): '../up'", "letters, digits"]),
        ("name: first", "name: 7", ["(name): 7", "Allowed: text", "put the value in quotes"]),
        ("  include: [tasks]", "  salt: no", ["(suite.salt): False", "Allowed: text", "put the value in quotes"]),
        ("  include: [tasks]", "  include: tasks", ["(suite.include): 'tasks'", "a list"]),
        ("    math: parents/math", "    base: x", ["(parents.models)", "'base' is the name of parents.base"]),
        ("    math: parents/math", "    m th: x", ["(parents.models)", "'m th' is not a plain name"]),
        ("aggregate: weighted", "aggregate: wieghted", ["(objectives.0.aggregate)", "Did you mean 'weighted'?"]),
        ("direction: minimize", "direction: up", ["job.yaml:18 (objectives.1.direction): 'up'", "maximize, minimize"]),
        ("backend: local", "backend: rya", ["(cluster.backend): 'rya'", "Did you mean 'ray'?"]),
        ("workers: 2", "workers: 0", ["(cluster.workers): 0", "greater than or equal to 1"]),
        ("space: model-wise-linear", "space: [1]", ["job.yaml:7 (space): [1]", "text or a mapping"]),
        ("space: model-wise-linear", "space:", ["job.yaml:7 (space): neither", "evomerge ls spaces"]),
        ("space: model-wise-linear\n", "", ["job.yaml:1 (space): neither", "evomerge ls spaces"]),
        ("space: model-wise-linear", "space: model-wise-liner", ["job.yaml:7 (space)", "mean 'model-wise-linear'?"]),
        ("space: model-wise-linear", "space: ./no.yaml", ["job.yaml:7 (space)", "no.yaml: No such file", "Fix: check"]),
        ("space: model-wise-linear", "space: ./job", ["job.yaml:7 (space)", "search space cannot be read"]),
        ("base: parents/base", 'base: "a\\0b"', ["job.yaml:3 (parents.base)", "null byte"]),
        ("base: parents/base", "base: ~nobody-there/b", ["job.yaml:3 (parents.base)", "home directory"]),
        ("base: parents/base", "base: ./" + "x" * 300, ["job.yaml:3 (parents.base)", "File name too long"]),
        ("recipes/old.json", "~nobody-there/r", ["job.yaml:23 (inject.0)", "home directory"]),
        ("[tasks]", "[~nobody-there/t]", ["job.yaml:9 (suite.include.0)", "home directory"]),
    ],
)
def test_what_is_said_about_bad_jobs(resolve: Resolve, old: str, new: str, said: list[str]) -> None:
    message = refusal(resolve, old, new)
    for part in said:
        assert part in message


def test_all_problems_are_told_at_once(resolve: Resolve) -> None:
    message = refusal(resolve, "seed: 7", "seed: x\nbugdet: 3\nextra: 4")
    assert "job.yaml has 3 errors" in message
    for part in ("job.yaml:26 (seed)", "job.yaml:27 (bugdet)", "job.yaml:28 (extra)", "Did you mean 'budget'?"):
        assert part in message


def test_suites_are_named_files_or_inline(write: Callable[..., Path], tmp_path: Path) -> None:
    head, _, rest = write().read_text().partition("suite:")
    tail = rest[rest.index("objectives:") :]

    def with_suite(value: str) -> Any:
        (tmp_path / "job.yaml").write_text(f"{head}suite: {value}\n{tail}", encoding="utf-8")
        return load_job(tmp_path / "job.yaml")

    assert with_suite("toy-zoo").origins["suite"].name == "toy-zoo"
    with pytest.raises(ConfigError, match=r"no suite 'toy-zo'[\s\S]*job\.yaml:8 \(suite\)[\s\S]*mean 'toy-zoo'"):
        with_suite("toy-zo")
    with pytest.raises(ConfigError, match=r"The suite cannot be read[\s\S]*job\.yaml:8 \(suite\)"):
        with_suite("suites/mine.yaml")
    mine = tmp_path / "suites" / "mine.yaml"
    mine.parent.mkdir()
    mine.write_text("tasks: [add]\ninclude: [own]\n")
    found = with_suite("suites/mine.yaml")
    assert found.suite.include == [str(mine.parent / "own")]  # relative to the suite's own file
    assert present_text("suite", found.origins["suite"]) == mine.read_text()
    mine.write_text("tasks: [add]\nsplits: {}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml:2 \(splits\)[\s\S]*Did you mean 'split'"):
        with_suite("suites/mine.yaml")
    assert present_text("suite", found.origins["suite"]) == mine.read_text()
    mine.write_text("[1]\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml does not hold a mapping"):
        with_suite("suites/mine.yaml")
    mine.unlink()
    assert present_text("suite", found.origins["suite"]) is None


def test_spaces_stand_in_files_too(resolve: Resolve, tmp_path: Path) -> None:
    mine = tmp_path / "space.yaml"
    mine.write_text("method: linear\nparameters: {weight: {low: 0, high: 1}}\n")
    found = resolve("space: model-wise-linear", "space: space.yaml")
    assert found.origins["space"].name == str(mine)
    assert found.stages[0].space.document.where(("parameters", "weight")) == "space.yaml:2 (parameters.weight)"
    inline = resolve("space: model-wise-linear", "space:\n  method: linear\n  parameters: {weight: 1}")
    assert inline.stages[0].space.document.where(("parameters",)) == "job.yaml:9 (parameters)"
    mine.write_text("- 1\n")
    with pytest.raises(ConfigError, match=r"space\.yaml does not hold a mapping"):
        resolve("space: model-wise-linear", "space: space.yaml")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"a: \xff\n", r"job file cannot be read[\s\S]*not UTF-8"),
        (b"\xff\xfea\x00:\x00", r"job file cannot be read[\s\S]*not UTF-8"),
        (b"", r"does not hold a mapping[\s\S]*an empty file"),
        (b"- 1\n", r"does not hold a mapping[\s\S]*list"),
        (b"just text\n", r"does not hold a mapping[\s\S]*str"),
        (b"x" * 16_000_001, r"job file cannot be read[\s\S]*more than 16000000 bytes"),
    ],
    ids=["latin-1", "utf-16", "empty", "list", "text", "huge"],
)
def test_files_that_are_no_jobs(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=match):
        load_job(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path, Path("a\0b")):
        with pytest.raises(ConfigError, match=r"The job file cannot be read[\s\S]*evomerge init"):
            load_job(path)
    with pytest.raises(ConfigError, match=r"There is no run here[\s\S]*evomerge search"):
        load_run_job(tmp_path)


def test_line_ends_and_byte_order_marks_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert read_text(tmp_path / "a", "file") == "a: 1\nb: 2\n"


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ({1: 2}, "the key 1 is not text"),
        ({"a": {"b": [float("nan")]}}, "nan is not finite"),
        ({"a": object()}, r"object\) cannot stand in a job file"),
        ({"a": {1, 2}}, r"set\) cannot stand in a job file"),
    ],
)
def test_mappings_must_be_what_a_file_could_say(value: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        job_document(value)


def test_mappings_are_not_changed(tmp_path: Path) -> None:
    job = {"parents": {"models": {"a": tmp_path}}, "tasks": ("x",)}
    document = job_document(job)
    assert document.value == {"parents": {"models": {"a": str(tmp_path)}}, "tasks": ["x"]}
    assert job["tasks"] == ("x",)
    with pytest.raises(ConfigError, match=r"job \(parents\.modles\): unknown key"):
        resolve_job(Document("job", {"parents": {"modles": {}}}, {}), tmp_path)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("ab/.~1e-", max_size=6),
    lambda v: st.lists(v, max_size=2) | st.dictionaries(st.sampled_from(["task", "name", "x", "low"]), v, max_size=2),
    max_leaves=4,
)


@settings(deadline=None, max_examples=150)
@given(
    key=st.sampled_from([*Job.model_fields, "junk"]),
    inner=st.sampled_from([None, "base", "models", "tasks", "split", "name", "evaluations", "workers"]),
    junk=JUNK,
)
def test_any_junk_is_refused_or_resolves_to_itself(key: str, inner: str | None, junk: Any) -> None:
    good = {
        "parents": {"models": {"a": "x"}},
        "space": "slerp",
        "suite": {"tasks": ["add"]},
        "objectives": [{"name": "o", "task": "add"}],
    }
    changed = good | {key: junk if inner is None else {**_mapping(good.get(key)), inner: junk}}
    try:
        resolved = resolve_job(Document("job", changed, {}), Path("/nowhere"))
    except ConfigError:
        return
    text = resolved.to_yaml()
    assert yaml.safe_load(text) == resolved.to_mapping()
    assert resolve_job(parse_yaml(text, "again"), Path("/elsewhere")).job == resolved.job


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}

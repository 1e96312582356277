"""Task files of strangers: no code, no data from elsewhere, no end of time or memory; and sound ones as before."""

from __future__ import annotations

import gzip
import os
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lm_eval.utils
import pytest
import yaml
from lm_eval.tasks import TaskManager

from evomerge.errors import EvaluationError
from evomerge.evaluation import lm_eval_tasks
from evomerge.evaluation.lm_eval_guard import templates
from evomerge.evaluation.lm_eval_tasks import TaskLibrary
from evomerge.evaluation.suite import load_suite
from evomerge.testing import eval_tasks
from evomerge.testing.hostile_texts import aliases, merges

LONG = "a" * 90_000
PARTS = r"(?s).+\n  Got: .+\n  Allowed: .+\n  Fix: .+"
CODE = "open('canary', 'w').close()\n\ndef f(*a, **k):\n    return 'x'\n"


def own_tasks(include_path: list[str], include_defaults: bool) -> TaskManager:
    """lm-eval's own index takes seconds to build, and nothing here is in it."""
    return TaskManager(include_path=include_path, include_defaults=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tasks with a canary module in it, and a working directory in which a canary would show."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lm_eval_tasks, "TaskManager", own_tasks)
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "code.py").write_text(CODE)
    (tasks / "data.pkl").write_bytes(pickle.dumps(os.getpid))
    (tasks / "data.jsonl.gz").write_bytes(gzip.compress(b'{"question": "a", "answer": "b"}\n' * 100))
    (tmp_path / "secret.jsonl").write_text('{"question": "s", "answer": "s"}\n' * 20)
    (tasks / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    os.mkfifo(tasks / "pipe.jsonl")
    return tasks


def build(folder: Path, name: str = "say", **suite: Any) -> Any:
    found = load_suite({"include": [str(folder)], "tasks": [name], **suite})
    return TaskLibrary(found).build(found.tasks[0])


def refused(folder: Path, name: str = "say", **suite: Any) -> str:
    started = time.process_time()
    with pytest.raises(EvaluationError, match=PARTS) as caught:
        build(folder, name, **suite)
    assert time.process_time() - started < 3
    assert not list(folder.parent.rglob("canary"))
    return str(caught.value)


FUNCTIONS = (
    "doc_to_text",
    "process_docs",
    "process_results",
    "doc_to_choice",
    "custom_dataset",
    "class",
    "description",
)


@pytest.mark.parametrize("key", FUNCTIONS)
@pytest.mark.parametrize(
    "tag", ["!function code.f", "!!python/name:os.system ''", "!<tag:yaml.org,2002:python/name:os.system> ''"]
)
def test_functions_need_trust(folder, key, tag):
    path = eval_tasks.write_generation_task(folder)
    config = {k: v for k, v in yaml.safe_load(path.read_text()).items() if k != key}
    path.write_text(f"{yaml.safe_dump(config)}{key}: {tag}\n")
    assert ("trust_task_code" if tag.startswith("!function") else "has a tag") in refused(folder)


@pytest.mark.parametrize(
    "text",
    [
        "metric_list: [{metric: !function code.f, aggregation: mean}]",
        "metric_list: [{metric: exact_match, aggregation: !function code.f}]",
        "filter_list: [{name: a, filter: [{function: custom, filter_fn: !function code.f}]}]",
        "fewshot_config: {sampler: first_n, samples: !function code.f}",
        "fewshot_config: {doc_to_text: !function code.f}",
        "include: other.yml",
        "include: [deeper/other.yml]",
    ],
)
def test_functions_in_corners_need_trust(folder, text):
    path = eval_tasks.write_generation_task(folder)
    (folder / "other.yml").write_text("doc_to_text: !function code.f\n")
    (folder / "deeper").mkdir()
    (folder / "deeper" / "other.yml").write_text("include: ../other.yml\n")
    key = text.partition(":")[0]
    config = {k: v for k, v in yaml.safe_load(path.read_text()).items() if k != key}
    path.write_text(f"{yaml.safe_dump(config)}{text}\n")
    assert "trust_task_code" in refused(folder)


def test_what_is_trusted_runs(folder, tmp_path, guarded):
    path = eval_tasks.write_generation_task(folder)
    path.write_text(path.read_text() + "process_docs: !function code.f\n")
    with pytest.raises(EvaluationError, match="cannot be built"):  # it ran, and gave a text for documents
        build(folder, trust_task_code=True)
    assert (tmp_path / "canary").exists()
    assert any("code.py" in v for v in guarded.violations)
    guarded.violations.clear()


SETTINGS: Mapping[str, dict[str, Any]] = {
    "metric of evaluate": {"metric_list": [{"metric": "exec", "hf_evaluate": True}]},
    "metric of nobody": {"metric_list": [{"metric": "canary/metric"}]},
    "metric that is a list": {"metric_list": [{"metric": ["a"]}]},
    "metrics that are a number": {"metric_list": 5},
    "promptsource": {"use_prompt": "promptsource:x"},
    "a class": {"class": "os.system"},
    "unsafe code": {"unsafe_code": True},
    "loader pandas": {"dataset_path": "pandas"},
    "loader sql": {"dataset_path": "sql"},
    "loader webdataset": {"dataset_path": "webdataset"},
    "loader iceberg": {"dataset_path": "iceberg"},
    "loader eval": {"dataset_path": "eval"},
    "loader of images": {"dataset_path": "imagefolder"},
    "a script": {"dataset_path": "tasks/code.py"},
    "a folder": {"dataset_path": "tasks"},
    "an absolute folder": {"dataset_path": "/etc"},
    "a URL": {"dataset_path": "https://canary.invalid/x"},
    "a path that is a list": {"dataset_path": ["json"]},
    "remote code": {"dataset_kwargs": {"trust_remote_code": True}},
    "a cache elsewhere": {"dataset_kwargs": {"cache_dir": "/tmp/canary"}},
    "storage options": {"dataset_kwargs": {"storage_options": {"key": "x"}}},
    "processes": {"dataset_kwargs": {"num_proc": 64}},
    "kwargs that are a text": {"dataset_kwargs": "x"},
    "data of a URL": {"dataset_kwargs": {"data_files": {"test": "https://canary.invalid/x.json"}}},
    "data in an archive": {"dataset_kwargs": {"data_files": {"test": "zip://x.json::https://canary.invalid/a.zip"}}},
    "data above": {"dataset_kwargs": {"data_files": {"test": "../secret.jsonl"}}},
    "data elsewhere": {"dataset_kwargs": {"data_files": ["/etc/passwd"]}},
    "data behind a link": {"dataset_kwargs": {"data_files": {"test": ["link.jsonl"]}}},
    "data in a pipe": {"dataset_kwargs": {"data_files": {"test": "pipe.jsonl"}}},
    "data in a device": {"dataset_kwargs": {"data_files": {"test": "/dev/zero"}}},
    "data in a pickle": {"dataset_kwargs": {"data_files": {"test": "data.pkl"}}},
    "data packed": {"dataset_kwargs": {"data_files": {"test": "data.jsonl.gz"}}},
    "data of a pattern": {"dataset_kwargs": {"data_files": {"test": "/etc/*"}}},
    "data of a pattern that finds a link": {"dataset_kwargs": {"data_files": {"test": "l*.jsonl"}}},
    "data of a set": {"dataset_kwargs": {"data_files": {"test": "[l]ink.jsonl"}}},
    "data of one letter": {"dataset_kwargs": {"data_files": {"test": ["lin?.jsonl"]}}},
    "data that are not named": {"dataset_kwargs": {}},
    "data that is a number": {"dataset_kwargs": {"data_files": {"test": 5}}},
    "a split outside": {"dataset_kwargs": {"data_files": {"../x": "say.jsonl"}}},
    "a config outside": {"dataset_name": "../../x"},
    "repeats": {"repeats": 10**9},
    "examples": {"num_fewshot": 10**9},
    "examples that are a text": {"num_fewshot": "many"},
    "filters that are a text": {"filter_list": "x"},
    "a filter without a name": {"filter_list": [{"filter": [{"function": "regex"}]}]},
    "a filter that is not known": {"filter_list": [{"name": "a", "filter": [{"function": "os.system"}]}]},
    "a long pattern": {"filter_list": [{"name": "a", "filter": [{"function": "regex", "regex_pattern": LONG}]}]},
    "a pattern that is none": {"filter_list": [{"name": "a", "filter": [{"function": "regex", "regex_pattern": "("}]}]},
    "output": {"output_type": "exec"},
    "output that is a list": {"output_type": ["generate_until"]},
    "no data": {"test_split": "nowhere"},
    "text that is a mapping": {"doc_to_text": {"a": 1}},
    "generation that is a list": {"generation_kwargs": [1]},
    "generation with a text": {"generation_kwargs": {"until": ["x"], "temperature": "hot"}},
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_bring_code_or_data_from_elsewhere(folder, name):
    eval_tasks.write_generation_task(folder, **SETTINGS[name])
    refused(folder)


@pytest.mark.parametrize(
    "name", ["metric of evaluate", "loader pandas", "data above", "a cache elsewhere", "data in a pickle"]
)
def test_groups_may_not_either(folder, name):
    """Settings of a group apply to its members, and a member may be written into the group."""
    eval_tasks.write_generation_task(folder)
    (folder / "g.yaml").write_text(yaml.safe_dump({"group": "g", "task": ["say"], **SETTINGS[name]}))
    refused(folder, "g")
    inline = {**yaml.safe_load((folder / "say.yaml").read_text()), **SETTINGS[name], "task": "inner"}
    (folder / "g.yaml").write_text(yaml.safe_dump({"group": "g", "task": [inline]}))
    refused(folder, "g")
    (folder / "g.yaml").write_text(yaml.safe_dump({"group": "g", "task": [{"group": "h", "task": [inline]}]}))
    refused(folder, "g")


@pytest.mark.parametrize("files", [{"test": "own.jsonl"}, "own.jsonl", ["own.jsonl"], {"test": ["own.jsonl"]}])
def test_members_of_groups_do_not_read_the_working_directory(folder, files):
    eval_tasks.write_generation_task(folder)
    (folder.parent / "own.jsonl").write_text('{"question": "a", "answer": "b"}\n' * 20)
    plain = yaml.safe_load((folder / "say.yaml").read_text())
    inline = {**plain, "task": "inner", "dataset_kwargs": {"data_files": files}}
    (folder / "g.yaml").write_text(yaml.safe_dump({"group": "g", "task": [inline]}))
    assert "whole path" in refused(folder, "g")
    inline["dataset_kwargs"]["data_files"] = {"test": str(folder / "say.jsonl")}
    (folder / "g.yaml").write_text(yaml.safe_dump({"group": "g", "task": [inline]}))
    assert build(folder, "g")


GROUPS = {
    "itself": {"g": ["g"]},
    "a circle": {"g": ["h"], "h": ["g", "g"]},
    "two to the forty": {("g" if i == 0 else f"g{i}"): [f"g{i + 1}", f"g{i + 1}"] for i in range(40)},
    "numbers": {"g": [1, 2.5, None, ["a"]]},
}


@pytest.mark.parametrize("name", GROUPS)
def test_groups_without_end(folder, name):
    for group, members in GROUPS[name].items():
        (folder / f"{group}.yaml").write_text(yaml.safe_dump({"group": group, "task": members}))
    refused(folder, "g")


FILES = {
    "aliases": aliases(9, 9),
    "merge keys": merges(12),
    "nested without end": "a: " + "[" * 900_000,
    "nested": "a: " + "[" * 3000 + "]" * 3000,
    "too long": "# x\n" * 300_000,
    "not UTF-8": b"task: \xff\n",
    "no YAML": "task: [a\n",
    "includes itself": "task: t\ninclude: bad.yaml\n",
    "includes a device": "task: t\ninclude: /dev/zero\n",
    "includes a pipe": "task: t\ninclude: pipe.jsonl\n",
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_nobody_should_read(folder, name):
    text = FILES[name]
    (folder / "bad.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(folder, "t")


@pytest.mark.parametrize("kind", ["pipe", "loop", "nowhere"])
def test_task_files_that_are_none(folder, kind):
    if kind == "pipe":
        os.mkfifo(folder / "t.yaml")
    else:
        (folder / "t.yaml").symlink_to("t.yaml" if kind == "loop" else "nowhere")
    refused(folder, "t")


def test_an_include_that_is_a_file_or_a_loop(folder):
    eval_tasks.write_generation_task(folder)
    (folder / "up").symlink_to("..")
    assert build(folder)
    assert "does not exist" in refused(folder / "say.yaml")


SHARED = (
    "{% set n = namespace(a=[1], b=[1], t=(1,)) %}{% for i in range(60) %}"
    "{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}{% set n.t = (n.t, n.t) %}{% endfor %}"
)
"""Small in memory; whoever compares, hashes or writes it without looking at what is shared never comes to an end."""
TEMPLATES = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.system('touch canary') }}",
    "self": "{{ self.__init__.__globals__ }}",
    "attr": "{{ ''|attr('__class__') }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "repeat": "{{ 'a' * 10 ** 10 }}",
    "power": "{{ 10 ** (10 ** 8) }}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops over a text": "{% for a in q %}{% for b in q %}{% for c in q %}{% endfor %}{% endfor %}{% endfor %}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "macros": "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "doubling": "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubling a list": "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "doubling a block": "{% set n = namespace(s=1) %}{% for i in range(99) %}"
    "{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}",
    "width": "{{ '{:999999999d}'.format(1) }}",
    "width by argument": "{{ '{:{w}}'.format(1, w=10 ** 9) }}",
    "percent": "{{ '%999999999d' % 1 }}",
    "percent star": "{{ '%*d' % (10 ** 9, 1) }}",
    "center": "{{ 'x'.center(10 ** 9) }}",
    "filter": "{{ 'x' | center(10 ** 9) }}",
    "batch": "{{ [1] | batch(10 ** 9, 'x') | list }}",
    "join": "{{ 'a'.join(['b' * 1000000] * 3) }}",
    "lipsum": "{{ lipsum(n=10000) }}",
    "comparing what is shared": SHARED + "{{ n.a == n.b }}",
    "hashing what is shared": SHARED + "{{ {n.t: 1} }}",
    "writing what is shared": SHARED + "{{ n.a }}",
    "sharing by arguments": "{% macro f(n) %}{% set n.s = varargs %}{% endmacro %}{% set n = namespace(s=1) %}"
    "{% for i in range(60) %}{{ f(n, n.s, n.s) }}{% endfor %}{{ {n.s: 1} }}",
    "keeping": "{% set n = namespace(s=0) %}"
    "{% for i in range(99999) %}{% set n.s = namespace(s=n.s, t='x' * 1999999) %}{% endfor %}",
    "sum of lists": "{{ ([[1]] * 900000) | sum(start=[]) | length }}",
    "replace": "{{ ('x' * 1000000) | replace('x', 'y' * 20000) }}",
    "replace by method": "{{ ('x' * 1000000).replace('x', 'y' * 20000) }}",
    "join by an iterator": "{{ range(90000) | map('string') | join('x' * 1000000) }}",
    "percent filter": "{{ '%20000000000d' | format(1) }}",
    "many widths": "{{ ('%9999d' * 90000) % ((1,) * 90000) }}",
    "many fields": "{{ ('{0:{1}}' * 90000).format('x', 99999) }}",
    "indent": "{{ ('a\\n' * 500000) | indent(99999) }}",
    "tabs": "{{ ('\\t' * 900000).expandtabs(99999) }}",
    "translate": "{{ ('x' * 1000000).translate({120: 'y' * 100000}) }}",
    "regular expression": "{{ (('a' * 60) ~ 'b') | regex_replace('(a|a)+$', '') }}",
    "division": "{{ 1 / 0 }}",
    "undefined": "{{ nowhere }}",
    "syntax": "{% for %}",
    "brackets": "{" * 5000,
    "long": "x" * 300_000 + "{{ question }}",
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_are_texts(folder, name):
    template = "{% set q = question * 40 %}" * (name == "loops over a text") + TEMPLATES[name]
    eval_tasks.write_generation_task(folder, doc_to_text=template)
    refused(folder)


SOUND = (
    "{{question}}:",
    "{% for c in choices %}{{ loop.index }}. {{ c }}{% if not loop.last %},{% endif %}{% endfor %}\n",
    "{{ a ~ ' ' ~ b | trim }}{{ choices | join(', ') }}{{ choices | length * 2 }}{{ 'ab' * 3 }}",
    "{{ '%.2f' % x }}{{ '{:>5}|{:.1f}'.format(a, x) }}{{ a | regex_replace('x+', 'y') }}",
    "{% set n = choices | length %}{{ n }}{{ choices[0] ~ n }}{% macro m(v) %}<{{ v }}>{% endmacro %}{{ m(a) }}",
    "{% for k, v in d.items() %}{{ k }}={{ v }}{% endfor %}{{ none }}{{ d }}{{ choices | map('upper') | list }}",
    "{{ choices | selectattr('0') | list | length }}{{ a.strip().split('x') }}{{ [1, 2] + [3] }}{{ 2 ** 5 }}",
    "{% for row in choices | batch(2) %}{{ row | list }}{% endfor %}{{ range(5) | list }}{{ loop is defined }}",
    "{% for k, v in [(a, 1), (b, [2, {'x': (a, x)}])] %}{{ k }}{{ v }}{% endfor %}{% set p, q = a, b %}{{ q ~ p }}",
    "{{ choices | map('replace', 'a', question) | join('; ') }}{{ [[a], choices] | sum(start=[]) }}{{ a in ['xx'] }}",
    "{{ '%s of %5.1f' | format(a, x) }}{{ ', '.join(choices | reverse) }}{{ {'a': [a, b]}['a'][0] }}{{ choices[1:] }}",
)


@pytest.mark.parametrize("template", SOUND)
def test_sound_templates_render_as_lm_eval_renders_them(template):
    values = {"question": "q", "choices": ["a", "b", "c"], "a": "xx", "b": " b ", "x": 1.5, "d": {"k": 1}}
    expected = lm_eval.utils.env.from_string(template).render(**values)
    with templates(trusted=False):
        assert lm_eval.utils.env.from_string(template).render(**values) == expected


DATA = {
    "cut": '{"question": "a", "answer": "b"}\n{"question": "a", "ans',
    "nested": '{"question": ' + "[" * 50_000 + "]" * 50_000 + "}",
    "empty": "",
    "no objects": "1\n2\n",
    "other fields": '{"other": 1}\n' * 20,
    "NUL": '{"question": "\0", "answer": 1}\n',
    "not UTF-8": b'{"question": "\xff", "answer": "b"}\n',
}


@pytest.mark.parametrize("name", DATA)
def test_data_that_are_none(folder, name):
    eval_tasks.write_generation_task(folder)
    text = DATA[name]
    (folder / "say.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(folder)

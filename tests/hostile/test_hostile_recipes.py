"""Recipes, banks, matrices, logs and plug-ins of strangers; and readers under random input."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge import plain_arrays
from evomerge.calibration.logs import log_file, read_log
from evomerge.calibration.matrices import read_csv, read_npz
from evomerge.config.load import load_job
from evomerge.config.recipe_files import read_recipe_file
from evomerge.errors import ConfigError, EvomergeError, PluginError, RecipeError
from evomerge.evaluation.suite import load_suite
from evomerge.irt.bank_files import read_bank
from evomerge.recipe.mergekit_text import read_mergekit
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.recipe.serialize import (
    recipe_digest,
    recipe_from_json,
    recipe_from_text,
    recipe_to_json,
    recorded_recipe_from_json,
)
from evomerge.registry import Registry
from evomerge.runs.entries import decode_entries
from evomerge.runs.journal import scan
from evomerge.strict_yaml import parse_yaml
from evomerge.survey.files import read_survey
from evomerge.testing.hostile_texts import HOSTILE_NAMES

PARTS = r"(?s).+\n  Got: .+\n  Allowed: .+\n  Fix: .+"
RECIPE = recipe_to_json(Recipe((ParentRef("a", "a"), ParentRef("b", "b")), None, (Rule("linear"),)))


def changed(**changes: Any) -> str:
    return json.dumps({**RECIPE, **changes})


def nested(depth: int) -> dict[str, Any]:
    parent: dict[str, Any] = {"name": "a", "source": "a", "revision": None, "content": None}
    for _ in range(depth):
        made = {"method": "tsv_m", "of": [parent], "base": None, "settings": {}, "data": None}
        parent = {"name": "a", "source": "a", "revision": None, "content": None, "made": made}
    return parent


TEXTS = {
    "nothing": "",
    "deep": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "long": '{"format": "' + "x" * 5_000_000 + '"}',
    "key twice": '{"format": "evomerge.recipe", "format": "evomerge.recipe"}',
    "NaN": changed(seed=0).replace('"seed": 0', '"seed": NaN'),
    "beyond doubles": changed(seed=0).replace('"seed": 0', '"seed": 1e999'),
    "a seed of 100,000 digits": changed(seed=0).replace('"seed": 0', '"seed": 1' + "0" * 100_000),
    "version 99": changed(version=99),
    "version 10**4000": changed(version=0).replace('"version": 0', '"version": 1' + "0" * 4000),
    "version true": changed(version=True),
    "unknown key": changed(canary=1),
    "key of a megabyte": changed(**{"k" * 1_000_000: 1}),
    "no parents": changed(parents=[]),
    "parents that are a text": changed(parents="a"),
    "made 10 deep": changed(version=3, parents=[nested(10)]),
    "made 300 deep": changed(version=3, parents=[nested(300)]),
    "surrogates": changed(base="\ud800"),
    "layers that are texts": changed(rules=[{**RECIPE["rules"][0], "layers": ["x"]}]),
    "an infinite weight": changed(rules=[{**RECIPE["rules"][0], "shared": {"w": 7}}]).replace('"w": 7', '"w": 1e999'),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_recipes_that_are_none(tmp_path, name):
    with pytest.raises(RecipeError, match=PARTS) as caught:
        recipe_from_text(TEXTS[name])
    assert len(str(caught.value)) < 25_000
    (tmp_path / "recipe.json").write_text(TEXTS[name], errors="surrogatepass")
    with pytest.raises(ConfigError, match=PARTS):
        read_recipe_file(tmp_path / "recipe.json")


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_sources_are_names_of_nothing(tmp_path, guarded, name):
    """Whatever a recipe calls its parents, reading it opens and writes nothing."""
    (tmp_path / "r.json").write_text(changed(parents=[{**RECIPE["parents"][0], "source": HOSTILE_NAMES[name]}]))
    with guarded.only(tmp_path / "nowhere"):
        assert read_recipe_file(tmp_path / "r.json").parents[0].name == "a"


def test_a_tampered_recipe_is_not_the_recorded_one():
    recipe = recipe_from_json(RECIPE)
    assert recorded_recipe_from_json(RECIPE, recipe_digest(recipe)) == recipe
    with pytest.raises(RecipeError, match="not the one that was recorded"):
        recorded_recipe_from_json({**RECIPE, "seed": 5}, recipe_digest(recipe))


class Canary:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch canary",))


def npz(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def npy(shape: str, descr: str = "<f8", body: bytes = b"") -> bytes:
    head = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + body


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Canary()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def archives() -> dict[str, bytes]:
    bomb = npy("(500000,)", body=bytes(4_000_000))
    return {
        "pickle": pickle.dumps(Canary()),
        "pickled array": npz(Y=pickled(), models=pickled(), items=pickled(), head=pickled()),
        "a claim of terabytes": npz(Y=npy("(1000000000000,)"), models=npy("(1,)"), items=npy("(1,)"), head=npy("()")),
        "a negative shape": npz(Y=npy("(-1,)"), models=npy("(1,)"), items=npy("(1,)")),
        "a header that is code": npz(Y=npy("__import__('os').system('touch canary')"), models=npy("()")),
        "a bomb": npz(Y=bomb, models=bomb, items=bomb, head=bomb),
        "names outside": npz(**{"../../canary": npy("(1,)", body=bytes(8))}),
        "cut": npz(Y=npy("(1,)", body=bytes(8)))[:-30],
        "one array": npy("(1000000000000,)"),
        "nothing": b"",
    }  # fmt: skip


ARCHIVES = archives()


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_of_strangers(tmp_path, monkeypatch, guarded, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plain_arrays, "MOST_BYTES", 1_000_000)
    path = tmp_path / "bank.npz"
    path.write_bytes(ARCHIVES[name])
    with guarded.only(tmp_path / "nowhere"):
        with pytest.raises(ConfigError, match=PARTS):
            read_bank(path)
        with pytest.raises(ConfigError, match=PARTS):
            read_npz(path, "task")
    assert not (tmp_path / "canary").exists()


def test_pipes_are_not_read(tmp_path):
    for name in ("bank.npz", "m.csv", "m.npz"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(ConfigError, match="regular file"):
        read_bank(tmp_path / "bank.npz")
    with pytest.raises(ConfigError, match="regular file"):
        read_csv(tmp_path / "m.csv", "t")
    with pytest.raises(ConfigError, match="regular file"):
        read_npz(tmp_path / "m.npz", "t")


LOG = {"doc": {"a": 1}, "filter": "none", "metrics": ["acc"], "acc": 1.0}
LOGS = {
    "NaN": json.dumps({**LOG, "acc": float("nan")}),
    "infinite": json.dumps({**LOG, "acc": float("inf")}),
    "deep": '{"doc": ' + "[" * 100_000,
    "no object": "[]",
    "a text for a score": json.dumps({**LOG, "acc": "<script>"}),
    "metrics that are a number": json.dumps({**LOG, "metrics": 5}),
    "long": '{"doc": "' + "x" * 16_500_000 + '"}',
    "NUL": "\0",
}


@pytest.mark.parametrize("name", LOGS)
def test_logs_of_strangers(tmp_path, name):
    path = tmp_path / "samples_t_2026-01-01T00-00-00.jsonl"
    path.write_text(LOGS[name])
    with pytest.raises(ConfigError, match=PARTS):
        read_log(log_file(path, "s"), "t")


def test_a_survey_of_strangers(tmp_path):
    for text in ("[" * 100_000, "{}", '{"format": "evomerge.survey", "version": 1, "places": [5]}', "\0"):
        (tmp_path / "s.json").write_text(text)
        with pytest.raises(EvomergeError, match=PARTS):
            read_survey(tmp_path / "s.json")


@pytest.mark.parametrize(
    "raised", ["SystemExit(0)", "EOFError()", "type('Odd', (Exception,), {})()", "RecursionError()"]
)
def test_a_plug_in_that_raises_anything(tmp_path, monkeypatch, guarded, raised):
    info = tmp_path / "canary_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: canary_plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[evomerge.canaries]\ncanary = canary_plugin_module:x\n")
    (tmp_path / "canary_plugin_module.py").write_text(f"raise {raised}\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("evomerge.canaries", "canary", {})
    assert registry.names() == ["canary"]
    assert not guarded.violations  # it is known, and did not run
    with pytest.raises(PluginError, match="does not load"):
        registry.load("canary")
    guarded.violations.clear()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
KEYS = (
    "name",
    "parents",
    "suite",
    "space",
    "objectives",
    "budget",
    "tasks",
    "models",
    "merge_method",
    "base",
    "rules",
    "t",
    "n",
)
KEYED = st.dictionaries(st.sampled_from(KEYS), JSON, max_size=6)
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def harmless(read: Any, *arguments: Any) -> None:
    """Success, or one of our errors; anything else is a bug."""
    with suppress(EvomergeError):
        read(*arguments)


@QUICK
@given(value=KEYED, text=st.text(max_size=200))
def test_readers_of_text_under_random_input(tmp_path, value, text):
    dumped = yaml.safe_dump(value, allow_unicode=False)
    for candidate in (text, dumped):
        harmless(parse_yaml, candidate, "x")
        harmless(read_mergekit, candidate)
        harmless(recipe_from_text, candidate)
    (tmp_path / "job.yaml").write_text(dumped)
    harmless(load_job, tmp_path / "job.yaml")
    harmless(load_suite, value)


@QUICK
@given(key=st.sampled_from(sorted(RECIPE)), value=JSON, data=st.binary(max_size=200))
def test_readers_of_recipes_and_journals_under_random_input(key, value, data):
    harmless(recipe_from_json, {**RECIPE, key: value})
    harmless(lambda: scan(data))
    harmless(lambda: list(decode_entries(({"t": "evaluated", "id": value, key: value}, {"t": value}))))
    harmless(lambda: list(decode_entries(({"t": "opened", "schema": value},))))

"""The keys of a job about memory: what they may say, and which of them a resumed run may change."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evomerge.config import workers
from evomerge.config.load import job_document, resolve_job
from evomerge.config.run_files import _fixed
from evomerge.config.workers import storage_of
from evomerge.errors import ConfigError
from evomerge.merging.residence import Storage


def resolved(folder: Path, **cluster: Any) -> Any:
    job = {
        "parents": {"base": folder / "base", "models": {"a": folder / "a"}},
        "space": "layer-wise-ties",
        "suite": {"tasks": ["t"]},
        "objectives": [{"name": "t", "task": "t"}],
        "cluster": cluster,
    }
    return resolve_job(job_document(job), folder)


@pytest.mark.parametrize(("key", "value"), [("parents", "gpu"), ("task_vectors", "int4")])
def test_unknown_places_and_forms_are_refused(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=key):
        resolved(tmp_path, **{key: value})


def test_a_resumed_run_may_move_its_parents_but_not_pack_them(tmp_path: Path) -> None:
    plain = _fixed(resolved(tmp_path))
    assert "cluster" not in plain
    assert _fixed(resolved(tmp_path, parents="host", workers=7)) == plain
    assert _fixed(resolved(tmp_path, task_vectors="int8")) == {**plain, "cluster": {"task_vectors": "int8"}}


@pytest.mark.parametrize(
    ("cluster", "device", "expected"),
    [
        ({"workers": 3}, "cpu", Storage(None, None, 2, 3)),
        ({"workers": 3, "parents": "host", "task_vectors": "int8"}, "cpu", Storage("host", "base", 2, 3)),
        ({"workers": 3, "backend": "local"}, "cuda", Storage(None, None, 2, 3, 3)),  # all on the first GPU
        ({"workers": 3, "backend": "ray"}, "cuda", Storage(None, None, 2, 3, 1)),
        ({"workers": 64, "address": "there"}, "cpu", Storage(None, None, 2, 4)),  # a host of the cluster holds four
    ],
)
def test_who_shares_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: dict[str, Any], device: str, expected: Storage
) -> None:
    monkeypatch.setattr(workers, "choose_device", lambda _: device)
    monkeypatch.setattr(workers, "_seats", lambda on_gpu: 4)
    monkeypatch.setattr(workers, "hop_parents", lambda _: ("a",))
    assembled: Any = SimpleNamespace(resolved=resolved(tmp_path, **cluster), parents=SimpleNamespace(base="base"))
    assert storage_of(assembled) == expected

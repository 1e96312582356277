"""Readers under random input: typed errors, or tensors that can be read; and how much memory bombs take.

What was found stands in the corpus under a name (`evomerge.testing.hostile_checkpoints`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge.checkpoints.adapter_config import read_adapter_config
from evomerge.checkpoints.header import read_header
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.checkpoints.tokenizer_bombs import pattern_fault
from evomerge.checkpoints.tokenizers import read_vocabulary
from evomerge.errors import EvomergeError, ModelError
from evomerge.testing.audit_guard import Guard
from evomerge.testing.hostile_checkpoints import corpus, sound_checkpoint
from evomerge.testing.hostile_model import INDEX, WEIGHTS, Victim

FUZZ = settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
SCALAR = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([2**63, -1, 1e308])
)
JSON = st.recursive(
    SCALAR, lambda j: st.lists(j, max_size=3) | st.dictionaries(st.text(max_size=8), j, max_size=3), max_leaves=6
)
BOMBS = (
    "header: twelve million lists",
    "header: three hundred thousand tensors",
    "index: of 101 MB",
    "index: of a million tensors",
    "config: a million values",
    "config: nested 3,000",
    "a sparse terabyte",
    "a zip bomb in disguise",
    "tokenizer: twelve million lists",
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sound_checkpoint(tmp_path_factory.mktemp("sound") / "model")


def read_all(folder: Path) -> None:
    """Open and read every tensor, or be refused in words."""
    try:
        checkpoint = open_checkpoint(folder)
    except EvomergeError:
        return
    for info in checkpoint.layout.tensors:
        assert tuple(checkpoint.tensor(info.name).shape) == info.shape


@FUZZ
@given(data=st.data())
def test_changed_bytes_of_a_header(data: st.DataObject, sound: Path, tmp_path: Path) -> None:
    raw = bytearray((sound / WEIGHTS).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 2000))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(raw)))
    (tmp_path / WEIGHTS).write_bytes(raw[:cut])
    try:
        header = read_header(tmp_path / WEIGHTS)
    except ModelError:
        return
    assert all(0 <= e.start <= e.stop <= header.size and e.stop - e.start == e.nbytes for e in header.entries.values())


@FUZZ
@given(raw=st.binary(max_size=200))
def test_any_bytes_as_a_file(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(raw)
    with pytest.raises(ModelError, match="damaged"):
        read_header(tmp_path / WEIGHTS)


@FUZZ
@given(changes=st.dictionaries(st.sampled_from(["a", "b", "__metadata__", "model.layers.0.x"]), JSON, max_size=3))
def test_any_json_as_a_header(changes: dict[str, Any], tmp_path: Path) -> None:
    text = json.dumps(changes).encode()
    (tmp_path / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text)
    with suppress(ModelError):
        assert not any(e.nbytes for e in read_header(tmp_path / WEIGHTS).entries.values())


def linked(sound: Path, folder: Path, *, without: str) -> Path:
    """A checkpoint of hard links, quick to make, without one file."""
    if not folder.exists():
        folder.mkdir()
        for path in sound.iterdir():
            if path.name != without:
                os.link(path, folder / path.name)
    return folder


@FUZZ
@given(data=st.data())
def test_any_value_in_a_config(data: st.DataObject, sound: Path, tmp_path: Path) -> None:
    folder = linked(sound, tmp_path / "model", without="config.json")
    config = json.loads((sound / "config.json").read_text())
    more = [
        "quantization_config",
        "text_config",
        "rope_scaling",
        "auto_map",
        "n_layer",
        "dtype",
        "num_labels",
        "head_dim",
    ]
    for key in data.draw(st.lists(st.sampled_from([*config, *more]), min_size=1, max_size=3)):
        config[key] = data.draw(JSON)
    (folder / "config.json").write_text(json.dumps(config))
    read_all(folder)


@FUZZ
@given(
    index=st.one_of(
        JSON, st.builds(lambda j: {"weight_map": j}, JSON), st.builds(lambda n: {"weight_map": {"a": n}}, st.text())
    )
)
def test_any_json_as_an_index(index: Any, sound: Path, tmp_path: Path) -> None:
    folder = linked(sound, tmp_path / "model", without=WEIGHTS)
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"damaged|does not lie|lacks"):
        open_checkpoint(folder)


@FUZZ
@given(data=st.data())
def test_any_value_in_a_tokenizer(data: st.DataObject, sound: Path, tmp_path: Path) -> None:
    content = json.loads((sound / "tokenizer.json").read_text())
    part = data.draw(st.sampled_from([content, content["model"], content["added_tokens"][0]]))
    part[data.draw(st.sampled_from([*part, "padding", "unk_id"]))] = data.draw(JSON)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with suppress(ModelError):
        vocabulary = read_vocabulary(tmp_path)
        assert vocabulary is None or vocabulary.max_id >= 0


@FUZZ
@given(data=st.data())
def test_any_value_in_an_adapter_config(data: st.DataObject, tmp_path: Path) -> None:
    config: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    for key in data.draw(
        st.lists(st.sampled_from([*config, "rank_pattern", "alpha_pattern", "modules_to_save"]), max_size=3)
    ):
        config[key] = data.draw(JSON)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with suppress(ModelError):
        assert read_adapter_config(tmp_path / "adapter_config.json").r >= 1


@FUZZ
@given(text=st.text(alphabet="ab()[]{}*+?|\\^$,1<>:=!pL", max_size=30))
def test_any_pattern(text: str) -> None:
    assert pattern_fault(text) is None or pattern_fault(text + "(a+)+")


def test_bombs_take_little_memory(sound: Path, tmp_path: Path, guarded: Guard) -> None:
    """In a process of its own: the peak of all bombs, over that of the sound checkpoint."""
    guarded.allow_processes()
    folders = [str(sound)]
    for number, name in enumerate(BOMBS):
        victim = Victim(tmp_path / str(number), tmp_path / "outside", tmp_path / "canary")
        victim.folder.mkdir()
        for path in sound.iterdir():
            (victim.folder / path.name).write_bytes(path.read_bytes())
        next(m for m in corpus() if m.name == name).change(victim)
        folders.append(str(victim.folder))
    told = json.loads(_child(_MEASURE, folders))
    assert told["refused"] == len(BOMBS)
    assert told["over_mb"] < 600, told
    assert told["slowest_s"] < 2, told


_MEASURE = """
import json, resource, sys, time
from pathlib import Path
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.checkpoints.tokenizers import read_vocabulary
from evomerge.errors import ModelError
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
open_checkpoint(sys.argv[1])
base, refused, slowest = peak(), 0, 0.0
for folder in sys.argv[2:]:
    began = time.process_time()
    try:
        open_checkpoint(folder)
        read_vocabulary(Path(folder))
    except ModelError:
        refused += 1
    slowest = max(slowest, time.process_time() - began)
print(json.dumps({"refused": refused, "over_mb": peak() - base, "base_mb": base, "slowest_s": round(slowest, 2)}))
"""


def _child(program: str, arguments: list[str]) -> str:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return done.stdout

"""Writing: what was read comes back bit for bit, loads in transformers, and appears whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from evomerge.checkpoints import staging, writer
from evomerge.checkpoints.bundle import tokenizer_files
from evomerge.checkpoints.reader import Checkpoint, open_checkpoint
from evomerge.checkpoints.sharding import plan_shards
from evomerge.checkpoints.writer import stored_layout, write_checkpoint
from evomerge.errors import ConfigError, DiskFull, MergeError, ModelError
from evomerge.layout import Layout, TensorInfo
from evomerge.testing.tiny import FAMILIES, tiny_checkpoint

Copy = Callable[..., Path]
Stream = Iterator[tuple[str, torch.Tensor]]


def stream(checkpoint: Checkpoint) -> Stream:
    return ((t.name, checkpoint.tensor(t.name)) for t in checkpoint.layout.tensors)


def same_weights(left: Checkpoint, right: Checkpoint) -> bool:
    return left.layout == right.layout and all(
        torch.equal(left.tensor(t.name), right.tensor(t.name)) for t in left.layout.tensors
    )


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_shard_bytes", [5e9, 20_000])
def test_a_copy_is_the_same_model_in_transformers(
    zoo: Mapping[str, Path], tmp_path: Path, family: str, max_shard_bytes: float
) -> None:
    checkpoint = open_checkpoint(zoo[family])
    out = tmp_path / "out"
    write_checkpoint(out, stream(checkpoint), template=checkpoint, max_shard_bytes=max_shard_bytes)
    assert same_weights(open_checkpoint(out), checkpoint)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(load(out)(ids).logits, load(zoo[family])(ids).logits)
    assert (out / "config.json").read_bytes() == (zoo[family] / "config.json").read_bytes()
    assert leftovers(tmp_path) == ["out"]


def test_the_files_are_what_safetensors_expects(sharded: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(sharded)
    out = tmp_path / "out"
    write_checkpoint(
        out, stream(checkpoint), template=checkpoint, max_shard_bytes=20_000, metadata={"evomerge_recipe": '{"a": "é"}'}
    )
    index = json.loads((out / "model.safetensors.index.json").read_text())
    total = sum(t.element_size() * t.numel() for _, t in stream(checkpoint))
    count = sum(t.numel() for _, t in stream(checkpoint))
    assert index["metadata"] == {"total_size": total, "total_parameters": count}
    for file in sorted(set(index["weight_map"].values())):
        with safe_open(out / file, "pt") as f:
            assert f.metadata() == {"format": "pt", "evomerge_recipe": '{"a": "é"}'}
            assert set(f.keys()) == {n for n, shard in index["weight_map"].items() if shard == file}
            assert all(torch.equal(f.get_tensor(n), checkpoint.tensor(n)) for n in f.keys())  # noqa: SIM118


def test_small_files_are_carried_byte_for_byte(copy: Copy, sharded: Path, tmp_path: Path) -> None:
    folder = copy(sharded, "template")
    extra = {
        "generation_config.json": b'{ "temperature":0.5 }',
        "chat_template.jinja": b"{{ messages }}\r\n",
        "special_tokens_map.json": b"{}",
        "added_tokens.json": b"{ }",
        "merges.txt": "#version é".encode(),
        "vocab.json": b"{}",
        "tokenizer.model": bytes(range(256)),
        "qwen.tiktoken": b"YQ== 0\n",
    }
    for name, content in extra.items():
        (folder / name).write_bytes(content)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_bytes(b"tools")
    for name in ("README.md", "modeling_evil.py", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(b"no")
    checkpoint = open_checkpoint(folder)
    out = tmp_path / "out"
    write_checkpoint(out, stream(checkpoint), template=checkpoint, extra_files={"README.md": "a card", "b": b"\0"})
    for name in [
        *extra,
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "additional_chat_templates/tool.jinja",
    ]:
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert (out / "README.md").read_text() == "a card"
    assert (out / "b").read_bytes() == b"\0"
    assert {p.name for p in out.iterdir()} == {
        *extra,
        *("config.json", "tokenizer.json", "tokenizer_config.json", "additional_chat_templates"),
        *("README.md", "b", "model.safetensors"),
    }


def test_the_tokenizer_of_another_parent(zoo: Mapping[str, Path], sharded: Path, tmp_path: Path) -> None:
    checkpoint, other = open_checkpoint(zoo["llama"]), open_checkpoint(sharded)
    out = tmp_path / "out"
    write_checkpoint(out, stream(checkpoint), template=checkpoint, tokenizer_from=other)
    assert (out / "tokenizer.json").read_bytes() == (sharded / "tokenizer.json").read_bytes()


def test_tokenizer_links_out_of_the_folder_are_refused(copy: Copy, sharded: Path, tmp_path: Path) -> None:
    folder = copy(sharded, "template")
    (tmp_path / "secret").write_text("secret")
    (folder / "chat_template.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="a link to"):
        tokenizer_files(folder)
    (folder / "chat_template.jinja").unlink()
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="a link to"):
        tokenizer_files(folder)


def test_another_dtype_is_written_and_said(zoo: Mapping[str, Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(zoo["llama"])
    out = tmp_path / "out"
    tensors = ((name, tensor.to(torch.bfloat16)) for name, tensor in stream(checkpoint))
    write_checkpoint(out, tensors, template=checkpoint, dtype="bfloat16")
    assert {t.dtype for t in open_checkpoint(out).layout.tensors} == {"BF16"}
    before, after = (json.loads((f / "config.json").read_text()) for f in (zoo["llama"], out))
    assert after == {**before, "dtype": "bfloat16"}
    assert list(after) == list(before)
    assert load(out).dtype == torch.bfloat16


def test_the_old_key_of_the_dtype_is_kept(
    copy: Copy, zoo: Mapping[str, Path], edit_config: Any, tmp_path: Path
) -> None:
    folder = copy(zoo["llama"], "template")
    edit_config(folder, dtype=None, torch_dtype="float32")
    checkpoint = open_checkpoint(folder)
    write_checkpoint(tmp_path / "same", stream(checkpoint), template=checkpoint, dtype="float32")
    assert (tmp_path / "same" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    halves = ((name, tensor.half()) for name, tensor in stream(checkpoint))
    write_checkpoint(tmp_path / "half", halves, template=checkpoint, dtype="float16")
    config = open_checkpoint(tmp_path / "half").config
    assert config["torch_dtype"] == "float16"
    assert "dtype" not in config


def test_another_depth(zoo: Mapping[str, Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(zoo["llama"])
    kept = Layout(1, tuple(t for t in checkpoint.layout.tensors if t.layer != 1))
    out = tmp_path / "out"
    tensors = ((t.name, checkpoint.tensor(t.name)) for t in kept.tensors)
    write_checkpoint(out, tensors, template=checkpoint, layout=kept, config_changes={"num_hidden_layers": 1})
    assert open_checkpoint(out).layout == kept
    assert load(out).config.num_hidden_layers == 1


def test_a_copy_of_the_tied_head_is_not_written(copy: Copy, zoo: Mapping[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy(zoo["gemma2"], "template")
    tensors = {n: t.clone() for n, t in load_file(folder / "model.safetensors").items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(folder)
    write_checkpoint(tmp_path / "out", stream(checkpoint), template=checkpoint)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as f:
        assert "lm_head.weight" not in f.keys()  # noqa: SIM118
    model = load(tmp_path / "out")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_any_order_and_strided_tensors(zoo: Mapping[str, Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(zoo["gpt2"])
    tensors = [(n, t.t().contiguous().t() if t.dim() == 2 else t) for n, t in stream(checkpoint)]
    for name, order in (("back", tensors[::-1]), ("front", tensors)):
        write_checkpoint(tmp_path / name, iter(order), template=checkpoint, max_shard_bytes=20_000)
    assert open_checkpoint(tmp_path / "back").content == open_checkpoint(tmp_path / "front").content
    assert same_weights(open_checkpoint(tmp_path / "back"), checkpoint)


# ----------------------------------------------------------------------------------------------------------- target


def test_an_empty_target_and_missing_parents_work(zoo: Mapping[str, Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(zoo["llama"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for out in (tmp_path / "link", tmp_path / "a" / "b" / "c"):
        write_checkpoint(out, stream(checkpoint), template=checkpoint)
        assert same_weights(open_checkpoint(out), checkpoint)
    assert leftovers(tmp_path) == ["a", "empty", "link"]


def test_a_relative_target(zoo: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = open_checkpoint(zoo["llama"])
    write_checkpoint(Path("out"), stream(checkpoint), template=checkpoint)
    assert same_weights(open_checkpoint("out"), checkpoint)


def never() -> Stream:
    raise AssertionError("a tensor was asked for")
    yield


def test_a_target_that_is_in_use_is_refused_before_any_work(zoo: Mapping[str, Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(zoo["llama"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(ConfigError, match="it is not empty"):
        write_checkpoint(tmp_path / "full", never(), template=checkpoint)
    with pytest.raises(ConfigError, match="it is a file"):
        write_checkpoint(tmp_path / "full" / "note", never(), template=checkpoint)
    with pytest.raises(ConfigError, match="it is not empty"):
        write_checkpoint(zoo["llama"], never(), template=checkpoint)
    with pytest.raises(ConfigError, match="exists"):
        write_checkpoint(tmp_path / "full" / "note" / "out", never(), template=checkpoint)
    assert (tmp_path / "full" / "note").read_text() == "mine"


@pytest.mark.parametrize("name", ["../up", "a/b", "config.json", "model.safetensors", "tokenizer.json", ""])
def test_extra_files_have_names_of_their_own(sharded: Path, tmp_path: Path, name: str) -> None:
    checkpoint = open_checkpoint(sharded)
    with pytest.raises(ConfigError, match="extra file"):
        write_checkpoint(tmp_path / "out", never(), template=checkpoint, extra_files={name: "x"})


@pytest.mark.parametrize("size", [0, -1, float("nan")])
def test_shard_sizes_are_positive(zoo: Mapping[str, Path], tmp_path: Path, size: float) -> None:
    with pytest.raises(ConfigError, match="shard size"):
        write_checkpoint(tmp_path / "o", never(), template=open_checkpoint(zoo["llama"]), max_shard_bytes=size)


# --------------------------------------------------------------------------------------------------------- failures


def spoil(checkpoint: Checkpoint, how: str) -> Stream:
    tensors = list(stream(checkpoint))
    name, tensor = tensors[-1]
    yield from tensors[:-1]
    if how == "wrong shape":
        yield name, tensor[:-1]
    if how == "wrong dtype":
        yield name, tensor.half()
    if how == "unknown":
        yield "ghost", tensor
    if how == "twice":
        yield tensors[0]
    if how == "interrupted":
        raise KeyboardInterrupt("stopped by the user")


@pytest.mark.parametrize(
    ("how", "error", "match"),
    [
        ("missing", MergeError, "1 missing: model.norm.weight"),
        ("wrong shape", MergeError, r"'model.norm.weight' of shape \(31,\)"),
        ("wrong dtype", MergeError, "torch.float16"),
        ("unknown", MergeError, "'ghost', not in the layout"),
        ("twice", MergeError, "'lm_head.weight', written before"),
        ("interrupted", KeyboardInterrupt, "stopped by the user"),
    ],
)
@pytest.mark.parametrize("empty_target", [True, False])
def test_nothing_stays_after_a_failure(
    *, zoo: Mapping[str, Path], tmp_path: Path, how: str, error: type[BaseException], match: str, empty_target: bool
) -> None:
    checkpoint = open_checkpoint(zoo["llama"])
    out = tmp_path / "out"
    if empty_target:
        out.mkdir()
    with pytest.raises(error, match=match):
        write_checkpoint(out, spoil(checkpoint, how), template=checkpoint)
    assert leftovers(tmp_path) == (["out"] if empty_target else [])
    assert not empty_target or leftovers(out) == []


@pytest.mark.parametrize(
    ("code", "error"), [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EIO, ConfigError)]
)
@pytest.mark.parametrize("place", ["pwrite", "fsync"])
def test_a_full_or_broken_disk_is_told_and_nothing_stays(
    *, zoo: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: Any, place: str
) -> None:
    calls = []
    real = getattr(os, place)

    def failing(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) > 1:
            raise OSError(code, os.strerror(code))
        return real(*arguments)

    monkeypatch.setattr(os, place, failing)
    checkpoint = open_checkpoint(zoo["llama"])
    with pytest.raises(error, match=os.strerror(code)):
        write_checkpoint(tmp_path / "out", stream(checkpoint), template=checkpoint, max_shard_bytes=20_000)
    assert leftovers(tmp_path) == []


def test_too_little_space_is_told_before_any_work(
    zoo: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(DiskFull, match="bytes are needed, 1000 are free") as caught:
        write_checkpoint(tmp_path / "out", never(), template=open_checkpoint(zoo["llama"]))
    assert caught.value.exit_code == 75
    assert leftovers(tmp_path) == []


def test_partial_writes_of_the_system_are_continued(
    zoo: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, position: real(fd, data[:1000], position))
    checkpoint = open_checkpoint(zoo["llama"])
    write_checkpoint(tmp_path / "out", stream(checkpoint), template=checkpoint)
    assert same_weights(open_checkpoint(tmp_path / "out"), checkpoint)


def test_what_a_killed_process_left_is_removed_and_a_living_ones_is_not(
    zoo: Mapping[str, Path], tmp_path: Path
) -> None:
    dead, living, foreign = (tmp_path / f".{name}.partial" for name in ("out.dead", "out.live", "outer.x"))
    for folder in (dead, living, foreign):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    fd = os.open(living, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    checkpoint = open_checkpoint(zoo["llama"])
    write_checkpoint(tmp_path / "out", stream(checkpoint), template=checkpoint)
    os.close(fd)
    assert leftovers(tmp_path) == [".out.live.partial", ".outer.x.partial", "out"]


def test_a_target_that_fills_while_writing_is_not_overwritten(zoo: Mapping[str, Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(zoo["llama"])
    out = tmp_path / "out"

    def racing() -> Stream:
        yield from stream(checkpoint)
        out.mkdir()
        (out / "note").write_text("mine")

    with pytest.raises(ConfigError, match="not empty"):
        write_checkpoint(out, racing(), template=checkpoint)
    assert leftovers(tmp_path) == ["out"]
    assert leftovers(out) == ["note"]


def test_a_folder_that_cannot_be_locked_is_still_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with staging.staged_folder(tmp_path / "out") as folder:
        (folder / "note").write_text("mine")
    assert leftovers(tmp_path / "out") == ["note"]


# --------------------------------------------------------------------------------------------------------- planning


TENSORS = st.lists(
    st.builds(
        lambda shape, dtype, layer: (tuple(shape), dtype, layer),
        st.lists(st.integers(0, 5), max_size=3),
        st.sampled_from(["F32", "BF16", "I64", "BOOL", "F64"]),
        st.sampled_from([None, 0, 1, 2]),
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None, max_examples=100)
@given(tensors=TENSORS, limit=st.integers(1, 2000))
def test_plans_hold_every_tensor_once_aligned_and_within_the_limit(
    tensors: list[tuple[tuple[int, ...], str, int | None]], limit: int
) -> None:
    infos = tuple(TensorInfo(f"t{i:02d}", s, d, layer, "other") for i, (s, d, layer) in enumerate(tensors))
    plans = plan_shards(Layout(3, infos), {}, limit)
    assert sorted(name for plan in plans for name in plan.entries) == [t.name for t in infos]
    for plan in plans:
        position = len(plan.prefix)
        assert position % 8 == 0
        for entry in plan.entries.values():
            assert entry.start == position
            assert entry.nbytes == 0 or entry.start % (entry.nbytes // entry.numel) == 0
            position = entry.stop
        assert position == plan.size
        assert plan.size - len(plan.prefix) <= limit or len(plan.entries) == 1 or plan.size == len(plan.prefix)


def test_layers_stay_together_and_in_order() -> None:
    infos = tuple(TensorInfo(f"h.{i}.w", (10,), "F32", i, "mlp") for i in (0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9))
    plans = plan_shards(Layout(12, infos), {}, 160)
    assert [list(p.entries) for p in plans] == [[f"h.{i}.w" for i in range(s, s + 4)] for s in (0, 4, 8)]
    assert [p.name for p in plans] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


def test_stored_dtypes() -> None:
    layout = Layout(0, (TensorInfo("a", (1,), "F32", None, "other"), TensorInfo("b", (1,), "I64", None, "other")))
    assert stored_layout(layout, "parent") is layout
    assert [t.dtype for t in stored_layout(layout, "float16").tensors] == ["F16", "I64"]
    with pytest.raises(ValueError, match="'float17' cannot be stored"):
        stored_layout(layout, "float17")


def test_the_default_shard_size_suits_the_hub() -> None:
    assert writer.SHARD_BYTES == 5_000_000_000


def test_tiny_checkpoints_are_reproducible(tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    one, two, other = (tiny_checkpoint(tmp_path / str(i), "qwen3", seed) for i, seed in enumerate((1, 1, 2)))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert open_checkpoint(one).content == open_checkpoint(two).content != open_checkpoint(other).content
    with pytest.raises(ConfigError, match="Did you mean 'llama'"):
        tiny_checkpoint(tmp_path / "x", "lama", 1)

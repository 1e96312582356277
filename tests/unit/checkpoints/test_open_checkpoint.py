"""Opening folders: tensors as safetensors reads them, unsafe and damaged folders refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from evomerge.checkpoints import proofs
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.errors import ModelError
from evomerge.testing.tiny import FAMILIES, tiny_checkpoint

Copy = Callable[..., Path]
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_equal_what_safetensors_reads(zoo: Mapping[str, Path], family: str) -> None:
    checkpoint = open_checkpoint(zoo[family])
    expected = load_file(zoo[family] / "model.safetensors")
    assert {t.name for t in checkpoint.layout.tensors} | set(checkpoint.left_out) == set(expected)
    for info in checkpoint.layout.tensors:
        tensor = checkpoint.tensor(info.name)
        assert torch.equal(tensor, expected[info.name])
        assert tuple(tensor.shape) == info.shape
        assert tensor.dtype == expected[info.name].dtype


def test_shards_and_one_file_hold_the_same_model(zoo: Mapping[str, Path], sharded: Path) -> None:
    one, many = open_checkpoint(zoo["llama"]), open_checkpoint(sharded)
    assert len(list(sharded.glob("*.safetensors"))) > 1
    assert one.layout == many.layout
    assert all(torch.equal(one.tensor(t.name), many.tensor(t.name)) for t in one.layout.tensors)
    assert one.content != many.content


def test_tensors_are_mapped_once_and_not_copied(zoo: Mapping[str, Path]) -> None:
    checkpoint = open_checkpoint(zoo["llama"])
    name = checkpoint.layout.tensors[0].name
    first = checkpoint.tensor(name)
    assert first.data_ptr() == checkpoint.tensor(name).data_ptr()
    assert first.untyped_storage().nbytes() == (zoo["llama"] / "model.safetensors").stat().st_size
    checkpoint.close()
    assert torch.equal(checkpoint.tensor(name), first)


def test_a_stray_write_never_reaches_the_file(copy: Copy, zoo: Mapping[str, Path]) -> None:
    folder = copy(zoo["llama"])
    checkpoint = open_checkpoint(folder)
    before = (folder / "model.safetensors").read_bytes()
    checkpoint.tensor("model.norm.weight").zero_()
    checkpoint.close()
    assert (folder / "model.safetensors").read_bytes() == before
    assert checkpoint.tensor("model.norm.weight").abs().sum() > 0


def test_unaligned_files_are_read_by_copying(copy: Copy, zoo: Mapping[str, Path]) -> None:
    folder = copy(zoo["llama"])
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    path.write_bytes((n + 1).to_bytes(8, "little") + raw[8 : 8 + n] + b" " + raw[8 + n :])
    odd, even = open_checkpoint(folder), open_checkpoint(zoo["llama"])
    assert all(torch.equal(odd.tensor(t.name), even.tensor(t.name)) for t in even.layout.tensors)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_dtypes(tmp_path: Path, dtype: str) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path / dtype, "llama", 1, dtype=dtype))
    assert checkpoint.tensor("lm_head.weight").dtype == getattr(torch, dtype)


def test_an_unknown_name_is_a_key_error(zoo: Mapping[str, Path]) -> None:
    with pytest.raises(KeyError, match="no_such"):
        open_checkpoint(zoo["llama"]).tensor("no_such")


def test_pickles_reopen_in_another_folder_of_work(
    zoo: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(zoo["llama"].parent)
    checkpoint = open_checkpoint("llama")
    content = checkpoint.content
    data = pickle.dumps(checkpoint)
    monkeypatch.chdir(tmp_path)
    again = pickle.loads(data)
    assert (again.source, again.folder, again.layout) == ("llama", checkpoint.folder, checkpoint.layout)
    monkeypatch.setattr(proofs, "digest_file", lambda _: pytest.fail("read again"))
    assert again.content == content
    assert len(data) < 1000


def test_a_pickle_notices_changed_files(copy: Copy, zoo: Mapping[str, Path]) -> None:
    folder = copy(zoo["llama"])
    data = pickle.dumps(open_checkpoint(folder))
    shutil.copy(zoo["qwen3"] / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(ModelError, match="other headers than before"):
        pickle.loads(data)


def test_content_is_a_digest_of_the_weights_alone(copy: Copy, zoo: Mapping[str, Path]) -> None:
    folder, other = copy(zoo["llama"]), copy(zoo["llama"], "other")
    first = open_checkpoint(folder)
    (other / "README.md").write_text("a card")
    assert open_checkpoint(other).content == first.content
    raw = bytearray((other / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (other / "model.safetensors").write_bytes(bytes(raw))
    second = open_checkpoint(other)
    assert second.content != first.content
    assert second.header_digest == first.header_digest


def test_files_that_vanish_are_told(copy: Copy, zoo: Mapping[str, Path]) -> None:
    folder = copy(zoo["llama"])
    checkpoint = open_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="changed while it was in use"):
        checkpoint.tensor("model.norm.weight")
    with pytest.raises(ModelError, match="No such file"):
        _ = checkpoint.content


# ------------------------------------------------------------------------------------------------------ tied heads


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    path = folder / "model.safetensors"
    tensors = {n: t.clone() for n, t in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def add_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()


def test_a_missing_head_means_tied(zoo: Mapping[str, Path]) -> None:
    assert open_checkpoint(zoo["gemma2"]).tied_embeddings
    assert open_checkpoint(zoo["gpt2"]).tied_embeddings
    assert not open_checkpoint(zoo["llama"]).tied_embeddings


@pytest.mark.parametrize("stated", [True, None])
def test_a_second_copy_of_a_tied_embedding_is_left_out(
    copy: Copy, zoo: Mapping[str, Path], edit_config: Any, stated: bool | None
) -> None:
    folder = rewrite(copy(zoo["gemma2"]), add_head)
    edit_config(folder, tie_word_embeddings=stated)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tied_embeddings
    assert checkpoint.left_out == ("lm_head.weight",)
    assert checkpoint.layout == open_checkpoint(zoo["gemma2"]).layout


def test_two_equal_tensors_that_are_not_tied_both_count(copy: Copy, zoo: Mapping[str, Path], edit_config: Any) -> None:
    folder = rewrite(copy(zoo["llama"]), add_head)
    for stated in (False, None):  # Llama unties by default
        edit_config(folder, tie_word_embeddings=stated)
        checkpoint = open_checkpoint(folder)
        assert not checkpoint.tied_embeddings
        assert checkpoint.left_out == ()


def test_a_head_of_its_own_counts_even_where_the_config_ties(
    copy: Copy, zoo: Mapping[str, Path], edit_config: Any
) -> None:
    folder = copy(zoo["llama"])
    edit_config(folder, tie_word_embeddings=True)
    checkpoint = open_checkpoint(folder)
    assert not checkpoint.tied_embeddings
    assert "lm_head.weight" in {t.name for t in checkpoint.layout.tensors}


def test_derived_buffers_are_left_out(copy: Copy, zoo: Mapping[str, Path]) -> None:
    def add_buffers(tensors: dict[str, torch.Tensor]) -> None:
        tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
        tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)

    checkpoint = open_checkpoint(rewrite(copy(zoo["gpt2"]), add_buffers))
    assert checkpoint.left_out == ("transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias")
    assert checkpoint.layout == open_checkpoint(zoo["gpt2"]).layout


# ------------------------------------------------------------------------------------------------- unusable folders


def test_pickled_weights_are_refused_and_never_read(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 2}')
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(canary),)

    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelError, match=r"pytorch_model\.bin[\s\S]*convert to safetensors") as caught:
        open_checkpoint(folder)
    assert caught.value.exit_code == 3
    assert not canary.exists()


def test_adapters_and_empty_folders_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 2}')
    with pytest.raises(ModelError, match="holds no weights"):
        open_checkpoint(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="LoRA adapter"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "invalid JSON"),
        ("[]", "a JSON list"),
        ("{}", "model_type = 'None'"),
        ('{"model_type": 3}', "model_type = '3'"),
        ('{"model_type": "llama", "model_type": "llama"}', "'model_type' stands twice"),
        ('{"model_type": "llama", "num_hidden_layers": 3}', "2 layers under 'model.layers'"),
        ('{"a":' * 50_000, "nested too deeply"),
    ],
)
def test_damaged_configs(copy: Copy, zoo: Mapping[str, Path], text: str, match: str) -> None:
    folder = copy(zoo["llama"])
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=match):
        open_checkpoint(folder)


def test_a_config_may_hold_infinity(copy: Copy, zoo: Mapping[str, Path]) -> None:
    folder = copy(zoo["llama"])
    path = folder / "config.json"
    path.write_text(path.read_text().rstrip()[:-1] + ', "time_step_limit": [0.0, Infinity]}')
    assert open_checkpoint(folder).config["time_step_limit"][1] == float("inf")


def test_what_the_system_refuses_is_told(zoo: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_symlink", refuse)
    with pytest.raises(ModelError, match=r"Permission denied: .*config\.json"):
        open_checkpoint(zoo["llama"])


def test_a_missing_config(copy: Copy, zoo: Mapping[str, Path]) -> None:
    folder = copy(zoo["llama"])
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json in"):
        open_checkpoint(folder)


def test_a_truncated_shard_is_named(copy: Copy, sharded: Path) -> None:
    folder = copy(sharded)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(ModelError, match=shard.name):
        open_checkpoint(folder)


def test_a_missing_shard_is_named(copy: Copy, sharded: Path) -> None:
    folder = copy(sharded)
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(ModelError, match=rf"{shard.name} \(1 of \d shards missing\)"):
        open_checkpoint(folder)


def with_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    path = folder / INDEX
    index = json.loads(path.read_text())
    path.write_text(json.dumps(change(index) or index))
    return folder


NAMES = [
    "../outside.safetensors",
    "/etc/outside.safetensors",
    "sub/inside.safetensors",
    "..\\outside.safetensors",
    "C:\\outside.safetensors",
    "C:outside.safetensors",
    "nul\x00.safetensors",
    "x" * 300 + ".safetensors",
    "./model.safetensors",
]


@pytest.mark.parametrize("name", NAMES)
def test_an_index_leads_nowhere_else(copy: Copy, sharded: Path, name: str) -> None:
    folder = with_index(copy(sharded), lambda index: index["weight_map"].update({"lm_head.weight": name}))
    (folder.parent / "outside.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="does not lie in its folder"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda i: i.pop("weight_map"), "weight_map = 'None'"),
        (lambda i: i.update(weight_map={}), "weight_map = '{}'"),
        (lambda i: i.update(weight_map=["a"]), "weight_map ="),
        (lambda i: i["weight_map"].update({"lm_head.weight": 3}), "in file '3'"),
        (lambda i: i["weight_map"].update({"lm_head.weight": "a.bin"}), r"in file 'a\.bin'"),
        (lambda i: i["weight_map"].update({"lm_head.weight": ""}), "in file ''"),
        (lambda i: i["weight_map"].update({"ghost": i["weight_map"]["lm_head.weight"]}), "'ghost' is not in"),
        (
            lambda i: i["weight_map"].pop("model.norm.weight"),
            "holds 'model.norm.weight', which the index puts into 'no file'",
        ),
        (lambda i: [i], "a JSON list"),
    ],
)
def test_damaged_indexes(copy: Copy, sharded: Path, change: Callable[[dict[str, Any]], Any], match: str) -> None:
    def apply(index: dict[str, Any]) -> Any:
        result = change(index)
        return result if isinstance(result, list) else index

    with pytest.raises(ModelError, match=match):
        open_checkpoint(with_index(copy(sharded), apply))


def test_an_index_with_a_duplicate_key(copy: Copy, sharded: Path) -> None:
    folder = copy(sharded)
    path = folder / INDEX
    path.write_text(path.read_text().replace('"weight_map": {', '"weight_map": {"lm_head.weight": "a.safetensors",'))
    with pytest.raises(ModelError, match=r"'lm_head\.weight' stands twice"):
        open_checkpoint(folder)


def test_a_tensor_in_two_shards_is_refused(copy: Copy, sharded: Path) -> None:
    folder = copy(sharded)
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    with safe_open(first, "pt") as f:
        stale = {name: f.get_tensor(name) for name in list(f.keys())[:1]}
    save_file({**load_file(second), **stale}, second, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"holds '{next(iter(stale))}', which the index puts into '{first.name}'"):
        open_checkpoint(folder)


def test_one_file_goes_before_an_index_as_in_transformers(copy: Copy, zoo: Mapping[str, Path], sharded: Path) -> None:
    folder = copy(zoo["llama"])
    shutil.copy(sharded / INDEX, folder)
    assert open_checkpoint(folder).layout == open_checkpoint(sharded).layout


# ------------------------------------------------------------------------------------------------------------ links


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_links_out_of_the_folder_are_refused(copy: Copy, zoo: Mapping[str, Path], name: str) -> None:
    folder = copy(zoo["llama"])
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)
    with pytest.raises(ModelError, match="a link to"):
        open_checkpoint(folder)


def test_links_inside_the_folder_and_to_the_folder_are_fine(copy: Copy, zoo: Mapping[str, Path]) -> None:
    folder = copy(zoo["llama"])
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    (folder.parent / "alias").symlink_to(folder)
    assert open_checkpoint(folder.parent / "alias").folder == folder


def test_dangling_links_loops_and_pipes_are_refused(copy: Copy, zoo: Mapping[str, Path]) -> None:
    folder = copy(zoo["llama"])
    path = folder / "model.safetensors"
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(ModelError, match="leads nowhere"):
        open_checkpoint(folder)
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(ModelError, match="leads nowhere"):
        open_checkpoint(folder)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ModelError, match="not a regular file"):
        open_checkpoint(folder)


def hub_snapshot(root: Path, source: Path) -> Path:
    """The cache's layout: real files under blobs, links to them under snapshots."""
    repository = root / "models--org--name"
    snapshot = repository / "snapshots" / "0123abc"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in source.iterdir():
        shutil.copy(file, repository / "blobs" / f"blob-{file.name}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob-{file.name}")
    return snapshot


def test_links_of_a_hub_snapshot_into_its_blobs_are_followed(tmp_path: Path, sharded: Path) -> None:
    snapshot = hub_snapshot(tmp_path, sharded)
    assert open_checkpoint(snapshot).layout == open_checkpoint(sharded).layout


def test_links_of_a_hub_snapshot_to_anywhere_else_are_refused(tmp_path: Path, sharded: Path) -> None:
    snapshot = hub_snapshot(tmp_path, sharded)
    (tmp_path / "secret.json").write_text("{}")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(ModelError, match="a link to"):
        open_checkpoint(snapshot)

"""Parents on other nodes: copied once per node, verified, made anew when damaged, never at the cost of a run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from evomerge.checkpoints import node_cache, proofs, tickets
from evomerge.checkpoints.node_cache import NodeCache
from evomerge.checkpoints.overlay import Overlay, OverlaySpec
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.checkpoints.tickets import Node, NodeParents, checkpoint_ticket, ticket_for
from evomerge.checkpoints.writer import write_tensors
from evomerge.digest import digest_file
from evomerge.errors import ModelError
from evomerge.layout import Layout
from evomerge.testing.tiny import tiny_checkpoint
from evomerge.types import Digest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A parent on a path that all nodes see, in two shards."""
    return tiny_checkpoint(tmp_path / "shared" / "m", "llama", 0, tokenizer=True, max_shard_size="60KB")


def copies(cache: Path) -> list[Path]:
    return sorted(p for p in (cache / "parents").iterdir() if p.is_dir())


def flip(path: Path, at: int = -100) -> None:
    """Change one byte of the tensors, and leave size and time of modification as they were."""
    before = path.stat()
    with path.open("r+b") as f:
        f.seek(at, os.SEEK_END)
        (byte,) = f.read(1)
        f.seek(at, os.SEEK_END)
        f.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file whose digest is taken from now on."""
    read: list[Path] = []

    def digest(path: Path) -> Digest:
        read.append(path)
        return digest_file(path)

    monkeypatch.setattr(proofs, "digest_file", digest)
    return read


def test_a_copy_is_made_once_and_then_believed(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticket, notes = checkpoint_ticket(open_checkpoint(shared)), list[str]()
    first = Node(tmp_path / "ssd", notes.append).open(ticket)
    (copy,) = copies(tmp_path / "ssd")
    assert first.folder == copy != shared
    assert {p.name for p in copy.iterdir()} == {p.name for p in shared.iterdir()}
    assert "copied" in notes[0]
    monkeypatch.setattr(tickets, "copy_file", lambda *_: pytest.fail("copied again"))
    read = count_reads(monkeypatch)
    second = Node(tmp_path / "ssd", notes.append).open(pickle.loads(pickle.dumps(ticket)))
    assert not read
    assert len(notes) == 1
    whole = open_checkpoint(shared)
    assert second.content == whole.content
    assert all(torch.equal(second.tensor(t.name), whole.tensor(t.name)) for t in whole.layout.tensors)
    assert (tmp_path / "ssd").stat().st_mode & 0o777 == 0o700


def test_after_a_boot_a_copy_is_read_once_more(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticket = checkpoint_ticket(open_checkpoint(shared))
    Node(tmp_path / "ssd", print).open(ticket)
    monkeypatch.setattr(node_cache, "boot_id", lambda: "another boot")
    read = count_reads(monkeypatch)
    Node(tmp_path / "ssd", print).open(ticket)
    assert {p.name for p in read} == {p.name for p in shared.iterdir()}
    read.clear()
    Node(tmp_path / "ssd", print).open(ticket)
    assert not read


def truncate(path: Path) -> None:
    with path.open("r+b") as f:
        f.truncate(1000)


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_a_damaged_copy_is_made_anew(shared: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    ticket, notes = checkpoint_ticket(open_checkpoint(shared)), list[str]()
    Node(tmp_path / "ssd", notes.append).open(ticket)
    (copy,) = copies(tmp_path / "ssd")
    damage(next(copy.glob("*.safetensors")))
    again = Node(tmp_path / "ssd", notes.append).open(ticket)
    assert "is damaged; it is made anew" in notes[1]
    assert copies(tmp_path / "ssd") == [copy]
    assert again.content == open_checkpoint(shared).content
    assert all(p.read_bytes() == (shared / p.name).read_bytes() for p in copy.iterdir())


def test_what_a_killed_copying_left_is_removed_and_nothing_else(shared: Path, tmp_path: Path) -> None:
    parent = open_checkpoint(shared)
    ticket = checkpoint_ticket(parent)
    digest = ticket.files.digest
    cache = tmp_path / "ssd" / "parents"
    Node(tmp_path / "ssd", print)
    left = cache / f".{digest}.host.1.tmp"
    left.mkdir()
    (left / "config.json").write_text("{")
    (left / "mine.txt").write_text("not evomerge's")
    other = cache / ".ffff.host.1.tmp"
    other.mkdir()
    Node(tmp_path / "ssd", print).open(ticket)
    assert [p.name for p in left.iterdir()] == ["mine.txt"]
    assert other.is_dir()


def test_a_folder_that_somebody_else_made_is_left_alone(shared: Path, tmp_path: Path) -> None:
    ticket, notes = checkpoint_ticket(open_checkpoint(shared)), list[str]()
    foreign = tmp_path / "ssd" / "parents" / ticket.files.digest
    foreign.mkdir(parents=True)
    (foreign / "x").write_text("x")
    assert Node(tmp_path / "ssd", notes.append).open(ticket).folder == shared
    assert "was not made by evomerge" in notes[0]
    assert [p.name for p in foreign.iterdir()] == ["x"]


def full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_and_a_folder_of_others_fall_back_to_the_shared_path(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket, notes = checkpoint_ticket(open_checkpoint(shared)), list[str]()
    with monkeypatch.context() as patch:
        patch.setattr(tickets, "copy_file", full)
        assert Node(tmp_path / "ssd", notes.append).open(ticket).folder == shared
    assert notes == [f"{shared} is not read from the node's cache: No space left on device"]
    assert not copies(tmp_path / "ssd")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
        assert Node(tmp_path / "ssd", notes.append).open(ticket).folder == shared
    assert "1 bytes are free" in notes[1]
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert Node(tmp_path / "open", notes.append).open(ticket).folder == shared
    assert "may be written by others" in notes[2]
    (tmp_path / "file").write_text("")
    assert Node(tmp_path / "file", notes.append).open(ticket).folder == shared
    assert "is not used" in notes[3]


def test_a_copy_that_takes_too_long_is_not_waited_for(shared: Path, tmp_path: Path) -> None:
    ticket, notes = checkpoint_ticket(open_checkpoint(shared)), list[str]()
    cache = NodeCache(tmp_path / "ssd", notes.append, wait_s=0.0)
    with cache._turn(ticket.files.digest), pytest.raises(node_cache.NoRoom, match="another worker has held"):
        NodeCache(tmp_path / "ssd", notes.append, wait_s=0.2).place(ticket.files, lambda _: pytest.fail("copied"))


COPY = """
import pickle, sys
from evomerge.checkpoints.tickets import Node
notes = []
Node(__import__("pathlib").Path(sys.argv[2]), notes.append).open(pickle.load(open(sys.argv[1], "rb")))
print(len([n for n in notes if n.startswith("copied")]))
"""


def test_workers_of_a_node_that_start_together_copy_once(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "ticket").write_bytes(pickle.dumps(checkpoint_ticket(open_checkpoint(shared))))
    command = [sys.executable, "-c", COPY, str(tmp_path / "ticket"), str(tmp_path / "ssd")]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert sorted(int(w.communicate(timeout=60)[0]) for w in workers) == [0, 0, 1]
    assert len(copies(tmp_path / "ssd")) == 1


def test_other_bytes_than_the_driver_read_are_refused(shared: Path, tmp_path: Path) -> None:
    ticket = checkpoint_ticket(open_checkpoint(shared))
    flip(next(shared.glob("*.safetensors")))
    with pytest.raises(ModelError, match="changed while it was in use"):
        Node(tmp_path / "ssd", print).open(ticket)
    assert not copies(tmp_path / "ssd")
    with pytest.raises(ModelError, match="changed while it was in use"):
        Node(None, print).open(ticket)


def hub(monkeypatch: pytest.MonkeyPatch, home: Path, made: Callable[[Path], object]) -> list[dict[str, Any]]:
    """A hub whose client keeps snapshots in `home`, as the real one does, or where it is told."""
    calls: list[dict[str, Any]] = []

    def snapshot_download(source: str, revision: str, local_dir: str | None = None, **options: Any) -> str:
        calls.append({"source": source, "revision": revision, **options})
        folder = Path(local_dir) if local_dir else home / "models--org--m" / "snapshots" / COMMIT
        if local_dir or not folder.is_dir():
            made(folder)
        if local_dir:
            (folder / ".cache" / "huggingface").mkdir(parents=True)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_a_node_without_the_drivers_folder_downloads_the_same_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(folder: Path) -> None:
        tiny_checkpoint(folder, "llama", 0, tokenizer=True)

    calls = hub(monkeypatch, tmp_path / "driver", made)
    monkeypatch.chdir(tmp_path)
    ticket = checkpoint_ticket(open_checkpoint("org/m@main"))
    content = ticket.content
    shutil.rmtree(tmp_path / "driver")  # another node has no such folder
    found = hub(monkeypatch, tmp_path / "node", made)
    assert Node(None, print).open(ticket).content == content
    assert found == [{**calls[0], "revision": COMMIT}]
    shutil.rmtree(tmp_path / "node")
    for _ in range(2):
        parent = Node(tmp_path / "ssd", print).open(ticket)
        assert parent.folder == copies(tmp_path / "ssd")[0]
        assert (parent.source, parent.revision, parent.content) == ("org/m@main", COMMIT, content)
    assert len(found) == 2  # once per node


def test_a_hub_that_gives_other_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, tmp_path / "driver", lambda f: tiny_checkpoint(f, "llama", 0))
    monkeypatch.chdir(tmp_path)
    ticket = checkpoint_ticket(open_checkpoint("org/m"))
    shutil.rmtree(tmp_path / "driver")
    hub(monkeypatch, tmp_path / "node", lambda f: tiny_checkpoint(f, "llama", 1))
    for cache in (None, tmp_path / "ssd"):
        with pytest.raises(ModelError, match="changed while it was in use"):
            Node(cache, print).open(ticket)


def made_parent(under: Path, folder: Path) -> Overlay:
    """An overlay whose made file and tokenizer lie in the driver's cache folder."""
    below = open_checkpoint(under)
    info = next(t for t in below.layout.tensors if t.layer == 0)
    write_tensors(
        folder / "made", Layout(below.layout.n_layers, (info,)), iter([(info.name, below.tensor(info.name) + 1)])
    )
    words = folder / "tokenizer"
    words.mkdir()
    shutil.copy(under / "tokenizer.json", words)
    file = folder / "made" / "model.safetensors"
    return Overlay(below, OverlaySpec("made", Digest("d" * 64), file, (info,), tokenizer=words))


def test_made_parents_travel_with_their_files(shared: Path, tmp_path: Path) -> None:
    parent = made_parent(shared, tmp_path / "driver")
    ticket = ticket_for(parent)
    copied = Node(tmp_path / "ssd", print).open(ticket)
    assert isinstance(copied, Overlay)
    assert copied.tokenizer_folder.is_relative_to(tmp_path / "ssd")
    name = parent.spec.changed[0].name
    wanted = parent.tensor(name).clone()
    shutil.rmtree(tmp_path / "driver")
    assert torch.equal(Node(tmp_path / "ssd", print).open(ticket).tensor(name), wanted)
    with pytest.raises(ModelError, match="does not see a parent") as told:
        Node(None, print).open(ticket)
    assert "EVOMERGE_CACHE" in str(told.value)


def test_a_made_file_that_changed_is_refused(shared: Path, tmp_path: Path) -> None:
    parent = made_parent(shared, tmp_path / "driver")
    ticket = ticket_for(parent)
    assert parent.spec.file is not None
    flip(parent.spec.file, -3)
    with pytest.raises(ModelError, match="changed while it was in use"):
        Node(None, print).open(ticket)
    with pytest.raises(ModelError, match="changed while it was in use"):
        parent.check_unchanged()


def test_what_lies_behind_a_link_in_the_cache_is_left_alone(shared: Path, tmp_path: Path) -> None:
    ticket, notes = checkpoint_ticket(open_checkpoint(shared)), list[str]()
    Node(tmp_path / "ssd", notes.append).open(ticket)
    (copy,) = copies(tmp_path / "ssd")
    moved = copy.rename(tmp_path / "elsewhere")
    copy.symlink_to(moved)
    flip(next(moved.glob("*.safetensors")))
    before = sorted(path.name for path in moved.iterdir())
    assert Node(tmp_path / "ssd", notes.append).open(ticket).folder == shared
    assert notes[-1].endswith(f"{copy} is a link")
    assert sorted(path.name for path in moved.iterdir()) == before


def test_parents_are_opened_when_they_are_asked_for(shared: Path, tmp_path: Path) -> None:
    parents = NodeParents({"m": checkpoint_ticket(open_checkpoint(shared))}, tmp_path / "ssd")
    again = pickle.loads(pickle.dumps(parents.tickets))
    assert list(parents) == ["m"] == list(again)
    assert not (tmp_path / "ssd").exists()
    assert parents["m"] is parents["m"]
    assert len(parents.notes) == 1
    with pytest.raises(KeyError, match="other"):
        parents["other"]


def test_a_byte_that_changed_is_noticed_though_the_time_of_modification_is_the_same(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = open_checkpoint(shared)
    content = parent.content
    data = pickle.dumps(parent)
    read = count_reads(monkeypatch)
    parent.check_unchanged()
    assert pickle.loads(data).content == content == parent.content
    assert not read  # nothing was touched: nothing is read
    shard = next(shared.glob("*.safetensors"))
    shard.chmod(0o600)  # another stamp, the same bytes: read, and believed
    assert parent.content == content
    assert read == [shard]
    flip(shard)
    for look in (lambda: parent.content, parent.check_unchanged, lambda: pickle.loads(data)):
        with pytest.raises(ModelError, match="changed while it was in use"):
            look()
    assert open_checkpoint(shared).content != content  # a new process reads everything


def test_a_record_of_another_kind_is_no_record(shared: Path, tmp_path: Path) -> None:
    ticket, notes = checkpoint_ticket(open_checkpoint(shared)), list[str]()
    Node(tmp_path / "ssd", notes.append).open(ticket)
    record = next((tmp_path / "ssd" / "parents").glob("*.json"))
    record.write_text(json.dumps({"format": "something else"}))
    assert Node(tmp_path / "ssd", notes.append).open(ticket).folder == shared
    record.write_text("[]")
    assert Node(tmp_path / "ssd", notes.append).open(ticket).folder == shared
    assert len(copies(tmp_path / "ssd")) == 1

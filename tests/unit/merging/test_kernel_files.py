"""Compiled kernels on disks that several machines and users share: never another's code, never another machine's."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evomerge.merging import compiled, kernel_files
from evomerge.merging.compiled import CompilerError, Variant, build, load
from evomerge.merging.kernels import Kernels
from evomerge.merging.settings import LinearSetting
from evomerge.ownership import why_shared

VARIANT = Variant("linear", 32, 2)
SETTING = LinearSetting((0, 1), (0.25, 0.75), deltas=False)

pytestmark = pytest.mark.skipif(compiled.find_compiler() is None, reason="no C compiler")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "kernels"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:500])


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def open_to_all(path: Path) -> None:
    path.chmod(0o777)


def linked(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


@pytest.mark.parametrize("damage", [cut, alter, open_to_all, linked])
def test_what_cannot_be_trusted_is_made_anew(folder: Path, damage: Callable[[Path], None]) -> None:
    library = build(VARIANT, folder)
    assert folder.stat().st_mode & 0o777 == library.stat().st_mode & 0o777 == 0o700
    good = library.read_bytes()
    damage(library)
    assert build(VARIANT, folder).read_bytes() == good
    assert why_shared(library, follow=False) is None
    assert build(VARIANT, folder) == library


def merged(kernels: Kernels) -> torch.Tensor:
    inputs = [torch.linspace(-1, 1, 1001), torch.linspace(3, -2, 1001)]
    out = torch.empty(1001)
    assert kernels.merge(SETTING, None, inputs, out)
    return out


def test_a_folder_that_others_write_to_is_not_used(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o770)
    with pytest.raises(CompilerError, match=r"may be written by others \(mode 770\)"):
        load(VARIANT, folder)
    assert torch.equal(merged(Kernels(folder)), merged(Kernels()))
    assert not list(folder.iterdir())


def test_a_folder_of_somebody_else_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(VARIANT, folder)
    if os.geteuid():
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    else:
        os.chown(folder, 12345, -1)
    with pytest.raises(CompilerError, match=r"belongs to user \d+, and this is user"):
        load(VARIANT, folder)


def test_another_kind_of_machine_compiles_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = build(VARIANT, folder)
    monkeypatch.setattr(kernel_files, "processor", lambda: "another processor")
    theirs = build(VARIANT, folder)
    assert theirs.name != ours.name
    assert sorted(p.name for p in folder.iterdir()) == sorted((ours.name, theirs.name))
    monkeypatch.setattr(compiled, "find_compiler", lambda: None)
    monkeypatch.setattr(kernel_files, "processor", lambda: "a third")
    sent: Kernels = pickle.loads(pickle.dumps(Kernels(folder)))
    assert torch.equal(merged(sent), merged(Kernels()))  # eager: nothing there is for it


def test_a_folder_that_cannot_be_made_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CompilerError, match="cannot be compiled"):
        build(VARIANT, tmp_path / "file" / "kernels")
    assert torch.equal(merged(Kernels(tmp_path / "file" / "kernels")), merged(Kernels()))


def test_what_is_no_shared_object_runs_eagerly(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For instance one of another architecture, should it ever have the right name."""
    library = build(VARIANT, folder)
    foreign = folder / "foreign"
    foreign.write_bytes(b"\x7fELF\x02\x01\x01" + library.read_bytes()[7:18] + b"\xf3\x00" + library.read_bytes()[20:])
    key = library.name.split("-")[1]
    library.unlink()
    kernel_files.keep(foreign, folder, key)
    with pytest.raises(CompilerError, match="cannot be compiled"):
        load(VARIANT, folder)
    assert torch.equal(merged(Kernels(folder)), merged(Kernels()))

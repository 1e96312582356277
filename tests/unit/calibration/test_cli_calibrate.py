"""`evomerge calibrate` at the terminal: files, exit codes, and what must not get into a bank."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evomerge.cli.main import run as run_cli
from evomerge.irt.bank_files import read_bank
from evomerge.irt.responses import Responses

Simulate = Callable[..., Responses]


@pytest.fixture
def matrix(tmp_path: Path, answers: Simulate) -> Path:
    responses = answers(12, 24)
    path = tmp_path / "secret" / "pick.npz"
    path.parent.mkdir()
    np.savez(path, Y=responses.scores.astype(np.uint8), models=responses.models, items=responses.items)
    return path


def test_a_matrix_becomes_a_bank_and_a_page(matrix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank, page = tmp_path / "banks" / "b.json", tmp_path / "p.html"
    assert run_cli(["calibrate", str(matrix), "--to", str(bank), "--report", str(page)]) == 0
    told = capsys.readouterr().out
    for part in ("pick: 12 models, 24 items", "1 dimension, logistic", "pick.npz (response matrix)", "plain mean"):
        assert part in told
    assert "<h1>pick" in page.read_text()
    found = read_bank(bank)
    assert found.items == tuple(f"i{i}" for i in range(24))
    assert found.n_models == 12
    assert found.provenance["task"] == "pick"
    assert found.provenance["sources"] == [{"name": "pick.npz", "kind": "matrix", "models": 12, "answers": 288}]
    assert "secret" not in bank.read_text() + page.read_text()


@pytest.mark.parametrize("suffix", ["json", "npz"])
def test_equal_answers_give_equal_bytes(matrix: Path, tmp_path: Path, suffix: str) -> None:
    files = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for file in files:
        assert run_cli(["calibrate", str(matrix), "--to", str(file), "--dimensions", "2"]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()
    assert read_bank(files[0]).dimensions == 2
    assert run_cli(["calibrate", str(matrix), "--to", str(files[0]), "--dimensions", "1"]) == 0  # banks are replaced
    assert read_bank(files[0]).dimensions == 1


def test_one_bank_per_task(log: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model, score in (("a", 1), ("b", 0)):
        log([score, 1, 0], task="left", model=model)
        log([1, score, 0], task="right up", model=model)
        log([1, 1, 1], task="same", model=model)
    logs = str(tmp_path / "logs")
    assert run_cli(["calibrate", logs, "--to", str(tmp_path / "b.npz")]) == 0
    assert {p.name for p in tmp_path.glob("b*")} == {"b-left.npz", "b-right_up.npz"}
    told = capsys.readouterr()
    assert "Nothing can be learned about the items of task 'same'" in told.err
    assert run_cli(["calibrate", logs, "--to", str(tmp_path / "b.npz"), "--task", "left"]) == 0
    assert (tmp_path / "b.npz").exists()
    assert run_cli(["calibrate", logs, "--to", str(tmp_path / "c.npz"), "--task", "same"]) == 2
    assert not (tmp_path / "c.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--to", "b.txt"], "ends in .npz (small) or .json (readable)"),
        (["--to", "b.npz", "--dimensions", "6"], "auto, or 1 to 5"),
        (["--to", "b.npz", "--dimensions", "two"], "auto, or 1 to 5"),
        (["nowhere", "--to", "b.npz"], "nowhere does not exist"),
        (["--to", "secret/pick.npz"], "is one of the sources"),
        (["--to", "other.json"], "would replace a file that is no bank"),
        ([], "--to"),
    ],
)
def test_bad_commands(
    matrix: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], match: str
) -> None:
    home = matrix.parent.parent
    monkeypatch.chdir(home)
    (home / "other.json").write_text(json.dumps({"mine": 1}))
    before = matrix.read_bytes()
    assert run_cli(["calibrate", "secret/pick.npz", *arguments]) == 2
    assert match in capsys.readouterr().err
    assert matrix.read_bytes() == before
    assert not (home / "b.npz").exists()

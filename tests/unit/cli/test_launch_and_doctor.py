"""The commands `launch` and `doctor`: what they print, write and refuse, and how they end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from evomerge.checkup.finding import Finding
from evomerge.cli import doctor as doctor_module
from evomerge.cli.job import EXAMPLE
from evomerge.cli.main import run

SLURM = ("launch", "slurm", "job.yaml", "--nodes", "2", "--gpus-per-node", "4")
KUBERAY = ("launch", "kuberay", "/shared/job.yaml", "--image", "r/evomerge:1", "--pvc", "models", "--gpus", "1")
SIZES = ("--max-workers", "4", "--run-dir", "/shared/runs/My Run_1")
RAY_JOB = ("launch", "ray-job", "/shared/job.yaml", "--address", "http://127.0.0.1:8265", "--run-dir", "/shared/runs/x")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(EXAMPLE.format(name="job.yaml"))
    return tmp_path


def test_a_script_is_printed_with_absolute_paths(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*SLURM, "--print"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("#!/bin/bash\n")
    assert f"evomerge search {home}/job.yaml --run-dir {home}/runs/first --resume auto" in printed
    assert run(SLURM) == 0
    assert capsys.readouterr().out == printed


def test_a_script_is_written_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*SLURM, "--to", "a b.sh"]) == 0
    assert "sbatch 'a b.sh'" in capsys.readouterr().out
    assert (home / "a b.sh").read_text().startswith("#!/bin/bash\n")
    assert run([*SLURM, "--to", "a b.sh"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert run([*SLURM, "--to", "c.sh", "--print"]) == 2
    assert not (home / "c.sh").exists()


def test_a_manifest_has_a_name_made_from_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*KUBERAY, *SIZES]) == 0
    job = yaml.safe_load(capsys.readouterr().out)
    assert job["metadata"]["name"] == "evomerge-my-run-1"
    assert "--set cluster.device=cuda" in job["spec"]["entrypoint"]


@pytest.mark.parametrize(
    ("words", "room"),
    [
        (["--set", "cluster.workers=2"], "room for 8"),
        (["--set", "cluster.workers=15", "--set", "cluster.gpus_per_worker=0.5"], "room for 16"),
        (["--set", "cluster.workers=1", "--cpus-per-node", "1"], "room for 2"),
        (["--set", "cluster.workers=8"], ""),
        ([], ""),  # `init` leaves the number to the cluster
    ],
)
def test_a_job_that_lets_gpus_lie_idle_is_told_on_the_error_output(
    words: list[str], room: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*SLURM, *words]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("#!/bin/bash\n")
    assert "Warning" not in told.out
    assert (f"have {room}: the others stay idle" in told.err) if room else told.err == ""


def test_a_submission_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*RAY_JOB, "--no-gpus"]) == 0
    printed = capsys.readouterr().out
    assert "ray job submit" in printed
    assert "cluster.device" not in printed


@pytest.mark.parametrize(
    "words",
    [
        [*SLURM, "--partition", "gpu\n#SBATCH --wrap=id"],
        [*SLURM, "--run-dir", "a\nb"],
        [*SLURM, "--set", "name=a\nb"],
        [*SLURM, "--set", "nosuch.key=1"],
        [*SLURM, "--set", "cluster.backend=local"],
        [*SLURM, "--set", "cluster.gpus_per_worker=8"],
        [*SLURM, "--set", "cluster.cache=../rel"],
        [*SLURM, "--cache", "../rel"],
        [*SLURM, "--time", "2"],
        [*KUBERAY, *SIZES, "--cache", "../rel"],
        [*KUBERAY, *SIZES, "--ray-version", "latest"],
        [*KUBERAY, *SIZES, "--mount", "/"],
        [*KUBERAY, *SIZES, "--shm", "65Gi"],
        [*KUBERAY, *SIZES, "--set", "foo"],
        [*RAY_JOB, "--set", "cluster.address=auto"],
        ["launch", "slurm", "a\nb.yaml", "--nodes", "1", "--gpus-per-node", "0"],
        [*KUBERAY, "--max-workers", "4", "--run-dir", "/shared/../etc"],
        [*KUBERAY, *SIZES, "--namespace", "$(id)"],
        [*RAY_JOB, "--submission-id", "../x"],
    ],
)
def test_hostile_words_end_with_a_message_of_four_parts(
    home: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "a\nb.yaml").write_text(EXAMPLE.format(name="x"))
    assert run(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    for part in ("Error: ", "Got: ", "Allowed: ", "Fix: "):
        assert part in told.err


def test_doctor_is_quick_and_loads_nothing_heavy(home: Path) -> None:
    code = (
        "import sys\nfrom evomerge.cli.main import run\ncode = run(['doctor', '--json'])\n"
        "heavy = {m.split('.')[0] for m in sys.modules} & {'torch', 'ray', 'transformers', 'lm_eval'}\n"
        "assert not heavy, heavy\nsys.exit(code)"
    )
    for _ in range(3):  # 0.4 s on an idle machine; test machines are not idle
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        took_s = time.perf_counter() - began
        if took_s < 3:
            break
    assert took_s < 3
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["version"] == 1
    assert told["able"] is True
    topics = {finding["topic"] for finding in told["findings"]}
    assert topics == {"packages", "machine", "GPUs", "disk", "run folder", "cluster", "optional"}
    assert all(f["next"] for f in told["findings"] if f["state"] != "ok")
    assert sorted(p.name for p in home.iterdir()) == ["job.yaml"], "nothing is left behind"


@pytest.fixture
def one_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(address: str | None, run_dir: Path, *, online: bool) -> Iterator[Finding]:
        yield Finding("packages", "ray", "missing", "not installed \x1b[2J", "pip install ray")
        yield Finding("machine", "cores", "warning", "one", "ask for more")

    monkeypatch.setattr(doctor_module, "_look", look)


def test_doctor_ends_with_2_when_something_necessary_is_missing(
    one_missing: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["doctor"]) == 2
    printed = capsys.readouterr().out
    assert "Next: pip install ray" in printed
    assert "A search cannot run here: ray." in printed
    assert "\x1b[2J" not in printed
    assert run(["doctor", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["able"] is False


@pytest.mark.parametrize(
    ("environment", "state"),
    [({"RAY_AUTH_MODE": "disabled"}, "warning"), ({"RAY_AUTH_TOKEN": "x"}, "ok"), ({}, "ok")],
)
def test_doctor_looks_for_a_token(
    home: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], state: str
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert doctor_module.token().state == state


def test_doctor_warns_of_a_token_that_others_can_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home / "token"
    path.write_text("secret")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    path.chmod(0o644)
    assert doctor_module.token().state == "warning"
    path.chmod(0o600)
    found = doctor_module.token()
    assert found.state == "ok"
    assert "secret" not in found.text

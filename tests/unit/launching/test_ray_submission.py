"""Submissions to a running Ray cluster: a shell accepts them, Ray's own command line understands them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from evomerge.errors import ConfigError
from evomerge.launching.command import SearchCommand
from evomerge.launching.submission import Submission, submission_script

SEARCH = SearchCommand("first", "/shared/job.yaml", "/shared/runs/first", on_gpus=True)
PLAIN = Submission(SEARCH, "http://127.0.0.1:8265")
HOSTILE = replace(
    PLAIN,
    search=replace(
        SEARCH, job="/a b/'$(touch x)`id`\"/job.yaml", run_dir="/r/; rm -rf ~ #/x", settings=("name='; id",)
    ),
)


def ray_of(folder: Path) -> dict[str, str]:
    """An environment whose `ray` writes its words to a file."""
    (folder / "bin").mkdir()
    ray = folder / "bin" / "ray"
    ray.write_text('#!/bin/bash\nprintf "%s\\0" "$@" >>"$TOLD"\necho "$RAY_AUTH_MODE" >"$TOLD.mode"\n')
    ray.chmod(0o755)
    (folder / "token").write_text("secret")
    return {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "HOME": str(folder),
        "TOLD": str(folder / "told"),
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
    }


def submitted(script: str, folder: Path) -> list[str]:
    environment = ray_of(folder)
    subprocess.run(["bash", "-c", script], env=environment, check=True, capture_output=True)
    assert (folder / "told.mode").read_text() == "token\n"
    return (folder / "told").read_text().split("\0")[:-1]


@pytest.mark.parametrize("job", [PLAIN, HOSTILE, replace(PLAIN, submission_id="first-1", working_dir="/w d")])
def test_the_search_arrives_as_it_was_meant(job: Submission, tmp_path: Path) -> None:
    if job.working_dir is not None:
        (tmp_path / "w d").mkdir()
        job = replace(job, working_dir=str(tmp_path / "w d"))
    words = submitted(submission_script(job), tmp_path)
    from ray.dashboard.modules.job.cli import submit

    assert words[:2] == ["job", "submit"]
    parsed = submit.make_context("submit", words[2:]).params
    assert list(parsed["entrypoint"]) == [*job.search.words(), "--set", "cluster.address=auto"]
    assert parsed["address"] == "http://127.0.0.1:8265"
    assert json.loads(parsed["runtime_env_json"]) == {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "90"}}
    assert parsed["submission_id"] == job.submission_id or parsed["submission_id"].startswith("first-")
    assert parsed["working_dir"] == job.working_dir
    if job.working_dir is not None:
        ignored = (tmp_path / "w d" / ".rayignore").read_text().split()
        assert {".git", ".venv", "runs", "*.safetensors"} <= set(ignored)


def test_two_submissions_have_two_names(tmp_path: Path) -> None:
    environment = ray_of(tmp_path)
    for _ in range(2):
        subprocess.run(["bash", "-c", submission_script(PLAIN)], env=environment, check=True, capture_output=True)
    words = (tmp_path / "told").read_text().split("\0")
    names = [words[i + 1] for i, word in enumerate(words) if word == "--submission-id"]
    assert len(set(names)) == 2


def test_without_a_token_nothing_is_submitted(tmp_path: Path) -> None:
    environment = ray_of(tmp_path)
    del environment["RAY_AUTH_TOKEN_PATH"]
    ran = subprocess.run(
        ["bash", "-c", submission_script(PLAIN)], env=environment, check=False, capture_output=True, text=True
    )
    assert ran.returncode == 2
    assert "There is no token" in ran.stderr
    assert not (tmp_path / "told").exists()


def test_shells_accept_every_variation(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    scripts = []
    for number, job in enumerate((PLAIN, replace(PLAIN, submission_id="x", working_dir="/a b", token="/t k"))):
        scripts.append(tmp_path / f"{number}.sh")
        scripts[-1].write_text(submission_script(job))
        subprocess.run(["bash", "-n", scripts[-1]], check=True)
    if shutil.which("shellcheck", path=path) is None:
        pytest.skip("shellcheck is not installed")
    checked = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False, env={"PATH": path})
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"address": "127.0.0.1:8265"}, "Ray dashboard"),
        ({"address": "http://x/; id"}, "Ray dashboard"),
        ({"address": "http://x:1\n"}, "Ray dashboard"),
        ({"submission_id": "$(id)"}, "submission id"),
        ({"submission_id": "../x"}, "submission id"),
        ({"working_dir": "here"}, "absolute"),
        ({"token": "/a\nb"}, "cannot be written"),
    ],
)
def test_what_no_script_could_carry_is_refused(change: dict[str, str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        replace(PLAIN, **change)  # type: ignore[arg-type]


def test_hostile_words_stay_words() -> None:
    line = next(line for line in submission_script(HOSTILE).splitlines() if line.startswith("search=("))
    assert shlex.split(line.removeprefix("search=(").removesuffix(")"))[2] == HOSTILE.search.job

"""Joining a cluster: whether a token is shown, and what is said when one is wrong. Real heads only in `make chaos`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from evomerge.errors import ConfigError
from evomerge.execution import ray_session
from evomerge.execution.ray_session import split_address

TOKEN = "a" * 32


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The address of somebody who listens, and a user without any token."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def head(monkeypatch: pytest.MonkeyPatch, *, wants: str) -> None:
    """A head that asks for the token `wants`, or for none when it is empty."""

    def is_let_in(place: tuple[str, int], environment: Mapping[str, str]) -> bool:
        seen = {**os.environ, **environment}
        shown = seen.get("RAY_AUTH_TOKEN", "") if seen.get("RAY_AUTH_MODE") == "token" else ""
        return place[0] == "127.0.0.1" and wants in {"", shown}

    monkeypatch.setattr(ray_session, "_is_let_in", is_let_in)


def test_an_open_head_is_shown_no_token(door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head(monkeypatch, wants="")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert not ray_session._must_show_token(door)


def test_a_token_is_shown_where_one_is_asked_for(door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head(monkeypatch, wants=TOKEN)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert ray_session._must_show_token(door)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # Ray shows it by itself
    assert not ray_session._must_show_token(door)


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, "no token with RAY_AUTH_MODE not set"),
        ({"RAY_AUTH_TOKEN": "b"}, "RAY_AUTH_TOKEN with RAY_AUTH_MODE not set"),
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere"}, "RAY_AUTH_TOKEN_PATH with RAY_AUTH_MODE not set"),
        ({"RAY_AUTH_TOKEN": TOKEN, "RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_TOKEN with RAY_AUTH_MODE disabled"),
    ],
)
def test_a_wrong_token_is_told(
    door: str, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], told: str
) -> None:
    head(monkeypatch, wants=TOKEN)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"does not let us in(.|\n)*{told}(.|\n)*RAY_AUTH_TOKEN_PATH"):
        ray_session._must_show_token(door)


def test_the_token_of_the_home_folder_is_known(door: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    head(monkeypatch, wants=TOKEN)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("b")
    with pytest.raises(ConfigError, match=r"~/\.ray/auth_token with RAY_AUTH_MODE not set"):
        ray_session._must_show_token(door)


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("10.0.0.1:6379", ("10.0.0.1", 6379)),
        ("head.example:6379", ("head.example", 6379)),
        ("[fe80::1]:6379", ("fe80::1", 6379)),
        ("ray://head:10001", ("head", 10001)),
        ("auto", None),
        ("head", None),
        (":6379", None),
    ],
)
def test_addresses(address: str, place: tuple[str, int] | None) -> None:
    assert split_address(address) == place


_HEAD = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.shutdown()
"""

_JOIN = """
import sys
from evomerge.errors import ConfigError
from evomerge.execution.ray import RayPool
from evomerge.testing.pool_suite import fake_spec, sample_task, score_all
try:
    with RayPool(fake_spec(), 1, address=sys.argv[1], start_timeout_s=60.0) as pool:
        print(len(score_all(pool, [sample_task(0)])), "answer")
except ConfigError as error:
    print(error.what)
"""


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.parametrize(
    ("asked", "mine", "said"),
    [
        (TOKEN, {"RAY_AUTH_TOKEN": TOKEN}, "1 answer"),
        (TOKEN, {"RAY_AUTH_TOKEN": TOKEN, "RAY_AUTH_MODE": "token"}, "1 answer"),
        (TOKEN, {"RAY_AUTH_TOKEN": "b" * 32}, "The Ray cluster does not let us in."),
        (TOKEN, {"RAY_AUTH_TOKEN_PATH": "/nowhere", "RAY_AUTH_MODE": "token"}, "The Ray cluster does not let us in."),
        (TOKEN, {}, "The Ray cluster does not let us in."),
        ("", {"RAY_AUTH_TOKEN": TOKEN}, "1 answer"),
        ("", {}, "1 answer"),
    ],
)
def test_real_heads_and_tokens(tmp_path: Path, asked: str, mine: dict[str, str], said: str) -> None:
    bare = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")} | {"HOME": str(tmp_path)}
    theirs = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": asked} if asked else {"RAY_AUTH_MODE": "disabled"}
    pipe = subprocess.PIPE
    there = subprocess.Popen([sys.executable, "-c", _HEAD], stdin=pipe, stdout=pipe, text=True, env=bare | theirs)
    assert there.stdout is not None
    address = there.stdout.readline().strip()
    here = subprocess.run(
        [sys.executable, "-c", _JOIN, address],
        capture_output=True,
        text=True,
        env=bare | mine,
        timeout=120,
        check=False,
    )
    there.communicate("\n", timeout=60)
    assert (here.stdout.strip(), here.stderr) == (said, "")

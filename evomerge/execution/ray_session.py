"""Joining a Ray cluster, or starting one on this machine, without Ray's words on the driver's terminal.

Ray reads its own environment: `RAY_AUTH_MODE`, `RAY_AUTH_TOKEN` and `RAY_AUTH_TOKEN_PATH` say how a cluster knows its
friends, `RAY_ADDRESS` where it is when the address is `auto`. Without a mode, a token is shown where one is asked for.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

from evomerge.errors import ConfigError

_OBJECT_STORE_BYTES: Final = 128 * 1024**2
_KNOCK_S: Final = 10.0
_PROBE_S: Final = 8.0
_ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no statistics over the network
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # an actor without GPUs sees none; today's default warns
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # the raylet's remarks would go to our standard output; they are in its logs
}
_CLUSTER_ENVIRONMENT: Final = {
    # Ray's library ends the process when the head is silent for so long; we notice after `ray_watch.GRACE_S`
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
}
_TOKENS: Final = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_HOME_TOKEN: Final = Path("~/.ray/auth_token")
_PROBE: Final = "import sys, ray; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"


class Session(NamedTuple):
    """A connection.

    Attributes:
        ray: the module.
        owned: whether we made the connection, and end it.
        local: whether the cluster is on this machine alone and was started by us.
    """

    ray: ModuleType
    owned: bool
    local: bool


def is_local(address: str | None) -> bool:
    """Whether an address means a cluster of our own on this machine."""
    return address is None or address == "local"


def import_ray(address: str | None = None) -> ModuleType:
    """Ray, with an environment that suits a driver.

    Raises:
        ConfigError: when it is not installed.
    """
    wanted = _ENVIRONMENT if is_local(address) else {**_ENVIRONMENT, **_CLUSTER_ENVIRONMENT}
    for name, value in wanted.items():
        os.environ.setdefault(name, value)  # before the import, which reads it
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ConfigError(
            "Ray is not installed.",
            got=f"cluster.backend: ray, but {error}",
            allowed="an installation with ray, or cluster.backend: local",
            fix="pip install ray, or set cluster.backend=local.",
        ) from error
    module: ModuleType = ray
    return module


def has_joined() -> bool:
    """Whether this process has a connection already, which `connect` would use; Ray is not loaded to find out."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def connect(address: str | None, cpus: float) -> Session:
    """Join the cluster at `address`, or start one.

    A process that has called `ray.init` itself keeps its cluster, whatever the address says.

    Args:
        address: HOST:PORT, `auto`, or None for a cluster of our own on this machine.
        cpus: that a cluster of our own has at least.

    Raises:
        ConfigError: when Ray is not installed or does not start, or when the cluster does not answer or does not let
            us in.
    """
    ray = import_ray(address)
    if ray.is_initialized():
        return Session(ray, owned=False, local=False)
    local = is_local(address)
    own: dict[str, Any] = {}
    if local:
        # More workers than cores are slow, not impossible; without this the surplus actors would wait for ever.
        own = {"num_cpus": max(int(cpus + 0.999), os.cpu_count() or 1), "object_store_memory": _OBJECT_STORE_BYTES}
    logging.getLogger("ray").setLevel(logging.ERROR)  # the driver owns the terminal
    main = threading.current_thread() is threading.main_thread()
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        if not local and _must_show_token(str(address)):
            os.environ["RAY_AUTH_MODE"] = "token"
            importlib.import_module("ray._raylet").Config.initialize("")  # Ray read the mode when it was imported
        ray.init(
            address="local" if local else address,
            include_dashboard=False if local else None,
            log_to_driver=False,
            configure_logging=False,
            namespace=f"evomerge-{os.getpid()}",
            **own,
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _explain(error, str(address), local=local) from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray installs its own, but stopping politely is the driver's business
    return Session(ray, owned=True, local=local)


def split_address(address: str) -> tuple[str, int] | None:
    """Host and port of an address; None for one that names neither (`auto`)."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    return (host.strip("[]"), int(port)) if port.isdigit() and host else None


def _must_show_token(address: str) -> bool:
    """Knock, and whether the head wants a token that we have and would not show.

    In processes of their own, since Ray would try for minutes where nobody is, and tell of a wrong token on our
    standard error alone. A token must not be shown to a head that asks for none: its calls back to us would fail.

    Raises:
        OSError: when nobody answers.
        ConfigError: when the head does not accept our token.
    """
    place = split_address(address)
    if place is None:
        return False
    socket.create_connection(place, timeout=_KNOCK_S).close()
    if _is_let_in(place, {}):
        return False
    is_open_choice = not os.environ.get("RAY_AUTH_MODE") and bool(_given_token())
    if is_open_choice and _is_let_in(place, {"RAY_AUTH_MODE": "token"}):
        return True
    raise _wrong_token(address)


def _is_let_in(place: tuple[str, int], environment: dict[str, str]) -> bool:
    """Whether a head does not complain about our token."""
    command = [sys.executable, "-c", _PROBE, f"{place[0]}:{place[1]}"]
    try:
        said = subprocess.run(
            command, capture_output=True, env={**os.environ, **environment}, timeout=_PROBE_S, check=False
        ).stderr
    except subprocess.TimeoutExpired as late:
        said = late.stderr or b""
    return not (b"nauthenticated" in said or b"uthenticationError" in said or b"AuthToken" in said)


def _given_token() -> str:
    """Where our token is; empty without one."""
    given = [name for name in _TOKENS if os.environ.get(name)]
    return given[0] if given else "~/.ray/auth_token" if _HOME_TOKEN.expanduser().is_file() else ""


def _explain(error: Exception, address: str, *, local: bool) -> ConfigError:
    """The error of a cluster that cannot be joined: that of a missing token has a message of its own."""
    if type(error).__name__ == "AuthenticationError":
        return _wrong_token(address)
    first = re.sub(r"\s+", " ", str(error))[:400]
    return ConfigError(
        "Ray does not start." if local else "The Ray cluster does not answer.",
        got=f"{type(error).__name__}: {first}" + ("" if local else f" (cluster.address: {address})"),
        allowed="a local Ray, a running cluster's address, or cluster.backend: local",
        fix="check `ray status` and cluster.address, or set cluster.backend=local.",
    )


def _wrong_token(address: str) -> ConfigError:
    mode = os.environ.get("RAY_AUTH_MODE", "not set")
    return ConfigError(
        "The Ray cluster does not let us in.",
        got=f"{_given_token() or 'no token'} with RAY_AUTH_MODE {mode}, and the head at {address} refuses it",
        allowed="the token that the cluster was started with",
        fix="set RAY_AUTH_TOKEN_PATH to the file with the cluster's token (or RAY_AUTH_TOKEN to the token itself), and "
        "RAY_AUTH_MODE=token.",
    )

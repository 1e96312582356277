"""A tracker's address may hold a login, and its errors the address: neither the terminal nor the journal gets it."""

from __future__ import annotations

from evomerge.tracking.watcher import Trackers


def test_what_is_said_of_a_failing_tracker_holds_no_login() -> None:
    def refused() -> None:
        raise ConnectionError("API request to https://me:secret@host/api failed")

    said: list[str] = []
    Trackers({"mlflow": refused}, said.append)  # type: ignore[dict-item]
    assert said == ["mlflow is left out from here on: ConnectionError: API request to https://***@host/api failed"]

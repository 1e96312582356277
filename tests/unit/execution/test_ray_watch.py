"""The watch over a cluster, with a head that is a socket: it never blocks who asks, and tells when nobody answers."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import pytest

from evomerge.execution.ray_watch import ClusterWatch, View


def looking(views: list[View]) -> Callable[[], View]:
    def look() -> View:
        views.append(View((), {}, time.monotonic()))
        return views[-1]

    return look


def wait_for(done: Callable[[], bool]) -> None:
    """Machines are busy: until something is so, a minute at most."""
    until = time.monotonic() + 60.0
    while not done():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_fresh_view_is_younger_than_the_question() -> None:
    views: list[View] = []
    watch = ClusterWatch(looking(views), (RuntimeError,), None, every_s=60.0)
    assert len(views) == 1
    asked = time.monotonic()
    assert watch.fresh(5.0).at >= asked
    assert watch.view is views[-1]
    watch.close()
    assert not watch.is_lost


def test_a_head_that_is_gone_is_told_and_blocks_nobody() -> None:
    head = socket.create_server(("127.0.0.1", 0))
    views: list[View] = []
    watch = ClusterWatch(looking(views), (RuntimeError,), head.getsockname()[:2], every_s=0.05, grace_s=0.3)
    wait_for(lambda: len(views) > 3)
    head.close()
    wait_for(lambda: watch.is_lost)
    assert watch.silent_s > 0.35
    before = watch.view
    assert watch.fresh(0.1) is before
    watch.close()


def test_an_answer_that_never_comes_does_not_hold_up_the_end() -> None:
    hang, calls = threading.Event(), []

    def look() -> View:
        calls.append(1)
        if len(calls) > 1:
            hang.wait(30.0)
        return View((), {}, time.monotonic())

    watch = ClusterWatch(look, (RuntimeError,), None, every_s=0.01, grace_s=0.1)
    wait_for(lambda: watch.is_lost)
    started = time.monotonic()
    watch.close()
    assert time.monotonic() - started < 1.0
    hang.set()


def test_trouble_of_the_head_is_waited_out() -> None:
    calls: list[int] = []

    def look() -> View:
        calls.append(1)
        if len(calls) in {2, 3}:
            raise RuntimeError("busy")
        return View((), {}, time.monotonic())

    watch = ClusterWatch(look, (RuntimeError,), None, every_s=0.02)
    wait_for(lambda: len(calls) > 4)
    watch.close()
    assert not watch.is_lost


def test_the_first_look_must_succeed() -> None:
    def look() -> View:
        raise RuntimeError("no cluster")

    with pytest.raises(RuntimeError, match="no cluster"):
        ClusterWatch(look, (RuntimeError,), None)

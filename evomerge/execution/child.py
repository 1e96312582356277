"""The program of a worker process: reads tasks from a pipe, writes outcomes, and never outlives its driver.

Run as `python -m evomerge.execution.child FD NAME DRIVER_PID`, by `execution.local` alone. The first message is the
`WorkerSpec`; the answer is None when the worker is ready, or the error that its start-up raised. Then tasks and
outcomes alternate; None, or the end of the pipe, ends it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection

from evomerge.errors import EvomergeError
from evomerge.execution.worker import Worker, limit_threads


def _die_with(driver: int) -> None:
    while os.getppid() == driver:
        time.sleep(0.3)
    os._exit(1)


def serve(connection: Connection, name: str) -> None:
    """Answer tasks until the pipe ends."""
    spec = connection.recv()
    limit_threads(spec.threads)
    try:
        worker = Worker(spec, name)
    except EvomergeError as error:
        connection.send(error)
        return
    limit_threads(spec.threads)  # torch may have been loaded only now
    connection.send(None)
    while (task := connection.recv()) is not None:
        connection.send(worker.run(task))


def main(fd: int, name: str, driver: int) -> None:
    """The process, from start to end."""
    # Ctrl-C and a polite kill of the whole process group are for the driver to answer: it drains, then closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_die_with, args=(driver,), daemon=True).start()
    try:
        serve(Connection(fd), name)
    except (EOFError, ConnectionError):
        return  # the driver is gone, or has closed the pool


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))

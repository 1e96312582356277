"""What a cluster makes of a search: a discrete-event model of workers, driver and loading, fed with measured costs.

Workers take log-normal times; the driver is one server with a queue, which spends a given time on every ask and every
outcome; a worker gets its next candidate when its last outcome was recorded, as the pools have it. Nothing else is
modelled: no failures, no stragglers beyond the log-normal, no contention inside a node.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

Mode = Literal["generational", "asynchronous"]
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class Driver:
    """What one candidate costs the driver, seconds.

    Attributes:
        ask_s: to sample, decode, journal and submit it.
        outcome_s: to record, judge and tell its result.
    """

    ask_s: float
    outcome_s: float

    @property
    def total_s(self) -> float:
        """Of one candidate."""
        return self.ask_s + self.outcome_s


@dataclass(frozen=True)
class Hardware:
    """One kind of GPU and the paths to it; bytes, FLOP and seconds.

    Attributes:
        name: for the table.
        memory: bytes of one GPU.
        copy: bytes per second that a merge moves on one GPU.
        flops: FLOP per second of one GPU while it scores.
        host: bytes per second from host memory to one GPU.
        node: bytes per second that one node reads from the shared folder.
        shared: bytes per second that the shared folder gives to all nodes together.
    """

    name: str
    memory: float
    copy: float
    flops: float
    host: float
    node: float
    shared: float


@dataclass(frozen=True)
class Model:
    """What is searched.

    Attributes:
        parameters: of one parent.
        parents: how many, the base included.
        gpus: per worker.
        width: bytes per parameter.
    """

    parameters: float
    parents: int
    gpus: int
    width: int = 2

    @property
    def bytes_of_one(self) -> float:
        """Of one parent."""
        return self.parameters * self.width


@dataclass(frozen=True)
class Work:
    """What a candidate is asked.

    Attributes:
        tokens: that are read in all questions together.
        steps: of decoding, in one batch of all that generate.
        cv: standard deviation of a candidate's time over its mean.
        fixed_s: per candidate, whatever its size.
    """

    tokens: float
    steps: float
    cv: float
    fixed_s: float


@dataclass(frozen=True)
class Outcome:
    """What a simulated search came to.

    Attributes:
        per_hour: candidates.
        idle: share of the workers' time without a candidate.
        driver: share of the time in which the driver works.
    """

    per_hour: float
    idle: float
    driver: float


def on_device(model: Model, gpu: Hardware) -> bool:
    """Whether a worker's GPUs hold the parents beside the merged model, with a fifth left for activations."""
    return (model.parents + 1) * model.bytes_of_one <= 0.8 * gpu.memory * model.gpus


def candidate_s(model: Model, work: Work, gpu: Hardware) -> tuple[float, float]:
    """Expected seconds of one candidate on its worker: merge, and score."""
    moved = (model.parents + 1) * model.bytes_of_one
    merge = moved / (gpu.copy * model.gpus) if on_device(model, gpu) else moved / (gpu.host * model.gpus)
    score = 2 * model.parameters * work.tokens / (gpu.flops * model.gpus)
    decode = work.steps * model.bytes_of_one / (gpu.copy * model.gpus)
    return merge, score + decode + work.fixed_s


def load_s(model: Model, gpu: Hardware, gpus: int, *, cached: bool) -> float:
    """Seconds until every node has every parent: read once per node from the shared folder, then to the GPUs."""
    nodes = math.ceil(gpus / GPUS_PER_NODE)
    total = model.parents * model.bytes_of_one
    read = 0.0 if cached else max(total / gpu.node, nodes * total / gpu.shared)
    here = min(gpus, GPUS_PER_NODE)
    to_gpus = total * (here / model.gpus) / (gpu.host * here) if on_device(model, gpu) else 0.0
    return read + to_gpus


def latencies(mean_s: float, cv: float, n: int, seed: int) -> np.ndarray:
    """Log-normal times of `n` candidates, seconds."""
    variance = math.log1p(cv**2)
    rng = np.random.default_rng(seed)
    return np.asarray(mean_s * np.exp(math.sqrt(variance) * rng.standard_normal(n) - variance / 2))


def simulate(
    mode: Mode, workers: int, times: np.ndarray, driver: Driver, *, population: int = 16, ahead: int | None = None
) -> Outcome:
    """Run `times.size` candidates through workers and driver.

    Args:
        mode: of the search.
        workers: how many.
        times: seconds of each candidate on a worker, in the order of asking.
        driver: its costs.
        population: of a generation; without meaning in an asynchronous search.
        ahead: of an asynchronous search: candidates that are with the workers or wait for one.
    """
    n = len(times)
    ready: list[tuple[float, int]] = []  # waiting candidates: when they were submitted, which
    idle: list[float] = [0.0] * workers  # since when workers are free
    running: list[tuple[float, int]] = []
    clock = driver_busy = worker_busy = 0.0
    asked = done = told = 0
    end = 0.0
    while done < n:
        room = population if mode == "generational" else (ahead or workers + 1 + workers // 8)
        may_ask = asked < n and (
            (asked - told < room) if mode == "asynchronous" else (asked == told or asked % population != 0)
        )
        next_end = running[0][0] if running else math.inf
        if next_end <= clock or not may_ask:  # an answer is there, or there is nothing better to do than to wait
            clock = max(clock, next_end)
            heapq.heappop(running)
            end = clock
            clock += driver.outcome_s
            driver_busy += driver.outcome_s
            done += 1
            told += 1
            heapq.heappush(idle, clock)
        else:
            clock += driver.ask_s
            driver_busy += driver.ask_s
            heapq.heappush(ready, (clock, asked))
            asked += 1
        while ready and idle:
            since, which = heapq.heappop(ready)
            begin = max(since, heapq.heappop(idle), 0.0)
            worker_busy += times[which]
            heapq.heappush(running, (begin + times[which], which))
    span = max(end, clock)
    return Outcome(3600 * n / span, 1 - worker_busy / (workers * span), driver_busy / span)

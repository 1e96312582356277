"""What ends a run on a cluster, in four parts each."""

from __future__ import annotations

from evomerge.errors import ClusterLost, ConfigError

_RESUME = "start a cluster (or wait until this one is back) and go on: `evomerge resume RUN`, with `--set "
_RESUME += "cluster.address=HOST:PORT` when the address is another one. Every finished candidate is recorded."


def cannot_start(detail: str) -> ConfigError:
    """No worker gets to work."""
    return ConfigError(
        "The workers do not start.",
        got=detail,
        allowed="workers that find room, load their models and survive it",
        fix="see `logs/` of the run (or Ray's logs of the session); most often the memory is too small for this many "
        "workers, or no node has what cluster.cpus_per_worker and cluster.gpus_per_worker ask for "
        "(`evomerge doctor --address HOST:PORT` says what there is).",
    )


def wrong_devices(expected: str, reasons: tuple[str, ...]) -> ConfigError:
    """Workers came, and none is of the class that the run goes on with."""
    return ConfigError(
        "No worker runs on the device class of this run.",
        got="; ".join(reasons),
        allowed=f"workers on {expected}, with the same package versions",
        fix="add nodes of that class (or install the same packages on these), or let scores of several classes stand "
        "side by side: --set cluster.mixed_devices=record.",
    )


def head_lost(silent_s: float) -> ClusterLost:
    """The head does not answer any more."""
    return ClusterLost(
        "The Ray cluster is gone.",
        got=f"no answer from its head for {silent_s:.0f} s",
        allowed="resuming at any time, on this cluster or another one",
        fix=_RESUME,
    )


def workers_lost(detail: str) -> ClusterLost:
    """There were workers, and for long there has been none."""
    return ClusterLost(
        "The cluster has lost all its workers.",
        got=detail,
        allowed="resuming at any time, on this cluster or another one",
        fix=_RESUME,
    )

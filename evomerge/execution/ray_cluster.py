"""What a Ray cluster consists of, as values: nodes, their devices, and how many workers fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from evomerge.execution.ray_session import connect

_ACCELERATOR: Final = "accelerator_type:"
_SLACK: Final = 1e-6


@dataclass(frozen=True)
class NodeDescription:
    """One node.

    Attributes:
        host: name of the machine.
        cpus: that Ray may give away.
        gpus: that Ray may give away.
        device: Ray's name of the GPU, empty without one.
        memory_bytes: of the host, that Ray may give away.
        alive: whether the node is there.
        node: Ray's id.
        address: of the node in the cluster's network.
    """

    host: str
    cpus: float
    gpus: float
    device: str = ""
    memory_bytes: int = 0
    alive: bool = True
    node: str = ""
    address: str = ""

    def seats(self, cpus: float, gpus: float) -> int:
        """How many workers fit that reserve `cpus` and `gpus` each; GPUs of a worker are never of two nodes."""
        if not self.alive:
            return 0
        by_cpus = int(self.cpus / cpus + _SLACK) if cpus else None
        by_gpus = _gpu_seats(self.gpus, gpus) if gpus else None
        return min((n for n in (by_cpus, by_gpus) if n is not None), default=1)


def _gpu_seats(there: float, wanted: float) -> int:
    """Shares of one GPU stay on one GPU: of 0.4 two fit on each, of 1.5 none fits anywhere (Ray wants whole ones)."""
    if wanted >= 1.0:
        return int(there / wanted + _SLACK)
    return int(there + _SLACK) * int(1.0 / wanted + _SLACK)


@dataclass(frozen=True)
class ClusterDescription:
    """A cluster at one moment.

    Attributes:
        nodes: those that are there, and those that Ray remembers.
        ray: version of Ray on the driver.
        address: where its head is.
    """

    nodes: tuple[NodeDescription, ...]
    ray: str = ""
    address: str = ""

    @property
    def alive(self) -> tuple[NodeDescription, ...]:
        """The nodes that are there."""
        return tuple(node for node in self.nodes if node.alive)

    @property
    def has_gpus(self) -> bool:
        """Whether any node offers a GPU."""
        return any(node.gpus > 0 for node in self.alive)

    def seats(self, cpus: float, gpus: float, without: frozenset[str] = frozenset()) -> int:
        """How many workers fit on all nodes but some, named by Ray's ids."""
        return sum(node.seats(cpus, gpus) for node in self.alive if node.node not in without)


def lacking(nodes: Iterable[NodeDescription], cpus: float, gpus: float) -> str:
    """Why no node that is there could hold a worker even if it were idle; empty when one could.

    Args:
        nodes: of the cluster.
        cpus: that a worker reserves.
        gpus: that a worker reserves.
    """
    alive = [node for node in nodes if node.alive]
    if any(node.seats(cpus, gpus) for node in alive):
        return ""
    asked = f"no node has room for a worker: each asks for {_amounts(cpus, gpus)}"
    if not alive:
        return f"{asked}, and there is no node"
    largest = max(alive, key=lambda node: (node.gpus, node.cpus) if gpus else (node.cpus, node.gpus))
    return f"{asked}, and the largest node ({largest.host}) has {_amounts(largest.cpus, largest.gpus)}"


def _amounts(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU{'' if cpus == 1 else 's'} and {gpus:g} GPU{'' if gpus == 1 else 's'}"


def read_nodes(nodes: Iterable[Mapping[str, Any]]) -> tuple[NodeDescription, ...]:
    """What `ray.nodes()` says, as values; sorted by host and id."""
    found = (_node(entry) for entry in nodes)
    return tuple(sorted(found, key=lambda n: (n.host, n.node)))


def _node(entry: Mapping[str, Any]) -> NodeDescription:
    resources: Mapping[str, float] = entry.get("Resources", {})
    kinds = [name.removeprefix(_ACCELERATOR) for name in resources if name.startswith(_ACCELERATOR)]
    return NodeDescription(
        host=str(entry.get("NodeManagerHostname", "")),
        cpus=float(resources.get("CPU", 0.0)),
        gpus=float(resources.get("GPU", 0.0)),
        device=", ".join(sorted(kinds)),
        memory_bytes=int(resources.get("memory", 0.0)),
        alive=bool(entry.get("Alive", False)),
        node=str(entry.get("NodeID", "")),
        address=str(entry.get("NodeManagerAddress", "")),
    )


def describe(address: str | None) -> ClusterDescription:
    """What the cluster at `address` offers now; a connection made for it is closed again.

    Args:
        address: HOST:PORT, `auto`, or None for what this machine would be as a cluster.

    Raises:
        ConfigError: see `ray_session.connect`.
    """
    session = connect(address, 1.0)
    try:
        nodes = read_nodes(session.ray.nodes())
        head = str(session.ray.get_runtime_context().gcs_address)
        return ClusterDescription(nodes, str(session.ray.__version__), head)
    finally:
        if session.owned:
            session.ray.shutdown()

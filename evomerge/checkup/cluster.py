"""A Ray cluster: who is there, what they offer, and whether they fit together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from evomerge.checkup.finding import Finding, in_gib
from evomerge.checkup.packages import version_of
from evomerge.errors import ConfigError
from evomerge.execution.ray_cluster import ClusterDescription, describe


def cluster_at(address: str) -> Iterator[Finding]:
    """What the cluster at HOST:PORT, or `auto`, offers."""
    try:
        found = describe(address)
    except ConfigError as error:
        yield Finding("cluster", address, "missing", f"{error.what} {error.got}", error.fix)
        return
    yield from judge_cluster(found)


def judge_cluster(found: ClusterDescription) -> Iterator[Finding]:
    """Findings about a cluster that answered."""
    yield Finding("cluster", "head", "ok", f"{found.address}, Ray {found.ray or version_of('ray')}")
    alive = found.alive
    dead = len(found.nodes) - len(alive)
    devices = Counter(node.device or "no GPU" for node in alive if node.gpus or not found.has_gpus)
    text = f"{len(alive)} alive" + (f", {dead} lost" if dead else "")
    cores, gpus = sum(n.cpus for n in alive), sum(n.gpus for n in alive)
    text += f"; {cores:g} cores, {gpus:g} GPUs, {in_gib(sum(n.memory_bytes for n in alive))} of memory"
    if not any(node.cpus or node.gpus for node in alive):
        yield Finding("cluster", "nodes", "missing", text, "start Ray on a node with `ray start --address=HOST:PORT`")
    else:
        yield Finding("cluster", "nodes", "ok", text)
    for node in alive:
        offers = f"{node.cpus:g} cores, {node.gpus:g} GPUs {node.device}".rstrip()
        yield Finding("cluster", node.host or node.address, "ok", f"{offers}, {in_gib(node.memory_bytes)}")
    if len(devices) > 1:
        kinds = ", ".join(f"{name} on {n}" for name, n in sorted(devices.items()))
        yield Finding(
            "cluster",
            "classes",
            "warning",
            f"devices of several kinds: {kinds}; workers of the first kind score, the others stay idle",
            "keep nodes of one kind, or set cluster.mixed_devices: record",
        )
    yield Finding(
        "cluster", "versions", "ok", "Ray refuses nodes of another version; evomerge checks each worker as it joins"
    )

"""What a worker uses of its node: the cache into which parents are copied, and kernels that are compiled there."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.tickets import NodeParents
from evomerge.errors import ConfigError
from evomerge.merging.kernels import Kernels


class Settled(NamedTuple):
    """Parents and kernels as they are on a node.

    Attributes:
        parents: name -> parent.
        kernels: with the folder that they are compiled into.
        notes: what happened to the cache, in words; grows while parents are opened.
    """

    parents: Mapping[str, OpenParent]
    kernels: Kernels
    notes: list[str]


def node_cache(stated: str) -> Path:
    """The folder of this user in a node's cache.

    Args:
        stated: as the job names the cache; variables are those of the process that runs here.

    Raises:
        ConfigError: when a variable is not set here, or the folder is a relative one.
    """
    text = os.path.expandvars(stated)
    if "$" in text or not Path(text).is_absolute():
        raise ConfigError(
            "The cache of a node has no folder.",
            got=f"cluster.cache: {stated}, which is {text!r} on {socket.gethostname()}",
            allowed="an absolute path of every node; it may begin with a variable that is set there",
            fix="name a folder of the nodes' own disks, or leave cluster.cache out.",
        )
    return Path(text) / f"evomerge-{os.geteuid()}"


def settle(parents: Mapping[str, OpenParent], kernels: Kernels, cache: str | None) -> Settled:
    """What a worker was sent, on its node: opened by nobody yet; what the driver holds itself stays as it is.

    Raises:
        ConfigError: when the cache has no folder here.
    """
    if not isinstance(parents, NodeParents):
        return Settled(parents, kernels, [])
    folder = None if cache is None else node_cache(cache)
    found = NodeParents(parents.tickets, folder)
    own = Kernels(folder / "kernels") if folder is not None and kernels.compiled else kernels
    return Settled(found, own, found.notes)

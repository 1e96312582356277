"""Parents on their way to a worker: what to open there, where its files are, and what they must be.

A ticket names files by the folder where the driver has them and by their sha256. The worker finds the same bytes on its
node: in the node's cache, in the driver's folder if the node sees it, or on the hub, at the commit that the driver had.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from evomerge.checkpoints.bundle import GENERATION_CONFIG, tokenizer_files
from evomerge.checkpoints.folder import find_file
from evomerge.checkpoints.node_cache import Bundle, NodeCache, NoRoom, Note, copy_file
from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.overlay import Overlay, OverlaySpec
from evomerge.checkpoints.proofs import FileProof, prove, proven
from evomerge.checkpoints.reader import CONFIG, Checkpoint, Known, reopen
from evomerge.checkpoints.shards import INDEX
from evomerge.checkpoints.source import download
from evomerge.digest import digest_file
from evomerge.errors import ModelError
from evomerge.types import Digest


@dataclass(frozen=True)
class CheckpointTicket:
    """A checkpoint to be opened again.

    Attributes:
        source: as the user wrote it.
        revision: the hub's commit.
        header_digest: of its headers.
        content: of its weights.
        weights: names of its weight files.
        files: those, its configs and its tokenizer.
    """

    source: str
    revision: str | None
    header_digest: Digest
    content: Digest
    weights: tuple[str, ...]
    files: Bundle


@dataclass(frozen=True)
class OverlayTicket:
    """An overlay to be opened again.

    Attributes:
        under: what lies beneath.
        spec: as the driver has it; its paths are the driver's.
        made: the made file.
        tokenizer: the files of `spec.tokenizer`.
    """

    under: Ticket
    spec: OverlaySpec
    made: Bundle | None = None
    tokenizer: Bundle | None = None


Ticket = CheckpointTicket | OverlayTicket


def ticket_for(parent: OpenParent) -> Ticket:
    """The ticket of a parent; reads weights that this process has not read yet.

    Raises:
        ModelError: when a file is not what it was when the parent was opened.
        TypeError: for a parent that lies in memory.
    """
    if isinstance(parent, Checkpoint):
        return checkpoint_ticket(parent)
    if isinstance(parent, Overlay):
        spec, proof = parent.spec, parent.proof()
        made = words = None
        if spec.file is not None and proof is not None:
            made = Bundle(str(spec.file.parent), {spec.file.name: proof}, None, spec.source)
        if spec.tokenizer is not None:
            files = {name: prove(path) for name, path in tokenizer_files(spec.tokenizer).items()}
            words = Bundle(str(spec.tokenizer), files, None, f"the tokenizer of {spec.source}")
        return OverlayTicket(ticket_for(parent.under), spec, made, words)
    raise TypeError(f"{type(parent).__name__} cannot be opened again elsewhere")


def checkpoint_ticket(parent: Checkpoint) -> CheckpointTicket:
    """The ticket of a checkpoint; see `ticket_for`."""
    content, proofs = parent.content, parent.proofs()
    found = tokenizer_files(parent.folder)
    for name in (CONFIG, GENERATION_CONFIG, INDEX):
        path = find_file(parent.folder, name)
        if path is not None:
            found[name] = path
    files = {**{name: prove(path) for name, path in found.items()}, **proofs}
    hub = None if parent.revision is None else (parent.source.partition("@")[0], parent.revision)
    bundle = Bundle(str(parent.folder), files, hub, parent.source)
    return CheckpointTicket(parent.source, parent.revision, parent.header_digest, content, tuple(proofs), bundle)


@final
class Node:
    """Where a worker runs: finds bundles there.

    Args:
        cache: the node's cache for this user, None to read parents where the driver has them.
        note: told what happened to the cache.
    """

    def __init__(self, cache: Path | None, note: Note) -> None:
        self._note = note
        self._cache: NodeCache | None = None
        if cache is not None:
            try:
                self._cache = NodeCache(cache, note)
            except NoRoom as reason:
                note(f"the node's cache {cache} is not used: {reason}")

    def open(self, ticket: Ticket) -> OpenParent:
        """The parent of a ticket.

        Raises:
            ModelError: when its files cannot be had on this node, or are not what they were.
        """
        if isinstance(ticket, CheckpointTicket):
            folder, proofs = self._find(ticket.files)
            weights = {name: proofs[name] for name in ticket.weights}
            known = Known(ticket.header_digest, ticket.content, weights)
            return reopen(ticket.source, ticket.revision, str(folder), known)
        spec, proof = ticket.spec, None
        if ticket.made is not None and spec.file is not None:
            folder, proofs = self._find(ticket.made)
            proof = proofs[spec.file.name]
            spec = replace(spec, file=folder / spec.file.name)
        if ticket.tokenizer is not None:
            spec = replace(spec, tokenizer=self._find(ticket.tokenizer)[0])
        overlay = Overlay(self.open(ticket.under), spec)
        overlay.remember(proof)
        return overlay

    def _find(self, bundle: Bundle) -> tuple[Path, Mapping[str, FileProof]]:
        """A folder of this node that holds a bundle, with the proofs of its files."""
        if self._cache is not None:
            try:
                return self._cache.place(bundle, lambda to: _fill(bundle, to))
            except NoRoom as reason:
                self._note(f"{bundle.what} is not read from the node's cache: {reason}")
        folder = Path(bundle.folder)
        if not folder.is_dir():
            if bundle.hub is None:
                raise _absent(bundle)
            folder = download(*bundle.hub).folder
        return folder, {name: proven(folder / name, proof) for name, proof in bundle.files.items()}


def _fill(bundle: Bundle, to: Path) -> dict[str, Digest]:
    """Copy a bundle from where the driver has it, or download it."""
    source = Path(bundle.folder)
    if source.is_dir():
        return {name: copy_file(source / name, to / name) for name in bundle.files}
    if bundle.hub is None:
        raise _absent(bundle)
    download(*bundle.hub, to=to)
    return {name: digest_file(to / name) for name in bundle.files}


def _absent(bundle: Bundle) -> ModelError:
    return ModelError(
        "A worker's node does not see a parent.",
        got=f"{bundle.what}: no folder {bundle.folder} there",
        allowed="a folder that all nodes share, or the id of a hub repository",
        fix="put the parent where all nodes see it; for one that is made from others, set EVOMERGE_CACHE to a folder "
        "that all nodes share, on the driver, before the search.",
    )


class NodeParents(Mapping[str, OpenParent]):
    """Parents that are opened on the node where they are first asked for.

    Args:
        tickets: name -> what to open.
        cache: the node's cache, None for none.

    Attributes:
        tickets: as given.
        notes: what happened, in words.
    """

    def __init__(self, tickets: Mapping[str, Ticket], cache: Path | None = None) -> None:
        self.tickets = dict(tickets)
        self.notes: list[str] = []
        self._cache = cache
        self._node: Node | None = None
        self._opened: dict[str, OpenParent] = {}

    def __getitem__(self, name: str) -> OpenParent:
        if name not in self._opened:
            ticket = self.tickets[name]
            if self._node is None:
                self._node = Node(self._cache, self.notes.append)
            self._opened[name] = self._node.open(ticket)
        return self._opened[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tickets)

    def __len__(self) -> int:
        return len(self.tickets)


def tickets_for(parents: Mapping[str, OpenParent]) -> dict[str, Ticket]:
    """The tickets of parents, or those that they came with."""
    if isinstance(parents, NodeParents):
        return dict(parents.tickets)
    return {name: ticket_for(parents[name]) for name in parents}

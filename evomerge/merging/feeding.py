"""Elements of parents that live elsewhere, brought to the device part by part, the next part while one is merged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import torch

PART: Final = 1 << 24
"""Elements per part on a device: two parts of four bf16 parents are 256 MiB."""

HOST_PART: Final = 1 << 18
"""Elements per part on the CPU: what packed parents unfold to stays in the second-level cache."""

Read = Callable[[int, int], Sequence[torch.Tensor]]
"""The parents' elements from one index up to another, flat, on the device; copies may still be under way."""


class Stretch(NamedTuple):
    """A run of the parents' elements.

    Attributes:
        start: index of the first element.
        values: per parent, flat `(m,)`, on the device.
    """

    start: int
    values: Sequence[torch.Tensor]


def feed(read: Read, start: int, stop: int, device: str) -> Iterator[Stretch]:
    """The elements `[start, stop)` in parts, in order.

    On a GPU the next part is copied on a stream of its own while the one that was yielded is used.

    Args:
        read: gives the elements.
        start: first element.
        stop: behind the last.
        device: torch's spelling.
    """
    if device.startswith("cuda"):
        yield from _ahead(read, range(start, stop, PART), stop, device)
        return
    for at in range(start, stop, HOST_PART):
        yield Stretch(at, read(at, min(at + HOST_PART, stop)))


def _ahead(read: Read, starts: range, stop: int, device: str) -> Iterator[Stretch]:
    """Parts on a GPU, one ahead: the copies of the next run beside the work on the last."""
    copying: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    working = torch.cuda.current_stream(device)

    def begin(at: int) -> tuple[Stretch, Any]:
        with torch.cuda.stream(copying):
            values = read(at, min(at + PART, stop))
            for tensor in values:
                # the memory may be given away only when the working stream is done with it
                tensor.record_stream(working)
            return Stretch(at, values), copying.record_event()

    coming = begin(starts[0]) if starts else None
    for at in [*starts[1:], None]:
        if coming is None:
            return
        part, copied = coming
        coming = begin(at) if at is not None else None
        working.wait_event(copied)
        yield part

"""What a plan says about memory: where the parents live, what every worker takes, how long a merge lasts at least."""

from __future__ import annotations

from typing import Final

from evomerge.merging.packed8 import Agreement
from evomerge.merging.residence import DEVICE, DISK, HOST, Rates, Residence, Sizes, merge_seconds

_MIB: Final = 2**20
_RATE: Final = {"device": "GPU memory", "link": "copies to the GPU", "memory": "the host's memory", "disk": "the disk"}


def in_bytes(n: float) -> str:
    """Bytes for people."""
    return f"{n / _MIB:,.1f} MiB" if n < 1024 * _MIB else f"{n / _MIB / 1024:,.2f} GiB"


def memory_rows(sizes: Sizes, held: Residence, rates: Rates, each: str) -> dict[str, str]:
    """Rows of the plan's table.

    Args:
        sizes: of a worker, and of the machine.
        held: where the parents live.
        rates: of the machine.
        each: what every worker has for itself, in words.
    """
    rows = {"memory": f"{in_bytes(sizes.parents)} of parents{_packed(sizes, held.place)}, {_where(sizes, held)}"}
    if sizes.caches:
        each += f"; {in_bytes(sizes.caches)} that methods measure once and keep"
    if sizes.device_free is not None:
        which = "the GPU has" if sizes.fullest == 1 else "the fullest of its GPUs has"
        each += f"; {in_bytes(held.device_bytes)} of the {in_bytes(sizes.device_free)} that {which} free"
    rows["per worker"] = each
    rows["a merge"] = _duration(sizes, held, rates)
    if not held.fits:
        rows["room"] = f"less than this takes: {_shortage(sizes, held)}"
    return rows


def packing_words(found: Agreement) -> str:
    """What a search on packed task vectors loses, in words.

    Args:
        found: on a sample of the parents.
    """
    return (
        f"8 bits on the search set: in a sample, {found.equal:.1%} of the parents' elements come back bit for bit, and "
        f"{found.error:.2%} of the deltas (root mean square) is lost. What is chosen is scored, and exported, from the "
        "originals"
    )


def _packed(sizes: Sizes, place: str) -> str:
    if not sizes.packed:
        return ""
    where = " in every worker's memory" if place == DISK else ""
    return f", {in_bytes(sizes.packed)} of them task vectors in 8 bits{where}"


def _where(sizes: Sizes, held: Residence) -> str:
    if held.place == DISK:
        rest = "the rest " if sizes.packed else ""
        return f"{rest}mapped and shared by the workers of a host"
    if sizes.device_free is None:
        return "copied by every worker"
    if held.place == DEVICE:
        return "on the GPU of every worker"
    return "pinned in the host's memory by every worker and copied to the GPU part by part"


def _duration(sizes: Sizes, held: Residence, rates: Rates) -> str:
    found = merge_seconds(sizes, held, rates)
    known = "measured" if found.limit in rates.measured else "assumed"
    rate = getattr(rates, found.limit) / (2 if found.pageable else 1)
    return (
        f"at least {found.seconds:.2g} s where every tensor changes ({_RATE[found.limit]} at {rate / 1e9:.3g} GB/s, "
        f"{known}); the questions come on top"
    )


def _shortage(sizes: Sizes, held: Residence) -> str:
    if sizes.device_free is not None and held.device_bytes + held.headroom > sizes.device_free:
        return (
            f"{in_bytes(held.device_bytes)} and {in_bytes(held.headroom)} for activations, "
            f"of {in_bytes(sizes.device_free)} free on the GPU"
        )
    workers = f"{sizes.workers} workers times " if sizes.workers > 1 else ""
    half = ", of which pinned copies may take half" if held.place == HOST and sizes.device_free is not None else ""
    return f"{workers}{in_bytes(held.host_bytes)}, of {in_bytes(sizes.host_free)} free on the host{half}"

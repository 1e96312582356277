"""Where parents live: every combination of what there is to hold and room to hold it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging.residence import (
    ACTIVATIONS,
    DEVICE,
    DISK,
    GIB,
    HOMES,
    HOST,
    Rates,
    Sizes,
    choose_residence,
    merge_seconds,
)

PARENTS, MODEL = 40 * GIB, 10 * GIB


def on_gpu(device: int, host: int, **rest: int) -> Sizes:
    return Sizes(PARENTS, MODEL, device * GIB, host * GIB, **rest)


@pytest.mark.parametrize(
    ("sizes", "place", "fits"),
    [
        (on_gpu(52, 0), DEVICE, True),  # parents, model and 2 GiB for activations: exactly
        (on_gpu(51, 80), HOST, True),  # half of the host: exactly
        (on_gpu(51, 79), DISK, True),
        (on_gpu(12, 80), HOST, True),
        (on_gpu(11, 80), DISK, False),  # not even the model
        (on_gpu(104, 0, per_device=2), DEVICE, True),  # both workers of a GPU hold parents
        (on_gpu(103, 80, per_device=2), HOST, True),
        (on_gpu(24, 160, per_device=2, workers=2), HOST, True),  # and so do both of a host
        (on_gpu(24, 159, per_device=2, workers=2), DISK, True),
        (on_gpu(72, 80, n_models=3), DEVICE, True),
        (on_gpu(71, 80, n_models=3), HOST, True),
        (on_gpu(51, 80, caches=GIB), DISK, True),  # what methods keep lies on the host
        (on_gpu(51, 82, caches=GIB), HOST, True),
        (on_gpu(51, 40, packed=20 * GIB), DISK, True),  # packed vectors are in no file: 20 of 40 GiB are held
        (on_gpu(51, 19, packed=20 * GIB), DISK, False),
    ],
)
def test_the_fastest_place_with_room(sizes: Sizes, place: str, fits: bool) -> None:
    found = choose_residence(sizes)
    assert (found.place, found.fits) == (place, fits)


@pytest.mark.parametrize("workers", [1, 4])
def test_on_the_cpu_files_are_mapped_whatever_the_room(workers: int) -> None:
    for host in (0, 9, 10, 40, 1000):
        found = choose_residence(Sizes(PARENTS, MODEL, None, host * GIB, workers=workers))
        assert found == (DISK, 0, MODEL, PARENTS, 0, workers * 10 <= host)


@pytest.mark.parametrize(("place", "device"), list(product(HOMES, [None, 100])))
def test_a_wanted_place_is_taken(place: str, device: int | None) -> None:
    sizes = Sizes(PARENTS, MODEL, None if device is None else device * GIB, 100 * GIB)
    found = choose_residence(sizes, place)  # type: ignore[arg-type]
    assert found.place == place
    copies = PARENTS if place == DEVICE else 0
    held = (
        (0, MODEL + (PARENTS if place != DISK else 0))
        if device is None
        else (MODEL + copies, PARENTS * (place == HOST))
    )
    assert (found.device_bytes, found.host_bytes) == held
    assert found.mapped_bytes == (PARENTS if place == DISK else 0)


sizes = st.builds(
    lambda exact, packed, **rest: Sizes(parents=exact + packed, packed=packed, **rest),
    exact=st.integers(0, 100 * GIB),
    packed=st.integers(0, 50 * GIB),
    model=st.integers(1, 50 * GIB),
    device_free=st.none() | st.integers(0, 200 * GIB),
    host_free=st.integers(0, 400 * GIB),
    n_models=st.integers(1, 4),
    caches=st.integers(0, 10 * GIB),
    workers=st.integers(1, 8),
    per_device=st.integers(1, 4),
)


@given(sizes)
@settings(deadline=None, max_examples=300)
def test_nothing_is_lost_and_more_room_is_never_slower(found: Sizes) -> None:
    held = choose_residence(found)
    assert held.device_bytes + held.host_bytes + held.mapped_bytes == found.parents + found.models + found.caches
    if held.fits and found.device_free is not None:
        assert found.per_device * (held.device_bytes + ACTIVATIONS) <= found.device_free
    if held.fits:
        assert found.workers * held.host_bytes <= found.host_free
    roomier = replace(found, host_free=2 * found.host_free, device_free=found.device_free and 2 * found.device_free)
    assert HOMES.index(choose_residence(roomier).place) <= HOMES.index(held.place)
    assert choose_residence(roomier).fits >= held.fits
    rates = Rates()
    assert merge_seconds(roomier, choose_residence(roomier), rates).seconds <= merge_seconds(found, held, rates).seconds


def test_seconds_are_bytes_over_rates() -> None:
    rates = Rates(device=1e12, link=2e10, memory=1e10, disk=1e9)
    many = 200 * GIB
    cases = {
        (DEVICE, None): (PARENTS + MODEL) / 1e10,
        (DISK, None): (PARENTS + MODEL) / 1e10,
        (DEVICE, many): (PARENTS + MODEL) / 1e12,
        (HOST, many): PARENTS / 2e10 + MODEL / 1e12,
        (DISK, many): PARENTS / 1e10 + MODEL / 1e12,
    }
    for (place, device), seconds in cases.items():
        at = Sizes(PARENTS, MODEL, device, many)
        assert merge_seconds(at, choose_residence(at, place), rates).seconds == pytest.approx(seconds)  # type: ignore[arg-type]
    crowded = Sizes(PARENTS, MODEL, None, 49 * GIB)
    assert merge_seconds(crowded, choose_residence(crowded), rates) == (PARENTS / 1e9 + MODEL / 1e10, "disk", False)


@pytest.mark.parametrize("wrong", [{"packed": PARENTS + 1}, {"workers": 0}, {"model": -1}, {"host_free": -1}])
def test_impossible_sizes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="sizes are not negative"):
        Sizes(**{"parents": PARENTS, "model": MODEL, "device_free": None, "host_free": 0} | wrong)

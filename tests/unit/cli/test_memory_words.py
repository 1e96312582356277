"""What `validate` says about memory, for machines and models that the tests do not have."""

from __future__ import annotations

import pytest

from evomerge.cli.render_memory import in_bytes, memory_rows
from evomerge.merging.packed8 import packed_bytes
from evomerge.merging.residence import GIB, Home, Rates, Sizes, choose_residence

SEVEN = 7_241_732_096
"""Parameters of Mistral 7B."""

BF16 = 2 * SEVEN
EACH = "13.49 GiB for the merged model, and activations"


def told(sizes: Sizes, wanted: Home | None = None, rates: Rates | None = None) -> dict[str, str]:
    return memory_rows(sizes, choose_residence(sizes, wanted), rates or Rates(), EACH)


def small_gpu(host_gib: float, **changed: int) -> Sizes:
    """Three 7 B parents in bf16, on a GPU of 24 GB with 23.5 GiB free."""
    there_is = {"device_free": int(23.5 * GIB), "host_free": int(host_gib * GIB)}
    return Sizes(**{"parents": 3 * BF16, "model": BF16, **there_is, **changed})


def test_three_parents_of_7b_on_a_gpu_of_24_gb() -> None:
    assert told(small_gpu(128)) == {
        "memory": "40.47 GiB of parents, pinned in the host's memory by every worker and copied to the GPU part by "
        "part",
        "per worker": f"{EACH}; 13.49 GiB of the 23.50 GiB that the GPU has free",
        "a merge": "at least 2.2 s where every tensor changes (copies to the GPU at 20 GB/s, assumed); "
        "the questions come on top",
    }


def test_the_same_on_a_host_with_less_memory() -> None:
    rows = told(small_gpu(64))
    assert rows["memory"] == "40.47 GiB of parents, mapped and shared by the workers of a host"
    assert rows["a merge"].startswith("at least 4.4 s where every tensor changes (copies to the GPU at 10 GB/s")
    assert "room" not in rows
    assert told(small_gpu(32))["a merge"].startswith("at least 43 s where every tensor changes (the disk at 1 GB/s")


def test_the_same_with_task_vectors_in_eight_bits() -> None:
    packed = 2 * packed_bytes(SEVEN)
    rows = told(small_gpu(64, parents=BF16 + packed, packed=packed))
    assert rows["memory"] == (
        "27.82 GiB of parents, 14.33 GiB of them task vectors in 8 bits, pinned in the host's memory by every worker "
        "and copied to the GPU part by part"
    )
    assert rows["a merge"].startswith("at least 1.5 s")
    mapped = told(small_gpu(64, parents=BF16 + packed, packed=packed), "disk")
    assert (
        "14.33 GiB of them task vectors in 8 bits in every worker's memory, the rest mapped and shared"
        in mapped["memory"]
    )


def test_the_same_on_a_gpu_of_80_gb() -> None:
    rows = told(small_gpu(128, device_free=79 * GIB))
    assert rows["memory"] == "40.47 GiB of parents, on the GPU of every worker"
    assert rows["per worker"] == f"{EACH}; 53.96 GiB of the 79.00 GiB that the GPU has free"
    assert rows["a merge"].startswith("at least 0.039 s where every tensor changes (GPU memory at 1.5e+03 GB/s")


def test_a_gpu_without_room_for_the_model() -> None:
    rows = told(small_gpu(128, device_free=15 * GIB))
    assert rows["room"] == "less than this takes: 13.49 GiB and 2.00 GiB for activations, of 15.00 GiB free on the GPU"


def test_a_place_without_room_is_told() -> None:
    assert told(small_gpu(64), "host")["room"] == (
        "less than this takes: 40.47 GiB, of 64.00 GiB free on the host, of which pinned copies may take half"
    )
    assert "and 2.00 GiB for activations, of 23.50 GiB free on the GPU" in told(small_gpu(64), "device")["room"]


def test_on_the_cpu() -> None:
    sizes = Sizes(parents=3 * BF16, model=BF16, device_free=None, host_free=64 * GIB, workers=4, caches=3 * SEVEN)
    rows = told(sizes, rates=Rates(memory=8e9, measured=("memory",)))
    assert rows["memory"] == "40.47 GiB of parents, mapped and shared by the workers of a host"
    assert rows["per worker"] == f"{EACH}; 20.23 GiB that methods measure once and keep"
    assert rows["room"] == "less than this takes: 4 workers times 33.72 GiB, of 64.00 GiB free on the host"
    assert "(the disk at 1 GB/s, assumed)" in rows["a merge"]
    alone = Sizes(parents=3 * BF16, model=BF16, device_free=None, host_free=64 * GIB)
    rows = told(alone, rates=Rates(memory=8e9, measured=("memory",)))
    assert rows["a merge"].startswith(
        "at least 7.2 s where every tensor changes (the host's memory at 8 GB/s, measured)"
    )
    assert told(alone, "host")["memory"] == "40.47 GiB of parents, copied by every worker"


@pytest.mark.parametrize(("n", "words"), [(0, "0.0 MiB"), (1 << 20, "1.0 MiB"), (3 << 30, "3.00 GiB")])
def test_bytes_for_people(n: int, words: str) -> None:
    assert in_bytes(n) == words


def test_a_model_of_which_each_of_two_gpus_holds_about_half() -> None:
    sizes = Sizes(3 * BF16, BF16, int(79 * GIB), 128 * GIB, fullest=0.525)
    assert told(sizes)["per worker"] == f"{EACH}; 28.33 GiB of the 79.00 GiB that the fullest of its GPUs has free"

"""A journal of a run of twenty candidates, cut at every byte and flipped a thousand times, opened as a driver would."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from evomerge.errors import CorruptJournal
from evomerge.runs.records import Note, Record, Torn
from evomerge.runs.store import JOURNAL, RunStore
from evomerge.testing.killable import live

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("real") / "run"
    live("plain", run)
    assert (run / JOURNAL).read_bytes().count(b'"t":"evaluated"') >= 20
    return run


def _open_with(run: Path, data: bytes) -> tuple[Record, ...]:
    """What a driver that resumes with this journal has, after its first record; all other files stay as they are."""
    (run / JOURNAL).write_bytes(data)
    with RunStore.open(run, write=True) as store:
        store.append(Note("resumed"))
        return tuple(r for r in store.records() if not isinstance(r, Torn))


def test_a_cut_at_every_byte_opens(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    whole = (finished / JOURNAL).read_bytes()
    records = tuple(RunStore.open(finished, write=False).records())
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        complete = sum(end <= cut + 1 for end in ends)
        assert _open_with(run, whole[:cut]) == (*records[:complete], Note("resumed")), f"cut at byte {cut}"
        assert (run / JOURNAL).read_bytes().startswith(whole[:cut])


@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_flips_are_all_found(finished: Path, tmp_path: Path, seed: int) -> None:
    run, rng = tmp_path / "run", random.Random(seed)
    shutil.copytree(finished, run)
    whole = (finished / JOURNAL).read_bytes()
    found = 0
    for _ in range(1000):
        at, other = rng.randrange(len(whole)), rng.randrange(1, 256)
        damaged = whole[:at] + bytes([whole[at] ^ other]) + whole[at + 1 :]
        (run / JOURNAL).write_bytes(damaged)
        if at == len(whole) - 1 and damaged[at] == 0:  # its record is whole, and it is told
            assert RunStore.open(run, write=False).notes
        else:
            for write in (False, True):
                with pytest.raises(CorruptJournal, match=r"line \d+ (fails its checksum|is out of sequence)"):
                    RunStore.open(run, write=write)
        assert (run / JOURNAL).read_bytes() == damaged
        found += 1
    assert found == 1000

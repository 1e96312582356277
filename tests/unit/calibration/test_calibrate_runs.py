"""Every answer of a run directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.calibration.run_answers import read_run
from evomerge.calibration.sources import gather
from evomerge.errors import ConfigError, StoreError
from evomerge.testing.sample_journal import SKILLS, sample_answers, write_sample_run
from evomerge.types import SET_NAMES


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_sample_run(tmp_path / "runs" / "sample")


def test_all_sets_of_all_models(run: Path) -> None:
    sheets = {sheet.task: sheet for sheet in read_run(run)}
    assert list(sheets) == ["add", "rev"]
    found = sheets["add"]
    assert len(found.keys) == len(SKILLS)
    assert set(found.names) >= {"sample math", "sample soup", "sample g0001-i01"}
    row = found.scores[found.names.index("sample math")]
    for set_name in SET_NAMES:
        told = sample_answers("parent-math", set_name).answers["add"]
        assert tuple(row[[found.items.index(i) for i in told.items]]) == told.scores


def test_a_folder_of_runs_is_searched_and_equal_recipes_are_one_model(run: Path) -> None:
    write_sample_run(run.parent / "again", done=False)
    pools = gather([run.parent]).pools
    assert [p.task for p in pools] == ["add", "rev"]
    assert {(s.name, s.kind, s.models) for s in pools[0].sources} == {("again", "run", 6), ("sample", "run", 6)}
    assert len(pools[0].responses.models) == 6
    assert gather([run / "journal.jsonl"]).pools[0].responses.models[0].startswith("sample ")


def test_lost_answers_are_told(run: Path) -> None:
    next((run / "responses").glob("*-search-*.json")).unlink()
    with pytest.raises(StoreError, match="per-item answers is lost"):
        read_run(run)


def test_folders_without_answers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds neither runs nor samples"):
        gather([tmp_path / "empty"])
    with pytest.raises(ConfigError, match="does not exist"):
        gather([tmp_path / "nowhere"])
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ConfigError, match=r"the file .*a\.txt"):
        gather([tmp_path / "a.txt"])

"""How parents are called where people read about them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evomerge.checkpoints.compatible import check_compatible
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.errors import ModelError
from evomerge.recipe.recipe import ParentRef
from evomerge.recipe.retokenizing import TokenRule, retokenized
from evomerge.testing.tiny import tiny_checkpoint
from evomerge.virtual.opening import ParentOpener


@pytest.mark.parametrize(("tokens", "word"), [({"foo": TokenRule()}, "math"), ({}, "PLACE")])
def test_rules_for_tokens_are_no_name(tmp_path: Path, tokens: dict[str, TokenRule], word: str) -> None:
    place = tiny_checkpoint(tmp_path / "model", "llama", 0, tokenizer=True)
    (ref,) = retokenized([ParentRef("math", str(place))], base=None, source=None, tokens=tokens)
    opened = ParentOpener(tmp_path / "made").open(ref)
    assert opened.source == (str(place) if word == "PLACE" else word)


def test_one_difference_is_no_several(tmp_path: Path) -> None:
    folders = [tiny_checkpoint(tmp_path / name, "llama", 0) for name in "ab"]
    config = json.loads((folders[1] / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 5000.0}
    (folders[1] / "config.json").write_text(json.dumps(config))
    a, b = map(open_checkpoint, folders)
    with pytest.raises(ModelError, match=r"Got: 1 difference\n"):
        check_compatible({"a": a, "b": b}, None)

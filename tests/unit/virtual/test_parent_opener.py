from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.checkpoints.overlay import Overlay
from evomerge.errors import ConfigError, ModelError, NonFinite, RecipeError
from evomerge.recipe.recipe import Making, ParentRef
from evomerge.types import Digest
from evomerge.virtual import opening
from evomerge.virtual.deltas import check_siblings
from evomerge.virtual.maker import Ingredients, MadePlan, Maker, MakerSpec, Report, silent
from evomerge.virtual.opening import ParentOpener

Family = Mapping[str, ParentRef]


class Reports:
    """Counts what is being made."""

    def __init__(self, stop_at: int = -1) -> None:
        self.parents: list[str] = []
        self.stop_at = stop_at

    def __call__(self, parent: str, done: int, total: int) -> None:
        if parent not in self.parents:
            self.parents.append(parent)
        if done == self.stop_at:
            raise KeyboardInterrupt("stopped here")


def made(name: str, method: str, family: Family, *of: ParentRef, **settings: float) -> ParentRef:
    return ParentRef(name, name, made=Making(method, of, family["base"], settings))


def averaged(name: str, family: Family) -> ParentRef:
    return made(name, "tsv_m", family, family["math"], family["code"], scale=0.5)


def test_a_parent_is_opened_once_and_made_once(tmp_path: Path, family: Family) -> None:
    opener, reports = ParentOpener(tmp_path), Reports()
    parent = opener.open(averaged("v", family))
    assert opener.open(averaged("v", family)) is parent
    assert not parent.is_ready
    assert not any(tmp_path.iterdir())
    with pytest.raises(ModelError, match="has not been made yet"):
        parent.tensor("model.norm.weight")
    opener.make(reports)
    assert reports.parents == ["v"]
    assert parent.is_ready
    assert parent.tensor("model.norm.weight").dtype == torch.float32
    assert [p.name for p in tmp_path.iterdir()] == [parent.content]
    file = next(tmp_path.glob("*/model.safetensors"))
    written = file.stat().st_mtime_ns
    for again in (opener, ParentOpener(tmp_path)):
        other = Reports()
        assert again.open(averaged("v", family)).is_ready
        assert again.pending() == ()
        again.make(other)
        assert other.parents == []
    assert file.stat().st_mtime_ns == written


def test_two_names_for_one_content_are_made_once(tmp_path: Path, family: Family) -> None:
    opener, reports = ParentOpener(tmp_path), Reports()
    one, two = opener.open(averaged("one", family)), opener.open(averaged("two", family))
    assert one.content == two.content
    assert len(opener.pending()) == 2
    opener.make(reports)
    assert reports.parents == ["one"]
    assert two.tensor("lm_head.weight").equal(one.tensor("lm_head.weight"))


def test_content_names_everything_that_tensors_depend_on(tmp_path: Path, family: Family) -> None:
    moved = shutil.copytree(family["math"].source, tmp_path / "moved")

    def content(ref: ParentRef) -> Digest:
        return ParentOpener(tmp_path / "cache").open(ref).content

    first = averaged("v", family)
    assert first.made is not None
    elsewhere = replace(first.made, of=(ParentRef("else", str(moved)), family["code"]))
    assert content(replace(first, name="w", source="elsewhere", made=elsewhere)) == content(first)
    assert content(replace(first, made=replace(first.made, settings={}))) == content(
        replace(first, made=replace(first.made, settings={"scale": 1}))
    )
    others = [
        replace(first.made, settings={"scale": 0.25}),
        replace(first.made, of=(family["code"], family["math"])),
        replace(first.made, base=family["chat"]),
        replace(first.made, method="iso_c"),
    ]
    found = [content(first), *(content(replace(first, made=m)) for m in others)]
    assert len(set(found)) == 5


def test_a_new_version_of_a_maker_makes_again(tmp_path: Path, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ParentOpener(tmp_path).open(averaged("v", family)).content
    maker = opening.load_maker("tsv_m")
    monkeypatch.setattr(maker, "spec", replace(maker.spec, version=maker.spec.version + 1), raising=False)
    assert ParentOpener(tmp_path).open(averaged("v", family)).content != before


def test_what_is_interrupted_leaves_nothing(tmp_path: Path, family: Family) -> None:
    opener = ParentOpener(tmp_path)
    parent = opener.open(averaged("v", family))
    with pytest.raises(KeyboardInterrupt, match="stopped here"):
        opener.make(Reports(stop_at=5))
    assert not any(tmp_path.iterdir())
    assert len(opener.pending()) == 1
    opener.make()
    assert parent.is_ready


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path, family: Family) -> None:
    opener = ParentOpener(tmp_path)
    content = opener.open(averaged("v", family)).content
    left = tmp_path / f".{content}.0123abcd.partial"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    opener.make()
    assert [p.name for p in tmp_path.iterdir()] == [content]


def test_two_processes_may_make_the_same_parent(tmp_path: Path, family: Family) -> None:
    """The other one is done while the first is still at it; both go on with one file."""
    opener, other = ParentOpener(tmp_path), ParentOpener(tmp_path)
    parent = opener.open(averaged("v", family))
    other.open(averaged("v", family))

    def interfere(name: str, done: int, total: int) -> None:
        if done == 5:
            other.make()

    opener.make(interfere)
    assert [p.name for p in tmp_path.iterdir()] == [parent.content]
    assert parent.tensor("lm_head.weight").isfinite().all()


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, family: Family) -> None:
    opener = ParentOpener(tmp_path)
    content = opener.open(averaged("v", family)).content
    (tmp_path / content).mkdir()
    (tmp_path / content / "stranger").touch()
    with pytest.raises(ConfigError, match="it is not empty"):
        opener.make()


def test_parents_made_from_made_parents_come_after_them(tmp_path: Path, family: Family) -> None:
    cut = made("cut", "star", family, family["math"], eta=60.0)
    merged = made("merged", "tsv_m", family, cut, family["code"])
    outer = made("outer", "opcm", family, merged, cut)
    opener, reports = ParentOpener(tmp_path), Reports()
    opener.open(outer)
    assert [p.parent.source for p in opener.pending()] == ["cut", "merged", "outer"]
    opener.make(reports)
    assert reports.parents == ["cut", "merged", "outer"]
    assert opener.pending() == ()
    assert opener.open(outer).tensor("lm_head.weight").isfinite().all()


def test_what_is_found_out_is_written_into_the_reference(tmp_path: Path, family: Family) -> None:
    opener = ParentOpener(tmp_path)
    known = opener.known(averaged("v", family))
    assert known.content == opener.open(averaged("v", family)).content
    assert known.made is not None
    assert known.made.base is not None
    contents = [p.content for p in (*known.made.of, known.made.base)]
    assert None not in contents
    assert len(set(contents)) == 3


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"settings": {"skale": 1.0}}, r"no such setting(?s:.)*skale(?s:.)*scale"),
        ({"settings": {"scale": True}}, r"out of bounds(?s:.)*scale = True"),
        ({"of": ()}, r"wrong models(?s:.)*0 models and a base"),
        ({"base": None}, r"wrong models(?s:.)*2 models and no base"),
        ({"method": "star"}, r"wrong models(?s:.)*2 models(?s:.)*1 model and a base"),
        ({"method": "star", "settings": {"eta": 101.0}}, r"out of bounds(?s:.)*eta = 101"),
        ({"method": "wudi", "settings": {"steps": 1.5}}, r"out of bounds(?s:.)*whole number"),
    ],
)
def test_wrong_makings_are_refused(change: dict[str, Any], match: str, tmp_path: Path, family: Family) -> None:
    making = replace(Making("tsv_m", (family["math"], family["code"]), family["base"]), **change)
    with pytest.raises(RecipeError, match=match):
        ParentOpener(tmp_path).open(ParentRef("v", "v", made=making))
    assert not any(tmp_path.iterdir())


def test_an_unknown_maker_is_refused_with_the_nearest_name(tmp_path: Path, family: Family) -> None:
    with pytest.raises(ConfigError, match="tsv_m"):
        ParentOpener(tmp_path).open(made("v", "tsvm", family, family["math"]))


class Broken(Maker):
    """Gives a NaN, or looks at prompts."""

    def __init__(self, spec: MakerSpec) -> None:
        self.spec = spec
        self.seen: list[Any] = []

    def plan(self, ingredients: Ingredients) -> MadePlan:
        self.seen.append(ingredients.prompts)
        return check_siblings(ingredients)

    def tensors(
        self, ingredients: Ingredients, plan: MadePlan, report: Report = silent
    ) -> Iterator[tuple[str, torch.Tensor]]:
        for i, info in enumerate(plan.changed):
            yield info.name, torch.full(info.shape, torch.nan if i == 3 else 1.0)


def test_a_made_nan_is_refused_and_nothing_is_kept(
    tmp_path: Path, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Broken(MakerSpec("broken", needs_base=True, min_models=1, max_models=1))
    monkeypatch.setattr(opening, "load_maker", lambda name: broken)
    opener = ParentOpener(tmp_path)
    opener.open(made("v", "broken", family, family["math"]))
    with pytest.raises(NonFinite, match=r"of v, made by broken"):
        opener.make()
    assert not any(tmp_path.iterdir())


def test_makers_with_data_are_shown_their_prompts(
    tmp_path: Path, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    curious = Broken(MakerSpec("curious", needs_base=True, min_models=1, max_models=1, needs_prompts=True))
    monkeypatch.setattr(opening, "load_maker", lambda name: curious)
    ref = made("v", "curious", family, family["math"])
    assert ref.made is not None
    with pytest.raises(RecipeError, match="no prompts"):
        ParentOpener(tmp_path).open(ref)
    known = replace(ref, made=replace(ref.made, data=Digest("a" * 64)))
    with pytest.raises(RecipeError, match="prompts aaaaaaaaaaaa, which are not here"):
        ParentOpener(tmp_path).open(known)
    first = ParentOpener(tmp_path, {Digest("a" * 64): ((1, 2), (3,))}).open(known)
    assert curious.seen == [((1, 2), (3,))]
    other = replace(ref, made=replace(ref.made, data=Digest("b" * 64)))
    assert ParentOpener(tmp_path, {Digest("b" * 64): ((1, 2),)}).open(other).content != first.content


def test_a_made_parent_crosses_process_borders(tmp_path: Path, family: Family) -> None:
    opener = ParentOpener(tmp_path)
    parent = opener.open(averaged("v", family))
    opener.make()
    copy = pickle.loads(pickle.dumps(parent))
    assert isinstance(copy, Overlay)
    assert copy.content == parent.content
    assert copy.tensor("lm_head.weight").equal(parent.tensor("lm_head.weight"))


def test_a_file_of_other_tensors_is_refused(tmp_path: Path, family: Family) -> None:
    opener = ParentOpener(tmp_path)
    parent = opener.open(averaged("v", family))
    (tmp_path / parent.content).mkdir()
    shutil.copy(Path(family["math"].source) / "model.safetensors", tmp_path / parent.content)
    with pytest.raises(ModelError, match="holds other tensors than it should"):
        parent.tensor("lm_head.weight")

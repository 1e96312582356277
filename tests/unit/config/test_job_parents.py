"""Parents of a job that are more than checkpoints: how the job says them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evomerge.config.load import job_document, resolve_job
from evomerge.config.parent_refs import ParentRefs
from evomerge.errors import ConfigError
from evomerge.recipe.recipe import Making, ParentRef


def refs(folder: Path, models: dict[str, Any], **parents: Any) -> dict[str, ParentRef]:
    job = {
        "parents": {"base": "b", "models": models, **parents},
        "space": "layer-wise-task-arithmetic",
        "suite": {"tasks": ["x"]},
        "objectives": [{"name": "x", "task": "x"}],
    }
    resolved = resolve_job(job_document(job), folder)
    return ParentRefs(resolved.job.parents, resolved.document).all()


def source(folder: Path, name: str) -> str:
    return str(folder / name)


def test_folders_are_checkpoints_and_the_base_comes_first(tmp_path: Path) -> None:
    found = refs(tmp_path, {"m": "m", "n": "n"})
    assert found == {name: ParentRef(name, source(tmp_path, name[0])) for name in ("base", "m", "n")}


def test_an_own_base_is_a_transplant(tmp_path: Path) -> None:
    found = refs(tmp_path, {"m": {"model": "m", "base": "o", "scale": 0.5}})
    of = (ParentRef("m", source(tmp_path, "m")), ParentRef("own-base", source(tmp_path, "o")))
    base = ParentRef("base", source(tmp_path, "b"))
    assert found["m"] == ParentRef("m", "m", made=Making("transplant", of, base, {"scale": 0.5}))


def test_an_adapter_sits_on_the_base_or_on_what_it_names(tmp_path: Path) -> None:
    found = refs(tmp_path, {"m": {"adapter": "a", "weight": 2}, "n": {"adapter": "a", "on": "o"}})
    base, other = ParentRef("base", source(tmp_path, "b")), ParentRef("on", source(tmp_path, "o"))
    assert found["m"] == ParentRef("m", source(tmp_path, "a"), made=Making("adapter", (), base, {"weight": 2.0}))
    assert found["n"] == ParentRef("n", source(tmp_path, "a"), made=Making("adapter", (), other))


def test_parents_are_made_of_models_ingredients_and_the_base(tmp_path: Path) -> None:
    made = {"make": "transplant", "of": ["e", "base"], "settings": {"scale": 2}}
    found = refs(tmp_path, {"m": made}, ingredients={"e": "e"})
    base = ParentRef("base", source(tmp_path, "b"))
    of = (ParentRef("e", source(tmp_path, "e")), base)
    assert found == {"base": base, "m": ParentRef("m", "m", made=Making("transplant", of, base, {"scale": 2.0}))}


def test_made_parents_may_be_made_of_made_ones(tmp_path: Path) -> None:
    models = {"m": {"make": "transplant", "of": ["n", "base"]}, "n": {"model": "n", "base": "o"}}
    found = refs(tmp_path, models)
    assert found["m"].made is not None
    assert found["m"].made.of[0] == found["n"]


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"m": {}}, r"A parent is of one kind[\s\S]*none of model, adapter and make"),
        ({"m": {"model": "m", "adapter": "a"}}, r"one kind[\s\S]*keys model, adapter"),
        ({"m": {"model": "m"}}, r"do not fit[\s\S]*no base[\s\S]*without it, write the folder alone"),
        ({"m": {"adapter": "a", "of": ["m"]}}, r"do not fit[\s\S]*of given[\s\S]*remove of"),
        ({"m": {"make": "transplant"}}, r"do not fit[\s\S]*no of"),
        ({"m": {"make": "transplnt", "of": ["m"]}}, r"no method 'transplnt'[\s\S]*transplant"),
        ({"m": {"make": "transplant", "of": ["x", "base"]}}, r"does not have[\s\S]*'x'[\s\S]*parents.ingredients"),
        (
            {"m": {"make": "transplant", "of": ["n", "base"]}, "n": {"make": "transplant", "of": ["m", "base"]}},
            r"made of each other[\s\S]*m -> n -> m",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_four_parts(tmp_path: Path, models: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        refs(tmp_path, models)


def test_made_parents_need_a_base(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is none"):
        refs(tmp_path, {"m": {"model": "m", "base": "o"}}, base=None)


def test_an_ingredient_has_a_name_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one name"):
        refs(tmp_path, {"m": "m"}, ingredients={"m": "m"})


def test_unknown_keys_of_a_parent_are_told_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="adapter"):
        refs(tmp_path, {"m": {"adaptor": "a"}})

"""mergekit's passthrough with scales, in every chain of dtypes, run here and there: the same bits."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evomerge.api import merge
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.config.recipe_files import read_recipe_file
from evomerge.dataflow.mergekit import mergekit_text
from evomerge.errors import RecipeError
from evomerge.testing.tiny import tiny_checkpoint

pytest.importorskip("mergekit")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
]

LAYERS = 3
DTYPES = ("float32", "bfloat16", "float16")
ENDS = {"llama": ("o_proj", "down_proj"), "gpt2": ("c_proj",), "gemma2": ("o_proj", "down_proj")}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, str], Path]:
    """By family, name and dtype."""
    made = {}
    folder = tmp_path_factory.mktemp("models")
    for family in ENDS:
        depth = {"n_layer": LAYERS} if family == "gpt2" else {"num_hidden_layers": LAYERS}
        more = {"tie_word_embeddings": False} if family == "llama" else {}
        for dtype in ("float32", "bfloat16"):
            for seed, name in enumerate("ab"):
                place = folder / f"{family}-{name}-{dtype}"
                made[family, name, dtype] = tiny_checkpoint(place, family, seed, dtype, **depth, **more)
    return made


def run_mergekit(text: str, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions

        options = MergeOptions(quiet=True, copy_tokenizer=False, write_model_card=False, num_threads=1)
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(folder), options)
    return folder


def bits(folder: Path) -> dict[str, tuple[torch.dtype, bytes]]:
    """Even the sign of zeros."""
    checkpoint = open_checkpoint(folder)
    found = {t.name: checkpoint.tensor(t.name).contiguous() for t in checkpoint.layout.tensors}
    return {n: (t.dtype, t.view(-1).view(torch.uint8).numpy().tobytes()) for n, t in found.items()}


def scale_of(draw: random.Random, family: str) -> Any:
    """All tensors, the ends of branches, queries, or nothing."""
    factor = draw.choice([0.7, 0.1, -1.3])
    gained = [{"filter": end, "value": factor} for end in ENDS[family]]
    return draw.choice([None, factor, [*gained, {"value": 1.0}], [{"filter": "attn", "value": factor}, {"value": 1.0}]])


def config_of(draw: random.Random, family: str, models: dict[tuple[str, str, str], Path]) -> dict[str, Any]:
    own = {"a": draw.choice(DTYPES[:2]), "b": draw.choice(DTYPES[:2])}
    config: dict[str, Any] = {"merge_method": "passthrough"}
    if draw.random() < 0.3:
        scale = scale_of(draw, family) or 0.7
        config["models"] = [{"model": str(models[family, "a", own["a"]]), "parameters": {"scale": scale}}]
    else:
        config["slices"] = []
        starts = [0, 1, 2] if family == "gemma2" else [draw.randrange(LAYERS) for _ in range(3)]
        for start in starts:
            name = draw.choice("ab")
            scale = scale_of(draw, family)
            given = {} if scale is None else {"parameters": {"scale": scale}}
            place = str(models[family, name, own[name]])
            config["slices"].append({"sources": [{"model": place, "layer_range": [start, start + 1], **given}]})
    for key in ("dtype", "out_dtype"):
        if draw.random() < 0.6:
            config[key] = draw.choice(DTYPES)
    return config


@pytest.mark.parametrize("family", ENDS)
def test_any_scales_in_any_dtypes_give_mergekits_bits(family: str, models: Any, tmp_path: Path) -> None:
    draw, merged = random.Random(5), 0
    for number in range(30):
        config = config_of(draw, family, models)
        text = yaml.safe_dump(config)
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        try:
            recipe = merge(file, tmp_path / f"ours{number}")
        except RecipeError as error:
            told = ("its scales are no gain", "in several dtypes")
            assert any(line in error.what for line in told), error  # noqa: PT017
            continue
        merged += 1
        theirs = bits(run_mergekit(text, tmp_path / f"theirs{number}"))
        ours = bits(tmp_path / f"ours{number}")
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if ours[name] != theirs[name]] == [], (number, text, recipe.compat)
        back = tmp_path / f"{number}-back.yaml"
        back.write_text(mergekit_text(recipe, open_checkpoint(recipe.parents[0].source)))
        again = bits(run_mergekit(back.read_text(), tmp_path / f"again{number}"))
        assert [name for name in ours if ours[name] != again.get(name)] == [], (number, text, back.read_text())
        assert read_recipe_file(back).path == recipe.path
    assert merged >= 20


def test_our_own_arithmetic_is_written_so_that_mergekit_repeats_it(models: Any, tmp_path: Path) -> None:
    """It multiplies in fp32 and rounds once."""
    model = models["llama", "a", "float32"]
    file = tmp_path / "file.yaml"
    config = {"merge_method": "passthrough", "models": [{"model": str(model), "parameters": {"scale": 0.7}}]}
    file.write_text(yaml.safe_dump({**config, "dtype": "bfloat16"}))
    recipe = merge(file, tmp_path / "ours", compat="off")
    text = mergekit_text(recipe, open_checkpoint(model))
    assert yaml.safe_load(text)["out_dtype"] == "bfloat16"
    assert bits(run_mergekit(text, tmp_path / "theirs")) == bits(tmp_path / "ours")
    assert bits(run_mergekit(file.read_text(), tmp_path / "narrow")) != bits(tmp_path / "ours")

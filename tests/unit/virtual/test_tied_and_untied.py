"""Tied and untied parents in one merge: one model with a head of its own, in memory and as files."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from evomerge.checkpoints.compatible import check_compatible
from evomerge.checkpoints.opened import OpenParent
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.checkpoints.token_rows import untied_config
from evomerge.dataflow.export import write_recipe
from evomerge.errors import ModelError
from evomerge.merging.kernels import Kernels
from evomerge.merging.parents import ParentPool
from evomerge.merging.resident import ResidentModel
from evomerge.recipe.recipe import Making, ParentRef, Recipe, Rule
from evomerge.recipe.serialize import recipe_from_text, recipe_to_text
from evomerge.testing.tiny import tiny_checkpoint
from evomerge.virtual.fitting import fit_parents
from evomerge.virtual.opening import ParentOpener

FAMILIES = ("llama", "gpt2", "gpt_neox", "gemma3", "phi3")
IDS = torch.arange(24)[None] * 2


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, bool], Path]:
    """A tied and an untied checkpoint of each family. Never write into them."""
    root = tmp_path_factory.mktemp("heads")
    wanted = [(family, tie) for family in FAMILIES for tie in (True, False)]
    return {w: tiny_checkpoint(root / f"{w[0]}-{w[1]}", w[0], 1 + w[1], tie=w[1], tokenizer=True) for w in wanted}


def fitted(refs: Mapping[str, ParentRef], base: str | None, cache: Path) -> dict[str, ParentRef]:
    return fit_parents(refs, base, ParentOpener(cache), tokens="refuse")


def pool_of(refs: Mapping[str, ParentRef], cache: Path) -> ParentPool:
    opener = ParentOpener(cache)
    found = {n: opener.open(r) for n, r in refs.items()}
    check_compatible(found, next(iter(found)))
    opener.make()
    return ParentPool(found)


def of(family: str, zoo: Mapping[tuple[str, bool], Path], *ties: bool) -> dict[str, ParentRef]:
    """Parents named by their place, the first of them the base."""
    return {f"p{i}": ParentRef(f"p{i}", str(zoo[family, tie])) for i, tie in enumerate(ties)}


def merge(refs: Mapping[str, ParentRef], weight: float) -> Recipe:
    base, other = refs
    return Recipe(tuple(refs.values()), base, (Rule("task_arithmetic", per_parent={other: {"weight": weight}}),))


def loaded(folder: Path) -> torch.nn.Module:
    """What stock transformers loads, without a word about missing or surplus weights."""
    from transformers import AutoModelForCausalLM

    model, told = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(told.values())
    assert isinstance(model, torch.nn.Module)
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return torch.as_tensor(model(IDS).logits)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ties", [(True, False), (False, True)])
def test_a_mix_is_merged_exported_and_loaded(
    zoo: Mapping[tuple[str, bool], Path], tmp_path: Path, family: str, ties: tuple[bool, bool]
) -> None:
    refs = fitted(of(family, zoo, *ties), "p0", tmp_path / "cache")
    assert [r.made is not None for r in refs.values()] == list(ties)
    pool, recipe = pool_of(refs, tmp_path / "cache"), recipe_from_text(recipe_to_text(merge(refs, 0.3)))
    state = torch.random.get_rng_state()
    resident = ResidentModel(pool, "p0", kernels=Kernels())
    assert torch.equal(torch.random.get_rng_state(), state)
    for weight, folder in ((0.0, zoo[family, ties[0]]), (1.0, zoo[family, ties[1]])):
        resident.apply(merge(refs, weight))
        assert torch.equal(logits(resident.model), logits(loaded(folder)))
    resident.apply(recipe)
    write_recipe(recipe, pool, tmp_path / "out")
    exported = loaded(tmp_path / "out")
    assert torch.equal(logits(exported), logits(resident.model))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert not (tmp_path / "cache").exists()  # nothing had to be made


def test_head_and_embedding_go_their_own_ways(zoo: Mapping[tuple[str, bool], Path], tmp_path: Path) -> None:
    refs = fitted(of("llama", zoo, True, False), "p0", tmp_path)
    pool = pool_of(refs, tmp_path)
    write_recipe(merge(refs, 0.25), pool, tmp_path / "out")
    tied, untied = (load_file(zoo["llama", tie] / "model.safetensors") for tie in (True, False))
    found = load_file(tmp_path / "out" / "model.safetensors")
    embedding = tied["model.embed_tokens.weight"]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        torch.testing.assert_close(found[name], embedding + 0.25 * (untied[name] - embedding), rtol=0, atol=1e-6)


def test_tied_parents_stay_tied_and_have_no_second_head(zoo: Mapping[tuple[str, bool], Path], tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other", "llama", 9, tie=True, tokenizer=True)
    refs = {"p0": ParentRef("p0", str(zoo["llama", True])), "p1": ParentRef("p1", str(other))}
    assert fitted(refs, "p0", tmp_path / "cache") == refs
    write_recipe(merge(refs, 0.5), pool_of(refs, tmp_path / "cache"), tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is True
    assert logits(loaded(tmp_path / "out")).isfinite().all()


def test_without_fitting_the_difference_is_refused(zoo: Mapping[tuple[str, bool], Path]) -> None:
    parents = {n: open_checkpoint(r.source) for n, r in of("llama", zoo, True, False).items()}
    with pytest.raises(ModelError, match="tied embeddings is False, not True"):
        check_compatible(parents, "p0")


def test_heads_come_before_rows(zoo: Mapping[tuple[str, bool], Path], tmp_path: Path) -> None:
    """A tied parent that lacks a token gets the reference's embedding row and the reference's head row."""
    small = tiny_checkpoint(tmp_path / "small", "llama", 5, tie=True, tokenizer=True, vocab_size=60)
    refs = {"base": ParentRef("base", str(zoo["llama", False])), "a": ParentRef("a", str(small))}
    got = fit_parents(refs, "base", ParentOpener(tmp_path / "cache"), tokens="align")
    made = got["a"].made
    assert made is not None
    assert (made.method, made.of[0].made is not None and made.of[0].made.method) == ("aligned", "untied")
    parent = pool_of(got, tmp_path / "cache").checkpoint("a")
    base, own = open_checkpoint(zoo["llama", False]), open_checkpoint(small).tensor("model.embed_tokens.weight")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(parent.tensor(name), torch.cat((own, base.tensor(name)[60:])))


def test_an_adapter_on_a_tied_base_beside_an_untied_parent(
    zoo: Mapping[tuple[str, bool], Path], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    path, folder = "base_model.model.model.layers.0.mlp.up_proj.lora_", tmp_path / "adapter"
    folder.mkdir()
    save_file(
        {f"{path}A.weight": torch.ones(1, 32), f"{path}B.weight": torch.ones(48, 1)},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 1}')
    base = ParentRef("base", str(zoo["llama", True]))
    adapter = ParentRef("a", str(folder), made=Making("adapter", (), base))
    refs = {"base": base, "a": adapter, "b": ParentRef("b", str(zoo["llama", False]))}
    got = fitted(refs, "base", tmp_path / "cache")
    pool = pool_of(got, tmp_path / "cache")
    under = open_checkpoint(zoo["llama", True])
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(pool.checkpoint("a").tensor(name), under.tensor(name) + 1)
    assert torch.equal(pool.checkpoint("a").tensor("lm_head.weight"), under.tensor("model.embed_tokens.weight"))


def test_an_untied_parent_travels_to_workers(zoo: Mapping[tuple[str, bool], Path], tmp_path: Path) -> None:
    opener = ParentOpener(tmp_path)
    parent: OpenParent = opener.open(fitted(of("llama", zoo, True, False), None, tmp_path)["p0"])
    again = pickle.loads(pickle.dumps(parent))
    assert (again.layout, again.config["tie_word_embeddings"]) == (parent.layout, False)
    assert torch.equal(again.tensor("lm_head.weight"), parent.tensor("model.embed_tokens.weight"))
    assert not parent.tied_embeddings


@pytest.mark.parametrize("ties", [(False, False), (True, True)])
def test_only_a_tied_parent_beside_an_untied_one_can_be_untied(
    zoo: Mapping[tuple[str, bool], Path], tmp_path: Path, ties: tuple[bool, bool]
) -> None:
    one, two = of("llama", zoo, *ties).values()
    with pytest.raises(ModelError, match="only as another model has it"):
        ParentOpener(tmp_path).open(ParentRef("x", "x", made=Making("untied", (one,), two)))


def test_configs_that_nest_the_language_model() -> None:
    assert untied_config({"num_hidden_layers": 2}) == {"tie_word_embeddings": False}
    nested = {"text_config": {"num_hidden_layers": 2, "vocab_size": 9}, "tie_word_embeddings": True}
    assert untied_config(nested) == {
        "tie_word_embeddings": False,
        "text_config": {"num_hidden_layers": 2, "vocab_size": 9, "tie_word_embeddings": False},
    }

"""Path models under the evaluation's own calls: needed logits, fast linear layers, packs, whole plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.dataflow.views import PathRunner
from evomerge.evaluation import linear
from evomerge.evaluation.evaluator import PlanEvaluator
from evomerge.evaluation.forward import NeededLogits
from evomerge.evaluation.lm_eval import compile_plan
from evomerge.evaluation.packed import ARCHITECTURES, SIZE, packable
from evomerge.evaluation.plan import pack
from evomerge.evaluation.scorer import Forced, ForcedBatches
from evomerge.evaluation.suite import load_suite
from evomerge.recipe.path import Hop, plain_path
from evomerge.testing import eval_tasks
from evomerge.testing.path_models import CASES, N_LAYERS, PATH, path_parent, stock_model

IDS = torch.randint(3, 64, (2, 12), generator=torch.Generator().manual_seed(0))
PLACES = torch.tensor([3, 11, 12, 20])
KINDS = ["full_attention", "sliding_attention"] * 2
WITHOUT_GAINS = tuple(Hop(h.layer, h.parent) for h in PATH)


def runner_of(case: str, **config: Any) -> PathRunner:
    merged = path_parent(case, 0, **config)
    return PathRunner(merged, {"a": merged, "b": path_parent(case, 1, **config)})


@pytest.mark.parametrize("case", ["llama-biases", "gemma2", "gpt2", "gpt_neox", "granite"])
def test_needed_logits_are_the_logits(case: str) -> None:
    path = runner_of(case).model(PATH)
    with torch.no_grad():
        whole = path(IDS).logits.flatten(0, 1)[PLACES]
    with NeededLogits(path) as needed:
        found, _ = needed.logits(IDS, PLACES, use_cache=False)
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
    assert not any("forward" in vars(m) for m in path.modules())


def test_two_paths_can_be_asked_at_once() -> None:
    """Each has a head of its own, so that what one drops the other keeps."""
    runner = runner_of("llama")
    first, second = runner.model(PATH), runner.model(PATH[:3])
    with torch.no_grad():
        whole = [p(IDS).logits.flatten(0, 1) for p in (first, second)]
    with NeededLogits(first) as a, NeededLogits(second) as b:
        torch.testing.assert_close(a.logits(IDS, PLACES)[0], whole[0][PLACES], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(b.logits(IDS, PLACES[:2])[0], whole[1][PLACES[:2]], rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN")
def test_gained_linear_layers_are_fast_and_keep_their_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "onednn_pays", lambda: True)
    monkeypatch.setattr(linear, "_WORTH", 0)
    runner = runner_of("llama")
    path = runner.model(PATH)
    with torch.no_grad():
        whole = path(IDS).logits
    with linear.FastLinears(path), torch.no_grad():
        ends = [layer.get_submodule(b.end) for layer in runner.layers(path) for b in runner.family.ends]
        assert all("forward" in vars(end) for end in ends)
        inside = runner.model(PATH)  # made while the shared layers are replaced
        fast = path(IDS).logits
    torch.testing.assert_close(fast, whole, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(inside(IDS).logits, whole)


def alike(n: int = 40) -> list[Forced]:
    """Requests that begin alike and end differently."""
    rng = np.random.default_rng(1)
    found = []
    for i in range(n):
        inputs = [1, *rng.integers(3, 6, 4 + i % 3).tolist(), *rng.integers(3, 64, 1 + i % 4).tolist()]
        found.append(Forced(pack(inputs), np.array(inputs[-1 - i % 4 :], np.int32)))
    return found


@pytest.mark.parametrize("case", CASES)
def test_packs_are_used_where_they_change_nothing(case: str) -> None:
    merged, asked = runner_of(case), alike()
    path = merged.model(PATH)
    kinds, window = getattr(path.config, "layer_types", None), getattr(path.config, "sliding_window", None)
    plain = (kinds is None or set(kinds) == {"full_attention"}) and (window is None or window >= SIZE)
    assert packable(path) == (plain and path.config.model_type in ARCHITECTURES)
    batches = [ForcedBatches(asked, 300, "cpu", pack=p) for p in (False, packable(path))]
    with NeededLogits(path) as needed:
        rows, packs = (b.run(needed) for b in batches)
    assert (batches[1].n_tokens < 0.8 * batches[0].n_tokens) == packable(path)
    np.testing.assert_allclose(rows.ll, packs.ll, atol=2e-5)
    np.testing.assert_array_equal(rows.top, packs.top)


def test_packs_depend_on_the_layers_of_the_path() -> None:
    """With a wide window the kinds decide; packs are exact on such sliding layers too, for whoever uses them."""
    runner = runner_of("qwen2", use_sliding_window=True, sliding_window=SIZE, layer_types=KINDS)
    mixed, full = runner.model(PATH), runner.model((Hop(0), Hop(2, "b"), Hop(2)))
    assert not packable(mixed)
    assert packable(full)
    narrow = runner_of("qwen2", use_sliding_window=True, sliding_window=SIZE - 1, layer_types=KINDS)
    assert not packable(narrow.model((Hop(0), Hop(2))))
    rows, packs = (ForcedBatches(alike(), 300, "cpu", pack=p) for p in (False, True))
    with NeededLogits(mixed) as needed:
        np.testing.assert_allclose(rows.run(needed).ll, packs.run(needed).ll, atol=2e-5)


def test_a_plan_scores_a_path_as_the_stock_model(tmp_path: Path) -> None:
    eval_tasks.write_choice_task(tmp_path / "tasks", n=6)
    eval_tasks.write_generation_task(tmp_path / "tasks", n=6)
    folder = eval_tasks.character_checkpoint(tmp_path / "model", seed=4)
    split = {"search": 2, "select": 2, "report": 2}
    suite = load_suite({"include": [str(tmp_path / "tasks")], "tasks": ["pick", "say"], "split": split})
    evaluator = PlanEvaluator(compile_plan(suite, folder), folder)
    vocabulary = len(evaluator.tokenizer)
    merged, source = (path_parent("llama", s, vocab_size=vocabulary, max_position_embeddings=512) for s in (0, 1))
    sources = {"a": merged, "b": source}
    runner = PathRunner(merged, sources)
    found = evaluator.evaluate(runner.model(WITHOUT_GAINS), "search").answers
    assert found == evaluator.evaluate(stock_model(WITHOUT_GAINS, merged, sources), "search").answers
    assert found != evaluator.evaluate(merged, "search").answers
    identity = runner.model(plain_path(N_LAYERS))
    assert evaluator.evaluate(identity, "search").answers == evaluator.evaluate(merged, "search").answers

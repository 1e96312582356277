"""Nothing that an engine gets wrong becomes an answer: every fault of the fake vLLM, behind the guard."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.errors import EvaluationError, NonFinite, SelfCheckError
from evomerge.evaluation.engine_check import engine_check
from evomerge.evaluation.engine_names import FALLBACK
from evomerge.evaluation.engine_probe import Probe, Reading, probe_prompts, spread, tolerance_of
from evomerge.evaluation.engines import EngineSetup, ReferenceEngine
from evomerge.evaluation.evaluator import PlanEvaluator
from evomerge.evaluation.guarded import RETIRED_AFTER, GuardedWriter
from evomerge.evaluation.plan import EvalPlan, GenerationArgs, Item, MetricPlan, Prompted, TaskPlan, pack
from evomerge.evaluation.plan import Probe as Kept
from evomerge.evaluation.suite import SuiteSpec, TaskSpec
from evomerge.evaluation.tokens import load_tokenizer
from evomerge.evaluation.vllm_engine import VllmEngine
from evomerge.testing.engine_suite import SHAPE
from evomerge.testing.eval_tasks import byte_pair_checkpoint, sentence
from evomerge.testing.fake_vllm import FAULTS, Fault, fake_vllm
from evomerge.types import Digest, SetName

N = 4
HARMLESS = {"truncates", "runs_on"}
"""What the guard mends without a word: answers are continued or cut where the rule ends them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_pair_checkpoint(tmp_path_factory.mktemp("guarded") / "model", "llama", **SHAPE, num_hidden_layers=1)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def weights(folder: Path) -> list[dict[str, torch.Tensor]]:
    """Three candidates: the second a little beside the first, the third far from both."""
    from safetensors.torch import load_file

    first = load_file(folder / "model.safetensors")
    made = [first]
    for seed, step in ((1, 0.02), (2, 0.3)):
        rng = torch.Generator().manual_seed(seed)
        noise = {n: torch.randn(v.shape, generator=rng) for n, v in first.items()}
        made.append({n: v + step * v.std() * noise[n] for n, v in first.items()})
    return made


@pytest.fixture(scope="module")
def plan(tokenizer: Any) -> EvalPlan:
    """Items with prompts of several lengths; a stop string that the models write."""
    items, sets = [], {}
    names: tuple[SetName, ...] = ("search", "select", "report")
    for number, name in enumerate(names):
        for i in range(N):
            ids = tokenizer.encode(sentence(number * N + i, 3 + 3 * i))
            items.append(Item(Digest(f"{name}{i}"), 0, i, (Prompted(pack(ids)),), targets=("x",)))
        sets[name] = tuple(range(number * N, (number + 1) * N))
    task = TaskPlan(
        "say",
        "generate_until",
        MetricPlan("exact_match"),
        tuple(items),
        sets,
        generation=GenerationArgs(("e", "<eos>"), 5),
        probes=tuple(Kept(i, ()) for i in (0, 2, N)),
    )
    suite = SuiteSpec((TaskSpec("say"),), engine="vllm")
    return EvalPlan((task,), suite, 256, (0,), 0)


class Bench:
    """A resident model, the reference's texts, and a guarded engine beside it."""

    def __init__(self, folder: Path, plan: EvalPlan, fault: Fault | None, dtype: str = "float32") -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self.plan = plan
        setup = EngineSetup(folder, folder, dtype, "cpu", plan.max_length, plan.eos)
        engine = VllmEngine(setup) if fault is not None else ReferenceEngine(setup)
        self.writer = GuardedWriter(engine, self.tensors, probe_prompts(plan), dtype)
        self.evaluator = PlanEvaluator(plan, folder, writer=self.writer)
        self.plain = PlanEvaluator(plan, folder)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(self.model.state_dict().items())

    def become(self, weights: dict[str, torch.Tensor]) -> None:
        self.model.load_state_dict(weights)
        self.writer.outdated()

    def texts(self, evaluator: PlanEvaluator) -> list[str]:
        from evomerge.evaluation.forward import NeededLogits

        (task,) = self.plan.tasks
        with NeededLogits(self.model) as needed:
            return evaluator.texts(task, task.items[:N], needed)

    def agree(self) -> None:
        assert self.texts(self.evaluator) == self.texts(self.plain)


@pytest.fixture
def bench(folder: Path, plan: EvalPlan, monkeypatch: pytest.MonkeyPatch) -> Callable[[Fault], Bench]:
    def make(fault: Fault) -> Bench:
        for name, module in fake_vllm(fault).items():
            monkeypatch.setitem(sys.modules, name, module)
        for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_NO_USAGE_STATS", "VLLM_LOGGING_LEVEL"):
            monkeypatch.setenv(name, "")
        return Bench(folder, plan, fault)

    return make


def test_an_engine_that_works_answers_every_candidate(bench: Any, weights: Any) -> None:
    made = bench(Fault())
    seen = []
    for number in (0, 1, 2, 1):
        made.become(weights[number])
        made.agree()
        assert made.writer.notes() == ()
        assert set(made.writer.taken()) == {"load", "probe", "write", "audit"}
        seen.append(made.texts(made.evaluator))
        assert set(made.writer.taken()) == {"write", "audit"}  # the candidate is loaded
    assert seen[1] == seen[3] != seen[2]
    assert any(len(t) > 1 for t in seen[0])


@pytest.mark.parametrize("kind", FAULTS)
def test_no_fault_becomes_an_answer(bench: Any, weights: Any, kind: str) -> None:
    """It works for one candidate, then goes wrong for good."""
    fault = Fault(kind, first=2)
    made = bench(fault)
    for number in (0, 1, 2):
        made.become(weights[number])
        made.agree()
        taken, notes = made.writer.taken(), made.writer.notes()
        wrong = number > 0 and kind not in HARMLESS and not (kind == "late" and FALLBACK not in taken)
        assert (FALLBACK in taken) == wrong
        assert bool(notes) == (number > 0 and kind not in HARMLESS)
    assert fault.seen == (3 if kind in HARMLESS else 5)


@pytest.mark.parametrize("kind", ["stale", "keeps_prefixes", "dies", "nan_later"])
def test_what_goes_wrong_once_is_mended_by_loading_again(bench: Any, weights: Any, kind: str) -> None:
    made = bench(Fault(kind, first=2, loads=1))
    for number in (0, 1, 2):
        made.become(weights[number])
        made.agree()
        assert FALLBACK not in made.writer.taken()
        assert len(made.writer.notes()) == (number == 1)


def test_an_engine_that_fails_three_times_in_a_row_is_closed(bench: Any, weights: Any) -> None:
    fault = Fault("dies")
    made = bench(fault)
    for number in range(RETIRED_AFTER + 1):
        made.become(weights[number % 3])
        made.agree()
        assert made.writer.taken().get(FALLBACK, 0) > 0
    assert fault.seen == 2 * RETIRED_AFTER
    assert fault.closed == 1
    assert any("is closed" in note for note in made.writer.notes())
    assert not made.writer.trusted


def test_a_candidate_that_was_refused_stays_so_until_the_next(bench: Any, weights: Any) -> None:
    fault = Fault("second_best", first=1, loads=2)
    made = bench(fault)
    made.become(weights[0])
    made.agree()
    made.agree()
    assert fault.seen == 2
    made.become(weights[1])
    made.agree()
    assert made.writer.taken()["write"] > 0
    assert made.writer.trusted


def test_a_broken_candidate_fails_as_it_does_without_an_engine(bench: Any, weights: Any) -> None:
    fault = Fault()
    made = bench(fault)
    for _ in range(RETIRED_AFTER + 1):
        made.become({n: v * float("nan") for n, v in weights[0].items()})
        with pytest.raises(NonFinite, match="while an answer is generated"):
            made.texts(made.evaluator)
    assert fault.seen == 0
    made.become(weights[1])
    made.agree()
    assert FALLBACK in made.writer.taken()  # of the broken ones
    made.agree()
    assert made.writer.trusted
    assert FALLBACK not in made.writer.taken()


def test_the_reference_engine_passes_the_guard(folder: Path, plan: EvalPlan, weights: Any) -> None:
    made = Bench(folder, plan, None)
    made.become(weights[1])
    made.agree()
    assert made.writer.notes() == ()


def test_the_check_before_a_run(bench: Any, weights: Any) -> None:
    made = bench(Fault())
    for number in (0, 2, 0):
        made.become(weights[number])
        assert engine_check(made.evaluator, made.writer, made.model) == (3, 0)
    broken = bench(Fault("stale", first=2))
    broken.become(weights[0])
    engine_check(broken.evaluator, broken.writer, broken.model)
    broken.become(weights[2])
    with pytest.raises(SelfCheckError, match="vllm: The engine does not answer as the candidate does"):
        engine_check(broken.evaluator, broken.writer, broken.model)


def test_engines_change_the_digest_and_nothing_else(plan: EvalPlan) -> None:
    from dataclasses import replace

    plain = replace(plan, suite=replace(plan.suite, engine="transformers"))
    assert plain.digest != plan.digest
    assert plain.tasks == plan.tasks


def test_probes_are_spread_over_tasks_and_lengths(plan: EvalPlan) -> None:
    found = probe_prompts(plan, 3)
    lengths = sorted(len(item.requests[0].prompt) // 4 for item in plan.tasks[0].items[:N])
    assert len(found[0]) == lengths[-1]
    assert len(found[-1]) == lengths[0]
    assert len(probe_prompts(plan)) == N
    assert spread(9, 3) == [0, 4, 8]
    assert spread(2, 5) == [0, 1]
    assert spread(5, 1) == [0]
    assert spread(0, 3) == []


def readings(steps: list[float], off: float = 0.0, dtype: type = np.float32) -> list[Reading]:
    """Candidates that differ by steps, told by an engine that is off by some noise of its own."""
    rng = np.random.default_rng(0)
    base, noise = rng.normal(size=(4, 30)), rng.normal(size=(4, 30))
    made = []
    for number, step in enumerate(steps):
        truth = torch.tensor(base + step * rng.normal(size=(4, 30)), dtype=torch.float32).log_softmax(-1)
        said = truth + off * torch.tensor(noise + number, dtype=torch.float32)
        best = truth.topk(5).indices.tolist()
        made.append(Reading(tuple({t: float(said[i, t]) for t in row} for i, row in enumerate(best)), truth))
    return made


def test_small_steps_are_told_from_stale_weights() -> None:
    """In bf16 a step of 0.05 nats lies within the tolerance; the old numbers give it away."""
    first, second = readings([0.0, 0.02])
    probe = Probe(tolerance_of("bfloat16"))
    assert probe.judge(first) is None
    assert "to the bit" in (probe.judge(Reading(first.engine, second.reference)) or "")
    nearly = tuple({t: v + 1e-6 for t, v in top.items()} for top in first.engine)
    assert "not all weights" in (probe.judge(Reading(nearly, second.reference)) or "")
    assert probe.judge(second) is None
    assert probe.judge(first) is None


def test_an_engine_with_noise_is_not_taken_for_a_stale_one() -> None:
    probe = Probe(tolerance_of("bfloat16"))
    for reading in readings([0.0, 1e-4, 0.001, 0.01, 0.01, 0.1, 0.0], off=0.01):
        assert probe.judge(reading) is None


def test_other_numbers_are_refused() -> None:
    (good,) = readings([0.0])
    probe = Probe(1e-3)
    assert probe.judge(good) is None
    top = dict(good.engine[0])
    best = max(top, key=lambda t: top[t])
    for wrong, words in (
        ({**top, best: float("nan")}, "not finite"),
        ({**top, best: top[best] + 0.01}, "off by 0.01"),
        ({t: v for t, v in top.items() if t != best}, "4 next tokens"),
        ({t: v for t, v in top.items() if t != best} | {99: -1.0}, "5 next tokens"),
    ):
        assert words in (probe.judge(Reading((wrong, *good.engine[1:]), good.reference)) or "")
    assert "3 answers to 4" in (probe.judge(Reading(good.engine[1:], good.reference)) or "")
    others = {t: v for t, v in enumerate(good.reference[0].tolist()) if t not in top}
    worst = dict(sorted(others.items(), key=lambda p: p[1])[:5])
    assert "behind transformers' best" in (probe.judge(Reading((worst, *good.engine[1:]), good.reference)) or "")


def test_dtypes_without_a_tolerance_are_refused() -> None:
    with pytest.raises(EvaluationError, match="float16"):
        tolerance_of("float16")

"""The rules of engines: the reference, and vLLM's adapter on a fake vLLM."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from evomerge.errors import ConfigError, ModelError
from evomerge.evaluation.engines import ENGINES, EngineSetup, GenerationEngine, ReferenceEngine, engine_class
from evomerge.evaluation.vllm_engine import VllmEngine
from evomerge.testing.engine_suite import SHAPE, check_engine, check_faults
from evomerge.testing.eval_tasks import byte_pair_checkpoint
from evomerge.testing.fake_vllm import Fault, SamplingParams, fake_vllm


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Fault:
    fault = Fault()
    for name, module in fake_vllm(fault).items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_NO_USAGE_STATS", "VLLM_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "")  # put back behind the test
    return fault


def test_the_reference_keeps_the_rules(tmp_path: Path) -> None:
    check_engine(ReferenceEngine, tmp_path)


@pytest.mark.parametrize("tie", [False, True])
def test_the_adapter_keeps_the_rules(vllm: Fault, tmp_path: Path, tie: bool) -> None:
    check_engine(VllmEngine, tmp_path, "qwen2" if tie else "llama", tie)
    assert (vllm.engines, vllm.closed) == (1, 1)


def test_a_tied_head_that_keeps_what_it_made_is_found(
    vllm: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What vLLM 0.32 does on the CPU, were it not processed once more."""
    monkeypatch.setattr("evomerge.evaluation.vllm_engine._process_tied_head", lambda model: None)
    with pytest.raises(AssertionError, match=r"off by|next tokens"):
        check_engine(VllmEngine, tmp_path, "qwen2", tie=True)


@pytest.mark.parametrize("kind", ["late", "keeps_prefixes", "second_best"])
def test_the_rules_find_engines_that_break_them(vllm: Fault, tmp_path: Path, kind: str) -> None:
    vllm.kind = kind
    with pytest.raises((AssertionError, ConfigError), match=r"off by|next tokens|greedy"):
        check_engine(VllmEngine, tmp_path)


def test_bad_input_is_a_fault(vllm: Fault, tmp_path: Path) -> None:
    folder = byte_pair_checkpoint(tmp_path / "model", **SHAPE)
    check_faults(VllmEngine, EngineSetup(folder, folder, "float32", "cpu", 64, (0,)))


def test_a_vllm_for_other_devices_is_refused(vllm: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["vllm.platforms"].current_platform, "device_type", "cuda")
    with pytest.raises(ModelError, match="other devices"):
        VllmEngine(EngineSetup(tmp_path, tmp_path, "float32", "cpu", 64, (0,)))


def test_a_model_on_another_gpu_is_refused(vllm: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["vllm.platforms"].current_platform, "device_type", "cuda")
    with pytest.raises(ModelError, match="the first GPU"):
        VllmEngine(EngineSetup(tmp_path, tmp_path, "float32", "cuda:1", 64, (0,)))


def test_without_vllm_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModelError, match="evomerge\\[vllm\\]"):
        VllmEngine(EngineSetup(tmp_path, tmp_path, "float32", "cpu", 64, (0,)))


def test_a_model_that_vllm_does_not_hold_is_refused(vllm: Fault, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be used"):
        VllmEngine(EngineSetup(tmp_path, tmp_path, "float32", "cpu", 64, (0,)))


def test_the_fake_is_strict(vllm: Fault, tmp_path: Path) -> None:
    module = sys.modules["vllm"]
    with pytest.raises(TypeError, match="'gpu_share'"):
        module.LLM("model", max_model_len=8, gpu_share=1)
    with pytest.raises(TypeError, match="'stops'"):
        SamplingParams(temperature=0.0, stops=["a"])
    with pytest.raises(ValueError, match="empty"):
        SamplingParams(temperature=0.0, ignore_eos=True, stop=[""])
    with pytest.raises(ValueError, match="no fault 'stail'"):
        Fault("stail")


def test_names_lead_to_classes() -> None:
    assert engine_class("vllm") is VllmEngine
    assert all(issubclass(engine_class(name), GenerationEngine) for name in ENGINES)
    with pytest.raises(ConfigError, match="no engine 'vlm'"):
        engine_class("vlm")

"""The adapter on a real vLLM, where one is installed that runs on this machine's CPU; skipped elsewhere."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from evomerge.evaluation.engine_support import FAMILIES
from evomerge.evaluation.vllm_engine import VllmEngine
from evomerge.testing.engine_suite import SHAPE, check_engine, check_faults
from evomerge.testing.eval_tasks import byte_pair_checkpoint
from evomerge.testing.fake_vllm import LLM_ARGUMENTS, SAMPLING_ARGUMENTS

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.filterwarnings("default"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_vllm_keeps_the_rules(tmp_path: Path, family: str) -> None:
    check_engine(VllmEngine, tmp_path, family, tie=family == "qwen2")


def test_bad_input_is_a_fault(tmp_path: Path) -> None:
    from evomerge.evaluation.engines import EngineSetup

    folder = byte_pair_checkpoint(tmp_path / "model", **SHAPE)
    check_faults(VllmEngine, EngineSetup(folder, folder, "float32", "cpu", 64, (0,)))


def test_the_fake_knows_what_vllm_knows() -> None:
    import inspect

    import vllm
    from vllm.engine.arg_utils import EngineArgs

    known = {*inspect.signature(vllm.LLM.__init__).parameters, *inspect.signature(EngineArgs).parameters}
    assert known >= LLM_ARGUMENTS
    assert set(vllm.SamplingParams.__struct_fields__) >= SAMPLING_ARGUMENTS

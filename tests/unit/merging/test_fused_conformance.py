"""The conformance tests of merge methods, for those with fused kernels of their own."""

from __future__ import annotations

from typing import ClassVar

from evomerge.merging.methods import load_method
from evomerge.testing.merge_suite import MergeMethodSuite


class TestRam(MergeMethodSuite):
    method = load_method("ram")


class TestRamPlus(MergeMethodSuite):
    method = load_method("ramplus_tl")
    shared: ClassVar = {"r": 0.5, "alpha": 2.0, "epsilon": 0.05}


class TestSce(MergeMethodSuite):
    method = load_method("sce")
    shared: ClassVar = {"select_topk": 0.4}


class TestNearSwap(MergeMethodSuite):
    method = load_method("nearswap")
    shared: ClassVar = {"t": 0.05}


class TestArceeFusion(MergeMethodSuite):
    method = load_method("arcee_fusion")


class TestMagMax(MergeMethodSuite):
    method = load_method("magmax")


class TestEmr(MergeMethodSuite):
    method = load_method("emr")


class TestConsensus(MergeMethodSuite):
    method = load_method("consensus")


class TestPcb(MergeMethodSuite):
    method = load_method("pcb")
    shared: ClassVar = {"ratio": 0.3}


class TestPcbModelWide(MergeMethodSuite):
    method = load_method("pcb")
    shared: ClassVar = {"model_wide": True}


class TestTernary(MergeMethodSuite):
    method = load_method("ternary")
    per_parent: ClassVar = {"weight": 0.4}


class TestBinary(MergeMethodSuite):
    method = load_method("binary")
    per_parent: ClassVar = {"weight": 0.4}


class TestWiden(MergeMethodSuite):
    method = load_method("widen")


class TestUniversal(MergeMethodSuite):
    method = load_method("universal")
    shared: ClassVar = {"election": 0.3, "sharpness": 1.5, "norm": 0.5}
    per_parent: ClassVar = {"weight": 0.4, "density": 0.4, "dropout": 0.5, "epsilon": 0.1}


class TestUniversalPlain(MergeMethodSuite):
    method = load_method("universal")
    per_parent: ClassVar = {"weight": 0.4, "density": 0.4, "dropout": 0.5}

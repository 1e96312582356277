from __future__ import annotations

from typing import ClassVar, final

import torch

from evomerge.merging.methods import MergeMethod, load_method
from evomerge.recipe.method_spec import MethodSpec, ParameterSpec
from evomerge.testing.merge_suite import MergeMethodSuite


class TestLinear(MergeMethodSuite):
    method = load_method("linear")
    per_parent: ClassVar = {"weight": 0.7}
    means = True


class TestSlerp(MergeMethodSuite):
    method = load_method("slerp")
    shared: ClassVar = {"t": 0.3}
    means = True


class TestTaskArithmetic(MergeMethodSuite):
    method = load_method("task_arithmetic")
    per_parent: ClassVar = {"weight": 0.4}


class TestTies(MergeMethodSuite):
    method = load_method("ties")
    per_parent: ClassVar = {"weight": 0.4, "density": 0.3}


class TestDareLinear(MergeMethodSuite):
    method = load_method("dare_linear")
    per_parent: ClassVar = {"weight": 0.4, "density": 0.3}


class TestDareTies(MergeMethodSuite):
    method = load_method("dare_ties")
    per_parent: ClassVar = {"weight": 0.4, "density": 0.3}


class TestBreadcrumbs(MergeMethodSuite):
    method = load_method("breadcrumbs")
    shared: ClassVar = {"rescale": True}
    per_parent: ClassVar = {"weight": 0.4, "density": 0.3, "gamma": 0.1}


class TestBreadcrumbsTies(MergeMethodSuite):
    method = load_method("breadcrumbs_ties")
    per_parent: ClassVar = {"weight": 0.4, "density": 0.3, "gamma": 0.1}


class TestDella(MergeMethodSuite):
    method = load_method("della")
    per_parent: ClassVar = {"weight": 0.4, "density": 0.3}


class TestDellaLinear(MergeMethodSuite):
    method = load_method("della_linear")
    per_parent: ClassVar = {"weight": 0.4, "density": 0.6, "epsilon": 0.3}


class TestPassthrough(MergeMethodSuite):
    method = load_method("passthrough")
    means = True


class TestNuSlerp(MergeMethodSuite):
    method = load_method("nuslerp")
    per_parent: ClassVar = {"weight": 0.7}
    means = True


class TestNuSlerpRows(MergeMethodSuite):
    method = load_method("nuslerp")
    shared: ClassVar = {"nuslerp_flatten": False}
    per_parent: ClassVar = {"weight": 0.7}
    means = True


class TestNuSlerpColumns(MergeMethodSuite):
    method = load_method("nuslerp")
    shared: ClassVar = {"nuslerp_flatten": False, "nuslerp_row_wise": True}
    per_parent: ClassVar = {"weight": 0.7}
    means = True


class TestMultiSlerp(MergeMethodSuite):
    method = load_method("multislerp")
    per_parent: ClassVar = {"weight": 0.7}
    means = True


class TestKarcher(MergeMethodSuite):
    method = load_method("karcher")
    means = True


class TestModelStock(MergeMethodSuite):
    method = load_method("model_stock")


class TestModelStockFilterWise(MergeMethodSuite):
    method = load_method("model_stock")
    shared: ClassVar = {"filter_wise": True}


class TestLines(MergeMethodSuite):
    method = load_method("lines")
    per_parent: ClassVar = {"weight": 0.4}


class TestFedLaw(MergeMethodSuite):
    method = load_method("fedlaw")
    per_parent: ClassVar = {"logit": 0.4}
    means = True


class TestExpo(MergeMethodSuite):
    method = load_method("expo")


class TestMetaGpt(MergeMethodSuite):
    method = load_method("metagpt")


class TestLocalizeAndStitch(MergeMethodSuite):
    method = load_method("localize_and_stitch")


class TestLocalizeAndStitchPerTensor(MergeMethodSuite):
    method = load_method("localize_and_stitch")
    shared: ClassVar = {"model_wide": False}
    per_parent: ClassVar = {"weight": 0.4, "density": 0.3}


@final
class NearSwap(MergeMethod):
    """What a plug-in looks like: move to the second model where the two are close."""

    spec = MethodSpec(
        "nearswap",
        needs_base=False,
        min_models=2,
        max_models=2,
        parameters={"t": ParameterSpec(False, "real", None, 0.0)},
    )

    def merge(self, base, parents, parameters):
        first, second = parents
        share = (float(parameters.shared["t"]) / (second - first).abs().clamp_min(1e-6)).clamp(0.0, 1.0)
        return torch.lerp(first, second, share)


class TestPlugin(MergeMethodSuite):
    method = NearSwap()
    shared: ClassVar = {"t": 0.01}
    means = True

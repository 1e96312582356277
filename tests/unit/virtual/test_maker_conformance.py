from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from evomerge.recipe.recipe import Number
from evomerge.testing.maker_suite import MakerSuite
from evomerge.virtual.iso import ISO_C, ISO_CTS
from evomerge.virtual.knots import KNOTS
from evomerge.virtual.opcm import OPCM
from evomerge.virtual.star import STAR
from evomerge.virtual.transplant import TRANSPLANT
from evomerge.virtual.tsv import TSV_M
from evomerge.virtual.wudi import WUDI


class TestIsoC(MakerSuite):
    maker = ISO_C


class TestIsoCExact(MakerSuite):
    maker = ISO_C
    settings: ClassVar[Mapping[str, Number]] = {"exact": True}
    family = "gpt2"


class TestIsoCts(MakerSuite):
    maker = ISO_CTS
    settings: ClassVar[Mapping[str, Number]] = {"common": 0.5}
    family = "olmo2"


class TestKnots(MakerSuite):
    maker = KNOTS
    settings: ClassVar[Mapping[str, Number]] = {"density": 0.4}
    family = "gpt2"


class TestOpcm(MakerSuite):
    maker = OPCM
    family = "gpt_neox"


class TestStar(MakerSuite):
    maker = STAR
    family = "gemma3"


class TestTransplant(MakerSuite):
    maker = TRANSPLANT


class TestTsvMerge(MakerSuite):
    maker = TSV_M
    family = "phi3"


class TestWudi(MakerSuite):
    maker = WUDI
    family = "qwen3"


class TestWudiByDescent(MakerSuite):
    maker = WUDI
    settings: ClassVar[Mapping[str, Number]] = {"steps": 3.0}
    family = "gpt2"

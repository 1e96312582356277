"""The tests that every maker of parents has to pass, built in or brought by a plug-in.

Subclass it in a test module and say which maker is meant; makers that read files of their own also say how their
`ingredients` come about:

```python
class TestMine(MakerSuite):
    maker = MyMaker()
    settings = {"strength": 0.5}        # without a default, and any others worth trying
```
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from evomerge.checkpoints.dtypes import torch_dtype
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.recipe.recipe import Number, ParentRef
from evomerge.testing.tiny import tiny_checkpoint
from evomerge.virtual.maker import Ingredients, Maker, Prompts


class MakerSuite:
    """Conformance of one maker; see the module's text for its use.

    Attributes:
        maker: the maker.
        settings: values of its settings; defaults are filled in.
        family: of the tiny checkpoints, as in `testing.tiny`.
        prompts: what makers that need prompts are shown; tokens from 0 to 63.
    """

    maker: ClassVar[Maker]
    settings: ClassVar[Mapping[str, Number]] = {}
    family: ClassVar[str] = "llama"
    prompts: ClassVar[Prompts] = ((1, 5, 9, 20), (1, 33, 40, 3, 7))

    def models(self) -> int:
        """How many models are used: three where the maker allows it."""
        spec = self.maker.spec
        return min(max(3, spec.min_models), spec.max_models or 3)

    @pytest.fixture
    def ingredients(self, tmp_path: Path) -> Ingredients:
        """Tiny fp32 checkpoints of one family, and complete settings."""
        names = ["base", *(f"m{i}" for i in range(self.models()))]
        folders = [tiny_checkpoint(tmp_path / n, self.family, i) for i, n in enumerate(names)]
        base, *of = (open_checkpoint(folder) for folder in folders)
        whole = {n: self.settings.get(n, p.default) for n, p in self.maker.spec.parameters.items()}
        complete = {n: v for n, v in whole.items() if v is not None}
        if len(complete) < len(whole):
            raise ValueError(f"the suite needs values for {', '.join(set(whole) - set(complete))}")
        origin = base if self.maker.spec.needs_base else None
        prompts = self.prompts if self.maker.spec.needs_prompts else ()
        return Ingredients(ParentRef("made", "made"), tuple(of), origin, complete, prompts)

    def made(self, ingredients: Ingredients) -> dict[str, torch.Tensor]:
        """All tensors, each given once."""
        given = list(self.maker.tensors(ingredients, self.maker.plan(ingredients)))
        assert len({name for name, _ in given}) == len(given)
        return dict(given)

    def test_tensors_are_those_of_the_plan(self, ingredients: Ingredients) -> None:
        """Names, shapes and dtypes are as planned, values finite and contiguous; planning twice gives one plan."""
        plan = self.maker.plan(ingredients)
        assert plan == self.maker.plan(ingredients)
        made = self.made(ingredients)
        assert {n: (tuple(t.shape), t.dtype) for n, t in made.items()} == {
            t.name: (t.shape, torch_dtype(t.dtype)) for t in plan.changed
        }
        assert all(bool(t.isfinite().all()) and t.is_contiguous() for t in made.values())

    def test_equal_ingredients_give_equal_bits(self, ingredients: Ingredients) -> None:
        """Twice, and with another number of threads."""
        threads = torch.get_num_threads()
        try:
            first = self.made(ingredients)
            torch.set_num_threads(threads % 2 + 1)
            second = self.made(ingredients)
        finally:
            torch.set_num_threads(threads)
        assert all(second[n].equal(t) for n, t in first.items())

    def test_nothing_else_is_touched(self, ingredients: Ingredients) -> None:
        """Neither the models' tensors, nor the settings, nor global random states."""
        opened = [p for p in (ingredients.base, *ingredients.of) if p is not None]
        before = [{t.name: p.tensor(t.name).clone() for t in p.layout.tensors} for p in opened]
        settings, torch_state = dict(ingredients.settings), torch.random.get_rng_state()
        numpy_state = str(np.random.get_state())  # noqa: NPY002 - what must not be used is looked at
        made = self.made(ingredients)
        for tensor in made.values():
            tensor.zero_()  # what was handed out is not a view of a parent
        assert all(p.tensor(n).equal(t) for p, values in zip(opened, before, strict=True) for n, t in values.items())
        assert dict(ingredients.settings) == settings
        assert torch.random.get_rng_state().equal(torch_state)
        assert str(np.random.get_state()) == numpy_state  # noqa: NPY002

    def test_reports_count_up_and_a_stream_may_be_left(self, ingredients: Ingredients) -> None:
        """Steps done never shrink nor pass their total; what is left half way holds nothing open."""
        told: list[tuple[int, int]] = []
        plan = self.maker.plan(ingredients)
        stream = self.maker.tensors(ingredients, plan, lambda done, total: told.append((done, total)))
        for _ in stream:
            pass
        assert told
        assert [d for d, _ in told] == sorted(d for d, _ in told)
        assert all(0 <= done <= total for done, total in told)
        left = self.maker.tensors(ingredients, plan)
        next(iter(left))
        del left  # an open file would warn

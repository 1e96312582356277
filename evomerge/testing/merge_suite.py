"""The tests that every merge method has to pass, built in or brought by a plug-in.

Subclass it in a test module and say which method is meant:

```python
class TestMine(MergeMethodSuite):
    method = MyMethod()
    shared = {"strength": 0.5}          # parameters without a default, and any others worth trying
    per_parent = {"weight": 0.4}
```
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from evomerge.merging.methods import MergeMethod, Parameters
from evomerge.recipe.recipe import Number
from evomerge.seeds import generator

_SHAPES = [(1,), (5,), (1, 1), (3, 4), (64, 33), (2, 3, 5)]


class MergeMethodSuite:
    """Conformance of one merge method; see the module's text for its use.

    Attributes:
        method: the method.
        shared: values of shared parameters; defaults are filled in.
        per_parent: values that every parent gets; defaults are filled in.
        means: whether equal parents give back that parent (up to rounding); not so for sums of weights that do not
            add up to one, or for random masks.
    """

    method: ClassVar[MergeMethod]
    shared: ClassVar[Mapping[str, Number]] = {}
    per_parent: ClassVar[Mapping[str, Number]] = {}
    means: ClassVar[bool] = False

    def models(self) -> int:
        """How many models are merged: three where the method allows it."""
        spec = self.method.spec
        return min(max(3, spec.min_models), spec.max_models or 3)

    def parameters(self, tensor: str = "model.layers.0.w", seed: int = 0) -> Parameters:
        """Complete parameters for `models()` models."""
        specs = self.method.spec.parameters
        shared = {n: self.shared.get(n, p.default) for n, p in specs.items() if not p.per_parent}
        row = {n: self.per_parent.get(n, p.default) for n, p in specs.items() if p.per_parent}
        lacking = [n for n, v in {**shared, **row}.items() if v is None]
        if lacking:
            raise ValueError(f"the suite needs values for {', '.join(lacking)}")
        names = tuple(f"m{i}" for i in range(self.models()))
        whole: dict[str, Any] = dict(shared)
        return Parameters(tensor, names, whole, tuple(dict(row) for _ in names), seed)  # type: ignore[arg-type]

    def tensors(self, shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """A base, if the method needs one, and models near it; fp32."""
        rng = generator(seed, "merge suite", str(shape))
        base = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
        near = [
            base + torch.from_numpy(0.1 * rng.standard_normal(shape).astype(np.float32)) for _ in range(self.models())
        ]
        return (base if self.method.spec.needs_base else None), near

    @pytest.mark.parametrize("shape", _SHAPES, ids=str)
    def test_shape_dtype_and_finiteness(self, shape: tuple[int, ...]) -> None:
        """The result is fp32, finite and has the parents' shape."""
        base, parents = self.tensors(shape)
        merged = self.method.merge(base, parents, self.parameters())
        assert merged.dtype == torch.float32
        assert merged.shape == torch.Size(shape)
        assert bool(torch.isfinite(merged).all())

    @pytest.mark.parametrize("shape", _SHAPES, ids=str)
    def test_pure(self, shape: tuple[int, ...]) -> None:
        """Arguments are unchanged and shared with nothing; the global random state is untouched; calls repeat."""
        base, parents = self.tensors(shape)
        before = [p.clone() for p in parents] + ([base.clone()] if base is not None else [])
        state = torch.random.get_rng_state()
        first = self.method.merge(base, parents, self.parameters())
        again = self.method.merge(base, parents, self.parameters())
        assert torch.equal(first, again)
        assert torch.equal(state, torch.random.get_rng_state())
        first.add_(1.0)
        after = parents + ([base] if base is not None else [])
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    def test_threads_do_not_matter(self) -> None:
        """One thread and two give the same bits."""
        base, parents = self.tensors((200, 301))
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            one = self.method.merge(base, parents, self.parameters())
            torch.set_num_threads(2)
            two = self.method.merge(base, parents, self.parameters())
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(one, two)

    def test_seed_matters_exactly_when_the_spec_says_so(self) -> None:
        """A method whose spec says `random` depends on seed and tensor name, another on neither."""
        base, parents = self.tensors((64, 65))
        plain = self.method.merge(base, parents, self.parameters(seed=1))
        reseeded = self.method.merge(base, parents, self.parameters(seed=2))
        assert torch.equal(plain, reseeded) != self.method.spec.random

    def test_equal_parents(self) -> None:
        """Equal parents: no NaN from vanishing deltas, and means give the parent back."""
        base, parents = self.tensors((16, 17))
        same = [(parents[0] if base is None else base).clone() for _ in parents]
        merged = self.method.merge(base, same, self.parameters())
        assert bool(torch.isfinite(merged).all())
        if self.means or base is not None:
            torch.testing.assert_close(merged, same[0], rtol=1e-5, atol=1e-6)

    def test_zero_tensors(self) -> None:
        """Tensors of zeros merge to zeros."""
        base, parents = self.tensors((4, 6))
        zeros = [torch.zeros_like(p) for p in parents]
        merged = self.method.merge(None if base is None else torch.zeros_like(base), zeros, self.parameters())
        assert not bool(merged.any())

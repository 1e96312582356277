from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from evomerge.checkpoints.opened import OpenParent
from evomerge.layout import Layout, Role, TensorInfo
from evomerge.recipe.recipe import Number, ParentRef
from evomerge.testing.tiny import tiny_checkpoint
from evomerge.types import Digest
from evomerge.virtual.maker import Ingredients, MadePlan, Maker

Build = Callable[..., dict[str, torch.Tensor]]


class MemoryParent(OpenParent):
    """Tensors in memory; what stands in layer 0 is told by the name."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], model_type: str = "llama") -> None:
        self.source, self.revision, self.folder = "memory", None, Path("/nonexistent")
        self.config = {"model_type": model_type, "num_hidden_layers": 1}
        self.values = dict(tensors)
        self.layout = Layout(1, tuple(_info(n, tuple(t.shape)) for n, t in sorted(self.values.items())))
        self.tied_embeddings, self.header_digest = False, Digest("0" * 64)

    @property
    def content(self) -> Digest:
        return Digest("0" * 64)

    def tensor(self, name: str) -> torch.Tensor:
        return self.values[name]

    def close(self) -> None:
        pass


def _info(name: str, shape: tuple[int, ...]) -> TensorInfo:
    roles: dict[str, Role] = {"norm": "norm", "embed": "embedding", "head": "head"}
    role = next((r for word, r in roles.items() if word in name), "mlp")
    return TensorInfo(name, shape, "F32", 0 if ".0." in name else None, role)


@pytest.fixture
def build() -> Build:
    """Runs a maker on tensors in memory: (maker, base, models, settings) -> the made tensors."""

    def make(
        maker: Maker,
        base: Mapping[str, torch.Tensor],
        models: list[Mapping[str, torch.Tensor]],
        settings: Mapping[str, Number],
        model_type: str = "llama",
    ) -> dict[str, torch.Tensor]:
        under = MemoryParent(base, model_type)
        parents = tuple(MemoryParent(m, model_type) for m in models)
        complete = {n: p.default for n, p in maker.spec.parameters.items() if p.default is not None} | dict(settings)
        ingredients = Ingredients(ParentRef("made", "made"), parents, under, complete)
        return dict(maker.tensors(ingredients, MadePlan(under, under.layout.tensors)))

    return make


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, ParentRef]:
    """A tiny Llama base and three others in bf16, as recipes name them. Never write into them."""
    root = tmp_path_factory.mktemp("siblings")
    names = ("base", "math", "code", "chat")
    folders = {n: tiny_checkpoint(root / n, "llama", seed, dtype="bfloat16") for seed, n in enumerate(names)}
    return {n: ParentRef(n, str(folder)) for n, folder in folders.items()}

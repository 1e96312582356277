"""The memory of a merge does not grow with the checkpoint: measured on a real run of the command."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.merging.execute import merge_into, new_tensor, prepare
from evomerge.merging.kernels import Kernels
from evomerge.merging.parents import ParentPool
from evomerge.merging.plan import plan_merge
from evomerge.recipe.recipe import ParentRef, Recipe, Rule
from evomerge.recipe.serialize import recipe_to_text

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")

LIMIT_MIB = 128
"""What docs/memory.md promises: anonymous memory beyond what the program takes to merge next to nothing."""

NAMES = ("base", "moved", "partly")
VALUES = {"moved": {"weight": 0.5, "density": 0.4}, "partly": {"weight": 0.75, "density": 0.6}}
WEIGHTS = {name: {"weight": values["weight"]} for name, values in VALUES.items()}
RULES = (
    Rule("linear", {}, WEIGHTS, roles=("norm",)),
    Rule("dare_ties", {}, VALUES, roles=("attention",)),
    Rule("ties", {}, VALUES),
)


def build(folder: Path, hidden: int, vocabulary: int) -> Path:
    """Three parents in bf16 and a recipe; the MLPs of `partly` are the base's, so all their deltas are equal."""
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", "tie_word_embeddings": True,
        "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 2, "vocab_size": vocabulary,
        "num_attention_heads": 4, "num_key_value_heads": 4,
    }  # fmt: skip
    square, wide, row = (hidden, hidden), (2 * hidden, hidden), (hidden,)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": row}
    for layer in ("model.layers.0", "model.layers.1"):
        shapes |= {f"{layer}.self_attn.{p}_proj.weight": square for p in "qkvo"}
        shapes |= {f"{layer}.mlp.{p}_proj.weight": wide for p in ("gate", "up")}
        shapes |= {f"{layer}.mlp.down_proj.weight": wide[::-1]}
        shapes |= {f"{layer}.{p}_layernorm.weight": row for p in ("input", "post_attention")}
    noise = {name: 0.02 * torch.randn(1 << 20, generator=torch.Generator().manual_seed(len(name))) for name in NAMES}
    values = {"base": noise["base"].bfloat16()}
    values |= {name: (values["base"].float() + 0.02 * noise[name]).bfloat16() for name in NAMES[1:]}
    for name in NAMES:
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        tensors = {}
        for tensor, shape in shapes.items():
            n = torch.Size(shape).numel()
            source = "base" if name == "partly" and "mlp" in tensor else name
            tensors[tensor] = values[source].repeat(n // (1 << 20) + 1)[:n].view(shape)
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
    refs = tuple(ParentRef(name, str(folder / name)) for name in NAMES)
    (folder / "recipe.json").write_text(recipe_to_text(Recipe(refs, "base", RULES, seed=1)))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    root = tmp_path_factory.mktemp("merge_memory")
    yield build(root / "tiny", 32, 100), build(root / "large", 1024, 70_000)
    shutil.rmtree(root)


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "evomerge", "merge", str(folder / "recipe.json"), "--to", str(folder / "merged")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "EVOMERGE_CACHE": str(folder / "cache")}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def peaks(children: list[subprocess.Popen[str]]) -> list[float]:
    """The largest anonymous memory of each process until it ends, in MiB."""
    found = [0.0] * len(children)
    while any(child.poll() is None for child in children):
        for i, child in enumerate(children):
            try:
                status = Path(f"/proc/{child.pid}/status").read_text()
            except OSError:
                continue
            told = re.search(r"RssAnon:\s+(\d+) kB", status)
            found[i] = max(found[i], int(told[1]) / 1024 if told else 0.0)
        time.sleep(0.002)
    return found


def test_a_merge_takes_little_memory_whatever_the_size(folders: tuple[Path, Path]) -> None:
    parents = sum(f.stat().st_size for f in folders[1].rglob("*.safetensors")) / 2**20
    assert parents > 4 * LIMIT_MIB
    largest = 70_000 * 1024 * 2 / 2**20
    assert largest > LIMIT_MIB  # not even one tensor of the result has room
    children = [start(folder) for folder in folders]
    small, large = peaks(children)
    told = [child.communicate()[0] for child in children]
    assert [child.returncode for child in children] == [0, 0], told
    assert large - small < LIMIT_MIB, f"{large:.0f} MiB, and {small:.0f} for next to nothing"
    merged = open_checkpoint(folders[1] / "merged")
    pool = ParentPool({name: open_checkpoint(folders[1] / name) for name in NAMES})
    refs = tuple(ParentRef(name, name) for name in NAMES)
    plan = plan_merge(Recipe(refs, "base", RULES, seed=1), pool)
    for tensor in plan.tensors:
        if tensor.info.layer == 0:  # the others are large and take long without a compiler
            whole = new_tensor(tensor)
            merge_into(tensor, prepare(plan, tensor, pool, Kernels()), whole.view(-1))
            assert torch.equal(merged.tensor(tensor.info.name), whole), tensor.info.name

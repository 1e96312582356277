"""The memory of `evomerge merge` on a checkpoint larger than the memory it is given.

    python benchmarks/merge_memory.py               0.95 B parameters, a base and two parents in bf16, 5.7 GB
    python benchmarks/merge_memory.py --small       60 M parameters

Each method is a run of the command in a control group of its own (version 1 or 2, where this user may make one), whose
limit counts everything: anonymous memory, mapped files and the cache of what is read and written. Files are dropped
from the system's cache before every run. Peaks are sampled every 2 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import machine_facts, one_thread

one_thread()

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from evomerge.recipe.recipe import ParentRef, Recipe, Rule  # noqa: E402
from evomerge.recipe.serialize import recipe_to_text  # noqa: E402

SIZES = {"full": (2048, 5632, 16, 32000), "small": (512, 1408, 8, 32000)}
LIMITS_MIB = {"full": 640, "small": 480}
NAMES = ("base", "x", "y")
VALUES = {"x": {"weight": 0.5, "density": 0.4}, "y": {"weight": 0.75, "density": 0.6}}
WEIGHTS = {name: {"weight": values["weight"]} for name, values in VALUES.items()}
RULES = {
    "linear": Rule("linear", {}, WEIGHTS),
    "slerp": Rule("slerp", {"t": 0.3}, {"x": {}, "y": {}}),
    "ties": Rule("ties", {}, VALUES),
    "dare_ties": Rule("dare_ties", {}, VALUES),
    "della": Rule("della", {}, {n: {**v, "epsilon": 0.1} for n, v in VALUES.items()}),
}
NOISE = 1 << 22
GROUPS = (
    ("cgroup.controllers", "memory.max", Path("/sys/fs/cgroup")),
    ("memory.limit_in_bytes", "memory.limit_in_bytes", Path("/sys/fs/cgroup/memory")),
)


def shapes_of(hidden: int, wide: int, layers: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama's tensors."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "lm_head.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{p}_proj.weight": (hidden, hidden) for p in "qkvo"}
        shapes |= {f"{prefix}.mlp.{p}_proj.weight": (wide, hidden) for p in ("gate", "up")}
        shapes |= {f"{prefix}.mlp.down_proj.weight": (hidden, wide)}
        shapes |= {f"{prefix}.{p}_layernorm.weight": (hidden,) for p in ("input", "post_attention")}
    return shapes


def build(folder: Path, size: tuple[int, int, int, int]) -> None:
    """A base N(0, 0.02) in bf16 and two parents at N(0, 4e-4) from it; noise repeats every four million elements."""
    hidden, wide, layers, vocabulary = size
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", "hidden_size": hidden,
        "intermediate_size": wide, "num_hidden_layers": layers, "vocab_size": vocabulary,
        "num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64, "tie_word_embeddings": False,
    }  # fmt: skip
    drawn = [torch.empty(NOISE).normal_(generator=torch.Generator().manual_seed(i)) for i in range(len(NAMES))]
    base = (0.02 * drawn[0]).bfloat16()
    values = {"base": base} | {n: (base.float() + 4e-4 * drawn[i + 1]).bfloat16() for i, n in enumerate(NAMES[1:])}
    for name in NAMES:
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        tensors = {}
        for tensor, shape in shapes_of(*size).items():
            n = torch.Size(shape).numel()
            tensors[tensor] = values[name].repeat(n // NOISE + 1)[:n].view(shape)
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})


def forget(folder: Path) -> None:
    """Drop the files of a folder from the system's cache."""
    for path in folder.rglob("*.safetensors"):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def limited(limit_mib: int) -> Path | None:
    """A control group with a limit; None where none can be made."""
    for sign, file, root in GROUPS:
        group = root / f"evomerge-{os.getpid()}"
        if not (root / sign).exists():
            continue
        try:
            group.mkdir()
            (group / file).write_text(str(limit_mib << 20))
        except OSError:
            if group.exists():
                group.rmdir()
            continue
        return group
    return None


def run(command: list[str], group: Path | None, cache: Path) -> dict[str, Any]:
    """Run a child in a control group and watch it: peaks in MiB, seconds."""
    if group is not None:
        command = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"), *command]
    environment = {**os.environ, "EVOMERGE_CACHE": str(cache)}
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    peaks = {"RssAnon": 0.0, "RssFile": 0.0}
    while child.poll() is None:
        try:
            status = Path(f"/proc/{child.pid}/status").read_text()
        except OSError:
            break
        for name, peak in peaks.items():
            told = re.search(rf"{name}:\s+(\d+) kB", status)
            peaks[name] = max(peak, int(told[1]) / 1024 if told else 0.0)
        time.sleep(0.002)
    output = child.communicate()[0]
    if child.returncode:
        raise RuntimeError(f"{command} ended with {child.returncode}: {output[-2000:]}")
    return {**peaks, "seconds": time.perf_counter() - started}


def measure(folder: Path, size: str, limit_mib: int) -> dict[str, Any]:
    """All methods, beside a merge of next to nothing."""
    for name in ("tiny", "large"):
        (folder / name).mkdir()
        build(folder / name, SIZES[size] if name == "large" else (64, 128, 1, 100))
    group = limited(limit_mib)
    found: dict[str, Any] = {"limit_mib": limit_mib if group else None}
    for method, rule in RULES.items():
        base = None if method in ("linear", "slerp") else "base"
        for name in ("tiny", "large"):
            at = folder / name
            refs = tuple(ParentRef(n, str(at / n)) for n in NAMES if base or n != "base")
            (at / "recipe.json").write_text(recipe_to_text(Recipe(refs, base, (rule,), seed=1)))
            forget(at)
            command = [sys.executable, "-m", "evomerge", "merge", str(at / "recipe.json"), "--to", str(at / "merged")]
            found[f"{method} {name}"] = run(command, group, folder / "cache")
            shutil.rmtree(at / "merged")
    if group is not None:
        group.rmdir()
    found["parents_mib"] = sum(p.stat().st_size for p in (folder / "large").rglob("*.safetensors")) / 2**20
    return found


def show(found: dict[str, Any]) -> None:
    """Print the figures as a table in Markdown."""
    limit = f"at most {found['limit_mib']} MiB in all" if found["limit_mib"] else "no limit"
    print(f"{found['parents_mib']:,.0f} MiB of a base and two parents; {limit}\n")
    print("| method | anonymous, MiB | beyond a merge of next to nothing | mapped, MiB | s |")
    print("|---|---|---|---|---|")
    for method in RULES:
        large, tiny = found[f"{method} large"], found[f"{method} tiny"]
        more = large["RssAnon"] - tiny["RssAnon"]
        print(f"| {method} | {large['RssAnon']:.0f} | {more:.0f} | {large['RssFile']:.0f} | {large['seconds']:.0f} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--limit", type=int, help="MiB")
    parser.add_argument("--json", type=Path, help="write figures here")
    arguments = parser.parse_args()
    size = "small" if arguments.small else "full"
    with tempfile.TemporaryDirectory(prefix="evomerge-memory-") as folder:
        found = {**measure(Path(folder), size, arguments.limit or LIMITS_MIB[size]), "machine": machine_facts()}
    show(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

"""How fast a merge is: ours in place and file to file, mergekit 0.1.5 in memory and file to file, and how they agree.

    python benchmarks/merge.py              about 0.3 B parameters, 3 parents and a base, 10 to 15 minutes
    python benchmarks/merge.py --small      about 20 M parameters, one minute

Every process uses one thread. Figures are medians of interleaved runs; the machine's copy bandwidth is measured between
them. "Share" is the least traffic of a method (each parent read once, the result written once) over time and bandwidth.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from machine import ONE_THREAD, machine_facts, one_thread

one_thread()

import torch  # noqa: E402
import yaml  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from evomerge.checkpoints.reader import open_checkpoint  # noqa: E402
from evomerge.merging.export import merge_tensors  # noqa: E402
from evomerge.merging.foresight import variants_of  # noqa: E402
from evomerge.merging.kernels import Kernels, compile_kernels  # noqa: E402
from evomerge.merging.parents import ParentPool  # noqa: E402
from evomerge.merging.resident import ResidentModel  # noqa: E402
from evomerge.recipe.recipe import ParentRef, Recipe, Rule  # noqa: E402
from evomerge.recipe.serialize import recipe_to_text  # noqa: E402

SIZES = {
    "full": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 20, "vocab_size": 32000},
    "small": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "vocab_size": 8000},
}
EXPERTS = ("x", "y", "z")
METHODS = ("linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties")
PEER_METHODS = ("linear", "slerp", "task_arithmetic", "ties")
TRAFFIC = {"linear": 4, "slerp": 3}
"""Models read or written once per merge; 5 for methods with a base and three parents."""


def config_of(size: dict[str, int]) -> dict[str, Any]:
    """config.json of the random Llama."""
    heads = size["hidden_size"] // 64
    fixed = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "torch_dtype": "bfloat16",
        "dtype": "bfloat16",
    }
    return {**fixed, **size, "num_attention_heads": heads, "num_key_value_heads": heads, "tie_word_embeddings": False}


def shapes_of(size: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of its tensors."""
    h, i, v = size["hidden_size"], size["intermediate_size"], size["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (v, h),
        "lm_head.weight": (v, h),
        "model.norm.weight": (h,),
    }
    for layer in range(size["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{p}_proj.weight": (h, h) for p in "qkvo"}
        shapes |= {f"{prefix}.mlp.{p}_proj.weight": (i, h) for p in ("gate", "up")}
        shapes[f"{prefix}.mlp.down_proj.weight"] = (h, i)
        shapes |= {f"{prefix}.{n}.weight": (h,) for n in ("input_layernorm", "post_attention_layernorm")}
    return shapes


def build_models(folder: Path, size: dict[str, int], seed: int) -> dict[str, Path]:
    """A base N(0, 0.02) in bf16 and three experts whose deltas are N(0, 4e-4), as fine-tuning leaves them."""
    base: dict[str, torch.Tensor] = {}
    folders = {}
    for number, name in enumerate(("base", *EXPERTS)):
        generator = torch.Generator().manual_seed(seed * 10 + number)
        tensors = {}
        for tensor, shape in shapes_of(size).items():
            noise = torch.empty(shape).normal_(generator=generator)
            tensors[tensor] = (base[tensor].float() + 4e-4 * noise if base else 0.02 * noise).bfloat16()
        base = base or tensors
        folders[name] = folder / name
        folders[name].mkdir()
        save_file(tensors, folders[name] / "model.safetensors", {"format": "pt"})
        (folders[name] / "config.json").write_text(json.dumps(config_of(size)))
    return folders


def recipe_of(
    method: str, folders: dict[str, Path], step: int = 0, compat: str = "off", density: float = 0.5
) -> Recipe:
    """A recipe; `step` changes every weight a little, so that nothing of the last merge can be reused."""
    shift = 0.01 * (step % 20)
    if method == "slerp":
        refs = tuple(ParentRef(n, str(folders[n])) for n in EXPERTS[:2])
        return Recipe(refs, None, (Rule("slerp", {"t": 0.3 + shift}),), compat=compat)  # type: ignore[arg-type]
    names = EXPERTS if method == "linear" else ("base", *EXPERTS)
    values: dict[str, dict[str, float]] = {n: {"weight": 0.3 + 0.1 * i + shift} for i, n in enumerate(EXPERTS)}
    if method not in {"linear", "task_arithmetic"}:
        values = {n: {**v, "density": density} for n, v in values.items()}
    refs = tuple(ParentRef(n, str(folders[n])) for n in names)
    base = None if method == "linear" else "base"
    return Recipe(refs, base, (Rule(method, {}, values),), compat=compat)  # type: ignore[arg-type]


def timed(action: Callable[[], object]) -> float:
    """Seconds that `action` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure_in_place(folders: dict[str, Path], cache: Path, repeats: int) -> dict[str, Any]:
    """Ours, into a resident model: preparation, then every method in turn, `repeats` times."""
    pool = ParentPool({n: open_checkpoint(f) for n, f in folders.items()})
    variants = frozenset().union(*(variants_of(recipe_of(m, folders), pool) for m in METHODS))
    compile_s = timed(lambda: compile_kernels(variants, cache))
    kernels = compile_kernels(variants, cache)
    holder: list[ResidentModel] = []
    load_s = timed(lambda: holder.append(ResidentModel(pool, "base", kernels=kernels)))
    resident = holder[0]
    n_bytes = sum(p.numel() * p.element_size() for p in resident.model.parameters())
    first = {m: timed(lambda m=m: resident.apply(recipe_of(m, folders, 19))) for m in METHODS}  # type: ignore[misc]
    source, target = (torch.ones(n_bytes // 4) for _ in range(2))
    seconds: dict[str, list[float]] = {m: [] for m in (*METHODS, "ties, other densities", "copy")}
    for step in range(repeats):
        seconds["copy"].append(timed(lambda: target.copy_(source)))
        for method in METHODS:
            recipe = recipe_of(method, folders, step)
            seconds[method].append(timed(lambda recipe=recipe: resident.apply(recipe)))  # type: ignore[misc]
        recipe = recipe_of("ties", folders, step, density=0.3 + 0.01 * step)
        seconds["ties, other densities"].append(timed(lambda recipe=recipe: resident.apply(recipe)))  # type: ignore[misc]
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    bandwidth = 2 * n_bytes / medians["copy"]
    rows = {}
    for method in METHODS:
        traffic = TRAFFIC.get(method, 5) * n_bytes
        rows[method] = {"s": medians[method], "share_of_copy": traffic / medians[method] / bandwidth}
    rows["ties, other densities"] = {"s": medians["ties, other densities"]}
    return {
        "n_parameters": n_bytes // 2,
        "copy_gb_s": bandwidth / 1e9,
        "one_time_s": {
            "compile": compile_s,
            "load the template": load_s,
            **{f"first {m}": first[m] - medians[m] for m in ("slerp", "ties")},
        },
        "in_place": rows,
    }


def measure_eager(folders: dict[str, Path]) -> dict[str, float]:
    """The path without a compiler: seconds of the second merge of each method."""
    pool = ParentPool({n: open_checkpoint(f) for n, f in folders.items()})
    resident = ResidentModel(pool, "base", kernels=Kernels())
    rows = {}
    for method in METHODS:
        resident.apply(recipe_of(method, folders, 1))
        recipe = recipe_of(method, folders, 2)
        rows[method] = timed(lambda recipe=recipe: resident.apply(recipe))  # type: ignore[misc]
    return rows


def mergekit_parameters(method: str, recipe: Recipe) -> dict[str, Any]:
    """The recipe's numbers, as mergekit's Python interface takes them."""
    rule = recipe.rules[0]
    if method == "slerp":
        return dict(rule.shared)
    columns = {k: {n: v[k] for n, v in rule.per_parent.items()} for k in next(iter(rule.per_parent.values()))}
    return {k: {n: float(v) for n, v in column.items()} for k, column in columns.items()}


def measure_mergekit(folders: dict[str, Path], ours: dict[str, Any]) -> dict[str, Any]:
    """`merge_state_dicts` on tensors in memory, and how its results agree with ours."""
    from mergekit.merge_methods import merge_state_dicts

    pool = ParentPool({n: open_checkpoint(f) for n, f in folders.items()})
    rows = {}
    for method in PEER_METHODS:
        recipe = recipe_of(method, folders)
        states = {
            p.name: {
                t.name: pool.checkpoint(p.name).tensor(t.name).clone() for t in pool.checkpoint(p.name).layout.tensors
            }
            for p in recipe.parents
        }
        base = recipe.base or (recipe.parents[0].name if method == "slerp" else None)
        start = time.perf_counter()
        with torch.no_grad():
            theirs = merge_state_dicts(states, method, parameters=mergekit_parameters(method, recipe), base=base)
        seconds = time.perf_counter() - start
        rows[method] = {
            "s": seconds,
            "times_ours": seconds / ours["in_place"][method]["s"],
            **agreement(method, folders, pool, theirs),
        }
    return rows


def agreement(
    method: str, folders: dict[str, Path], pool: ParentPool, theirs: dict[str, torch.Tensor]
) -> dict[str, Any]:
    """Entries of compat mode that differ (to be 0), and how far the default is from mergekit's bf16 arithmetic."""
    differing = total = default_differs = 0
    square = reference = 0.0
    compat = merge_tensors(recipe_of(method, folders, compat="mergekit"), pool)
    default = merge_tensors(recipe_of(method, folders), pool)
    for (name, exact), (_, ours) in zip(compat, default, strict=True):
        differing += int((exact.view(torch.int16) != theirs[name].view(torch.int16)).sum())
        default_differs += int((ours != theirs[name]).sum())
        total += exact.numel()
        square += float((ours.float() - theirs[name].float()).square().sum(dtype=torch.float64))
        step = ours.float() - pool.checkpoint("base").tensor(name).float()
        reference += float(step.square().sum(dtype=torch.float64))
    return {
        "entries": total,
        "compat_differs": differing,
        "default_differs_share": default_differs / total,
        "default_rms_of_step": (square / reference) ** 0.5,
    }


def mergekit_yaml(method: str, recipe: Recipe) -> str:
    """The recipe as a mergekit file."""
    rule = recipe.rules[0]
    names = [p.name for p in recipe.parents if p.name != recipe.base]
    sources = {p.name: p.source for p in recipe.parents}
    config: dict[str, Any] = {
        "merge_method": method,
        "dtype": "bfloat16",
        "parameters": {k: float(v) for k, v in rule.shared.items()},
        "models": [
            {"model": sources[n], "parameters": {k: float(v) for k, v in rule.per_parent.get(n, {}).items()}}
            for n in names
        ],
    }
    if recipe.base or method == "slerp":
        config["base_model"] = sources[recipe.base or names[0]]
    return yaml.safe_dump(config)


def run_process(command: Iterable[str], log: Path) -> float:
    """Seconds of a whole process on one thread.

    Raises:
        RuntimeError: when it fails.
    """
    with log.open("w") as out:
        start = time.perf_counter()
        done = subprocess.run(
            [*command], stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **ONE_THREAD}, check=False
        )
        seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")
    return seconds


def measure_files(folders: dict[str, Path], work: Path, repeats: int) -> dict[str, Any]:
    """File to file, whole processes: mergekit-yaml and `evomerge merge`, in turn."""
    rows = {}
    beside = Path(sys.executable).parent
    for method in PEER_METHODS:
        recipe = recipe_of(method, folders)
        (work / "recipe.json").write_text(recipe_to_text(recipe))
        (work / "mergekit.yaml").write_text(mergekit_yaml(method, recipe))
        ours, theirs = [], []
        for _ in range(1 if method == "ties" else repeats):
            for seconds, command in (
                (ours, [str(beside / "evomerge"), "merge", str(work / "recipe.json"), "--to", str(work / "out")]),
                (
                    theirs,
                    [
                        str(beside / "mergekit-yaml"),
                        str(work / "mergekit.yaml"),
                        str(work / "out"),
                        "--no-copy-tokenizer",
                    ],
                ),
            ):
                seconds.append(run_process(command, work / "log.txt"))
                shutil.rmtree(work / "out")
        ours_s, theirs_s = statistics.median(ours), statistics.median(theirs)
        rows[method] = {"evomerge_s": ours_s, "mergekit_s": theirs_s, "ratio": theirs_s / ours_s}
    return rows


def show(result: dict[str, Any]) -> None:
    """The result as text."""
    print(
        f"{result['n_parameters'] / 1e6:.1f} M parameters; copy bandwidth {result['copy_gb_s']:.1f} GB/s on one thread"
    )
    print(f"machine: {result['machine']}")
    print("\nOne-time preparation:", ", ".join(f"{k} {v:.2f} s" for k, v in result["one_time_s"].items()))
    print("\nIn place, one thread            s   share of copy   without compiler s")
    for method, row in result["in_place"].items():
        share = f"{100 * row['share_of_copy']:.0f} %" if "share_of_copy" in row else ""
        eager = f"{result['eager_s'][method]:.3f}" if method in result["eager_s"] else ""
        print(f"  {method:24s} {row['s']:8.4f} {share:>12s} {eager:>18s}")
    print("\nmergekit in memory              s   times ours   compat differs   default differs   rms / step")
    for method, row in result["mergekit"].items():
        print(
            f"  {method:24s} {row['s']:8.2f} {row['times_ours']:10.1f}x"
            f" {row['compat_differs']:>10d} of {row['entries']}"
            f" {100 * row['default_differs_share']:10.2f} % {row['default_rms_of_step']:12.4f}"
        )
    print("\nFile to file, whole process    evomerge s   mergekit s   ratio")
    for method, row in result["files"].items():
        print(f"  {method:24s} {row['evomerge_s']:12.2f} {row['mergekit_s']:12.2f} {row['ratio']:7.1f}x")


def tell(stage: str) -> None:
    """Show what is measured now, on standard error."""
    print(f"[{time.strftime('%H:%M:%S')}] {stage}", file=sys.stderr, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="about 20 M parameters")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-files", action="store_true", help="leave the file to file part out")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    size = SIZES["small" if options.small else "full"]
    with tempfile.TemporaryDirectory(prefix="evomerge-benchmark-") as name:
        work = Path(name)
        tell("in place")
        folders = build_models(work, size, options.seed)
        result = measure_in_place(folders, work / "cache", options.repeats)
        tell("without compiler")
        result["eager_s"] = measure_eager(folders)
        tell("mergekit in memory")
        result["mergekit"] = measure_mergekit(folders, result)
        tell("file to file")
        result["files"] = {} if options.no_files else measure_files(folders, work, min(3, options.repeats))
    result["machine"] = machine_facts()
    if options.json:
        print(json.dumps(result))
    else:
        show(result)


if __name__ == "__main__":
    main()

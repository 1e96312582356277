"""Every merge method: nanoseconds per parameter and share of the copy bandwidth, ours in place and mergekit in memory.

    python benchmarks/merge_methods.py                 64 M parameters, three parents and a base, bf16: half an hour
    python benchmarks/merge_methods.py --millions 8    a few minutes

One process, one thread, the same tensors for both programs; medians of several runs, every run with other weights so
that nothing is reused. "First" is the one-time preparation of a method: what its first merge takes longer than a later
one (histograms, ranks, inner products; compiled kernels are there before). Agreement is told twice: the share of equal
bits of `compat: mergekit`, and the root mean square of the default's difference from mergekit's result in fp32
arithmetic over that of the step from the base. Random methods draw other masks and agree only statistically; see
docs/parity.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from machine import machine_facts, one_thread, run_apart

one_thread()

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from evomerge.checkpoints.reader import open_checkpoint  # noqa: E402
from evomerge.merging.execute import merge_into, new_tensor, prepare  # noqa: E402
from evomerge.merging.foresight import variants_of  # noqa: E402
from evomerge.merging.kernels import Kernels, compile_kernels  # noqa: E402
from evomerge.merging.parents import ParentPool  # noqa: E402
from evomerge.merging.plan import plan_merge  # noqa: E402
from evomerge.recipe.mergekit_specs import MERGEKIT_SPECS  # noqa: E402
from evomerge.recipe.method_spec import MethodSpec  # noqa: E402
from evomerge.recipe.methods import BUILTIN  # noqa: E402
from evomerge.recipe.recipe import Compat, ParentRef, Recipe, Rule  # noqa: E402

WIDTH = 2048
MODELS = ("x", "y", "z")
MERGEKIT = {spec.name for spec in MERGEKIT_SPECS}
RANDOM = {name for name, spec in BUILTIN.items() if spec.random}
CHOSEN: Mapping[str, float] = {
    "density": 0.5,
    "t": 0.3,
    "epsilon": 0.15,
    "gamma": 0.01,
    "select_topk": 0.5,
    "scale": 1.0,
}
"""What is set where a method has it, instead of a default that would do nothing."""
NEARSWAP_T = 1e-4


def build_models(folder: Path, millions: int, dtype: torch.dtype) -> dict[str, Path]:
    """A base N(0, 0.02) and three models whose deltas are N(0, 4e-4): square matrices in as many layers as it takes."""
    n_layers = max(1, round(millions * 1e6 / WIDTH**2))
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": n_layers}
    base: dict[str, torch.Tensor] = {}
    folders = {}
    for number, name in enumerate(("base", *MODELS)):
        generator = torch.Generator().manual_seed(number)
        tensors = {}
        for layer in range(n_layers):
            key = f"model.layers.{layer}.mlp.up_proj.weight"
            noise = torch.empty(WIDTH, WIDTH).normal_(generator=generator)
            tensors[key] = (base[key].float() + 4e-4 * noise if base else 0.02 * noise).to(dtype)
        base = base or tensors
        folders[name] = folder / name
        folders[name].mkdir()
        save_file(tensors, folders[name] / "model.safetensors", {"format": "pt"})
        (folders[name] / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    return folders


def models_of(spec: MethodSpec) -> tuple[str, ...]:
    """As many models as the method takes, three at most."""
    return MODELS[: min(3, spec.max_models or 3)]


def recipe_of(spec: MethodSpec, folders: Mapping[str, Path], step: int, compat: Compat = "off") -> Recipe:
    """A recipe; `step` changes what can be changed a little, so that nothing of the last merge is reused."""
    shift = 0.002 * (step % 40)
    shared: dict[str, float | bool] = {}
    row: dict[str, float | bool] = {}
    for name, parameter in spec.parameters.items():
        value = 0.3 if name == "weight" else CHOSEN.get(name, parameter.default)
        if value is None:
            raise ValueError(f"{spec.name} needs a value for {name}")
        if name in ("weight", "t", "scale", "lambda"):
            value = float(value) + shift
        (row if parameter.per_parent else shared)[name] = value
    if spec.name == "nearswap":
        shared["t"] = NEARSWAP_T * (1 + shift)
    models = models_of(spec)
    names = models if not spec.needs_base else ("base", *models)
    per_parent = {m: {k: v + (0.05 * i if k == "weight" else 0) for k, v in row.items()} for i, m in enumerate(models)}
    refs = tuple(ParentRef(n, str(folders[n])) for n in names)
    rule = Rule(spec.name, shared, per_parent if row else {})
    return Recipe(refs, "base" if spec.needs_base else None, (rule,), compat=compat)


def timed(action: Callable[[], object]) -> float:
    """Seconds that `action` takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


class Ours:
    """Merges into memory that is there already, as a resident model does."""

    def __init__(self, folders: Mapping[str, Path], kernels: Kernels) -> None:
        self._folders = folders
        self._kernels = kernels
        self.pool = ParentPool({n: open_checkpoint(f) for n, f in folders.items()})
        self.out: dict[str, torch.Tensor] = {}

    def merge(self, spec: MethodSpec, step: int, compat: Compat = "off") -> None:
        """One whole merge."""
        plan = plan_merge(recipe_of(spec, self._folders, step, compat), self.pool)
        for tensor in plan.tensors:
            if tensor.info.name not in self.out:
                self.out[tensor.info.name] = new_tensor(tensor)
            work = prepare(plan, tensor, self.pool, self._kernels)
            merge_into(tensor, work, self.out[tensor.info.name].view(-1))


def theirs(spec: MethodSpec, folders: Mapping[str, Path], pool: ParentPool, step: int, **more: Any) -> dict[str, Any]:
    """The merge of the same tensors by mergekit, in memory."""
    from mergekit.merge_methods import merge_tensors

    recipe = recipe_of(spec, folders, step)
    rule = recipe.rules[0]
    names = [p.name for p in recipe.parents]
    base_index = 0 if recipe.base is not None or spec.name == "slerp" else None
    parameters: dict[str, Any] = dict(rule.shared)
    for key in spec.per_parent():
        # per-input parameters go to the inputs other than the base, in mergekit's order
        parameters[key] = {n: v[key] for n, v in rule.per_parent.items()}
    whole = {}
    with torch.no_grad():
        for info in pool.checkpoint(names[0]).layout.tensors:
            inputs = [pool.checkpoint(n).tensor(info.name) for n in names]
            whole[info.name] = merge_tensors(
                inputs, spec.name, parameters=parameters, ids=names, base_index=base_index, **more
            )
    return whole


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All methods: ours `repeats` times in turn, mergekit's fewer times between them."""
    dtype = getattr(torch, arguments.dtype)
    folders = build_models(folder, arguments.millions, dtype)
    wanted = [BUILTIN[name] for name in arguments.methods or BUILTIN]
    pool = ParentPool({n: open_checkpoint(f) for n, f in folders.items()})
    variants = frozenset().union(*(variants_of(recipe_of(s, folders, 0), pool) for s in wanted))
    kernels = compile_kernels(variants, folder / "kernels")
    n_parameters = sum(t.shape[0] * t.shape[1] for t in pool.checkpoint("base").layout.tensors)
    first, later, copies = {}, {}, []
    source, target = (torch.ones(n_parameters, dtype=dtype) for _ in range(2))
    for spec in wanted:
        ours = Ours(folders, kernels)
        first[spec.name] = timed(lambda ours=ours, spec=spec: ours.merge(spec, 0))  # type: ignore[misc]
        times = []
        for step in range(1, arguments.repeats + 1):
            copies.append(timed(lambda: target.copy_(source)))
            times.append(timed(lambda ours=ours, spec=spec, step=step: ours.merge(spec, step)))  # type: ignore[misc]
        later[spec.name] = statistics.median(times)
        print(f"{spec.name}: {later[spec.name]:.3f} s", flush=True)
    rows = {}
    for spec in wanted:
        row = {"s": later[spec.name], "first_s": first[spec.name] - later[spec.name]}
        rows[spec.name] = row | (peer(spec, folders, kernels, arguments) if spec.name in MERGEKIT else {})
    bandwidth = 2 * source.nbytes / statistics.median(copies)
    return {
        "machine": machine_facts(),
        "dtype": arguments.dtype,
        "n_parameters": n_parameters,
        "bytes_per_entry": source.element_size(),
        "copy_gb_s": bandwidth / 1e9,
        "methods": rows,
    }


def peer(
    spec: MethodSpec, folders: Mapping[str, Path], kernels: Kernels, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Seconds that mergekit takes, and how its results and ours agree."""
    ours = Ours(folders, kernels)
    seconds = []
    result: dict[str, Any] = {}
    for step in range(arguments.peer_repeats):
        start = time.perf_counter()
        result = theirs(spec, folders, ours.pool, step)
        seconds.append(time.perf_counter() - start)
    step = arguments.peer_repeats - 1
    median = statistics.median(seconds)
    print(f"mergekit {spec.name}: {median:.3f} s", flush=True)
    row: dict[str, Any] = {"mergekit_s": median}
    if spec.name in RANDOM:
        return row
    ours.merge(spec, step, "mergekit")
    equal = sum(int((ours.out[n] == x).sum()) for n, x in result.items())
    row["compat_equal_share"] = equal / sum(x.numel() for x in result.values())
    exact = theirs(spec, folders, ours.pool, step, dtype=torch.float32)
    ours = Ours(folders, kernels)
    ours.merge(spec, step)
    apart = moved = 0.0
    for name, x in exact.items():
        base = ours.pool.checkpoint("base").tensor(name).float()
        # rounded alike, so that only the arithmetic differs
        apart += float((ours.out[name].float() - x.to(ours.out[name].dtype).float()).square().sum(dtype=torch.float64))
        moved += float((x - base).square().sum(dtype=torch.float64))
    row["default_rms_of_step"] = (apart / moved) ** 0.5 if moved else 0.0
    return row


def traffic(spec: MethodSpec) -> int:
    """Entries read and written per parameter at the least: every input once, the result once."""
    return len(models_of(spec)) + (2 if spec.needs_base else 1)


def show(result: Mapping[str, Any]) -> None:
    """The tables."""
    n = result["n_parameters"]
    linear = result["methods"].get("linear", {}).get("s")
    print(f"\n{n / 1e6:.1f} M parameters, {result['dtype']}; copy {result['copy_gb_s']:.1f} GB/s on one thread")
    print(f"machine: {result['machine']}\n")
    print("| method | ns/parameter | x linear | share of copy | first, s | mergekit, ns/parameter | times ours |"
          " compat: equal bits | default: rms / step |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for name, row in result["methods"].items():
        share = traffic(BUILTIN[name]) * result["bytes_per_entry"] * n / row["s"] / (result["copy_gb_s"] * 1e9)
        cells = [
            name,
            f"{1e9 * row['s'] / n:.2f}",
            f"{row['s'] / linear:.1f}" if linear else "",
            f"{100 * share:.0f} %",
        ]
        cells.append(f"{row['first_s']:.2f}")
        if "mergekit_s" in row:
            equal, apart = row.get("compat_equal_share"), row.get("default_rms_of_step")
            cells += [f"{1e9 * row['mergekit_s'] / n:.1f}", f"{row['mergekit_s'] / row['s']:.0f}"]
            cells += ["masks differ" if equal is None else f"{100 * equal:.4f} %"]
            cells += ["" if apart is None else f"{apart:.2g}"]
        else:
            cells += ["has it not", "", "", ""]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, default=64, help="parameters")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--methods", nargs="*", help="some methods; all if unset")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer-repeats", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    run_apart(measure, show, parser.parse_args())


if __name__ == "__main__":
    main()

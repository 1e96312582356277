"""How evomerge's merges compare with mergekit 0.1.5's: the tables of docs/parity.md.

    python benchmarks/parity.py --families llama                     one family, on the terminal, half a minute
    python benchmarks/parity.py --measured .cache/parity --write docs/parity.md

`make long` measures every family and writes the file. Every merge runs on one thread.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from machine import machine_facts, one_thread

one_thread()

import torch  # noqa: E402

from evomerge.merging.compat import merge_compat  # noqa: E402
from evomerge.seeds import generator  # noqa: E402
from evomerge.testing.parity import MODES, Bench, Cell, built_methods, cell_from_json  # noqa: E402
from evomerge.testing.peer import SETTINGS, Agreement, mergekit_tensor, parameters_of, total  # noqa: E402
from evomerge.testing.tiny import FAMILIES, MORE_FAMILIES  # noqa: E402

DTYPES: Final = ("float32", "bfloat16", "float16")
DRAWN: Final = ("dare_linear", "dare_ties", "della", "della_linear")

ROUNDING: Final = "sums of fp32 in another order, without fused multiply-add"
SIGNS: Final = "weights of both signs are normalised by the sum of their magnitudes"
DENSE: Final = "one-axis tensors are merged dense"
TRIM: Final = f"exact density, equal magnitudes in the order of a hash; {DENSE}; {SIGNS}"
ANGLES: Final = "norms and angles in fp64"
MEAN_NORM: Final = "norms are averaged by the magnitudes of the weights"
REASONS: Final = {
    "linear": f"{ROUNDING}; {SIGNS}",
    "slerp": f"{ANGLES}; t = 0 and t = 1 are the parents exactly",
    "nuslerp": f"{ANGLES}; straight lines below another sine",
    "multislerp": f"{ANGLES}, no step in the tangent space, which only rounds; {MEAN_NORM}",
    "karcher": f"{ANGLES}; directions that cancel have the plain mean",
    "task_arithmetic": ROUNDING,
    "ties": f"{TRIM}; an exact cancellation elects nothing",
    "dare_linear": f"other masks, divided by the density instead of restoring the L1 norm; {DENSE}; {SIGNS}",
    "dare_ties": f"other masks, divided by the density instead of restoring the L1 norm; {DENSE}; {SIGNS}",
    "della": f"other masks, divided by each entry's probability instead of restoring the L1 norm; {DENSE}; {SIGNS}",
    "della_linear": f"as della: other masks, divided by each entry's probability; {DENSE}; {SIGNS}",
    "breadcrumbs": f"outliers go at density 1 too; {TRIM}",
    "breadcrumbs_ties": f"outliers go at density 1 too; {TRIM}; an exact cancellation elects nothing",
    "sce": "weights by energy however small the deltas are; no election at a cancellation; one-axis tensors whole",
    "ram": ROUNDING,
    "ramplus_tl": ROUNDING,
    "model_stock": f"{ANGLES}, of small tensors too; t is held within [0, 1]",
    "nearswap": ROUNDING,
    "arcee_fusion": "one-axis tensors are taken whole; quantiles of all entries, however many",
    "passthrough": "nothing",
}
"""Why the default arithmetic differs from mergekit's in fp32; docs/merging.md says more."""


def measured_cells(folder: Path) -> list[Cell]:
    """What the long tests kept."""
    return [cell_from_json(cell) for path in sorted(folder.glob("*.json")) for cell in json.loads(path.read_text())]


def measure_cells(families: Sequence[str]) -> list[Cell]:
    """Every method, dtype and mode on these families."""
    cells = []
    for family in families:
        for dtype in DTYPES:
            with tempfile.TemporaryDirectory(prefix="evomerge-parity-") as folder:
                bench = Bench.open(Path(folder), family, dtype)
                cells += [bench.measure(method, mode) for mode in MODES for method in built_methods()]
    return cells


EVERY: Final = (*FAMILIES, *MORE_FAMILIES)
"""The families that are tried at every setting; the others at the first of each method."""


def _number(x: float) -> str:
    return "0" if x == 0 else f"{x:.1e}"


def _share(found: Agreement) -> str:
    """In percent; 100 only when every bit is equal."""
    if found.equal == found.n:
        return "100"
    return min(f"{100 * found.share:.2f}", "99.99", key=float)


def _rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def compat_table(cells: Sequence[Cell]) -> list[str]:
    """A row per method, a column per dtype: families with equal bits, largest difference, share of equal bits."""
    mine = [cell for cell in cells if cell.mode == "compat"]
    rows = []
    for method in SETTINGS:
        row = [f"`{method}`"]
        for dtype in DTYPES:
            here = [c for c in mine if (c.method, c.dtype) == (method, dtype) and c.agreement.n]
            equal = sum(c.agreement.equal == c.agreement.n for c in here)
            found = total(c.agreement for c in here)
            row.append(f"{equal} of {len(here)}; {_number(found.largest)}; {_share(found)}" if here else "-")
        rows.append(row)
    return _rows(["method", *DTYPES], rows)


def default_table(cells: Sequence[Cell]) -> list[str]:
    """A row per method: largest difference and share of equal bits over all families, by dtype, and the reason."""
    rows = []
    for method in SETTINGS:
        row = [f"`{method}`"]
        for mode in ("plain", "default"):
            for dtype in DTYPES:
                found = total(c.agreement for c in cells if (c.mode, c.method, c.dtype) == (mode, method, dtype))
                row.append(f"{_number(found.largest)}; {_share(found)}" if found.n else "-")
        rows.append([*row, REASONS[method]])
    header = [f"{dtype}{which}" for which in ("", ", all") for dtype in DTYPES]
    return _rows(["method", *header, "what differs"], rows)


def family_table(cells: Sequence[Cell], mode: str, dtype: str) -> list[str]:
    """A row per family, a column per method: largest difference; share of equal bits; `=` when all bits are equal."""
    found = {(c.family, c.method): c for c in cells if (c.mode, c.dtype) == (mode, dtype)}
    families = list(dict.fromkeys(family for family, _ in found))

    def cell(family: str, method: str) -> str:
        here = found.get((family, method))
        if here is None or not here.agreement.n:
            return "-"
        same = here.agreement.equal == here.agreement.n
        return "=" if same else f"{_number(here.agreement.largest)}; {_share(here.agreement)}"

    return _rows(["family", *SETTINGS], [[f, *(cell(f, m) for m in SETTINGS)] for f in families])


def compat_families(cells: Sequence[Cell]) -> list[str]:
    """A row per family: how it was compared, and of every dtype how many elements and which share of them is equal."""
    mine = [c for c in cells if c.mode == "compat"]
    rows = []
    for family in dict.fromkeys(c.family for c in mine):
        here = [c for c in mine if c.family == family]
        row = [family, "mergekit's" if here[0].respelled else "the files'", "all" if family in EVERY else "first"]
        for dtype in DTYPES:
            found = total(c.agreement for c in here if c.dtype == dtype)
            row.append(f"{found.n}; {_share(found)}" if found.n else "-")
        rows.append(row)
    return _rows(["family", "tensors", "settings", *DTYPES], rows)


def _told(text: str) -> str:
    """A message without folders, the number of a layer, and torch's request to report it."""
    without = re.sub(r"\.(h|layers)\.\d+\.", r".\1.N.", re.sub(r" in model \S+", "", text))
    return without.split("  (Could this")[0]


def refusals(cells: Sequence[Cell]) -> list[str]:
    """What was not compared, and why; one line per reason."""
    places: dict[str, list[Cell]] = {}
    for cell in cells:
        for text in (*cell.refused, *cell.failed):
            places.setdefault(_told(text), []).append(cell)
    lines = []
    for text, here in places.items():
        families, methods = ({getattr(c, name) for c in here} for name in ("family", "method"))
        modes = "/".join(sorted({c.mode for c in here}))
        lines.append(f"- {modes}, {', '.join(sorted(methods))}, {', '.join(sorted(families))}: {text}")
    return lines or ["Everything was compared."]


def drawn_table() -> list[str]:
    """Our masks against mergekit's on one tensor: kept share, L1 norm over the delta's, signs of what both kept."""
    rng = generator(0, "parity", "draws")
    noise = [torch.from_numpy(rng.standard_normal((1000, 1000))) for _ in range(2)]
    rows = []
    for method in DRAWN:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            base = (0.02 * noise[0]).to(dtype)
            model = (base.double() + 0.05 * noise[1]).to(dtype)
            setting = {"weight": (1.0,), "density": (0.4,), "normalize": False}
            torch.manual_seed(0)
            theirs = mergekit_tensor(method, base, [model], setting)
            ours = merge_compat(method, base, [model], parameters_of(method, setting))
            deltas = [x.double() - base.double() for x in (ours, theirs)]
            kept = [d.abs() > 1e-4 for d in deltas]
            full = (model.double() - base.double()).abs().sum()
            shares = [f"{float(k.double().mean()):.4f}" for k in kept]
            norms = [f"{float(d.abs().sum() / full):.4f}" for d in deltas]
            both = kept[0] & kept[1]
            signs = float((deltas[0][both].sign() == deltas[1][both].sign()).double().mean())
            rows.append([f"`{method}`", str(dtype).removeprefix("torch."), *shares, *norms, f"{signs:.4f}"])
    header = ["method", "dtype", "kept, ours", "kept, mergekit", "L1, ours", "L1, mergekit", "equal signs"]
    return _rows(header, rows)


EDGES: Final = """\
## Tensors and numbers at the edges

In `compat: mergekit`:

- **Dtypes.** Parents of several dtypes are promoted to a common one, tensor by tensor (bf16 and fp16 to fp32), and
  the result is stored in it, as mergekit does without `out_dtype`; `arcee_fusion` and `ramplus_tl` (and `karcher`
  of a tensor without axes) give fp32 where that is wider. Where a tensor without axes vanishes in all parents
  (magnitudes below `tol`), mergekit's `karcher` stores a zero of the narrow dtype, and this one of fp32. A `dtype`
  in the recipe is both `dtype` and `out_dtype`.
- **Buffers.** Integers and flags are copied, and must be equal, dtype included, in all parents.
- **Missing tensors.** A tied parent beside an untied one gets a head that repeats its embedding, as in mergekit.
  mergekit has other optional tensors, which some parents lack, merged among those that have them; here the recipe
  is refused.
- **Tensors of one element and of no axis** are merged as in mergekit; `della` and `della_linear` refuse rows of one
  element, whose probabilities are NaN in mergekit, unless the density is 0 or 1.
- **Tensors without elements** stay empty; `multislerp`, `della`, `della_linear` and `arcee_fusion`, which stop at
  some of them in mergekit, refuse all.
- **Numbers that mergekit stops at** are refused before a tensor is read: della's density - epsilon or density +
  epsilon outside (0, 1). So are weights of `linear` and `multislerp` that are normalised and sum to zero, which
  give NaN in mergekit. Three or more directions of `multislerp` that cancel are refused when they are met.
- `int8_mask`, and `density` and `rescale` of `task_arithmetic`, change no bit in mergekit, and are not parameters
  here.
"""


def facts_line() -> str:
    """Where it was measured."""
    facts = machine_facts()
    versions = ", ".join(f"{name} {facts[name]}" for name in ("mergekit", "torch", "transformers", "numpy"))
    return f"{versions}, {facts['processor']}"


def compat_section(cells: Sequence[Cell]) -> list[str]:
    """What `compat: mergekit` reaches."""
    mine = [c for c in cells if c.mode == "compat"]
    whole, odd = total(c.agreement for c in mine), [c for c in mine if c.agreement.equal != c.agreement.n]
    compared = sum(c.agreement.n > 0 for c in mine)
    different = [
        f"- `{c.method}`, {c.family}, {c.dtype}: {c.agreement.n - c.agreement.equal} of {c.agreement.n} in bits"
        f" or dtype; largest difference {_number(c.agreement.largest)}"
        for c in odd
    ]
    return [
        "## `compat: mergekit`",
        "",
        f"{whole.equal:,} of {whole.n:,} elements have equal bits and the same dtype, in {compared} cells. Each cell:"
        " families whose tensors are all equal, of how many; largest difference; share of equal bits in percent. The"
        " random methods (dare, della) take mergekit's draws here, from torch's global generator in mergekit's order.",
        "",
        *compat_table(cells),
        "",
        *(["Not equal:", "", *different] if different else ["No method, dtype and family has a difference."]),
        "",
        "By family: elements compared, over all methods, and the share with equal bits. `mergekit's` tensors: mergekit"
        " reads and writes these families under other names, or with the experts of a layer stacked as transformers"
        " holds them; it makes every parent anew (`passthrough`), and these are merged. On the files' own names a"
        " method that looks at a whole tensor looks at one expert ([families.md](families.md)). Where mergekit's files"
        " lack tensors, the others are compared.",
        "",
        *compat_families(cells),
        "",
        "Without these draws masks come from a hash of seed, tensor, parent and element. On a normal delta of 1000 x"
        " 1000, density 0.4: the share that is kept, the L1 norm over the delta's, and the share of equal signs where"
        " both keep an entry:",
        "",
        *drawn_table(),
        "",
    ]


def default_section(cells: Sequence[Cell]) -> list[str]:
    """How far the default mode is from mergekit in fp32."""
    text = [
        "## The default mode",
        "",
        "Against mergekit in fp32: fp32 parents as they are, parents of 16 bits with `dtype: float32` and `out_dtype`"
        " theirs. Each cell: largest difference; share of equal bits in percent, over all families, at defaults with"
        " positive weights, and at all settings (weights of both signs, `rescale`, `normalize` and so on). Weights have"
        " a standard deviation of about 0.2, deltas of about 0.01.",
        "",
        *default_table(cells),
        "",
    ]
    return [*text, "### By family, fp32, at defaults", "", *family_table(cells, "plain", "float32"), ""]


def document(cells: Sequence[Cell]) -> str:
    """The whole of docs/parity.md."""
    families = list(dict.fromkeys(c.family for c in cells))
    head = [
        "# Parity with mergekit 0.1.5",
        "",
        "`make long` measures this and writes it (`benchmarks/parity.py`), cells of earlier runs included. Parents are"
        " tiny random models of"
        f" {len(families)} families, a base and three models near it. mergekit's `run_merge` writes its result to disk;"
        " ours comes from a recipe over the same files. Every method is tried with its defaults (and with values that"
        " reach its other branches, where it says all settings), with and without a base where both are possible, on"
        f" one CPU thread. {facts_line()}.",
        "",
    ]
    sections = [*head, *compat_section(cells), EDGES, *default_section(cells)]
    return "\n".join([*sections, "## Not compared", "", *refusals(cells), ""])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", default=list(FAMILIES[:1]), help="measured now, without --measured")
    parser.add_argument("--measured", type=Path, help="a folder that `pytest -m long` filled")
    parser.add_argument("--write", type=Path, help="a file; the terminal when absent")
    arguments = parser.parse_args()
    cells = measured_cells(arguments.measured) if arguments.measured else measure_cells(arguments.families)
    text = document(cells)
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()

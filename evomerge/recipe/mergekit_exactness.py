"""What the first lines of a mergekit file say: how to replay it, what is exact, and which parents it means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from evomerge.recipe.mergekit_models import BY_ADAPTER, model_of
from evomerge.recipe.method_spec import MethodSpec
from evomerge.recipe.recipe import ParentRef, Recipe

_SUMS: Final = "equal up to the rounding of fp32 sums (1 unit in the last place of a term)."
_TIES: Final = (
    "where weighted deltas cancel exactly, mergekit elects plus and evomerge nothing; among equal magnitudes at the"
    " threshold the two keep different ones, and mergekit rounds the number of kept entries down."
)
_DRAWS: Final = "not equal: the random masks come from other generators, and mergekit rescales to the L1 norm."
_ALIKE: Final = "not equal: the random masks come from other generators. All else is."

EXACTNESS: Final[Mapping[str, str]] = {
    "linear": _SUMS,
    "slerp": "equal up to rounding, except that mergekit takes the straight line where |cosine| > 0.9995.",
    "nuslerp": "equal up to rounding, but where two vectors are parallel or opposite to 1e-4.",
    "multislerp": "equal up to rounding, but where directions nearly cancel: evomerge then takes the plain mean.",
    "karcher": "equal up to rounding and to the step at which the iteration stops.",
    "task_arithmetic": _SUMS,
    "ties": f"equal up to rounding, but for ties: {_TIES}",
    "dare_linear": _DRAWS,
    "dare_ties": _DRAWS,
    "della": _DRAWS,
    "della_linear": _DRAWS,
    "breadcrumbs": "equal up to rounding, but for ties: among equal magnitudes at a threshold the two keep different"
    " ones, and mergekit rounds the number of kept entries down.",
    "breadcrumbs_ties": f"equal up to rounding, but for ties: {_TIES}",
    "sce": "equal up to rounding where deltas are not tiny: mergekit weighs all models alike once the sum of their mean"
    " squares is below 1e-6, which it mostly is after fine-tuning; where deltas cancel exactly, and among equal"
    " variances at the threshold, the two keep different entries.",
    "ram": "equal up to rounding.",
    "ramplus_tl": "equal up to rounding.",
    "model_stock": "equal up to rounding where the models' deltas agree on average (mean cosine >= 0): where they do"
    " not, evomerge stays at the base.",
    "nearswap": "equal up to rounding.",
    "arcee_fusion": "equal but for the threshold of tensors with more than a million entries, which mergekit takes from"
    " a random sample.",
    "passthrough": "equal.",
}
"""How the default mode compares with mergekit 0.1.5, per method, when it computes in fp32."""


def replay_of(recipe: Recipe, file: str, folder: str) -> str:
    """The command that merges a recipe's mergekit file: adapters need a folder for the models with them."""
    cache = " --lora-merge-cache CACHE_FOLDER" if any(map(_has_adapter, recipe.parents)) else ""
    return f"mergekit-yaml {file} {folder}{cache}"


def _has_adapter(parent: ParentRef) -> bool:
    made = parent.made
    if made is None:
        return False
    behind = made.of if made.base is None else (*made.of, made.base)
    return made.method == BY_ADAPTER or any(map(_has_adapter, behind))


def comments_of(recipe: Recipe, method: MethodSpec) -> tuple[str, ...]:
    """The first lines of the file."""
    how = EXACTNESS[method.name]
    if recipe.compat == "mergekit":
        how = _ALIKE if method.random else "equal bit for bit on one CPU thread with the same torch."
    seed = f" --random-seed {recipe.seed}" if method.random else ""
    back = "" if recipe.compat == "mergekit" else " --compat off"
    return (
        "Written by evomerge; replay it with mergekit 0.1.5:",
        f"  OMP_NUM_THREADS=1 {replay_of(recipe, 'THIS_FILE', 'OUTPUT_FOLDER')}{seed}",
        f"or with evomerge: evomerge merge THIS_FILE --to OUTPUT_FOLDER{back}",
        f"Compared with evomerge's own merge (compat: {recipe.compat}), the result is {how}",
        *parents_told(recipe),
    )


def parents_told(recipe: Recipe) -> tuple[str, ...]:
    """The parents with what names their weights, as far as it is known."""
    known = [p for p in recipe.parents if p.content is not None]
    lines = [f"  {p.name}: {model_of(p)}, weights sha256 {p.content}" for p in known]
    return ("Parents, and what their weights were:", *lines) if lines else ()

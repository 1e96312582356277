"""Score one model or recipe on a job's tasks, in this process."""

from __future__ import annotations

from pathlib import Path

from evomerge.checkpoints.compatible import check_compatible
from evomerge.checkpoints.finite import check_finite
from evomerge.checkpoints.reader import Checkpoint, open_checkpoint
from evomerge.config.assemble import build_suite
from evomerge.config.load import ResolvedJob, read_text
from evomerge.evaluation.lm_eval import compile_plan
from evomerge.execution.scoring import ScoringSpec, build_scorer
from evomerge.merging.kernels import Kernels
from evomerge.recipe.baselines import parent_recipe
from evomerge.recipe.recipe import ParentRef, Recipe
from evomerge.recipe.serialize import recipe_from_text, recipe_to_json
from evomerge.types import CandidateId, EvalTask, Evaluation, SetName

MODEL = "model"


def open_recipe_parents(recipe: Recipe) -> dict[str, Checkpoint]:
    """The parents of a recipe, opened where it says they are, in its order.

    Raises:
        ModelError: for parents that cannot be opened or do not fit each other.
    """
    checkpoints = {p.name: open_checkpoint(p.source, p.revision) for p in recipe.parents}
    check_compatible(checkpoints, recipe.base)
    return checkpoints


def evaluate_model(model: str, resolved: ResolvedJob, set_name: SetName) -> Evaluation:
    """The answers of a checkpoint, or of the merge that a recipe file describes.

    Args:
        model: a folder or hub id, or the path of a recipe file.
        resolved: the job whose suite is asked; its parents and space play no part.
        set_name: the item set.

    Raises:
        ConfigError, ModelError, EvaluationError: as assembling a search.
    """
    suite = build_suite(resolved)
    if Path(model).is_file():
        recipe = recipe_from_text(read_text(Path(model), "recipe file"))
        checkpoints = open_recipe_parents(recipe)
    else:
        checkpoints = {MODEL: open_checkpoint(model)}
        recipe = parent_recipe(ParentRef(MODEL, model))
    for checkpoint in checkpoints.values():
        check_finite(checkpoint)
    template = recipe.base or recipe.parents[0].name
    plan = compile_plan(suite, checkpoints[template].folder)
    device = resolved.job.cluster.device
    spec = ScoringSpec(checkpoints, template, plan, Kernels(), suite.dtype, device, self_check=False)
    return build_scorer(spec)(EvalTask(CandidateId(MODEL), recipe_to_json(recipe), set_name))

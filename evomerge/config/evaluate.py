"""Score one model or recipe on a job's tasks, in this process."""

from __future__ import annotations

from pathlib import Path

from evomerge.checkpoints.finite import check_finite
from evomerge.checkpoints.reader import open_checkpoint
from evomerge.config.load import ResolvedJob
from evomerge.config.recipe_files import open_recipe_parents, prompts_file, read_recipe_file
from evomerge.config.suites import build_suite
from evomerge.evaluation.lm_eval import compile_plan
from evomerge.execution.scoring import ScoringSpec, build_scorer
from evomerge.merging.kernels import Kernels
from evomerge.recipe.baselines import parent_recipe
from evomerge.recipe.recipe import ParentRef
from evomerge.recipe.serialize import recipe_to_json
from evomerge.types import CandidateId, EvalTask, Evaluation, SetName
from evomerge.virtual.prompts import read_prompts

MODEL = "model"


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
        recipe = read_recipe_file(Path(model))
        opened = open_recipe_parents(recipe, read_prompts(prompts_file(Path(model))))
        opened.make()
        recipe, checkpoints = opened.recipe, opened.checkpoints
    else:
        checkpoints = {MODEL: open_checkpoint(model)}
        check_finite(checkpoints[MODEL])
        recipe = parent_recipe(ParentRef(MODEL, model))
    template = recipe.base or recipe.parents[0].name
    plan = compile_plan(suite, checkpoints[template].tokenizer_folder)
    device = resolved.job.cluster.device
    spec = ScoringSpec(checkpoints, template, plan, Kernels(), suite.dtype, device, self_check=False)
    return build_scorer(spec)(EvalTask(CandidateId(MODEL), recipe_to_json(recipe), set_name))

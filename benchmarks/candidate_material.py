"""What `candidates.py` scores: models, a job over them, random genomes, and the asked items as lm-eval tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
import yaml

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.config.assemble import Assembled, assemble
from evomerge.config.load import load_job
from evomerge.evaluation.plan import EvalPlan
from evomerge.evaluation.split import document_hash
from evomerge.recipe.mergekit import to_mergekit
from evomerge.recipe.recipe import Recipe
from evomerge.resources import preset_path

MODELS: Final = ("math", "string", "lang")
DELTA: Final = 0.05
"""Norm of a random expert's change, relative to the base's weights: what the zoo's experts have."""

Scores = dict[tuple[str, str], float]
"""(task, document hash) -> score of one candidate."""


class Candidate(NamedTuple):
    """One genome, as both sides are told it.

    Attributes:
        name: space and number.
        space: the preset it was drawn from.
        recipe: ours.
        mergekit: the same merge as the text of a mergekit file.
    """

    name: str
    space: str
    recipe: Recipe
    mergekit: str


def build_zoo_if_missing(folder: Path, seed: int) -> None:
    """The full toy zoo; nothing is trained when it is there."""
    from evomerge.zoo.build import build_zoo
    from evomerge.zoo.spec import full_spec

    build_zoo(folder, full_spec(seed))


RANDOM_SHAPE: Final[Mapping[str, int]] = {
    "hidden_size": 768,
    "intermediate_size": 2560,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 64,
}
"""99.3 M parameters."""


def build_random_models(
    folder: Path, zoo: Path, dtype: str, seed: int, shape: Mapping[str, int] = RANDOM_SHAPE
) -> None:
    """A base and three random experts (Llama of the given shape) with the zoo's tokenizer.

    They know nothing; what a candidate costs does not depend on that, except that a model which never ends its answers
    makes generation run to the limit.
    """
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

    config = LlamaConfig.from_pretrained(zoo / "base")
    config.update({**shape, "dtype": dtype})
    tokenizer = AutoTokenizer.from_pretrained(zoo / "base")
    set_seed(seed)
    model = LlamaForCausalLM(config)
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(seed)
    for name in ("base", *MODELS):
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator) * base[key].std(correction=0) * DELTA
                parameter.copy_(base[key] if name == "base" else base[key] + noise)
        model.to(getattr(torch, dtype)).save_pretrained(folder / name)
        model.to(torch.float32)
        tokenizer.save_pretrained(folder / name)


def _space(name: str) -> str | dict[str, Any]:
    """A preset; TIES with densities of which both sides keep equally many entries.

    We round `density * numel`, mergekit cuts it off, which would make merges differ in one entry of most tensors.
    """
    if name != "layer-wise-ties":
        return name
    space: dict[str, Any] = yaml.safe_load(preset_path("search_spaces", name).read_text(encoding="utf-8"))
    space["parameters"]["density"] |= {"low": 8 / 64, "step": 1 / 64}
    return space


def write_job(
    path: Path, models: Path, zoo: Path, *, space: str, tasks: Sequence[str], items: int, device: str = "cpu"
) -> Path:
    """A job file over the models and the zoo's tasks: the composition that `evomerge search` would run."""
    job = {
        "name": "candidates",
        "parents": {"base": str(models / "base"), "models": {name: str(models / name) for name in MODELS}},
        "space": _space(space),
        "suite": {
            "include": [str(zoo / "tasks")],
            "tasks": list(tasks),
            "split": {"search": items, "select": 4, "report": 4},
        },
        "objectives": [{"name": "mean", "tasks": list(tasks)}],
        "budget": {"evaluations": 200},
        "cluster": {"backend": "local", "workers": 1, "device": device},
    }
    path.write_text(yaml.safe_dump(job, sort_keys=False), encoding="utf-8")
    return path


def assemble_job(path: Path) -> Assembled:
    """Everything a search would be made of."""
    return assemble(load_job(path))


def draw(assembled: Assembled, space: str, n: int, seed: int) -> list[Candidate]:
    """Random genomes, uniform over the space, as recipes and as mergekit files."""
    random = np.random.default_rng(seed)
    recipe_of = assembled.setup(accept_history=False).recipe_of
    layout = open_checkpoint(assembled.parents.template.folder).layout
    found = []
    for i in range(n):
        recipe = recipe_of(assembled.space.space.quantise(random.random(assembled.space.space.dim)))
        found.append(Candidate(f"{space}-{i}", space, recipe, to_mergekit(recipe, layout)))
    return found


def write_asked_tasks(folder: Path, zoo: Path, plan: EvalPlan) -> dict[str, tuple[str, ...]]:
    """The search items as lm-eval tasks of their own: the zoo's task files over shortened data.

    Returns:
        Task -> document hashes, in the order of the shortened data.
    """
    folder.mkdir(parents=True)
    order: dict[str, tuple[str, ...]] = {}
    for task in plan.tasks:
        wanted = sorted(task.items[i].doc_id for i in task.sets["search"])
        lines = (zoo / "tasks" / f"{task.name}.jsonl").read_text(encoding="utf-8").splitlines()
        chosen = [lines[i] for i in wanted]
        order[task.name] = tuple(document_hash(json.loads(line)) for line in chosen)
        if set(order[task.name]) != set(task.hashes("search")):
            raise ValueError(f"the data of {task.name} are not what the plan was compiled from")
        data = folder / f"{task.name}.jsonl"
        data.write_text("".join(line + "\n" for line in chosen), encoding="utf-8")
        config = yaml.safe_load((zoo / "tasks" / f"{task.name}.yaml").read_text(encoding="utf-8"))
        config["dataset_kwargs"]["data_files"] = {"test": str(data)}
        (folder / f"{task.name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return order


def sample_scores(task: str, samples: Sequence[Mapping[str, Any]], metric: str) -> Scores:
    """lm-eval's logged samples as scores by document."""
    found = {(task, str(document_hash(s["doc"]))): float(s[metric]) for s in samples}
    if len(found) != len(samples):
        raise ValueError(f"lm-eval logged a document of {task} twice")
    return found

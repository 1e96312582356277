"""What `paths.py` scores: deeper parents, offspring of one of them, and the route over a deeper checkpoint.

Run as a program it scores one candidate by that route in a process of its own: `python path_material.py ORDER.json`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from candidate_material import MODELS, Candidate
from candidate_peers import Questions, Scored, WarmPeer
from machine import one_thread

from evomerge.checkpoints.reader import open_checkpoint
from evomerge.dataflow.export import write_recipe
from evomerge.merging.kernels import Kernels
from evomerge.merging.parents import ParentPool
from evomerge.recipe.baselines import parent_recipe
from evomerge.recipe.path import Hop, Hops, plain_path
from evomerge.recipe.recipe import ParentRef, Recipe
from evomerge.recipe.serialize import recipe_from_json, recipe_to_json

IDLE_GAIN: Final = 1 / 32
"""What an idle copy of a layer adds, times this, is too little to undo what the parent has learnt."""
GAINS: Final = (0.75, 0.875, 1.125, 1.25)


def deepen(zoo: Path, folder: Path, copies: int) -> int:
    """The zoo's parents, each layer followed by `copies` nearly idle ones; how deep they are then."""
    for name in ("base", *MODELS):
        checkpoint = open_checkpoint(zoo / name)
        n_layers = checkpoint.layout.n_layers
        path = tuple(Hop(layer, None, gain) for layer in range(n_layers) for gain in (1.0, *[IDLE_GAIN] * copies))
        recipe = parent_recipe(ParentRef(name, str(zoo / name)))
        deeper = Recipe(recipe.parents, None, recipe.rules, path=path)
        write_recipe(deeper, ParentPool({name: checkpoint}), folder / name, kernels=Kernels())
    return n_layers * (copies + 1)


def _edited(hops: Hops, random: np.random.Generator) -> Hops:
    """One layer taken from another parent, left out, repeated, or given another gain; uniform over the path."""
    k, kind = int(random.integers(len(hops))), int(random.integers(4))
    hop = hops[k]
    others = [name for name in MODELS if name != hop.parent]
    gain = GAINS[int(random.integers(len(GAINS)))]
    put = (
        (Hop(hop.layer, others[int(random.integers(len(others)))], hop.gain),),
        (),
        (hop, hop),
        (Hop(hop.layer, hop.parent, gain),),
    )[kind]
    return (*hops[:k], *put, *hops[k + 1 :])


def offspring(models: Path, depth: int, n: int, n_edits: int, seed: int) -> list[Candidate]:
    """Different paths, each a few edits away from the path of one parent."""
    random = np.random.default_rng([seed, n_edits])
    refs = tuple(ParentRef(name, str(models / name)) for name in MODELS)
    found: dict[Hops, None] = {}
    while len(found) < n:
        hops = plain_path(depth, MODELS[0])
        for _ in range(n_edits):
            hops = _edited(hops, random)
        found[hops] = None
    rules = parent_recipe(refs[0]).rules
    title = f"{n_edits} edits"
    return [
        Candidate(f"{n_edits}-{i}", title, Recipe(refs, None, rules, path=hops), "") for i, hops in enumerate(found)
    ]


def open_parents(models: Path) -> ParentPool:
    """The deeper parents."""
    return ParentPool({name: open_checkpoint(models / name) for name in MODELS})


def materialise(recipe: Recipe, pool: ParentPool, scratch: Path) -> Path:
    """A candidate as a deeper checkpoint of stock layers, in a new folder."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    write_recipe(recipe, pool, folder, kernels=Kernels())
    return folder


def score_cold(recipe: Recipe, models: Path, questions: Questions, scratch: Path, batch_size: int) -> Scored:
    """Everything in a fresh process: imports, lm-eval's tasks, materialising, loading, asking."""
    order, answer = scratch / "order.json", scratch / "answer.json"
    asked = {**questions._asdict(), "folder": str(questions.folder), "tokenizer": str(questions.tokenizer)}
    told = {"recipe": recipe_to_json(recipe), "models": str(models), "questions": asked, "batch_size": batch_size}
    order.write_text(json.dumps({**told, "scratch": str(scratch), "answer": str(answer)}), encoding="utf-8")
    started = time.perf_counter()
    done = subprocess.run([sys.executable, __file__, str(order)], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"the cold route ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found = json.loads(answer.read_text(encoding="utf-8"))
    inside: Mapping[str, float] = found["timing_s"]
    scores = {(task, item): score for task, item, score in found["scores"]}
    return Scored(scores, {"start": seconds - sum(inside.values()), **inside})


def main() -> None:
    """One candidate, as `score_cold` orders it."""
    one_thread()
    told = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    asked = told["questions"]
    questions = Questions(**{**asked, "folder": Path(asked["folder"]), "tokenizer": Path(asked["tokenizer"])})
    scratch = Path(told["scratch"])
    make = partial(materialise, recipe_from_json(told["recipe"]), open_parents(Path(told["models"])), scratch)
    scored = WarmPeer(questions, scratch).score(make, told["batch_size"])
    answer = {"scores": [[*key, score] for key, score in scored.scores.items()], "timing_s": scored.timing_s}
    Path(told["answer"]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()

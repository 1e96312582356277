"""Take a merge out of a run: find the entry, rebuild its recipe, write it in the asked form. Nothing is scored."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from evomerge.checkpoints.seal import Seal
from evomerge.checkpoints.staging import check_target
from evomerge.config.cache import kernel_folder
from evomerge.config.card import export_card
from evomerge.config.load import ResolvedJob, load_run_job
from evomerge.config.parents import Parents, open_parents
from evomerge.config.recipe_files import check_new_recipe_file, prompts_behind, prompts_file, write_recipe_file
from evomerge.config.results import RESULTS_FILE, licence_texts, results_of, results_text
from evomerge.config.staging import recipe_of, space_at
from evomerge.dataflow.export import write_recipe
from evomerge.dataflow.mergekit import mergekit_text
from evomerge.errors import ConfigError, ModelError, RecipeError, suggest
from evomerge.files import write_atomic
from evomerge.merging.foresight import kernels_for_merge
from evomerge.merging.parents import ParentPool
from evomerge.merging.plan import template_of
from evomerge.recipe.mergekit_exactness import replay_of
from evomerge.recipe.recipe import ParentRef, Recipe
from evomerge.recipe.serialize import parent_from_json, recipe_digest, recipe_to_text, recorded_recipe_from_json
from evomerge.report.collect import summarise
from evomerge.report.summary import Entry, RunSummary
from evomerge.runs.damage import damage_is_told
from evomerge.runs.manifest import read_manifest
from evomerge.runs.replay import History, read_history
from evomerge.runs.store import RunStore
from evomerge.virtual.maker import ParentReport, quiet
from evomerge.virtual.merged_adapter import write_adapter
from evomerge.virtual.prompts import prompts_text

Form = Literal["checkpoint", "adapter", "recipe", "mergekit"]
RECIPE_FILE = "evomerge_recipe.json"
MERGEKIT_FILE = "mergekit.yaml"
CARD_FILE = "README.md"


def export_merge(run: Path, to: Path, *, pick: str, form: Form, making: ParentReport = quiet) -> list[str]:
    """Write one merge of a run.

    Args:
        run: the run directory; it may be running or interrupted.
        to: a new or empty folder for a checkpoint or an adapter, a file that does not exist otherwise.
        pick: `knee`, `best:OBJECTIVE` or `id:ID`.
        form: what to write.
        making: told of parents that have to be made again.

    Returns:
        What was written and what to do next, in lines for people.

    Raises:
        ConfigError: when there is no run, nothing to pick, or `to` is taken.
        ModelError: when a parent is not what it was during the run.
        RecipeError: when mergekit cannot express the recipe, or it is not a sum of adapters.
    """
    resolved = load_run_job(run)
    with RunStore.open(run, write=False) as store:
        history = read_history(store.entries())
    with damage_is_told(run):
        id_ = pick_id(summarise(run), history, pick)
    if form in ("recipe", "mergekit"):
        check_new_recipe_file(to)
    parents = open_parents(resolved)
    with damage_is_told(run):
        refs = _same_parents(parents, read_manifest(run))
        recipe = _recorded(history, id_) or _rebuilt(history, id_, resolved, parents, refs)
    prompts = prompts_behind(recipe, parents.opener)
    if form == "recipe":
        write_recipe_file(to, recipe, prompts)
    elif form == "mergekit":
        write_atomic(to, mergekit_text(recipe, parents.checkpoints[template_of(recipe)]))
    else:
        check_target(to)
        parents.make(making)
        results = results_of(run, recipe, parents, id_)
        seal = Seal(RESULTS_FILE, lambda digests: results_text(results, digests))
        _write_folder(to, recipe, parents, _small_files(run, recipe, parents, id_), form=form, seal=seal)
    return _told(to, id_, form, recipe)


def pick_id(summary: RunSummary, history: History, pick: str) -> str:
    """The id that `--pick` names.

    Raises:
        ConfigError: for a malformed pick, an unknown objective or id, or a run in which nothing can be picked yet.
    """
    kind, _, name = pick.partition(":")
    if kind == "id" and name:
        known = [str(c.id) for b in history.batches for c in b.candidates] + [str(i) for i in history.baselines]
        if name in known:
            return name
        raise _unknown("id", name, known)
    if kind == "best" and name:
        names = [o.name for o in summary.objectives]
        if name not in names:
            raise _unknown("objective", name, names)
        return _best(summary, name)
    if pick != "knee":
        raise ConfigError(
            "The pick is not understood.",
            got=repr(pick),
            allowed="knee, best:OBJECTIVE or id:ID",
            fix="use one of them.",
        )
    if summary.chosen is None:
        raise _nothing(summary)
    return summary.chosen.id


def _best(summary: RunSummary, objective: str) -> str:
    """The front's best in one objective: on the select set where it was scored, else on the search set."""
    if not summary.front:
        raise _nothing(summary)
    sign = next(1 if o.direction == "maximize" else -1 for o in summary.objectives if o.name == objective)

    def value(entry: Entry) -> tuple[bool, float]:
        scores = entry.select or entry.search
        return entry.select is not None, sign * scores.objectives[objective].value

    return max(summary.front, key=value).id


def _nothing(summary: RunSummary) -> ConfigError:
    return ConfigError(
        "There is nothing to pick yet.",
        got=f"a run that is {summary.state}, with {len(summary.front)} feasible entries on its front",
        allowed="a finished run with a feasible front",
        fix="`evomerge resume` finishes the run; --pick id:ID exports any candidate of the journal.",
    )


def _unknown(what: str, name: str, known: list[str]) -> ConfigError:
    return ConfigError(
        f"The run has no such {what}.",
        got=repr(name),
        allowed=suggest(name, known) if len(known) <= 12 else f"one of {len(known)}, such as {known[0]} or {known[-1]}",
        fix="`evomerge status RUN` lists the front.",
    )


def _same_parents(parents: Parents, manifest: Mapping[str, Any]) -> tuple[ParentRef, ...]:
    """The parents as the run knew them.

    Raises:
        ModelError: when the weights of one have changed since.
    """
    recorded = {p["name"]: parent_from_json(p) for p in manifest["parents"]}
    for ref in parents.refs():
        content = recorded[ref.name].content if ref.name in recorded else None
        if content != ref.content:
            raise ModelError(
                "A parent has changed since the run.",
                got=f"{ref.name} at {ref.source}: content {ref.content}",
                allowed=f"content {content}" if content else f"the parents of the run: {', '.join(recorded)}",
                fix="restore the parent's files.",
            )
    return tuple(recorded.values())


def _recorded(history: History, id_: str) -> Recipe | None:
    """The recipe of a baseline or of the mean, which the journal holds; None for a candidate."""
    baseline = next((b for i, b in history.baselines.items() if i == id_), None)
    return None if baseline is None else recorded_recipe_from_json(dict(baseline.recipe_json), baseline.recipe)


def _rebuilt(
    history: History, id_: str, resolved: ResolvedJob, parents: Parents, refs: tuple[ParentRef, ...]
) -> Recipe:
    """The recipe of a candidate, from its genes; checked against the recorded digest."""
    candidate, batch = next((c, b.number) for b in history.batches for c in b.candidates if c.id == id_)
    recipe = recipe_of(
        space_at(resolved, parents, history, batch), refs, parents.base, resolved.job.seed, candidate.vector
    )
    if recipe_digest(recipe) != candidate.recipe:
        raise RecipeError(
            "The recipe rebuilt from the journal is not the recorded one.",
            got=f"{id_}: digest {recipe_digest(recipe)}",
            allowed=str(candidate.recipe),
            fix="export with the version of evomerge that wrote the run.",
        )
    return recipe


def _write_folder(
    to: Path, recipe: Recipe, parents: Parents, files: Mapping[str, str | bytes], *, form: Form, seal: Seal
) -> None:
    pool = ParentPool(parents.checkpoints)
    if form == "adapter":
        write_adapter(recipe, pool, to, extra_files=files, seal=seal)
        return
    kernels = kernels_for_merge(recipe, pool, kernel_folder())
    write_recipe(recipe, pool, to, extra_files=files, kernels=kernels, seal=seal)


def _small_files(run: Path, recipe: Recipe, parents: Parents, id_: str) -> dict[str, str | bytes]:
    """What stands beside the weights: recipe, prompts, mergekit's file where it can say the recipe, and the card."""
    files: dict[str, str | bytes] = {RECIPE_FILE: recipe_to_text(recipe)}
    prompts = prompts_behind(recipe, parents.opener)
    if prompts:
        files[prompts_file(Path(RECIPE_FILE)).name] = prompts_text(prompts)
    with suppress(RecipeError):  # what mergekit cannot express: the recipe stands beside it, and the card says so
        files[MERGEKIT_FILE] = mergekit_text(recipe, parents.checkpoints[template_of(recipe)])
    folders = {name: checkpoint.folder for name, checkpoint in parents.checkpoints.items()}
    files[CARD_FILE] = export_card(run, recipe, folders, id_, mergekit=MERGEKIT_FILE in files)
    return files | licence_texts(recipe, parents)


def _told(to: Path, id_: str, form: Form, recipe: Recipe) -> list[str]:
    first = f"Wrote {id_} (recipe {recipe_digest(recipe)[:12]}) to {to}"
    next_step = {
        "adapter": f"Load it on its base with peft: PeftModel.from_pretrained(base, {str(to)!r}).",
        "checkpoint": f"Load it with AutoModelForCausalLM.from_pretrained({str(to)!r}).",
        "recipe": f"Anybody with the parents replays it: evomerge merge {to} --to DIR",
        "mergekit": f"mergekit replays it: {replay_of(recipe, str(to), 'DIR') if form == 'mergekit' else ''}",
    }
    return [first, next_step[form]]

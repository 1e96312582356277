"""The Python API: search a job, merge a recipe, export from a run. The command line is a thin layer over it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from evomerge.checkpoints.staging import check_target
from evomerge.config.assemble import Assembled, assemble
from evomerge.config.cache import kernel_folder
from evomerge.config.export import RECIPE_FILE
from evomerge.config.load import ResolvedJob, job_document, load_job, load_run_job, resolve_job
from evomerge.config.recipe_files import open_recipe_parents, prompts_file, read_recipe_file
from evomerge.config.recipes_of import run_recipes
from evomerge.config.run_files import check_unchanged, package_versions, run_files
from evomerge.config.schema import Job
from evomerge.config.workers import open_pool
from evomerge.dataflow.export import check_export, write_recipe
from evomerge.errors import ClusterLost, ConfigError, Interrupted, TooManyFailures
from evomerge.evaluation.objectives import CustomObjective, ObjectiveFunction
from evomerge.execution.ledger import Ledger, Request, StopSignal, Watcher, recorded_outcomes
from evomerge.files import lost_storage_is_told
from evomerge.loop import Search
from evomerge.merging.foresight import kernels_for_merge
from evomerge.merging.parents import ParentPool
from evomerge.recipe.recipe import Compat, Recipe
from evomerge.recipe.serialize import recipe_to_text
from evomerge.report.collect import summarise
from evomerge.report.summary import RunSummary
from evomerge.report.write import write_report
from evomerge.runs.manifest import check_files
from evomerge.runs.records import Finished, Note, Opened
from evomerge.runs.records import Interrupted as InterruptedRecord
from evomerge.runs.replay import History, read_history
from evomerge.runs.store import RunStore
from evomerge.runs.study import write_study
from evomerge.tracking.opening import open_trackers
from evomerge.tracking.trackers import check_trackers
from evomerge.tracking.watcher import TrackedWatcher
from evomerge.types import SET_NAMES, Outcome, SetName
from evomerge.virtual.maker import ParentReport, quiet
from evomerge.virtual.prompts import read_prompts

Resume = Literal["never", "auto", "must"]


@runtime_checkable
class MakingWatcher(Protocol):
    """What a watcher may have besides: it is then also told of parents that are made."""

    def making(self, parent: str, done: int, total: int) -> None:
        """A parent is being made from others; `done` of `total` steps are done."""


@runtime_checkable
class NotedWatcher(Protocol):
    """What a watcher may have besides: it is then also told what is worth a sentence."""

    def note(self, text: str) -> None:
        """Something happened that the user should know and that does not end the run."""


def quiet_note(text: str) -> None:
    """Tell nobody."""


class Quiet:
    """A watcher that shows nothing."""

    def note(self, text: str) -> None:
        """See `NotedWatcher.note`."""

    def making(self, parent: str, done: int, total: int) -> None:
        """See `MakingWatcher.making`."""

    def phase(self, name: str, total: int, done: int) -> None:
        """See `Watcher.phase`."""

    def outcome(self, request: Request, set_name: SetName, outcome: Outcome) -> None:
        """See `Watcher.outcome`."""

    def batch(self, number: int) -> None:
        """See `Watcher.batch`."""


def _never() -> bool:
    return False


def search(
    job: str | Path | Mapping[str, Any],
    *,
    run_dir: str | Path | None = None,
    resume: Resume = "never",
    objectives: Mapping[str, ObjectiveFunction] | None = None,
    watcher: Watcher | None = None,
) -> RunSummary:
    """Search for the best merges of a job and return what was found.

    Args:
        job: a job file, or its content as a mapping (relative paths start at the working directory).
        run_dir: the run directory; `runs/NAME` if None.
        resume: `never` refuses a directory that holds a run, `auto` resumes it or starts, `must` only resumes.
        objectives: name -> function from an `Evaluation` to a value or (value, standard error), for objectives that
            the job names without a task. Functions must be pure: a resumed run calls them again.
        watcher: told of progress.

    Raises:
        EvomergeError: as the command `evomerge search`; see `evomerge.errors` for the kinds.
    """
    resolved = resolve_job(job_document(job), Path.cwd()) if isinstance(job, Mapping) else load_job(Path(job))
    folder = Path(run_dir) if run_dir is not None else Path("runs") / resolved.job.name
    return run_search(resolved, folder, resume=resume, functions=objectives, watcher=watcher)


def run_search(
    resolved: ResolvedJob,
    folder: Path,
    *,
    resume: Resume = "never",
    accept_history: bool = False,
    functions: Mapping[str, ObjectiveFunction] | None = None,
    watcher: Watcher | None = None,
    stop: StopSignal = _never,
) -> RunSummary:
    """Start or resume a run and take it to its end; see `search`.

    Args:
        resolved: the job.
        folder: the run directory.
        resume: see `search`.
        accept_history: continue with recorded candidates that this installation would not have asked for.
        functions: see `search`.
        watcher: told of progress.
        stop: asked between results; once it is true, running candidates are finished and the run stops resumable.

    Raises:
        ConfigError: when `resume` does not fit what is in `folder`, then for anything wrong with the job.
        EvomergeError: what assembling and searching raise.
    """
    check_trackers(resolved.job.track)
    store = _open_store(folder, resume)
    try:
        begun_with = None if store is None else load_run_job(folder).job.budget.evaluations
        making = watcher.making if isinstance(watcher, MakingWatcher) else quiet
        run = None if store is None else folder
        assembled = assemble(resolved, functions, sized_for=begun_with, run=run, making=making)
        if store is None:
            store = RunStore.create(folder, run_files(assembled))
        else:
            check_unchanged(folder, assembled)
            check_files(folder)
        return _run(assembled, store, accept_history=accept_history, watcher=watcher or Quiet(), stop=stop)
    finally:
        if store is not None:
            store.close()


def _open_store(folder: Path, resume: Resume) -> RunStore | None:
    """The store of the run in `folder`, locked; None when a run is to be started there.

    Raises:
        ConfigError: when there is a run and there must be none, or the reverse.
    """
    exists = (folder / "journal.jsonl").is_file()
    if exists and resume == "never":
        raise ConfigError(
            "The run directory holds a run already.",
            got=str(folder),
            allowed="a directory without a run",
            fix=f"`evomerge resume {folder}` continues it; --run-dir names another directory.",
        )
    if not exists and resume == "must":
        raise ConfigError(
            "There is no run to resume.",
            got=str(folder),
            allowed="a directory that holds a run",
            fix="check the path; `evomerge search JOB` starts a run.",
        )
    return RunStore.open(folder, write=True) if exists else None


def _run(
    assembled: Assembled, store: RunStore, *, accept_history: bool, watcher: Watcher, stop: StopSignal
) -> RunSummary:
    """One life of a run."""
    history = read_history(store.entries())
    job = assembled.resolved.job
    _check_budget(job, history)
    store.append(replace(_opened(job, history, accept_history=accept_history), epoch=store.epoch))
    for text in () if history.lives else assembled.questions.notes:
        store.append(Note("questions", text))
    warn = watcher.note if isinstance(watcher, NotedWatcher) else quiet_note
    with closing(open_trackers(assembled, store, warn)) as trackers:
        tracked = TrackedWatcher(watcher, trackers, assembled.goals, _n_questions(assembled))
        why = _walk(assembled, store, history, accept_history=accept_history, watcher=tracked, stop=stop)
        summary = _conclude(assembled, store, history, why)
        trackers.finish(summary)
    return summary


def _n_questions(assembled: Assembled) -> int:
    return sum(len(items) for items in assembled.plan.items("search").values())


def _walk(
    assembled: Assembled,
    store: RunStore,
    history: History,
    *,
    accept_history: bool,
    watcher: Watcher,
    stop: StopSignal,
) -> str:
    """Search, choose and report with the workers of one life; returns why the search ended."""
    job = assembled.resolved.job
    with open_pool(assembled, store.folder, self_check=not _is_checked(history)) as pool:
        ledger = Ledger(
            store,
            pool,
            known=recorded_outcomes(store, history),
            reused=history.reused,
            stop=stop,
            drain_s=float(job.cluster.drain_s),
            failure_share=float(job.budget.failures),
            watcher=watcher,
            custom=[o for o in assembled.goals.objectives if isinstance(o, CustomObjective)],
            order={name: assembled.plan.items(name) for name in SET_NAMES},
        )
        try:
            return Search(assembled.setup(accept_history=accept_history), store, history, ledger, watcher).run()
        except (ClusterLost, Interrupted, TooManyFailures) as error:
            store.append(InterruptedRecord(error.what, error.exit_code))
            raise


def _check_budget(job: Job, history: History) -> None:
    """After a choice, fewer evaluations would choose, and ask the report set, a second time."""
    if job.budget.evaluations < history.decided:
        raise ConfigError(
            "The search of this run has ended with a larger budget.",
            got=f"budget.evaluations: {job.budget.evaluations}",
            allowed=f"{history.decided}, or more to search on",
            fix="leave the budget as it is, or start a new run with `evomerge search`.",
        )


def _opened(job: Job, history: History, *, accept_history: bool) -> Opened:
    settings = {
        "budget": job.budget.model_dump(mode="json"),
        "cluster": job.cluster.model_dump(mode="json", exclude_none=True),
        "accept_history": accept_history,
    }
    life = len(history.lives) + 1
    return Opened(life, life > 1, socket.gethostname(), os.getpid(), package_versions(), settings)


def _is_checked(history: History) -> bool:
    """Whether an earlier life, with the same packages, has scored anything: then its workers passed the self-check."""
    return bool(history.outcomes) and any(dict(life.versions) == package_versions() for life in history.lives)


def _conclude(assembled: Assembled, store: RunStore, history: History, why: str) -> RunSummary:
    """Write down the end of a run, and what people look at."""
    summary = summarise(store.folder)
    if history.finished is None or history.finished.result_digest != summary.result_digest:
        store.append(Finished(why, summary.result_digest))
    begun = read_history(store.entries()).stages
    spaces = [maker.as_searched(begun.get(i)).space for i, maker in enumerate(assembled.makers)]
    problem = write_study(store, assembled.resolved.job.name, spaces, assembled.goals)
    if problem is not None:
        store.append(Note("study", problem))
    with lost_storage_is_told(store.folder):
        write_report(store.folder, run_recipes(store.folder))
    return summarise(store.folder)


def merge(
    recipe: Recipe | str | Path, to: str | Path, *, compat: Compat | None = None, making: ParentReport = quiet
) -> Recipe:
    """Make a checkpoint from a recipe; returns the recipe as it was applied.

    Args:
        recipe: a recipe, or a file that holds one: evomerge's JSON or mergekit's YAML, told apart by content.
        to: a new or empty folder.
        compat: `mergekit` for mergekit 0.1.5's arithmetic, `off` for ours; None takes the recipe's own, which for a
            mergekit file is `mergekit`.
        making: told of parents that have to be made first: which one, and how many of how many steps are done.

    Raises:
        ConfigError: when the file cannot be read or `to` is taken.
        RecipeError: when the file is no recipe, or asks for something that is not supported.
        ModelError: when parents cannot be opened or do not fit each other, or the recipe has a path that cannot be
            written exactly.
        MergeError: when the recipe does not fit the parents.
        NonFinite: when a tensor of the result holds NaN or infinity.
    """
    if isinstance(recipe, Recipe):
        found = recipe if compat is None else replace(recipe, compat=compat)
    else:
        found = read_recipe_file(Path(recipe), compat)
    opened = open_recipe_parents(found, {} if isinstance(recipe, Recipe) else read_prompts(prompts_file(Path(recipe))))
    found, pool = opened.recipe, ParentPool(opened.checkpoints)
    check_export(found, pool)
    check_target(Path(to))  # before anything is made
    opened.make(making)
    found = replace(found, parents=tuple(opened.opener.known(p) for p in found.parents))
    kernels = kernels_for_merge(found, pool, kernel_folder())
    write_recipe(found, pool, Path(to), extra_files={RECIPE_FILE: recipe_to_text(found)}, kernels=kernels)
    return found

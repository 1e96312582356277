"""What a job will do, before it does it: parents, space, questions, memory and cost."""

from __future__ import annotations

import math

from rich import box
from rich.console import Console
from rich.table import Table

from evomerge.checkpoints.dtypes import FLOATING, ITEMSIZE
from evomerge.checkpoints.header import HeaderEntry
from evomerge.checkpoints.opened import OpenParent
from evomerge.cli.working import working
from evomerge.config.assemble import Assembled, assemble
from evomerge.config.load import ResolvedJob
from evomerge.config.workers import n_workers
from evomerge.dataflow.prefixes import SHARE, default_budget
from evomerge.execution.scoring import choose_device
from evomerge.racing.forecast import Field, Forecast, forecast
from evomerge.racing.questioner import Questioner
from evomerge.recipe.baselines import parent_recipe
from evomerge.recipe.serialize import recipe_digest
from evomerge.types import SET_NAMES

_MIB = 2**20
_NUMBERS = ("tensors", "layers", "parameters", *SET_NAMES)


def check_and_show(resolved: ResolvedJob) -> None:
    """Check a job as a search would, and print its plan; raises as `assemble`."""
    with working("Checking parents and questions"):
        assembled = assemble(resolved)
    show_plan(assembled)


def show_plan(assembled: Assembled) -> None:
    """Print the plan of a job that passed every check."""
    console = Console()
    job = assembled.resolved.job
    console.print(f"[bold]{job.name}[/bold]: the job is sound.", highlight=False)
    for table in (_parents(assembled), _questions(assembled), _search(assembled)):
        console.print(table)
    console.print(f"Next: evomerge search JOB   (the run goes to runs/{job.name})", highlight=False, markup=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_header=any(columns),
        pad_edge=False,
    )
    for column in columns:
        table.add_column(column, justify="right" if column in _NUMBERS else "left", overflow="fold")
    return table


def _bytes(n: float) -> str:
    return f"{n / _MIB:,.1f} MiB" if n < 1024 * _MIB else f"{n / _MIB / 1024:,.2f} GiB"


def _parents(assembled: Assembled) -> Table:
    table = _table("Parents", "name", "tensors", "layers", "parameters", "source")
    for name, checkpoint in assembled.parents.checkpoints.items():
        n = assembled.parents.n_parameters
        layout = checkpoint.layout
        table.add_row(name, str(len(layout.tensors)), str(layout.n_layers), f"{n:,}", checkpoint.source)
    return table


def _questions(assembled: Assembled) -> Table:
    table = _table("Questions per model", "task", "metric", *SET_NAMES)
    for task in assembled.plan.tasks:
        table.add_row(task.name, task.metric.name, *(str(len(task.sets[s])) for s in SET_NAMES))
    return table


def _search(assembled: Assembled) -> Table:
    job = assembled.resolved.job
    table = _table("Search", "", "")
    rows = {
        "objectives": ", ".join(f"{o.name} ({o.direction})" for o in assembled.goals.objectives),
        "constraints": "; ".join(c.text for c in assembled.goals.constraints) or "none",
        **_stages(assembled),
        "generation 0": ", ".join(k.id for k in assembled.known),
        "evaluations": str(job.budget.evaluations),
        "questions": _asked(job.budget.evaluations, plan_questions(assembled)),
        "workers": f"{n_workers(assembled)} on {job.cluster.backend}",
        **_memory(assembled),
    }
    for key, value in rows.items():
        table.add_row(key, value)
    for note in assembled.questions.notes:
        table.add_row("note", note)
    return table


def _memory(assembled: Assembled) -> dict[str, str]:
    """What all workers of a host share, and what each has for itself."""
    checkpoints = assembled.parents.checkpoints.values()
    parents = sum(HeaderEntry(t.dtype, t.shape).nbytes for c in checkpoints for t in c.layout.tensors)
    model = model_bytes(assembled.parents.template, assembled.suite.dtype)
    told = {"memory": f"{_bytes(parents)} of parents, mapped and shared by the workers of a host"}
    named = hop_parents(assembled)
    each = f"{_bytes(model)} for the merged model, and activations"
    if named:
        n = 1 + len(named)
        each = (
            f"up to {n} models of {_bytes(model)}, together {_bytes(n * model)}: the merged one, and one for each "
            f"parent that a path may name ({', '.join(named)}); and activations"
        )
    if runs_paths(assembled):
        each += f"; up to {_shared_states(choose_device(assembled.resolved.job.cluster.device))} that paths share"
    return {**told, "per worker": each}


def _shared_states(device: str) -> str:
    if device == "cpu":
        return f"{_bytes(default_budget(device))} of hidden states"
    return f"1/{SHARE} of the free GPU memory of hidden states"


def model_bytes(template: OpenParent, dtype: str) -> int:
    """Bytes of one model in memory.

    Args:
        template: the parent that gives architecture and dtypes.
        dtype: of the model, `auto` for the template's.
    """
    import torch

    width = None if dtype == "auto" else getattr(torch, dtype).itemsize
    return sum(
        math.prod(t.shape) * (ITEMSIZE[t.dtype] if width is None or t.dtype not in FLOATING else width)
        for t in template.layout.tensors
    )


def runs_paths(assembled: Assembled) -> bool:
    """Whether workers will run paths."""
    known = any(k.recipe.path is not None for k in assembled.known)
    return known or any(maker.space.runs_paths for maker in assembled.makers)


def hop_parents(assembled: Assembled) -> tuple[str, ...]:
    """The parents that paths of this job may name: a worker keeps a model of each that one has named, over all stages.

    A later stage stands around the best merge so far, which may be a parent.
    """
    found = [hop.parent for k in assembled.known for hop in k.recipe.path or () if hop.parent is not None]
    for number, maker in enumerate(assembled.makers):
        elites = [parent_recipe(ref) for ref in assembled.parents.refs()] if number else []
        for space in (maker.space, *(maker.around([elite]) for elite in elites)):
            found += space.hop_parents
    return tuple(name for name in assembled.parents.checkpoints if name in found)


def _stages(assembled: Assembled) -> dict[str, str]:
    """Genes and optimizer, of every stage where there are several."""
    if not assembled.resolved.in_stages:
        return {
            "genes": str(assembled.space.space.dim),
            "optimizer": f"{assembled.optimizer.name}: {assembled.optimizer.why}",
        }
    found = {}
    for number, maker in enumerate(assembled.makers):
        choice = maker.choice(maker.problem(maker.space, ()), maker.space) if number else assembled.optimizer
        found[f"stage {number + 1}, {maker.resolved.name}"] = (
            f"{maker.resolved.evaluations} evaluations, {maker.space.space.dim} genes, {choice.name}: {choice.why}"
        )
    return found


def _asked(budget: int, asked: Forecast) -> str:
    """What will be asked on the search set, and what asking everybody everything would take."""
    everything = f"{budget} of {asked.full} = {asked.everything:,}"
    if asked.at_most >= asked.everything:
        return f"{everything} of the search set"
    return (
        f"{asked.each} of {asked.full} per candidate on average, all of them for {asked.whole} models that show what "
        f"each question tells (baselines, the first candidates): at most about {asked.at_most:,} of the search set; "
        f"asking every model everything would take {everything}"
    )


def plan_questions(assembled: Assembled) -> Forecast:
    """What the search will ask on the search set."""
    setup = assembled.setup(accept_history=False)
    optimizer = setup.make_optimizer()
    has_mean = optimizer.mean() is not None
    first = optimizer.ask()
    known = {k.request.digest for k in setup.known}
    fresh = {recipe_digest(setup.recipe_of(setup.space.quantise(vector))) for vector in first} - known
    n_injected = len(assembled.problem.injected)
    n_fresh = len(first) - n_injected
    # a first generation of many baselines has half a population of new points (`optimizers.protocol.n_fresh`)
    population = max(1, len(first) if n_injected <= n_fresh else 2 * n_fresh)
    field = Field(setup.budget, len(known), len(fresh), population, has_mean)
    questioner = Questioner(setup.questions, setup.pool, setup.seed)
    imported = set(setup.pool.items) <= set(setup.pool.banks) and not setup.pool.margins
    return forecast(questioner, setup.questions, field, imported=imported)

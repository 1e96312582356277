"""What a job will do, before it does it: parents, space, questions, memory and cost."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from evomerge.cli.working import working
from evomerge.config.assemble import Assembled, assemble
from evomerge.config.load import ResolvedJob
from evomerge.config.workers import n_workers
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
    job, parents = assembled.resolved.job, assembled.parents
    questions = assembled.plan.n_questions("search")
    parent_bytes = sum(
        e.stop - e.start for c in parents.checkpoints.values() for e in (c.entry(t.name) for t in c.layout.tensors)
    )
    model_bytes = parent_bytes / len(parents.checkpoints)
    table = _table("Search", "", "")
    rows = {
        "objectives": ", ".join(f"{o.name} ({o.direction})" for o in assembled.goals.objectives),
        "constraints": "; ".join(c.text for c in assembled.goals.constraints) or "none",
        "genes": str(assembled.space.space.dim),
        "optimizer": f"{assembled.optimizer.name}: {assembled.optimizer.why}",
        "generation 0": ", ".join(k.id for k in assembled.known),
        "evaluations": f"{job.budget.evaluations} of {questions} questions = {job.budget.evaluations * questions:,}",
        "workers": f"{n_workers(assembled)} on {job.cluster.backend}",
        "memory": (
            f"{_bytes(parent_bytes)} of parents, mapped and shared by the workers of a host; "
            f"{_bytes(model_bytes)} and activations per worker"
        ),
    }
    for key, value in rows.items():
        table.add_row(key, value)
    return table

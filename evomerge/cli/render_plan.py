"""What a job will do, before it does it: parents, space, questions, memory and cost."""

from __future__ import annotations

from dataclasses import replace

from rich import box
from rich.table import Table
from rich.text import Text

from evomerge.cli.console import make_console
from evomerge.cli.render_memory import in_bytes, memory_rows, packing_words
from evomerge.cli.render_parents import parent_notes
from evomerge.cli.working import working
from evomerge.config.assemble import Assembled, assemble
from evomerge.config.engines import engine_words
from evomerge.config.load import ResolvedJob
from evomerge.config.workers import hop_parents, measured_bytes, n_workers, runs_paths, storage_of
from evomerge.dataflow.prefixes import SHARE, default_budget
from evomerge.execution.memory import measure_rates, measure_sizes
from evomerge.execution.scoring import choose_device
from evomerge.merging.packed8 import sampled_agreement
from evomerge.merging.residence import choose_residence
from evomerge.racing.forecast import Field, Forecast, forecast
from evomerge.racing.questioner import Questioner
from evomerge.recipe.serialize import recipe_digest
from evomerge.tracking.trackers import check_trackers
from evomerge.types import SET_NAMES

_NUMBERS = ("tensors", "layers", "parameters", *SET_NAMES)


def check_and_show(resolved: ResolvedJob) -> None:
    """Check a job as a search would, and print its plan; raises as `assemble`."""
    check_trackers(resolved.job.track)
    with working("Checking parents and questions"):
        assembled = assemble(resolved)
    show_plan(assembled)


def show_plan(assembled: Assembled) -> None:
    """Print the plan of a job that passed every check."""
    console = make_console()
    job = assembled.resolved.job
    console.print(Text.assemble((job.name, "bold"), ": the job is sound."))
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
        "asked first" if assembled.resolved.stages[0].optimizer.asynchronous else "generation 0": ", ".join(
            k.id for k in assembled.known
        ),
        "evaluations": str(job.budget.evaluations),
        "questions": _asked(job.budget.evaluations, plan_questions(assembled)),
        "written by": engine_words(assembled.plan),
        "workers": f"{n_workers(assembled)} on {job.cluster.backend}",
        **_memory(assembled),
    }
    for key, value in rows.items():
        table.add_row(key, value)
    if why := assembled.seating.lacking:
        table.add_row("warning", f"as the cluster is now, {why}; a search would wait for a larger one")
    for note in assembled.questions.notes:
        table.add_row("note", note)
    for word, text in parent_notes(assembled):
        table.add_row(word, text)
    return table


def _memory(assembled: Assembled) -> dict[str, str]:
    """Where the parents live, what each worker has for itself, and what a merge costs."""
    device = assembled.seating.device
    if device == "cuda" and choose_device("auto") != "cuda":
        return {"memory": "of the nodes' GPUs; every worker chooses where parents live when it starts"}
    storage = storage_of(assembled)
    parents = assembled.parents
    sizes = measure_sizes(parents.checkpoints, parents.template_name, assembled.suite.dtype, device, storage)
    sizes = replace(sizes, caches=measured_bytes(assembled))
    each = f"{in_bytes(sizes.model)} for the merged model, and activations"
    if sizes.n_models > 1:
        each = (
            f"up to {sizes.n_models} models of {in_bytes(sizes.model)}, together {in_bytes(sizes.models)}: the merged "
            f"one, and one for each parent that a path may name ({', '.join(hop_parents(assembled))}); and activations"
        )
    if runs_paths(assembled):
        each += f"; up to {_shared_states(device)} that paths share"
    rows = memory_rows(sizes, choose_residence(sizes, storage.place), measure_rates(), each)
    lost = sampled_agreement(parents.checkpoints, storage.packed_from) if storage.packed_from is not None else None
    return rows if lost is None else {**rows, "task vectors": packing_words(lost)}


def _shared_states(device: str) -> str:
    if device == "cpu":
        return f"{in_bytes(default_budget(device))} of hidden states"
    return f"1/{SHARE} of the free GPU memory of hidden states"


def _stages(assembled: Assembled) -> dict[str, str]:
    """Genes and optimizer, of every stage where there are several."""
    if not assembled.resolved.in_stages:
        return {
            "genes": str(assembled.space.space.dim),
            "optimizer": f"{assembled.optimizer.name}: {assembled.optimizer.why}{_mode(assembled, 0)}",
        }
    found = {}
    for number, maker in enumerate(assembled.makers):
        choice = maker.choice(maker.problem(maker.space, ()), maker.space) if number else assembled.optimizer
        found[f"stage {number + 1}, {maker.resolved.name}"] = (
            f"{maker.resolved.evaluations} evaluations, {maker.space.space.dim} genes, {choice.name}: {choice.why}"
            f"{_mode(assembled, number)}"
        )
    return found


def _mode(assembled: Assembled, number: int) -> str:
    """What is said of a stage without generations."""
    asynchronous = assembled.makers[number].resolved.optimizer.asynchronous
    return (
        "; asynchronous: a candidate whenever a worker is free, results depend on their order" if asynchronous else ""
    )


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

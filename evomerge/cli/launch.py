"""Commands that write what starts a search on a cluster: a batch script, a manifest, a submission."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from evomerge.cli.console import say
from evomerge.errors import ConfigError

if TYPE_CHECKING:
    from evomerge.config.schema import Cluster
    from evomerge.launching.command import SearchCommand

Job = Annotated[Path, typer.Argument(help="The job file, as the nodes see it.")]
RunDir = Annotated[Path | None, typer.Option(help="The run directory, shared by all nodes; runs/NAME if unset.")]
Cache = Annotated[
    str | None, typer.Option(help="A folder of each node for copies of the parents; may begin with $VAR.")
]
Settings = Annotated[list[str] | None, typer.Option("--set", help="a.b=value, laid over the job file.")]
Print = Annotated[bool, typer.Option("--print", help="Print it; the default.")]
To = Annotated[Path | None, typer.Option(help="Write it to this new file instead of printing it.")]

launch = typer.Typer(
    help="Write what starts a search on a cluster; nothing is started.", no_args_is_help=True, rich_markup_mode=None
)


@launch.command()
def slurm(
    job: Job,
    *,
    nodes: Annotated[int, typer.Option(help="How many nodes.")],
    gpus_per_node: Annotated[int, typer.Option(help="GPUs of each node; 0 searches on CPUs.")],
    cpus_per_node: Annotated[int | None, typer.Option(help="Cores of each node.")] = None,
    time: Annotated[str | None, typer.Option(help="Time limit, for instance 12:00:00.")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition.")] = None,
    account: Annotated[str | None, typer.Option(help="Account.")] = None,
    run_dir: RunDir = None,
    venv: Annotated[Path | None, typer.Option(help="A virtual environment on the shared folder.")] = None,
    container: Annotated[str | None, typer.Option(help="An image for apptainer, instead of --venv.")] = None,
    bind: Annotated[list[str] | None, typer.Option(help="A further folder that the container sees.")] = None,
    cache: Cache = None,
    share_nodes: Annotated[bool, typer.Option("--share-nodes", help="Do not ask for whole nodes.")] = False,
    min_nodes: Annotated[int, typer.Option(help="Begin once so many nodes are there; the others join later.")] = 1,
    tmp: Annotated[str, typer.Option(help="A folder of each node for Ray's sockets; short.")] = "/tmp",
    requeues: Annotated[int, typer.Option(help="How often the job is queued again at its time limit.")] = 20,
    set_: Settings = None,
    print_: Print = False,
    to: To = None,
) -> None:
    """A batch script for SLURM."""
    from evomerge.launching.slurm import SlurmJob, slurm_script

    search, room = _search_here(job, run_dir, set_ or [], Offer(nodes, cpus_per_node, gpus_per_node), cache=cache)
    script = slurm_script(
        SlurmJob(
            search,
            nodes=nodes,
            gpus_per_node=gpus_per_node,
            cpus_per_node=cpus_per_node,
            time=time,
            partition=partition,
            account=account,
            venv=None if venv is None else str(venv.absolute()),
            container=container,
            binds=tuple(bind or ()),
            share_nodes=share_nodes,
            min_nodes=min_nodes,
            tmp=tmp,
            requeues=requeues,
        )
    )
    if room:
        say(room, err=True)
    _hand_over(script, to, print_=print_, next_step="sbatch")


@launch.command()
def kuberay(
    job: Job,
    *,
    image: Annotated[str, typer.Option(help="An image with Python, Ray and evomerge.")],
    pvc: Annotated[str, typer.Option(help="The persistent volume claim of the shared folder (ReadWriteMany).")],
    gpus: Annotated[int, typer.Option(help="GPUs of each worker pod; 0 searches on CPUs.")],
    max_workers: Annotated[int, typer.Option(help="At most so many worker pods.")],
    run_dir: Annotated[Path, typer.Option(help="The run directory, as the pods see it.")],
    min_workers: Annotated[int, typer.Option(help="At least so many worker pods.")] = 1,
    mount: Annotated[str, typer.Option(help="Where the pods see the shared folder.")] = "/shared",
    namespace: Annotated[str, typer.Option(help="Namespace.")] = "default",
    name: Annotated[str | None, typer.Option(help="Name of the RayJob; made from the run's name if unset.")] = None,
    cpus: Annotated[int, typer.Option(help="Cores of each worker pod.")] = 8,
    memory: Annotated[str, typer.Option(help="Memory of each worker pod.")] = "64Gi",
    head_memory: Annotated[str, typer.Option(help="Memory of the pod that leads.")] = "16Gi",
    shm: Annotated[str, typer.Option(help="Size of /dev/shm of every pod.")] = "8Gi",
    ray_version: Annotated[str | None, typer.Option(help="Ray of the image; this installation's if unset.")] = None,
    autoscale: Annotated[bool, typer.Option(help="Let Ray ask for worker pods as the search needs them.")] = True,
    retries: Annotated[int, typer.Option(help="How often the job is started again, on a new cluster.")] = 10,
    cache: Cache = None,
    set_: Settings = None,
    print_: Print = False,
    to: To = None,
) -> None:
    """A RayJob for the KubeRay operator."""
    from importlib.metadata import version

    from evomerge.launching.kuberay import KubeJob, kuberay_yaml
    from evomerge.launching.words import slug

    search = _search_there(job, run_dir, set_ or [], on_gpus=gpus > 0, cache=cache)
    manifest = kuberay_yaml(
        KubeJob(
            search,
            name=name if name is not None else f"evomerge-{slug(search.name, most=30)}",
            namespace=namespace,
            image=image,
            claim=pvc,
            mount=mount,
            workers=(min_workers, max_workers),
            gpus=gpus,
            cpus=cpus,
            memory=memory,
            head_memory=head_memory,
            shm=shm,
            ray_version=ray_version if ray_version is not None else version("ray"),
            autoscale=autoscale,
            retries=retries,
        )
    )
    _hand_over(manifest, to, print_=print_, next_step="kubectl create -f")


@launch.command(name="ray-job")
def ray_job(
    job: Job,
    *,
    address: Annotated[str, typer.Option(help="The cluster's dashboard: http://HOST:8265.")],
    run_dir: Annotated[Path, typer.Option(help="The run directory, as the nodes see it.")],
    gpus: Annotated[bool, typer.Option(help="Whether the workers use GPUs.")] = True,
    submission_id: Annotated[str | None, typer.Option(help="Made from name, time and chance if unset.")] = None,
    working_dir: Annotated[Path | None, typer.Option(help="A folder to upload; none if unset.")] = None,
    token: Annotated[Path | None, typer.Option(help="The file with the cluster's token.")] = None,
    cache: Cache = None,
    set_: Settings = None,
    print_: Print = False,
    to: To = None,
) -> None:
    """A script that submits the search to a running Ray cluster."""
    from evomerge.launching.submission import Submission, submission_script

    search = _search_there(job, run_dir, set_ or [], on_gpus=gpus, cache=cache)
    script = submission_script(
        Submission(
            search,
            address=address,
            submission_id=submission_id,
            working_dir=None if working_dir is None else str(working_dir.absolute()),
            token=None if token is None else str(token.absolute()),
        )
    )
    _hand_over(script, to, print_=print_, next_step="bash")


class Offer(NamedTuple):
    """What is asked of the scheduler: so many nodes with so many cores (None: unknown) and GPUs each."""

    nodes: int
    cpus: int | None
    gpus: int


class Checked(NamedTuple):
    """A search, and what its user should hear about its workers; empty for nothing."""

    search: SearchCommand
    warning: str


def _search_here(job: Path, run_dir: Path | None, settings: list[str], offer: Offer, *, cache: str | None) -> Checked:
    """A search whose files this machine sees too: the job is checked before anything is written."""
    from evomerge.config.load import load_job
    from evomerge.config.storage import check_cache
    from evomerge.launching.command import SearchCommand

    resolved = load_job(job, settings)
    name = resolved.job.name
    folder = run_dir if run_dir is not None else Path("runs") / name
    on_gpus = offer.gpus > 0
    search = SearchCommand(name, str(job.absolute()), str(folder.absolute()), on_gpus, cache, tuple(settings))
    if cache is None:
        check_cache(resolved)
    return Checked(search, _few_workers(resolved.job.cluster, offer))


def _few_workers(cluster: Cluster, offer: Offer) -> str:
    """What to say when the job lets most of what is asked for lie idle.

    Raises:
        ConfigError: when no node would have room for a worker.
    """
    from evomerge.execution.ray_cluster import NodeDescription, lacking

    if not offer.gpus and offer.cpus is None:
        return ""
    gpus = float(cluster.gpus_per_worker or 1.0) if offer.gpus else 0.0
    cpus = float(cluster.cpus_per_worker)
    node = NodeDescription("each", float(offer.cpus if offer.cpus is not None else 1_000_000), float(offer.gpus))
    if offer.nodes > 0 and lacking([node], cpus, gpus):
        there = f"{offer.gpus} GPUs" + ("" if offer.cpus is None else f" and {offer.cpus} cores")
        raise ConfigError(
            "No node would have room for a worker.",
            got=f"nodes with {there}, and workers with {gpus:g} GPUs and {cpus:g} cores each",
            allowed="workers that fit on one node",
            fix="ask for larger nodes, or set cluster.gpus_per_worker and cluster.cpus_per_worker.",
        )
    room = offer.nodes * node.seats(cpus, gpus)
    if cluster.workers is None or cluster.workers >= room:
        return ""
    return (
        f"Warning: the job has cluster.workers: {cluster.workers}, and {offer.nodes} such nodes have room for {room}: "
        "the others stay idle. Leave cluster.workers out of the job to use all."
    )


def _search_there(job: Path, run_dir: Path, settings: list[str], *, on_gpus: bool, cache: str | None) -> SearchCommand:
    """A search whose files only the cluster sees: the run has the name of its directory."""
    from evomerge.launching.command import SearchCommand
    from evomerge.launching.words import slug

    return SearchCommand(slug(run_dir.name), str(job), str(run_dir), on_gpus, cache, tuple(settings))


def _hand_over(text: str, to: Path | None, *, print_: bool, next_step: str) -> None:
    """Print the text, or write it to a new file and say what to do with it."""
    if to is None:
        typer.echo(text, nl=False)
        return
    if print_ or to.exists():
        raise ConfigError(
            "The text cannot be written to this file.",
            got=f"--to {to}" + (" and --print" if print_ else ", which exists already"),
            allowed="a new file, or --print",
            fix="choose another name, or leave out one of the two.",
        )
    to.write_text(text, encoding="utf-8")
    typer.echo(f"Wrote {to}. Next: read it, then `{next_step} {shlex.quote(str(to))}`.")

"""A batch script for SLURM: one task per node starts Ray, the first node's also runs the search."""

from __future__ import annotations

import re
from dataclasses import dataclass
from shlex import join, quote
from typing import Final, final

from evomerge.errors import ConfigError
from evomerge.launching.command import SearchCommand
from evomerge.launching.slurm_parts import BATCH, FUNCTIONS
from evomerge.launching.words import check_count, check_path, check_plain, check_text, slug

_TIME: Final = re.compile(r"\d+|\d+:\d{2}(:\d{2})?|\d+-\d{1,2}(:\d{2}){0,2}")
_DRAIN_S: Final = 120
"""So long before the time limit the search is told to finish what runs."""
_LEAST_S: Final = 2 * _DRAIN_S + 60
"""SLURM may signal a minute early, and Ray and the workers have to start before anything is scored."""
_LONGEST_TMP: Final = 30
"""Ray puts sockets 70 characters below its folder, and Linux ends their paths at 107."""


@final
@dataclass(frozen=True)
class SlurmJob:
    """What a batch script needs to know.

    Attributes:
        search: the search; its job file and run directory lie on a folder that all nodes share.
        nodes: how many nodes are asked for.
        gpus_per_node: how many GPUs of each; 0 for a search on CPUs.
        cpus_per_node: how many cores of each; what the partition gives if None.
        time: limit, as `sbatch --time` takes it.
        partition: the partition, the site's default if None.
        account: who pays, the user's default if None.
        venv: a virtual environment on the shared folder, put before PATH.
        container: an image for apptainer, on the shared folder or as a URI.
        binds: folders that the container sees besides the run directory and the job file.
        share_nodes: whether other jobs may run on the same nodes. Then Ray is started by `ray start`, because
            `ray symmetric-run` refuses a node with another cluster and ends with a `ray stop` of all of a user's.
        min_nodes: how many nodes the search waits for; it takes whatever joins later.
        tmp: a folder of each node, for sockets and logs of Ray.
        requeues: how often the job is queued again after it was stopped before its end.

    Raises:
        ConfigError: for a member that is out of range or that no script could carry.
    """

    search: SearchCommand
    nodes: int
    gpus_per_node: int
    cpus_per_node: int | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    venv: str | None = None
    container: str | None = None
    binds: tuple[str, ...] = ()
    share_nodes: bool = False
    min_nodes: int = 1
    tmp: str = "/tmp"
    requeues: int = 20

    def __post_init__(self) -> None:
        check_count("The number of nodes", self.nodes)
        check_count("The number of GPUs per node", self.gpus_per_node, least=0, most=64)
        check_count("The number of nodes to wait for", self.min_nodes, most=self.nodes)
        check_count("The number of requeues", self.requeues, least=0)
        if self.cpus_per_node is not None:
            check_count("The number of cores per node", self.cpus_per_node)
        for what, word in (("The partition", self.partition), ("The account", self.account)):
            if word is not None:
                check_plain(what, word)
        if self.time is not None:
            _check_time(self.time)
        self._check_places()

    def _check_places(self) -> None:
        if self.venv is not None and ":" in check_path("The virtual environment", self.venv):
            raise ConfigError(
                "A path with a colon cannot stand in PATH.",
                got=repr(self.venv),
                allowed="a virtual environment in a folder without colons",
                fix="move or link the environment.",
            )
        if self.container is not None:
            _check_container(self.container, self.venv)
        for folder in self.binds:
            _check_bind(folder)
        if self.container is not None:
            _check_bind(self.search.run_dir)
            _check_bind(self.search.job)
        if len(check_path("The folder for Ray", self.tmp)) > _LONGEST_TMP:
            raise ConfigError(
                "The folder for Ray's sockets has too long a path.",
                got=self.tmp,
                allowed=f"at most {_LONGEST_TMP} characters: paths of sockets end at 107",
                fix="name a shorter folder with --tmp.",
            )


def _check_time(text: str) -> None:
    if not _TIME.fullmatch(text):
        raise ConfigError(
            "The time limit is not one of sbatch's.",
            got=repr(text[:80]),
            allowed="MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS, DAYS-HOURS:MINUTES[:SECONDS]",
            fix="write for instance --time 12:00:00.",
        )
    if 0 < (limit_s := _seconds(text)) < _LEAST_S:  # SLURM's 0 is no limit
        raise ConfigError(
            "The time limit leaves no time to search.",
            got=f"--time {text}: {limit_s} s",
            allowed=f"at least {_LEAST_S} s: the search is told to finish {_DRAIN_S} s before the limit",
            fix="ask for hours, for instance --time 12:00:00; what is stopped is queued again and goes on.",
        )


def _seconds(text: str) -> int:
    """What sbatch makes of a time: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    days, dash, rest = text.rpartition("-")
    fields = [int(field) for field in rest.split(":")]
    if dash:
        hours, minutes, seconds = (*fields, 0, 0)[:3]
        return int(days) * 86400 + hours * 3600 + minutes * 60 + seconds
    hours, minutes, seconds = fields if len(fields) == 3 else (0, *fields, 0)[:3]
    return hours * 3600 + minutes * 60 + seconds


def _check_container(image: str, venv: str | None) -> None:
    if check_text("The container image", image).startswith("-") or venv is not None:
        raise ConfigError(
            "The container image cannot be used so.",
            got=f"--container {image}" + (f" --venv {venv}" if venv is not None else ""),
            allowed="either --container with the path or URI of an image, or --venv",
            fix="leave one of them out.",
        )


def _check_bind(folder: str) -> None:
    if re.search(r"[:,]", check_path("A folder for the container", folder)):
        raise ConfigError(
            "A folder with a colon or comma in its path cannot be given to a container.",
            got=repr(folder),
            allowed="paths without colons and commas",
            fix="move or link the folder.",
        )


def slurm_script(job: SlurmJob) -> str:
    """The batch script, for `sbatch`; its words are quoted, and it reads no file but the job's."""
    head = "\n".join(["#!/bin/bash", _ABOUT.format(name=job.search.name), *_directives(job)])
    return "\n".join([head, "", _settings(job), FUNCTIONS, BATCH])


_ABOUT: Final = """\
# The search {name} on SLURM, written by `evomerge launch slurm`. Start it with `sbatch THIS_FILE`.
# Stopped before its time limit it finishes what runs, is queued again and goes on where it was; see docs/cluster.md."""


def _directives(job: SlurmJob) -> list[str]:
    name = f"evomerge-{slug(job.search.name)}"
    options = {
        "job-name": name,
        "output": f"{name}-%j.out",
        "open-mode": "append",
        "nodes": job.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": job.cpus_per_node,
        "gpus-per-node": job.gpus_per_node or None,
        "time": job.time,
        "partition": job.partition,
        "account": job.account,
        "signal": f"B:TERM@{_DRAIN_S}",
    }
    flags = ["requeue"] if job.share_nodes else ["requeue", "exclusive", "mem=0"]
    return [f"#SBATCH --{key}={value}" for key, value in options.items() if value is not None] + [
        f"#SBATCH --{flag}" for flag in flags
    ]


def _settings(job: SlurmJob) -> str:
    """The part of the script that holds the words of this job, and the only one that differs between jobs."""
    lines = [
        f"run_dir={quote(job.search.run_dir)}",
        f"search=({join(job.search.words())})",
        f"runner=({join(_runner(job))})",
        f"tmp={quote(job.tmp)}",
        f"gpus={job.gpus_per_node}",
        f"cpus={job.cpus_per_node or ''}",
        f"min_nodes={job.min_nodes}",
        f"requeues={job.requeues}",
        f"start={'own' if job.share_nodes else 'symmetric'}",
    ]
    if job.venv is not None:
        lines.append(f'export PATH={quote(job.venv + "/bin")}:"$PATH"')
    return "\n".join(lines)


def _runner(job: SlurmJob) -> tuple[str, ...]:
    """What stands before every command of the nodes: nothing, or a container."""
    if job.container is None:
        return ()
    run_dir, job_file = job.search.run_dir, job.search.job
    folders = dict.fromkeys((_parent(run_dir), _parent(job_file), job.tmp, *job.binds))
    binds = [word for folder in folders for word in ("--bind", folder)]
    return ("apptainer", "exec", *(["--nv"] if job.gpus_per_node else []), *binds, job.container)


def _parent(path: str) -> str:
    return path.rstrip("/").rpartition("/")[0] or "/"

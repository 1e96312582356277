"""The search that a launched job runs: the same words on every kind of cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from evomerge.launching.words import as_yaml, check_cache, check_path, check_plain, check_setting


@final
@dataclass(frozen=True)
class SearchCommand:
    """`evomerge search JOB --run-dir D --resume auto ...`, as words.

    Attributes:
        name: of the run; only for names of jobs and files.
        job: the job file, as the machine of the driver sees it.
        run_dir: the run directory on a folder that all nodes share.
        on_gpus: whether the workers use GPUs; the driver has none, so that it cannot see for itself.
        cache: a folder of each node for copies of the parents; may begin with `$VARIABLE`.
        settings: further `a.b=value` settings, laid over the job last; none of the cluster's backend or address.

    Raises:
        ConfigError: for a member that no script could carry.
    """

    name: str
    job: str
    run_dir: str
    on_gpus: bool
    cache: str | None = None
    settings: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        check_plain("The name of the run", self.name)
        check_path("The path of the job file", self.job)
        check_path("The run directory", self.run_dir)
        if self.cache is not None:
            check_cache(self.cache)
        for setting in self.settings:
            check_setting(setting)

    def words(self) -> tuple[str, ...]:
        """The command and its arguments, without the address of the cluster."""
        settings = ["cluster.backend=ray"]
        if self.on_gpus:
            settings.append("cluster.device=cuda")
        if self.cache is not None:
            settings.append(f"cluster.cache={as_yaml(self.cache)}")
        settings += self.settings
        laid_over = [word for setting in settings for word in ("--set", setting)]
        return ("evomerge", "search", self.job, "--run-dir", self.run_dir, "--resume", "auto", *laid_over)

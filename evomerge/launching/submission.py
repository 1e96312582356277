"""A script that submits a search to a running Ray cluster with `ray job submit`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from shlex import join, quote
from typing import Final, final

from evomerge.errors import ConfigError
from evomerge.launching.command import SearchCommand
from evomerge.launching.words import check_path, check_plain, slug

_ADDRESS: Final = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?/?")


@final
@dataclass(frozen=True)
class Submission:
    """What a submission needs to know.

    Attributes:
        search: the search; its job file and run directory are paths of the head, on a folder that all nodes share.
        address: of the dashboard, `http://HOST:8265`.
        submission_id: a name of its own for this submission; made by the script from the run's name, the time and
            chance if None.
        working_dir: a folder of this machine that is uploaded, for a job that needs one; nothing is if None.
        token: a file with the cluster's token; `$RAY_AUTH_TOKEN_PATH` or `~/.ray/auth_token` if None.

    Raises:
        ConfigError: for a member that is out of range or that no script could carry.
    """

    search: SearchCommand
    address: str
    submission_id: str | None = None
    working_dir: str | None = None
    token: str | None = None

    def __post_init__(self) -> None:
        if not _ADDRESS.fullmatch(self.address):
            raise ConfigError(
                "The address is not one of a Ray dashboard.",
                got=repr(self.address[:80]),
                allowed="http://HOST:PORT or https://HOST:PORT; the port is 8265 if the cluster does not say otherwise",
                fix="for a cluster behind a login node, forward the port: ssh -L 8265:127.0.0.1:8265 HOST.",
            )
        if self.submission_id is not None:
            check_plain("The submission id", self.submission_id)
        for what, path in (("The folder to upload", self.working_dir), ("The token file", self.token)):
            if path is not None:
                check_path(what, path)


def submission_script(job: Submission) -> str:
    """A script for bash that submits the search and follows it; two runs of it are two submissions."""
    made = f'{slug(job.search.name)}-$(date -u +%Y%m%d-%H%M%S)-$(od -An -N4 -tx1 /dev/urandom | tr -d " \\n")'
    lines = [
        f"submission_id={quote(job.submission_id) if job.submission_id is not None else made}",
        f"address={quote(job.address)}",
        f"search=({join((*job.search.words(), '--set', 'cluster.address=auto'))})",
        f"runtime_env={quote(json.dumps(_RUNTIME_ENV))}",
    ]
    if job.token is not None:
        lines.append(f"export RAY_AUTH_TOKEN_PATH={quote(job.token)}")
    upload = [f"working_dir={quote(job.working_dir)}", _RAYIGNORE] if job.working_dir is not None else []
    option = ' --working-dir "$working_dir"' if job.working_dir is not None else ""
    submit = _SUBMIT.format(option=option)
    return "\n".join([_ABOUT.format(name=job.search.name), *lines, *upload, submit])


_RUNTIME_ENV: Final = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "90"}}
"""`ray job stop` waits so long for what runs to be finished, instead of 3 s."""

_ABOUT: Final = """\
#!/bin/bash
# The search {name} as a Ray job, written by `evomerge launch ray-job`. Run it with `bash THIS_FILE`.
# Run again after the job has ended early, it goes on where the run directory ends; see docs/cluster.md.
set -euo pipefail"""

_RAYIGNORE: Final = """
# What is not uploaded; Ray refuses more than 512 MiB.
if [ ! -e "$working_dir/.rayignore" ]; then
  printf '%s\\n' .git .venv .cache runs exports '*.safetensors' '*.bin' '*.gguf' >"$working_dir/.rayignore"
fi"""

_SUBMIT: Final = """
# Without the token the cluster does not answer; a cluster without one lets anybody run anything.
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
if [ -z "${{RAY_AUTH_TOKEN:-}}" ] && [ ! -r "${{RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}}" ]; then
  echo "There is no token: set RAY_AUTH_TOKEN_PATH to the file that the cluster was started with." >&2
  exit 2
fi
token=${{RAY_AUTH_TOKEN_PATH:+"RAY_AUTH_TOKEN_PATH=$(printf %q "$RAY_AUTH_TOKEN_PATH") "}}
echo "Submitting $submission_id; finish what runs, and stop, with:"
echo "  RAY_AUTH_MODE=token ${{token}}ray job stop --address $address $submission_id"
exec ray job submit --address "$address" --submission-id "$submission_id" --runtime-env-json "$runtime_env"{option} \\
  -- "${{search[@]}}"
"""

"""Batch scripts for SLURM: what they say, that shells accept them, and what they do on a scheduler of scripts."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.launching.command import SearchCommand
from evomerge.launching.slurm import SlurmJob, slurm_script
from evomerge.testing.fake_slurm import FakeSlurm, wait_for

SHELLCHECK = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
SEARCH = SearchCommand("first", "/shared/job.yaml", "/shared/runs/first", on_gpus=True)
PLAIN = SlurmJob(SEARCH, nodes=2, gpus_per_node=4)
VARIATIONS = {
    "plain": PLAIN,
    "shared": replace(PLAIN, share_nodes=True, time="1-12", partition="gpu", account="a100@proj"),
    "venv": replace(PLAIN, venv="/shared/my env's", cpus_per_node=16),
    "container shared": replace(PLAIN, container="docker://x/y:1", binds=("/m o",), share_nodes=True),
    "hostile": replace(
        PLAIN,
        search=SearchCommand(
            "first",
            "/a b/$(touch x)/`id`/'\"/job.yaml",
            '/r/"; rm -rf ~ #/../$HOME/*',
            on_gpus=True,
            cache="$SCRATCH/a'b",
            settings=("parents.models.x='; id'", "name=\\"),
        ),
    ),
}


def test_shells_accept_every_variation(tmp_path: Path) -> None:
    scripts = {name: tmp_path / f"{name}.sh" for name in VARIATIONS}
    for name, script in scripts.items():
        script.write_text(slurm_script(VARIATIONS[name]))
        subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck", path=SHELLCHECK) is None:
        pytest.skip("shellcheck is not installed")
    # of a hostile name it says that the quotes will not do what they seem to: they are not meant to
    hostile = scripts.pop("hostile")
    for options in (scripts.values(), ("--exclude=SC1003,SC2016,SC2089,SC2090", hostile)):
        checked = subprocess.run(
            ["shellcheck", *options], capture_output=True, text=True, check=False, env={"PATH": SHELLCHECK}
        )
        assert checked.returncode == 0, checked.stdout


def directives(script: str) -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", script, re.MULTILINE)
    assert len(dict(found)) == len(found), "a directive stands twice"
    return dict(found)


def test_the_scheduler_is_told() -> None:
    told = directives(slurm_script(VARIATIONS["shared"]))
    assert told == {
        "job-name": "evomerge-first",
        "output": "evomerge-first-%j.out",
        "open-mode": "append",
        "nodes": "2",
        "ntasks-per-node": "1",
        "gpus-per-node": "4",
        "time": "1-12",
        "partition": "gpu",
        "account": "a100@proj",
        "signal": "B:TERM@120",
        "requeue": "",
    }
    assert "exclusive" in directives(slurm_script(PLAIN)), "ray stop must meet nobody else's processes"


def words_of(script: str, name: str) -> list[str]:
    """What a shell makes of one array of the script."""
    line = next(line for line in script.splitlines() if line.startswith(f"{name}=("))
    shown = subprocess.run(
        ["bash", "-c", f"{line}\nprintf '%s\\0' \"${{{name}[@]}}\""], capture_output=True, check=True, text=True
    )
    return shown.stdout.split("\0")[:-1]


printable = st.text(alphabet=st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=30).filter(
    str.isprintable
)


@given(printable, printable, printable.filter(bool), printable.filter(bool))
@settings(deadline=None, max_examples=25)
def test_a_shell_reads_exactly_the_words_that_were_meant(job: str, run: str, cache: str, setting: str) -> None:
    search = SearchCommand("first", f"/{job}", f"/{run}", on_gpus=False, cache=f"${cache}", settings=(f"a={setting}",))
    script = slurm_script(replace(PLAIN, search=search))
    assert words_of(script, "search") == list(search.words())
    line = next(line for line in script.splitlines() if line.startswith("run_dir="))
    assert shlex.split(line) == [f"run_dir=/{run}"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"nodes": 0}, "number of nodes"),
        ({"time": "2"}, "--time 2: 120 s"),
        ({"time": "4:59"}, "--time 4:59: 299 s"),
        ({"time": "0:04:00"}, "--time 0:04:00: 240 s"),
        ({"time": "0-0:04"}, "--time 0-0:04: 240 s"),
        ({"gpus_per_node": -1}, "GPUs per node"),
        ({"min_nodes": 3}, "wait for"),
        ({"partition": "gpu\n#SBATCH --wrap=id"}, "partition"),
        ({"account": "$(id)"}, "account"),
        ({"time": "soon"}, "time limit"),
        ({"venv": "/a:b"}, "colon"),
        ({"venv": "env"}, "absolute"),
        ({"container": "--fakeroot"}, "container image"),
        ({"container": "x.sif", "venv": "/env"}, "container image"),
        ({"container": "x.sif", "binds": ("/a:/etc",)}, "colon or comma"),
        ({"tmp": "/a/folder/with/a/path/that/is/too/long"}, "too long a path"),
        ({"requeues": -1}, "requeues"),
    ],
)
def test_what_no_script_could_carry_is_refused(change: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        replace(PLAIN, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("member", ["job", "run_dir", "cache"])
def test_line_breaks_are_refused(member: str) -> None:
    with pytest.raises(ConfigError, match="cannot be written into a script"):
        replace(SEARCH, **{member: "/a\n#SBATCH --wrap=id"})


# the first node runs what stands behind --, the others stay until the first has ended; both note what they were told
RAY = r"""
printf '%s\n' "$@" >"$FAKE_SLURM/ray-$SLURM_PROCID"
env | grep -E '^RAY_' | sort >"$FAKE_SLURM/env-$SLURM_PROCID"
stat -c '%a' "$RAY_AUTH_TOKEN_PATH" >"$FAKE_SLURM/token-mode"
cat "$RAY_AUTH_TOKEN_PATH" >"$FAKE_SLURM/token-$SLURM_PROCID"
case $1 in
  symmetric-run)
    while [ "$1" != -- ]; do shift; done; shift
    if [ "$SLURM_PROCID$STUBBORN" = 1yes ]; then trap '' TERM; sleep 2.5; exit; fi
    if [ "$SLURM_PROCID" = 0 ]; then exec "$@"; fi
    sleep 300;;
  start) sleep 300;;
  health-check) [ -e "$FAKE_SLURM/ray-0" ];;
esac
"""

# a search that runs until it is stopped, the first time; what it was told goes to a file
SEARCH_STUB = r"""
printf '%s\0' "$@" >"$FAKE_SLURM/search"
[ ! -e "$FAKE_SLURM/seen" ] || exit 0
trap 'touch "$FAKE_SLURM/drained"; exit 75' TERM
touch "$FAKE_SLURM/seen" "$FAKE_SLURM/began"
while true; do sleep 0.1; done
"""


@pytest.fixture
def slurm(tmp_path: Path) -> FakeSlurm:
    return FakeSlurm(
        tmp_path / "slurm",
        ["node1", "node2"],
        {"ray": RAY, "evomerge": SEARCH_STUB},
        {"EVOMERGE_HEAD_IP": "10.1.2.3", "EVOMERGE_POLL_S": "0.02", "STUBBORN": ""},
    )


@pytest.fixture(params=["whole nodes", "shared nodes"])
def script(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    shared = tmp_path / "a 'shared' $folder"
    shared.mkdir()
    search = SearchCommand("first", f"{shared}/job.yaml", f"{shared}/runs/first", on_gpus=True)
    path = tmp_path / "job.sh"
    path.write_text(slurm_script(replace(PLAIN, search=search, share_nodes=request.param == "shared nodes")))
    yield path
    left = [p for p in shared.rglob("*") if p.name != "runs"]
    assert left == [], "the token and the driver's state are gone"
    assert not list(Path("/tmp").glob(f"em-{os.getpid()}-*")), "so are the folders of the nodes"


def check_what_the_nodes_were_told(script: Path, slurm: FakeSlurm) -> None:
    asked = (slurm.folder / "srun").read_text().split("\n")
    assert {"--nodes=2", "--ntasks=2", "--gpus-per-node=4", "--cpu-bind=none", "--kill-on-bad-exit=0"} <= set(asked)
    told = (slurm.folder / "search").read_text().split("\0")
    assert told[:2] == ["search", f"{script.parent}/a 'shared' $folder/job.yaml"]
    address = next(word for word in told if word.startswith("cluster.address="))
    assert re.fullmatch(r'cluster\.address="10\.1\.2\.3:\d{5}"', address)
    tokens = [(slurm.folder / f"token-{i}").read_text() for i in range(2)]
    assert tokens[0] == tokens[1]
    assert re.fullmatch(r"[0-9a-f]{64}", tokens[0])
    assert (slurm.folder / "token-mode").read_text().strip() == "600"
    environment = (slurm.folder / "env-1").read_text()
    assert "RAY_AUTH_MODE=token" in environment
    assert "RAY_USAGE_STATS_ENABLED=0" in environment
    options = [(slurm.folder / f"ray-{i}").read_text().split() for i in range(2)]
    ports = [{w for w in o if re.match(r"--[a-z-]+-port=\d+$", w)} for o in options if "--disable-usage-stats" in o]
    assert not ports[0] & ports[-1] or len(ports) == 1, "two tasks on one machine claimed the same ports"
    assert all(re.search(r"-port=(\d+)", w)[1] < "32768" for p in ports for w in p)  # type: ignore[index]
    assert stat.S_IMODE(Path(f"{script.parent}/a 'shared' $folder/runs").stat().st_mode) & 0o700 == 0o700


def test_a_stopped_search_is_drained_and_queued_again(script: Path, slurm: FakeSlurm) -> None:
    process = slurm.start(script)
    wait_for(slurm.folder / "began", process)
    process.send_signal(signal.SIGTERM)  # as `--signal=B:TERM@120`: to the batch shell alone
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert (slurm.folder / "drained").exists()
    assert slurm.requeues == 1
    again = slurm.start(script, restarts=1)
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0, output
    assert slurm.requeues == 1
    check_what_the_nodes_were_told(script, slurm)


@pytest.mark.parametrize("script", ["whole nodes"], indirect=True)
def test_neither_requeues_nor_a_node_that_does_not_end_go_on_for_ever(script: Path, slurm: FakeSlurm) -> None:
    stubborn = replace(
        slurm, folder=slurm.folder.parent / "other", environment={**slurm.environment, "STUBBORN": "yes"}
    )
    process = stubborn.start(script, restarts=20)
    wait_for(stubborn.folder / "began", process)
    process.send_signal(signal.SIGTERM)
    with process:
        assert process.wait(timeout=60) == 75
    assert stubborn.requeues == 0
    node = Path(f"/tmp/em-{os.getpid()}-20-1")
    assert node.exists(), "it goes on until its job ends"
    for _ in range(100):
        if node.exists():
            time.sleep(0.1)


def test_a_script_that_is_not_submitted_says_so(script: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    ran = subprocess.run(["bash", script], capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 2
    assert "start it with sbatch" in ran.stderr


@pytest.mark.parametrize("time", ["5", "5:00", "0:05:00", "1-0", "0-1:00", "0-0:05:00", "0", "999:00"])
def test_a_time_that_leaves_time_to_search_is_taken(time: str) -> None:
    assert f"#SBATCH --time={time}\n" in slurm_script(replace(PLAIN, time=time))

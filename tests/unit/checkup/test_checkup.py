"""What a check-up finds on machines that we make up, and on this one."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path

import pytest

from evomerge.checkup import machine
from evomerge.checkup.cluster import judge_cluster
from evomerge.checkup.finding import Finding, in_gib
from evomerge.checkup.folders import clock, kind_of, locking, run_folder
from evomerge.checkup.gpus import judge_gpus, torch_cuda
from evomerge.checkup.online import hub
from evomerge.checkup.packages import OPTIONAL, optional_packages, provided, python_and_packages
from evomerge.execution.ray_cluster import ClusterDescription, NodeDescription

H100 = "NVIDIA H100 80GB HBM3, 81559, 80000, 570.86"
A100 = "NVIDIA A100-SXM4-40GB, 40960, 40000, 570.86"


def states(findings: list[Finding]) -> dict[str, str]:
    return {f.name: f.state for f in findings}


def test_what_is_not_ok_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="says what to do next"):
        Finding("machine", "cores", "warning", "none")
    assert Finding("a", "b", "ok", "c").to_json() == {
        "topic": "a",
        "name": "b",
        "state": "ok",
        "found": "c",
        "next": "",
    }
    assert in_gib(3 * 2**29) == "1.5 GiB"


def test_packages_out_of_range_or_absent_are_missing() -> None:
    versions = {"torch": "2.7.1", "ray": "2.60.0"}
    asked = ["torch>=2.8", "ray>=2.60", "lm-eval[hf]>=0.4.13,<0.5", "mergekit==0.1.5; extra == 'parity'", "not ! one"]
    findings = list(python_and_packages(asked, versions.get))
    assert states(findings) == {"Python": "ok", "needed": "ok", "torch": "missing", "lm-eval": "missing"}
    torch, lm_eval = findings[2:]
    assert torch.text == "2.7.1; needed: torch>=2.8"
    assert lm_eval.text.startswith("not installed")
    assert lm_eval.fix.startswith("pip install 'lm-eval<0.5,>=0.4.13'")


def test_this_installation_has_what_it_needs() -> None:
    assert {f.state for f in python_and_packages()} == {"ok"}
    n_needed = sum("extra ==" not in text for text in metadata.requires("evomerge") or [])
    assert next(f for f in python_and_packages() if f.name == "needed").text.startswith(f"{n_needed} in their ranges")


def test_optional_packages_say_what_they_add() -> None:
    findings = list(optional_packages({"wandb": "0.31.0"}.get))
    assert [f.name for f in findings] == list(OPTIONAL)
    assert {f.state for f in findings} == {"ok"}
    assert "0.31.0: track: [wandb]" in {f.text for f in findings}
    assert sum("it would add" in f.text for f in findings) == len(OPTIONAL) - 1


def test_a_module_counts_whatever_distribution_brought_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flowing").mkdir()
    (tmp_path / "flowing" / "__init__.py").write_text("raise RuntimeError('nothing is imported')")
    (tmp_path / "loose_one.py").write_text("")
    (tmp_path / "only_a_folder").mkdir()
    info = tmp_path / "flowing_skinny-3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flowing-skinny\nVersion: 3.1\n")
    (info / "top_level.txt").write_text("flowing\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert provided("flowing") == "3.1 (flowing-skinny)"
    assert provided("loose-one") == "of unknown version"
    assert provided("only_a_folder") is None
    assert provided("packaging") == metadata.version("packaging")


def test_cores_of_a_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    found = machine.cores(tmp_path)
    assert found.state == "warning"
    assert "allows 2.5" in found.text
    assert "cluster.workers to 2" in found.fix
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.cores(tmp_path).state == "ok"
    assert machine.cores(tmp_path / "none").state == "ok"


def test_little_of_anything_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.memory(2**30, 2**34, None).state == "warning"
    assert "allows 8.0 GiB" in machine.memory(2**33, 2**34, 2**33).text
    assert machine.shared_memory(tmp_path / "none").state == "warning"
    assert machine.open_files(1024).state == "warning"
    assert machine.open_files(65536).state == "ok"
    assert machine.open_files(-1).state == "ok"
    assert machine.compiler("no-such-compiler").state == "warning"
    assert machine.disk("cache", tmp_path / "not" / "there").name == "cache"
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"total": 2**26, "free": 2**20})())
    assert machine.disk("cache", tmp_path).state == "warning"
    assert machine.shared_memory(tmp_path).state == "warning"


def test_gpus_and_the_torch_that_would_use_them() -> None:
    assert states(list(judge_gpus(None, None))) == {"driver": "ok"}
    assert states(list(judge_gpus("", "12.8"))) == {"driver": "warning"}
    assert states(list(judge_gpus(f"{H100}\n{H100}\n", "12.8"))) == {"GPU 0": "ok", "GPU 1": "ok", "torch": "ok"}
    assert states(list(judge_gpus(f"{H100}\n{A100}\n", "12.8")))["classes"] == "warning"
    assert states(list(judge_gpus(H100, None)))["torch"] == "warning"
    old = list(judge_gpus(H100, "13.0"))[-1]
    assert old.state == "warning"
    assert "asks for 580 or newer" in old.text


def test_the_cuda_of_torch_is_read_without_loading_it() -> None:
    spec = find_spec("torch")
    assert spec is not None
    assert torch_cuda() == run_path(str(Path(spec.origin or "").parent / "version.py"))["cuda"]


MOUNTS = r"""
/dev/vda / ext4 rw 0 0
tmpfs /dev/shm tmpfs rw 0 0
server:/home /home nfs4 rw 0 0
lustre@o2ib /home/my\040scratch lustre rw 0 0
short line
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [("/tmp/x", "ext4"), ("/home/me/runs", "nfs4"), ("/home/my scratch/runs", "lustre"), ("/homes", "ext4")],
)
def test_the_file_system_is_the_nearest_mount(folder: str, kind: str) -> None:
    assert kind_of(Path(folder), MOUNTS) == kind


def test_the_run_folder_here(tmp_path: Path) -> None:
    findings = list(run_folder(tmp_path / "runs"))
    assert states(findings) == {"file system": "ok", "renaming": "ok", "locking": "ok", "clock": "ok"}
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").touch()
    monkeypatch.setattr("fcntl.flock", lambda fd, how: None)
    assert "two writers" in locking(tmp_path / "a").text

    def refuse(fd: int, how: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert "no flock (Operation not supported)" in locking(tmp_path / "a").text


def test_a_folder_that_cannot_be_written_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**settings: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)
    assert states(list(run_folder(tmp_path)))["writing"] == "missing"


def test_clocks() -> None:
    assert clock(stamp=100.0, before=99.9, after=100.1).state == "ok"
    assert clock(stamp=99.0, before=100.0, after=100.1).state == "ok"  # coarse stamps
    assert "+30.0 s" in clock(stamp=130.0, before=99.9, after=100.0).text
    assert "-30.0 s" in clock(stamp=70.0, before=100.0, after=100.1).text


def node(host: str, gpus: float, device: str, alive: bool = True) -> NodeDescription:
    return NodeDescription(host=host, cpus=8, gpus=gpus, device=device, memory_bytes=2**36, alive=alive)


def test_clusters() -> None:
    cluster = ClusterDescription((node("head", 0, ""), node("n1", 4, "H100"), node("n2", 4, "H100", alive=False)))
    findings = list(judge_cluster(cluster))
    assert {f.state for f in findings} == {"ok"}
    assert "2 alive, 1 lost; 16 cores, 4 GPUs" in next(f.text for f in findings if f.name == "nodes")
    mixed = ClusterDescription((node("n1", 4, "H100"), node("n2", 4, "A100")))
    assert states(list(judge_cluster(mixed)))["classes"] == "warning"
    assert states(list(judge_cluster(ClusterDescription(()))))["nodes"] == "missing"


def test_a_hub_that_cannot_be_reached_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub().state == "warning"
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc/passwd")
    assert "no address" in hub().text


def test_a_login_in_an_address_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("http://me:secret@127.0.0.1:9", "file://me:secret@host"):
        monkeypatch.setenv("HF_ENDPOINT", address)
        assert "secret" not in hub().text
        assert "//***@" in hub().text

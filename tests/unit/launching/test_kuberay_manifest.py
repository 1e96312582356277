"""RayJobs for KubeRay: what they say; and with EVOMERGE_RAYJOB_CRD=FILE that the operator takes it."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.launching.command import SearchCommand
from evomerge.launching.kuberay import KubeJob, kuberay_yaml

SEARCH = SearchCommand("first", "/shared/job.yaml", "/shared/runs/first", on_gpus=True)
PLAIN = KubeJob(
    SEARCH,
    name="evomerge-first",
    namespace="ml",
    image="registry.example.org/evomerge:0.1.0",
    claim="models",
    mount="/shared",
    workers=(1, 8),
    gpus=2,
    ray_version="2.60.0",
)
VARIATIONS = {
    "plain": PLAIN,
    "fixed": replace(PLAIN, autoscale=False, retries=0),
    "cpus": replace(PLAIN, gpus=0, search=replace(SEARCH, on_gpus=False), workers=(0, 3)),
    "hostile": replace(PLAIN, search=replace(SEARCH, job="/shared/a: b #'\"`id`{{x}}&*!|>%@.yaml", cache="$S/{x: y}")),
}


def manifest(name: str) -> dict[str, Any]:
    text = kuberay_yaml(VARIATIONS[name])
    assert "&id" not in text, "anchors are hard to read"
    loaded = yaml.safe_load(text)
    assert isinstance(loaded, dict)
    return loaded


def pods(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return {
        "head": cluster["headGroupSpec"]["template"]["spec"],
        "worker": cluster["workerGroupSpecs"][0]["template"]["spec"],
        "submitter": job["spec"]["submitterPodTemplate"]["spec"],
    }


@pytest.mark.parametrize("name", VARIATIONS)
def test_the_search_resumes_and_the_cluster_asks_for_a_token(name: str) -> None:
    job = manifest(name)
    spec = job["spec"]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    words = shlex.split(spec["entrypoint"])
    assert words == [*VARIATIONS[name].search.words(), "--set", "cluster.address=auto"]
    assert words[words.index("--resume") + 1] == "auto"
    assert spec["backoffLimit"] == VARIATIONS[name].retries
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["rayClusterSpec"]["rayVersion"] == "2.60.0"


@pytest.mark.parametrize("name", VARIATIONS)
def test_no_pod_is_root_or_takes_more_than_it_says(name: str) -> None:
    for role, pod in pods(manifest(name)).items():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        container = pod["containers"][0]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
        assert not any("TOKEN" in variable["name"] for variable in container.get("env", [])), "the operator adds it"
        if role != "submitter":
            mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
            assert mounts == {"shared": "/shared", "shm": "/dev/shm"}
            assert pod["volumes"][0] == {"name": "shared", "persistentVolumeClaim": {"claimName": "models"}}
            assert pod["terminationGracePeriodSeconds"] == 120


def test_only_workers_have_gpus_and_the_head_scores_nothing() -> None:
    job = manifest("plain")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"] | {"dashboard-host": ""} == {
        "num-cpus": "0",
        "num-gpus": "0",
        "dashboard-host": "",
    }
    gpus = {role: pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for role, pod in pods(job).items()}
    assert gpus == {"head": None, "worker": "2", "submitter": None}
    without = pods(manifest("cpus"))["worker"]["containers"][0]
    assert "nvidia.com/gpu" not in without["resources"]["limits"]


def test_the_group_grows_and_shrinks_or_stays() -> None:
    group = manifest("plain")["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (1, 1, 8)
    assert manifest("plain")["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    fixed = manifest("fixed")["spec"]["rayClusterSpec"]
    assert fixed["enableInTreeAutoscaling"] is False
    assert "autoscalerOptions" not in fixed
    assert fixed["workerGroupSpecs"][0]["replicas"] == 8


printable = st.text(alphabet=st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), max_size=30).filter(
    lambda text: text.isprintable() and "$(" not in text and ".." not in text
)


@given(printable, printable, printable.filter(bool))
@settings(deadline=None, max_examples=20)
def test_yaml_and_shell_give_back_exactly_the_words_that_were_meant(job: str, run: str, setting: str) -> None:
    search = SearchCommand("first", f"/shared/j{job}", f"/shared/r{run}", on_gpus=False, settings=(f"a={setting}",))
    entrypoint = yaml.safe_load(kuberay_yaml(replace(PLAIN, search=search)))["spec"]["entrypoint"]
    assert shlex.split(entrypoint) == [*search.words(), "--set", "cluster.address=auto"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"name": "Evo_Merge"}, "RayJob"),
        ({"name": "x" * 48}, "RayJob"),
        ({"mount": "/"}, "mounted over everything"),
        ({"mount": "//"}, "mounted over everything"),
        ({"ray_version": "latest"}, "--ray-version latest"),
        ({"ray_version": ""}, "version of Ray"),
        ({"ray_version": "2.51.9"}, r"--ray-version 2\.51\.9"),
        ({"shm": "65Gi"}, "--shm 65Gi and --memory 64Gi"),
        ({"shm": "8Gi", "memory": "8G"}, "--shm 8Gi and --memory 8G"),
        ({"shm": "20Gi"}, "--shm 20Gi and --head-memory 16Gi"),
        ({"namespace": "a b"}, "namespace"),
        ({"claim": "../models"}, "volume claim"),
        ({"image": "x; id"}, "image"),
        ({"image": "x\n  command: [id]"}, "image"),
        ({"mount": "shared"}, "absolute"),
        ({"workers": (2, 1)}, "largest number"),
        ({"workers": (-1, 1)}, "smallest number"),
        ({"gpus": 100}, "GPUs"),
        ({"memory": "lots"}, "amount of memory"),
        ({"ray_version": "2.60\n"}, "version of Ray"),
        ({"retries": -1}, "retries"),
        ({"search": replace(SEARCH, job="/elsewhere/job.yaml")}, "shared folder"),
        ({"search": replace(SEARCH, run_dir="/shared/../etc")}, "shared folder"),
        ({"search": replace(SEARCH, run_dir="/shared/$(RAY_AUTH_TOKEN)")}, "Kubernetes would replace"),
    ],
)
def test_what_no_manifest_could_carry_is_refused(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        replace(PLAIN, **change)


@pytest.mark.skipif("EVOMERGE_RAYJOB_CRD" not in os.environ, reason="EVOMERGE_RAYJOB_CRD names no file")
@pytest.mark.parametrize("name", VARIATIONS)
def test_the_operator_knows_every_field(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    crd = yaml.safe_load(Path(os.environ["EVOMERGE_RAYJOB_CRD"]).read_text())
    schema = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")["schema"]["openAPIV3Schema"]
    jsonschema.Draft202012Validator(strict(schema)).validate(manifest(name))


def strict(schema: Any) -> Any:
    """The schema with unknown fields refused, as the server prunes them, and Kubernetes' own types understood."""
    if isinstance(schema, list):
        return [strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if made.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    is_open = made.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in made
    if made.get("type") == "object" and isinstance(made.get("properties"), dict) and not is_open:
        made["additionalProperties"] = False
    return made


@pytest.mark.parametrize("change", [{"ray_version": "2.52.0"}, {"ray_version": "3.0.0.dev0"}, {"shm": "16384Mi"}])
def test_what_just_fits_is_taken(change: dict[str, Any]) -> None:
    assert yaml.safe_load(kuberay_yaml(replace(PLAIN, **change)))["kind"] == "RayJob"

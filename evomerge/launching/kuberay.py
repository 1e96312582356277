"""A RayJob for the KubeRay operator: a head without GPUs that leads, and a group of workers that grows and shrinks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from shlex import join
from typing import Any, Final, final

import yaml
from packaging.version import InvalidVersion, Version

from evomerge.errors import ConfigError
from evomerge.launching.command import SearchCommand
from evomerge.launching.words import check_count, check_dns_label, check_path, check_plain, check_text

_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,500}")
_QUANTITY: Final = re.compile(r"([1-9][0-9]{0,8})(?:([KMGT])(i?))?")
_OLDEST_RAY: Final = "2.52"
"""The first one whose clusters ask for a token."""
_LONGEST_NAME: Final = 47  # KubeRay's own limit for a RayJob
_USER: Final = 1000  # the user of Ray's images


@final
@dataclass(frozen=True)
class KubeJob:
    """What a RayJob needs to know.

    Attributes:
        search: the search; its job file and run directory lie below `mount`.
        name: of the RayJob: a DNS label of at most 47 characters.
        namespace: where it is made.
        image: with Python, Ray and evomerge; the same for all pods.
        claim: the persistent volume claim of the shared folder (ReadWriteMany).
        mount: where the pods see it.
        workers: (at least, at most) pods that evaluate.
        gpus: of each worker pod; 0 for a search on CPUs.
        cpus: cores of each worker pod.
        memory: of each worker pod, as Kubernetes writes it.
        head_memory: of the pod that leads.
        shm: size of /dev/shm of every pod, a part of its memory.
        ray_version: of the image; the operator looks at it.
        autoscale: whether Ray asks for worker pods as the search needs them.
        retries: how often the job is started again, on a new cluster.

    Raises:
        ConfigError: for a member that is out of range or that no manifest could carry.
    """

    search: SearchCommand
    name: str
    namespace: str
    image: str
    claim: str
    mount: str
    workers: tuple[int, int]
    gpus: int
    cpus: int = 8
    memory: str = "64Gi"
    head_memory: str = "16Gi"
    shm: str = "8Gi"
    ray_version: str = ""
    autoscale: bool = True
    retries: int = 10

    def __post_init__(self) -> None:
        check_dns_label("The name of the RayJob", self.name, _LONGEST_NAME)
        check_dns_label("The namespace", self.namespace)
        check_dns_label("The persistent volume claim", self.claim)
        if not _IMAGE.fullmatch(self.image):
            raise ConfigError(
                "The image is not a name of an image.",
                got=repr(self.image[:80]),
                allowed="for instance registry.example.org/evomerge:0.1.0",
                fix="give the name that a pod would use.",
            )
        _check_mount(self.mount)
        least, most = self.workers
        check_count("The smallest number of workers", least, least=0)
        check_count("The largest number of workers", most, least=max(1, least))
        check_count("The number of GPUs per worker", self.gpus, least=0, most=64)
        check_count("The number of cores per worker", self.cpus)
        check_count("The number of retries", self.retries, least=0)
        for what, amount in (("memory", self.memory), ("memory of the head", self.head_memory), ("shm", self.shm)):
            _check_quantity(what, amount)
        _check_shm(self.shm, {"--memory": self.memory, "--head-memory": self.head_memory})
        _check_ray(self.ray_version)
        self._check_words()

    def _check_words(self) -> None:
        for what, path in (("job file", self.search.job), ("run directory", self.search.run_dir)):
            if not path.startswith(self.mount.rstrip("/") + "/") or "/../" in f"{path}/":
                raise ConfigError(
                    f"The {what} does not lie on the shared folder.",
                    got=path,
                    allowed=f"a path below {self.mount}",
                    fix="write the path as the pods see it, or name the folder with --mount.",
                )
        for word in self.search.words():
            # the kubelet replaces $(NAME) before any shell sees the quotes
            if "$(" in check_text("A word of the command", word):
                raise ConfigError(
                    "A word of the command holds what Kubernetes would replace.",
                    got=repr(word[:80]),
                    allowed="words without $(",
                    fix="rename the file or folder, or choose another value.",
                )


def _check_quantity(what: str, amount: str) -> None:
    if not _QUANTITY.fullmatch(amount):
        raise ConfigError(
            f"The {what} is not an amount of memory.",
            got=repr(amount[:80]),
            allowed="a number and Ki, Mi, Gi or Ti, for instance 64Gi",
            fix="write it as Kubernetes does.",
        )


def _bytes(amount: str) -> int:
    """What Kubernetes makes of an amount: K is 1000, Ki is 1024."""
    found = _QUANTITY.fullmatch(amount)
    number, unit, binary = found.groups() if found is not None else ("0", None, None)
    power: int = (1024 if binary else 1000) ** " KMGT".index(unit or " ")
    return int(number) * power


def _check_shm(shm: str, memories: Mapping[str, str]) -> None:
    for option, memory in memories.items():
        if _bytes(shm) > _bytes(memory):
            raise ConfigError(
                "/dev/shm is a part of a pod's memory, and cannot be larger.",
                got=f"--shm {shm} and {option} {memory}",
                allowed=f"--shm up to {memory}",
                fix=f"name less with --shm, or more with {option}.",
            )


def _check_mount(mount: str) -> None:
    if not check_path("The mount of the shared folder", mount).strip("/"):
        raise ConfigError(
            "The shared folder cannot be mounted over everything.",
            got=f"--mount {mount}",
            allowed="a folder below /, such as /shared",
            fix="name another folder, and paths of the job and the run below it.",
        )


def _check_ray(text: str) -> None:
    try:
        fits = Version(check_plain("The version of Ray", text)) >= Version(_OLDEST_RAY)
    except InvalidVersion:
        fits = False
    if not fits:
        raise ConfigError(
            "The image needs a version of Ray that keeps strangers out.",
            got=f"--ray-version {text[:80]}",
            allowed=f"a version from {_OLDEST_RAY} on, such as 2.60.0",
            fix="write what `ray --version` says in the image, or take another image.",
        )


def kuberay_yaml(job: KubeJob) -> str:
    """The manifest, for `kubectl create -f -`."""
    return _ABOUT + yaml.safe_dump(ray_job(job), sort_keys=False, width=100_000, allow_unicode=True)


_ABOUT: Final = """\
# A search on KubeRay, written by `evomerge launch kuberay`. Start it with `kubectl create -f THIS_FILE`.
# A retried job goes on where the run directory ends; see docs/cluster.md.
"""


def ray_job(job: KubeJob) -> dict[str, Any]:
    """The manifest as plain values: a RayJob of ray.io/v1."""
    least, most = job.workers
    group: dict[str, Any] = {
        "groupName": "evaluators",
        "replicas": least if job.autoscale else most,
        "minReplicas": least,
        "maxReplicas": most,
        "rayStartParams": {"num-cpus": str(job.cpus), "num-gpus": str(job.gpus)},
        "template": _pod(job, "ray-worker", cpus=job.cpus, memory=job.memory, gpus=job.gpus),
    }
    # num-cpus 0 keeps evaluators off the head, where the driver runs
    head = {
        "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},
        "template": _pod(job, "ray-head", cpus=2, memory=job.head_memory, gpus=0),
    }
    spec: dict[str, Any] = {
        "entrypoint": join((*job.search.words(), "--set", "cluster.address=auto")),
        "backoffLimit": job.retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 3600,
        "submitterPodTemplate": _submitter(job),
        "rayClusterSpec": {
            "rayVersion": job.ray_version,
            "authOptions": {"mode": "token"},
            "enableInTreeAutoscaling": job.autoscale,
            **({"autoscalerOptions": _AUTOSCALER | {"securityContext": _confined()}} if job.autoscale else {}),
            "headGroupSpec": head,
            "workerGroupSpecs": [group],
        },
    }
    metadata = {"name": job.name, "namespace": job.namespace, "labels": {"app.kubernetes.io/name": "evomerge"}}
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}


_AUTOSCALER: Final = {
    "version": "v2",
    "idleTimeoutSeconds": 300,
    "resources": {"requests": {"cpu": "200m", "memory": "512Mi"}, "limits": {"cpu": "500m", "memory": "1Gi"}},
}


def _confined() -> dict[str, Any]:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _pod_security() -> dict[str, Any]:
    return {
        "runAsNonRoot": True,
        "runAsUser": _USER,
        "runAsGroup": _USER,
        "fsGroup": _USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _pod(job: KubeJob, container: str, *, cpus: int, memory: str, gpus: int) -> dict[str, Any]:
    """A pod that sees the shared folder; requests equal limits, so that nobody takes its memory."""
    amounts = {"cpu": str(cpus), "memory": memory, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    is_head = container == "ray-head"
    ports = [("gcs-server", 6379), ("dashboard", 8265), ("client", 10001)]
    inner: dict[str, Any] = {
        "name": container,
        "image": job.image,
        "env": [
            {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
            # a stopped job finishes what runs: drain_s, and a little more
            {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "90"},
        ],
        **({"ports": [{"name": name, "containerPort": number} for name, number in ports]} if is_head else {}),
        "resources": {"requests": dict(amounts), "limits": dict(amounts)},
        "securityContext": _confined(),
        "volumeMounts": [{"name": "shared", "mountPath": job.mount}, {"name": "shm", "mountPath": "/dev/shm"}],
    }
    return {
        "spec": {
            "terminationGracePeriodSeconds": 120,
            "automountServiceAccountToken": is_head and job.autoscale,
            "securityContext": _pod_security(),
            "containers": [inner],
            "volumes": [
                {"name": "shared", "persistentVolumeClaim": {"claimName": job.claim}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": job.shm}},
            ],
        }
    }


def _submitter(job: KubeJob) -> dict[str, Any]:
    """The pod that submits and follows; the operator gives it its command and the token."""
    amounts = {"cpu": "500m", "memory": "1Gi"}
    inner = {
        "name": "submitter",
        "image": job.image,
        "resources": {"requests": dict(amounts), "limits": dict(amounts)},
        "securityContext": _confined(),
    }
    return {
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": _pod_security(),
            "containers": [inner],
        }
    }

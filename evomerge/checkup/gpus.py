"""GPUs, without loading torch: what the driver says, and whether torch was built for it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from evomerge.checkup.finding import Finding

_QUERY: Final = "--query-gpu=name,memory.total,memory.free,driver_version"
_OLDEST_DRIVER: Final = {11: 450, 12: 525, 13: 580}
"""CUDA -> the oldest major version of a driver that runs it (NVIDIA, CUDA compatibility)."""


def gpus() -> Iterator[Finding]:
    """The GPUs of this machine and the torch that would use them."""
    yield from judge_gpus(_ask_driver(), torch_cuda())


def _ask_driver() -> str | None:
    """What nvidia-smi says; None without it, empty when it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        asked = subprocess.run(
            [program, _QUERY, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=2, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout if asked.returncode == 0 else ""


def torch_cuda() -> str | None:
    """The CUDA that torch was built for; None for a build without, or without torch."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda(?:: [^=]*)? = '([0-9.]+)'", text, re.MULTILINE)
    return found[1] if found else None


def judge_gpus(told: str | None, cuda: str | None) -> Iterator[Finding]:
    """Findings about GPUs.

    Args:
        told: lines `name, MiB, MiB free, driver`; None when there is no driver, empty when it does not answer.
        cuda: see `torch_cuda`.
    """
    if told is None:
        yield Finding("GPUs", "driver", "ok", "no NVIDIA driver: the search runs on CPUs")
        return
    rows = [[cell.strip() for cell in line.split(",")] for line in told.splitlines() if line.count(",") == 3]
    if not rows:
        yield Finding("GPUs", "driver", "warning", "nvidia-smi does not answer", "run nvidia-smi and see what it says")
        return
    for number, (name, whole, free, _) in enumerate(rows):
        yield Finding("GPUs", f"GPU {number}", "ok", f"{name}, {free} of {whole} MiB free")
    if len({row[0] for row in rows}) > 1:
        yield Finding(
            "GPUs",
            "classes",
            "warning",
            "GPUs of several kinds round differently: workers of the first kind score, the others stay idle",
            "choose with CUDA_VISIBLE_DEVICES, or set cluster.mixed_devices: record",
        )
    yield _match(rows[0][3], cuda)


def _match(driver: str, cuda: str | None) -> Finding:
    if cuda is None:
        return Finding(
            "GPUs",
            "torch",
            "warning",
            f"driver {driver}; torch was built without CUDA",
            "install a CUDA build of torch (https://pytorch.org), or set cluster.device: cpu",
        )
    oldest = _OLDEST_DRIVER.get(int(cuda.partition(".")[0]), 0)
    major = driver.partition(".")[0]
    if major.isdigit() and int(major) < oldest:
        text = f"driver {driver}; torch was built for CUDA {cuda}, which asks for {oldest} or newer"
        return Finding("GPUs", "torch", "warning", text, "update the driver, or install torch for an older CUDA")
    return Finding("GPUs", "torch", "ok", f"driver {driver}, torch built for CUDA {cuda}")

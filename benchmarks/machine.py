"""What every benchmark says about where it ran, and how it keeps to one thread."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

ONE_THREAD: Final[Mapping[str, str]] = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment of a process that computes on one thread; to be set before torch is imported."""

PACKAGES: Final = ("torch", "transformers", "lm_eval", "mergekit", "numpy", "safetensors")


def one_thread() -> None:
    """Keeps this process and its children to one thread; call before anything imports torch."""
    os.environ.update(ONE_THREAD)
    import torch

    torch.set_num_threads(1)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def machine_facts() -> dict[str, str | int | float]:
    """Processor, usable cores, load at this moment and package versions."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load average (1 min)": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
    }


def run_apart(
    run: Callable[[argparse.Namespace, Path], Mapping[str, Any]],
    show: Callable[[Mapping[str, Any]], None],
    arguments: argparse.Namespace,
) -> None:
    """Runs a benchmark on one thread, without the network and in a folder of its own, and shows what it measured.

    Args:
        run: measures, given the arguments and the folder.
        show: prints tables; with `arguments.json` one JSON object is printed instead.
        arguments: of the command line.
    """
    with tempfile.TemporaryDirectory(prefix="evomerge-benchmark-") as folder:
        scratch = Path(folder)
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(scratch / "datasets")}
        os.environ.setdefault("EVOMERGE_CACHE", str(scratch / "cache"))
        one_thread()
        result = run(arguments, scratch)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)

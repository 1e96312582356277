"""Disks that are full, fail or take no more: a real small file system where it can be mounted, and failing calls."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a small file system under `folder`."""
    try:
        with small_disk(folder / "probe", 64):
            return True
    except PermissionError:
        return False


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """A file system of `kib` KiB mounted at `folder`, which is created.

    Raises:
        PermissionError: when this process must not mount.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise PermissionError(errno.EPERM, "there is no mount command") from error
    if done.returncode:
        raise PermissionError(errno.EPERM, done.stderr.decode().strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def grow(folder: Path, kib: int) -> None:
    """Give a small file system another size."""
    subprocess.run(["mount", "-o", f"remount,size={kib}k", str(folder)], check=True)


@final
class FailingCalls:
    """Makes calls of `os` fail from the `n`-th on, counted over all of them, as a disk does that breaks for good.

    Args:
        code: of `errno`.
        n: the first call that fails, from 1; a large number never fails and only counts.
        under: only calls about files under this folder count.
    """

    def __init__(self, code: int, n: int, under: Path) -> None:
        self.calls = 0
        self._code = code
        self._n = n
        self._under = str(under)

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, which counts and fails; its first argument is a path or a descriptor."""

        def wrapped(target: Any, *arguments: Any, **options: Any) -> Any:
            if self._is_under(target):
                self.calls += 1
                if self.calls >= self._n:
                    raise OSError(self._code, os.strerror(self._code))
            return call(target, *arguments, **options)

        return wrapped

    def _is_under(self, target: Any) -> bool:
        try:
            where = Path(f"/proc/self/fd/{target}").readlink() if isinstance(target, int) else os.fspath(target)
        except (OSError, TypeError):
            return False
        return str(where).startswith(self._under)

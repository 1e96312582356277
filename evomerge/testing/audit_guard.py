"""Python's audit events as a tripwire: what a block of code writes, starts, connects to, executes or unpickles.

An audit hook cannot be removed again, so there is one for the whole process; it looks at the guard that is watching,
and costs next to nothing while none is. Worker processes have a Python of their own, in which nobody watches.
"""

from __future__ import annotations

import getpass
import os
import site
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]

_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES: Final = {
    "os.remove": 1,
    "os.rmdir": 1,
    "os.mkdir": 1,
    "os.rename": 2,
    "os.link": 2,
    "os.symlink": 2,
    "os.truncate": 1,
    "os.chmod": 1,
    "os.chown": 1,
    "os.utime": 1,
}
"""Event -> how many of its arguments are paths that change; the first of a link is only pointed at."""
_FOLDER: Final = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2}
"""Event -> which of its arguments is the open folder that the path starts from; -1 stands for none."""
_PROCESSES: Final = frozenset(
    {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn"}
)
_NETWORK: Final = frozenset({"socket.connect", "socket.sendto", "socket.bind", "urllib.Request", "webbrowser.open"})
_DEVICES: Final = ("/dev/null", "/dev/tty", "/dev/shm/", "/proc/self/")


def _installed() -> tuple[str, ...]:
    """Where code lives that somebody chose to install, and this checkout."""
    named: list[Any] = [sysconfig.get_path(n) for n in ("stdlib", "platstdlib", "purelib", "platlib")]
    named += [*site.getsitepackages(), sys.prefix, sys.base_prefix]
    packages = [ROOT / name for name in ("evomerge", "tests", "benchmarks")]
    return tuple({str(Path(n).resolve()) + os.sep for n in (*named, *packages)})


def _caches() -> tuple[str, ...]:
    """The declared caches: of the Hugging Face libraries, torch's for its compiler, and our own for made parents."""
    home = Path.home() / ".cache"
    named = [
        os.environ.get(n)
        for n in ("HF_HOME", "HF_DATASETS_CACHE", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "EVOMERGE_CACHE")
    ]
    with suppress(KeyError):  # a user without a name
        named.append(str(Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"))
    own = [home / "huggingface", home / "evomerge", home / "torch", ROOT / ".cache", ROOT / ".hypothesis"]
    return tuple(str(Path(n).resolve()) for n in (*named, *own) if n)


class Guard:
    """What was seen while it watched.

    Args:
        allowed: folders in which files may be written, beside the declared caches.

    Attributes:
        violations: one line each; a test fails when there is any.
        unpickled: names that an unpickler looked up.
    """

    def __init__(self, allowed: Sequence[Path]) -> None:
        self._allowed = [*(str(p.resolve()) for p in allowed), *_caches()]
        self._code = _installed()
        self._may: set[str] = set()
        self.violations: list[str] = []
        self.unpickled: list[str] = []

    def allow_writes(self, *folders: Path) -> None:
        """Files may be written here, too."""
        self._allowed += [str(f.resolve()) for f in folders]

    def allow_processes(self) -> None:
        """Processes may be started; nobody watches inside them."""
        self._may.add("processes")

    def allow_network(self) -> None:
        """Sockets may be opened (Ray talks to itself over them)."""
        self._may.add("network")

    @contextmanager
    def only(self, *folders: Path) -> Iterator[None]:
        """Inside the block files may be written in these folders and nowhere else, caches included."""
        before, self._allowed = self._allowed, [str(f.resolve()) for f in folders]
        try:
            yield
        finally:
            self._allowed = before

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Judge one audit event; called by the hook, must not raise."""
        if event == "open":
            path, mode, flags = arguments
            if (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & _WRITES):
                self._write(event, path)
        elif event in _CHANGES:
            changed = arguments[1:2] if event in ("os.link", "os.symlink") else arguments[: _CHANGES[event]]
            inside = arguments[_FOLDER[event]] if event in _FOLDER else -1
            for path in changed:
                self._write(event, path, inside)
        elif event in _PROCESSES and "processes" not in self._may:
            self.violations.append(f"{event}: {str(arguments)[:200]}")
        elif event in _NETWORK and "network" not in self._may:
            self._connect(event, arguments)
        elif event == "exec":
            self._execute(arguments[0])
        elif event == "pickle.find_class":
            self.unpickled.append(".".join(map(str, arguments)))

    def _write(self, event: str, path: Any, inside: int = -1) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a file descriptor: its opening was seen
        folder = os.path.realpath(f"/proc/self/fd/{inside}") if inside >= 0 else ""
        whole = Path(folder, os.fsdecode(path))
        text = os.path.realpath(whole)
        if event in ("os.remove", "os.rename", "os.symlink"):  # of a link, not of what it points at
            text = str(Path(os.path.realpath(whole.parent), whole.name))
        compiled = "__pycache__" in text and text.startswith(self._code)
        if compiled or text.startswith(_DEVICES):
            return
        if not any(text == a or text.startswith(a + os.sep) for a in self._allowed):
            self.violations.append(f"{event}: {text}")

    def _connect(self, event: str, arguments: tuple[Any, ...]) -> None:
        address = arguments[1] if event.startswith("socket.") and len(arguments) > 1 else arguments
        if not isinstance(address, str | bytes):  # a local socket has a path
            self.violations.append(f"{event}: {address}")

    def _execute(self, code: Any) -> None:
        file = str(getattr(code, "co_filename", ""))
        if file.startswith("<") or not file.startswith(os.sep):
            return  # dataclasses, templates and tests compile text; what such code does is seen
        if not os.path.realpath(file).startswith(self._code):
            self.violations.append(f"exec: {file}")


class _Hook:
    """The process's one hook, and the guards that watch just now."""

    def __init__(self) -> None:
        self.watching: tuple[Guard, ...] = ()
        self._is_in = False

    def put_in(self) -> None:
        """Into the interpreter, once."""
        if not self._is_in:
            self._is_in = True
            sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        for guard in self.watching:
            guard.see(event, arguments)


_HOOK: Final = _Hook()


@contextmanager
def watched(*allowed: Path) -> Iterator[Guard]:
    """A guard that watches the block; it judges nothing, see `Guard.violations`.

    Args:
        allowed: folders in which files may be written, beside the declared caches.
    """
    _HOOK.put_in()
    guard = Guard(allowed)
    _HOOK.watching += (guard,)
    try:
        yield guard
    finally:
        _HOOK.watching = tuple(g for g in _HOOK.watching if g is not guard)

"""One writer per run directory: who is refused, who takes over, and why two can never both write.

**Epochs.** Every hold of the lock has a number (see `epochs`). A claimant looks at the claim with the highest number N;
if its holder is done or dead it claims N + 1. The file system gives each number to one process. So of any number
of claimants, on whatever hosts, however their steps interleave, at most one holds the highest number, and no clock has
a part in that.

**Fencing.** A holder of N writes only to a journal that it opened before it last made sure that N + 1 does not exist
(`check`), and `RunStore` makes sure again behind every write, after its fsync and before it is acknowledged. A holder
whose predecessor did not give the lock back in order first bars its predecessors from doing the same late, then
replaces the journal by a copy of itself, and only then opens it (`replace_journal`): the predecessor, if it lives after
all (suspended, cut off from the network, in a paused machine), has another file open, which nobody reads. Hence

1. no two holders ever have the same file open for writing: a byte that comes late comes nowhere, or (through a network
   file system) to an error. It does not matter how long a process was suspended between its check and its write;
2. what `append` has returned for was on the disk before N + 1 was claimed, so the next holder has read it: nothing
   acknowledged is lost, and what the run goes on from is one history;
3. what a late holder wrote in vain was never acknowledged to it: it learns that it was replaced, and stops.

**Life and death** decide only who must wait. The kernel's lock (`flock` on `.lock`) is given up when its holder dies,
however it dies; where it works, and where process ids can be looked up, a dead holder on this host is replaced at
once and a live one, suspended or not, never. Of a holder on another host only its heartbeat is known: every 2 s. A
claimant that sees it beat is refused; one that sees nothing for 30 s since the last beat takes over, by the clock of
the file system alone, so that hosts need not agree on the time. A kernel's lock that seems held by a host that is
silent for so long is passed over: servers may keep it for ever.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, Literal, final

from evomerge.errors import RunLocked
from evomerge.failpoints import reach
from evomerge.files import disk_full_is_told, path_is_told, sweep_temporary
from evomerge.runs import epochs
from evomerge.runs.epochs import Claim
from evomerge.runs.writer import Writer

LOCK_FILE: Final = ".lock"
SILENCE_S: Final = 30.0
_HEARTBEAT_S: Final = 2.0
_DYING_S: Final = 4.0
_POLL_S: Final = 0.05
_HELD: Final = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK}
_NO_LOCKS: Final = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}

Verdict = Literal["free", "held", "busy", "silent"]


def writer_of(folder: Path) -> Writer | None:
    """Who writes to `folder` now, as far as can be told without disturbing anybody; None when nobody does."""
    found = epochs.latest(folder / epochs.FOLDER)
    if found is None or found.writer is None or found.given_back or found.abandoned:
        return None
    lives = found.writer.lives(Writer.of_this_process())
    if lives is None:
        lives = time.time() - found.touched < SILENCE_S
    return found.writer if lives else None


def _locked(folder: Path, holder: Writer | None, me: Writer) -> RunLocked:
    who = f"process {holder.pid} on {holder.host}" if holder else "another process"
    if holder is not None and holder.lives(me) and holder.is_suspended():
        return RunLocked(
            "A suspended process holds this run directory.",
            got=f"{folder} is held by {who}, which is suspended",
            allowed="one writer at a time",
            fix=f"let it go on (kill -CONT {holder.pid}), or end it (kill -KILL {holder.pid}; nothing acknowledged is "
            "lost) and try again.",
        )
    return RunLocked(
        "Another process writes to this run directory.",
        got=f"{folder} is held by {who}",
        allowed="one writer at a time",
        fix=f"wait for it or stop it (kill -TERM {holder.pid if holder else 'PID'}), then try again; "
        f"a writer on another host that died counts as gone after {SILENCE_S:.0f} s.",
    )


@final
class KernelLock:
    """`flock` on a file, as far as the file system has it.

    Attributes:
        state: `ours`; `theirs` while another process holds it; `none` where there are no locks.
    """

    def __init__(self, path: Path) -> None:
        self.state: Literal["ours", "theirs", "none"] = "theirs"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def attempt(self) -> None:
        """Try to get it, unless that is settled."""
        if self.state != "theirs":
            return
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                return
            if error.errno not in _NO_LOCKS:
                raise
            self.state = "none"
        else:
            self.state = "ours"

    def release(self) -> None:
        """Give it back; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)  # the lock is the open file's
            self._fd = -1


@final
class RunLock:
    """Exclusive right to write to a run directory, from construction to `release`.

    Attributes:
        epoch: the number of this hold, higher than all before.
        in_order: whether the holder before gave the lock back in order (or there was none). Otherwise the journal must
            be replaced by a copy before it is opened; then, or at once, call `settle`.

    Args:
        folder: the run directory; it must exist.
        me: who claims; this process if None. Tests play other hosts with it.
        kernel: whether to use the kernel's lock; tests play file systems without.

    Raises:
        RunLocked: when another process holds it.
        DiskFull: when the claim cannot be written.
    """

    def __init__(self, folder: Path, *, me: Writer | None = None, kernel: bool = True) -> None:
        self._folder = folder
        self._me = me or Writer.of_this_process()
        self._settled = False
        with disk_full_is_told(folder), path_is_told(folder), ExitStack() as undo:
            self._epochs.mkdir(exist_ok=True)
            self._lock = KernelLock(folder / LOCK_FILE)
            undo.callback(self._lock.release)
            if not kernel:
                self._lock.state = "none"
            drafted = epochs.draft(self._epochs, self._me)
            try:
                before = self._claim(drafted)
            finally:
                drafted.unlink(missing_ok=True)
            undo.pop_all()
        self.epoch = 1 if before is None else before.number + 1
        self.in_order = before is None or before.given_back
        reach("after-claim")
        sweep_temporary(self._epochs)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="evomerge-heartbeat", daemon=True)
        self._thread.start()

    @property
    def _epochs(self) -> Path:
        return self._folder / epochs.FOLDER

    def _claim(self, drafted: Path) -> Claim | None:
        """Claim the epoch behind the latest one as soon as its holder is known to be gone; returns that claim."""
        first: Claim | None = None
        deadline = time.monotonic() + _DYING_S
        while True:
            self._lock.attempt()
            found = epochs.latest(self._epochs)
            if first is None or found is None or found.number != first.number:
                first = found
            verdict = self._judge(found, first, drafted)
            if verdict == "held" or (verdict == "busy" and time.monotonic() > deadline):
                raise _locked(self._folder, found.writer if found else None, self._me)
            if verdict == "free":
                number = 1 if found is None else found.number + 1
                reach("before-claim")
                if epochs.claim(self._epochs, number, drafted):
                    return found
            else:
                time.sleep(_POLL_S)

    def _judge(self, found: Claim | None, first: Claim | None, drafted: Path) -> Verdict:
        """What the latest claim means for us.

        `busy`: another process is dying, or is about to claim; it gets a moment. `silent`: a holder that cannot be
        looked up was not heard since we first looked.
        """
        over: Verdict = "busy" if self._lock.state == "theirs" else "free"
        if found is None or found.given_back or found.abandoned:
            return over
        lives = None if found.writer is None else found.writer.lives(self._me)
        if lives is False:
            return over
        if lives and found.writer is not None:
            if self._lock.state == "ours":  # its holder would have the kernel's lock: this folder is a copy
                return "free"
            return "busy" if found.writer.is_being_killed() else "held"
        if epochs.time_of(drafted) - found.touched >= SILENCE_S:
            return "free"
        return "held" if first is not None and found.touched != first.touched else "silent"

    def _beat(self) -> None:
        while not self._stop.wait(_HEARTBEAT_S):
            with suppress(OSError):  # a hiccup of the file system; if it lasts, another host takes over
                epochs.beat(self._epochs, self.epoch)

    def check(self) -> None:
        """Make sure that nobody has taken over.

        Raises:
            RunLocked: when somebody has, because this process was silent for so long (suspended, cut off).
            OSError: when the file system does not answer.
        """
        if not epochs.is_latest(self._epochs, self.epoch):
            found = epochs.latest(self._epochs)
            raise _locked(self._folder, found.writer if found else None, self._me)

    def replace_journal(self, journal: Path) -> None:
        """Put a copy of the journal in its place, so that earlier holders have a file open that nobody reads.

        Raises:
            RunLocked: when somebody has taken over meanwhile; the journal is then theirs, and was not touched.
            DiskFull: when there is no space for the copy.
        """
        with disk_full_is_told(journal), path_is_told(journal):
            epochs.bar(self._epochs, self.epoch)
            try:
                epochs.replace_by_copy(self._epochs, self.epoch, journal)
            except epochs.BARRED:
                self.check()
                raise

    def settle(self) -> None:
        """Earlier holders can write no more: see `in_order`."""
        self._settled = True

    def moved_to(self, folder: Path) -> None:
        """The locked folder was renamed; the lock stays held all along."""
        self._folder = folder

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        epochs.give_back(self._epochs, self.epoch, in_order=self._settled or self.in_order)
        self._lock.release()

"""Every deliberate error of evomerge: a four-part message and the exit code that belongs to it.

The four parts are always the same: what failed, what we got, what is allowed, and how to fix it. The command
line prints them without a traceback and exits with `exit_code` (see `docs/run-directory.md` for the table). What
files say reaches a message only in a form that a terminal shows as it stands, and in no more than a screen or two.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable
from typing import ClassVar, Final

MOST_CHARACTERS: Final = 6000
"""Of one part of a message: a screen or two, however long the name is that somebody chose."""

_MOST_COMPARED: Final = 200

_LOGIN: Final = re.compile(r"//[^/@\s]+@")
_ODD: Final = re.compile(r"[^\x20-\x7e\n]")
_TWISTS: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str, most: int = MOST_CHARACTERS) -> str:
    r"""`text` as a terminal may show it: what would move, colour, hide or reverse other text is written as an escape.

    Control characters but the line feed, marks of direction, zero widths and surrogates become `\x1b` and the like;
    letters of every script stay. A text of over `most` characters loses its middle.
    """
    if len(text) > most:
        cut = f" [... {len(text) - most:,} characters left out ...] "
        text = text[: most * 3 // 4] + cut + text[-most // 4 :]
    return _ODD.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    character = found.group()
    twists = unicodedata.category(character) in _TWISTS
    return character.encode("unicode_escape").decode() if twists else character


def without_secrets(text: str) -> str:
    """`text` with what stands before the `@` of an address left out: names and passwords."""
    return _LOGIN.sub("//***@", text)


class EvomergeError(Exception):
    """The base of all deliberate errors. Never raised itself.

    Args:
        what: one sentence, what could not be done.
        got: the offending value, with where it stands (file, line, tensor, candidate).
        allowed: what would have been accepted.
        fix: the next thing to do, as an imperative sentence.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, what: str, *, got: str, allowed: str, fix: str) -> None:
        super().__init__(printable(what))
        self.what = printable(what)
        self.got = printable(got)
        self.allowed = printable(allowed)
        self.fix = printable(fix)

    def __reduce__(self) -> tuple[object, ...]:
        """Errors of workers cross process borders; keyword-only arguments need this."""
        return (_rebuild, (type(self), self.what, self.got, self.allowed, self.fix))

    def __str__(self) -> str:
        return f"{self.what}\n  Got: {self.got}\n  Allowed: {self.allowed}\n  Fix: {self.fix}"


def _rebuild(kind: type[EvomergeError], what: str, got: str, allowed: str, fix: str) -> EvomergeError:
    return kind(what, got=got, allowed=allowed, fix=fix)


class ConfigError(EvomergeError):
    """A job file, a flag, a preset or a name in one of them is not usable."""


class SpaceError(ConfigError):
    """A search space is malformed, or a value does not belong to its dimension."""


class RecipeError(ConfigError):
    """A recipe file or value breaks an invariant of recipes."""


class PluginError(ConfigError):
    """A plug-in could not be loaded, or is not what its group asks for."""


class EvaluationError(ConfigError):
    """A task or suite cannot be compiled or scored as asked."""


class ModelError(EvomergeError):
    """A checkpoint is missing, damaged, unsafe, or does not fit its siblings."""

    exit_code = 3


class MergeError(ModelError):
    """A recipe cannot be applied to these checkpoints."""


class NonFinite(ModelError):
    """A tensor, a logit or a score holds NaN or infinity: a failure, never a number."""


class SelfCheckError(ModelError):
    """Our scores differ from lm-eval's by more than the stated tolerance."""


class TooManyFailures(EvomergeError):
    """More candidates failed than the budget of failures allows."""

    exit_code = 4


class StoreError(EvomergeError):
    """A run directory is locked, damaged, or was written by a newer version."""

    exit_code = 5


class RunLocked(StoreError):
    """Another process writes to this run directory."""


class CorruptJournal(StoreError):
    """A record before the last one fails its checksum or is out of sequence."""


class SchemaTooNew(StoreError):
    """The run directory was written by a newer evomerge than this one."""


class ResumeMismatch(StoreError):
    """Replaying the journal asked for other candidates than the recorded ones."""


class DiskFull(EvomergeError):
    """No space is left where a run or an export is written; what was acknowledged is safe."""

    exit_code = 75


class StorageLost(EvomergeError):
    """The place where a run is written takes no more writes; what was acknowledged is safe."""

    exit_code = 75


class Interrupted(EvomergeError):
    """The run was stopped by a signal and can be resumed."""

    exit_code = 75


class ClusterLost(EvomergeError):
    """The cluster is gone, or has had no worker for too long; the run can be resumed on another one."""

    exit_code = 75


def suggest(name: str, known: Iterable[str]) -> str:
    """The text of the `allowed` part for a name that is not known: the list, and the nearest match.

    Args:
        name: what the user wrote.
        known: every name that would have been accepted.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name[:_MOST_COMPARED], names, n=1, cutoff=0.5)
    listed = ", ".join(names) if names else "(none)"
    return f"{listed}. Did you mean {near[0]!r}?" if near else listed

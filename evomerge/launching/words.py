"""Words that go into scripts and manifests: what each may hold, so that no name can carry code."""

from __future__ import annotations

import json
import re
from typing import Final

from evomerge.errors import ConfigError

_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,:@%+/=-]*")
_DNS_LABEL: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LONGEST: Final = 4096


def check_text(what: str, text: str) -> str:
    """`text`, which will be quoted: anything but control characters, of a sensible length.

    Raises:
        ConfigError: for an empty text, one of more than 4096 characters, or one with a control character.
    """
    bad = [c for c in text if not c.isprintable()]
    if not text or bad or len(text) > _LONGEST:
        raise ConfigError(
            f"{what} cannot be written into a script.",
            got=repr(text[:80]) if bad or not text else f"{len(text)} characters",
            allowed=f"1 to {_LONGEST} printable characters: no line breaks, tabs or other control characters",
            fix="rename the file or folder, or choose another value.",
        )
    return text


def check_plain(what: str, text: str) -> str:
    """`text`, which stands where quoting is not to be relied on: letters, digits and `._,:@%+/=-`.

    Raises:
        ConfigError: for anything else.
    """
    if not _PLAIN.fullmatch(text) or len(text) > 253:
        raise ConfigError(
            f"{what} is not a plain word.",
            got=repr(text[:80]),
            allowed="letters, digits and ._,:@%+/=- after a first letter or digit, at most 253",
            fix="write the name as the scheduler lists it.",
        )
    return text


def check_count(what: str, value: int, *, least: int = 1, most: int = 100_000) -> int:
    """`value`, a number of things.

    Raises:
        ConfigError: when it is outside of `least` to `most`.
    """
    if not least <= value <= most:
        raise ConfigError(
            f"{what} is out of range.", got=str(value), allowed=f"{least} to {most}", fix="choose another number."
        )
    return value


def check_path(what: str, text: str) -> str:
    """`text`, an absolute path on the cluster.

    Raises:
        ConfigError: for a text that cannot be quoted, then for one that does not begin with `/`.
    """
    if not check_text(what, text).startswith("/"):
        raise ConfigError(
            f"{what} is not an absolute path.",
            got=repr(text),
            allowed="a path that begins with /",
            fix="write the path as the nodes see it.",
        )
    return text


def check_cache(text: str) -> str:
    """`text`, a folder of each node, as a job's `cluster.cache` names it.

    Raises:
        ConfigError: for a text that cannot be quoted, then for a path relative to wherever a worker is started.
    """
    if not check_text("The cache folder", text).startswith(("/", "$")):
        raise ConfigError(
            "The cache of a node needs an absolute path.",
            got=f"--cache {text}",
            allowed="/FOLDER, or $VARIABLE/FOLDER with a variable that is set on the nodes",
            fix="name a folder of the nodes' own disks, such as /local/ssd/evomerge or $SLURM_TMPDIR/evomerge.",
        )
    return text


def check_setting(text: str) -> str:
    """`text`, a setting `a.b=value` that is laid over a job, and does not say where it runs.

    Raises:
        ConfigError: for a text that cannot be quoted, one of another form, then for the cluster's backend or address.
    """
    key, equals, _ = check_text("A --set option", text).partition("=")
    steps = key.split(".")
    if not equals or not all(steps):
        raise ConfigError(
            "A --set option is not of the form a.b=value.",
            got=repr(text[:300]),
            allowed="for instance budget.evaluations=300",
            fix="write the path, an equals sign, and a YAML value.",
        )
    if steps == ["cluster"] or steps[:2] in (["cluster", "backend"], ["cluster", "address"]):
        raise ConfigError(
            "A launched search runs on the cluster that is launched.",
            got=f"--set {text[:300]}",
            allowed="single settings of the cluster other than cluster.backend and cluster.address",
            fix="leave it out; to search on this machine, use `evomerge search`.",
        )
    return text


def check_dns_label(what: str, text: str, most: int = 63) -> str:
    """`text`, a name of Kubernetes.

    Raises:
        ConfigError: when it is no DNS label (RFC 1035) of at most `most` characters.
    """
    if not _DNS_LABEL.fullmatch(text) or len(text) > most:
        raise ConfigError(
            f"{what} is not a name that Kubernetes takes.",
            got=repr(text[:80]),
            allowed=f"at most {most} of a-z, 0-9 and -, beginning with a letter, not ending with -",
            fix="give a name with --name, or choose another.",
        )
    return text


def slug(text: str, most: int = 40) -> str:
    """A name made from `text` that every scheduler takes: lower case, digits, single dashes, a letter first."""
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return (plain if plain[:1].isalpha() else f"run-{plain}")[:most].rstrip("-")


def as_yaml(text: str) -> str:
    """`text` as a quoted YAML scalar, for the right-hand side of `--set`."""
    return json.dumps(text, ensure_ascii=False)

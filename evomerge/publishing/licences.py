"""Which licence a merge may be published under, and what stands in the way: judged by what the parents state.

This is no legal advice. It refuses where the parents' own words call for a decision that nobody but the publisher can
make, and it never guesses a licence that was not stated.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from evomerge.errors import ConfigError

UNSTATED: Final = "unstated"
"""What `--accept-licence` names a parent by that states no licence."""

PERMISSIVE: Final = frozenset(
    {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "cc0-1.0", "cc-by-4.0", "zlib"}
)
"""Licences that ask for no more than notices."""

_WITH_TERMS: Final = frozenset(
    {
        *("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma", "grok2-community"),
        *("openrail", "openrail++", "creativeml-openrail-m", "bigscience-openrail-m", "bigcode-openrail-m"),
        *("bigscience-bloom-rail-1.0", "agpl-3.0", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0"),
        *("mpl-2.0", "epl-1.0", "epl-2.0", "eupl-1.1", "eupl-1.2", "osl-3.0", "afl-3.0", "artistic-2.0", "bsl-1.0"),
        *("cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "etalab-2.0", "openmdw-1.0"),
        *("bsd", "bsd-3-clause-clear", "ncsa", "ms-pl", "ecl-2.0", "postgresql", "wtfpl", "odc-by", "odbl"),
    }
)
"""The hub's other identifiers whose texts allow merges to be shared, under terms that travel with the weights."""


@dataclass(frozen=True)
class Verdict:
    """What may be published, and how.

    Attributes:
        licence: the `license` of the card's front matter: the common one, or `other`.
        parents: parent's name -> the licence it states, in the hub's spelling; `unstated` where it states none.
        objections: licence (or `unstated`) -> why it takes a decision; each must be accepted by name.
        notices: sentences that the card must carry.
        name_prefix: what the repository's name must begin with, empty for anything.
        needs_copy: licences whose text must stand beside the weights.
    """

    licence: str
    parents: Mapping[str, str]
    objections: Mapping[str, str]
    notices: tuple[str, ...]
    name_prefix: str
    needs_copy: tuple[str, ...]


def judge(stated: Mapping[str, str | None]) -> Verdict:
    """The verdict on a merge of parents with these licences.

    Args:
        stated: parent's name -> the licence that its card states (the hub's identifiers), None when it states none.

    Raises:
        ValueError: for no parents.
    """
    if not stated:
        raise ValueError("a merge without parents has no licence")
    parents = {name: _identifier(licence or "") for name, licence in stated.items()}
    found = tuple(dict.fromkeys(parents.values()))
    llamas = [licence for licence in found if licence.startswith("llama")]
    newest = [licence for licence in llamas if licence != "llama2"]  # Llama 2 asks for no name and no display
    return Verdict(
        licence=found[0] if len(found) == 1 and found[0] != UNSTATED else "other",
        parents=parents,
        objections={licence: why for licence in found if (why := _objection(licence))},
        notices=("Built with Llama.",) if newest else (),
        name_prefix="Llama" if newest else "",
        needs_copy=tuple(licence for licence in found if licence not in PERMISSIVE and licence != UNSTATED),
    )


def _identifier(stated: str) -> str:
    """The hub's spelling: `CC BY-NC 4.0`, with whatever dashes and spaces, is `cc-by-nc-4.0`."""
    plain = unicodedata.normalize("NFKC", stated).lower()
    return re.sub(r"[^a-z0-9.+]+", "-", plain).strip("-") or UNSTATED


def _objection(licence: str) -> str:
    if licence == UNSTATED:
        return "nothing is known of what may be done with this parent"
    parts = licence.split("-")
    if "nd" in parts:
        return "no derivatives may be shared"
    if "nc" in parts or "noncommercial" in licence or "non-commercial" in licence or "research" in licence:
        return "no commercial use; a merge inherits that"
    if licence == "other":
        return "the parent has terms of its own that nobody but you can read"
    if licence not in PERMISSIVE | _WITH_TERMS:
        return "no licence that is known here; read what it asks for"
    return ""


def check_publishable(verdict: Verdict, name: str, accepted: Sequence[str], licence_files: Sequence[str]) -> None:
    """The gate: every objection accepted by name, the name as a licence asks, its text at hand.

    Args:
        verdict: of `judge`.
        name: of the repository, without its owner.
        accepted: licences that the publisher accepts by name.
        licence_files: names of the files in the folder that hold licence texts.

    Raises:
        ConfigError: for an acceptance that nothing asks for, an objection that was not accepted, a name that a licence
            forbids, then a missing licence text.
    """
    accepted = [_identifier(licence) for licence in accepted]
    alien = [licence for licence in accepted if licence not in verdict.objections]
    if alien:
        raise ConfigError(
            "There is nothing to accept.",
            got=f"--accept-licence {alien[0]}",
            allowed=", ".join(verdict.objections) or "no acceptance: no parent's licence calls for one",
            fix="leave it away.",
        )
    open_ = {licence: why for licence, why in verdict.objections.items() if licence not in accepted}
    if open_:
        who = {licence: ", ".join(n for n, found in verdict.parents.items() if found == licence) for licence in open_}
        raise ConfigError(
            "The parents' licences call for a decision before this merge is published.",
            got="; ".join(f"{licence} ({who[licence]}): {why}" for licence, why in open_.items()),
            allowed="parents whose licences allow it, or your word for each",
            fix="read those licences; if you may publish, add "
            + " ".join(f"--accept-licence {licence}" for licence in open_),
        )
    if verdict.name_prefix and not name.startswith(verdict.name_prefix):
        raise ConfigError(
            "A parent's licence asks for another name.",
            got=name,
            allowed=f"a name that begins with {verdict.name_prefix!r}",
            fix=f"push to OWNER/{verdict.name_prefix}-{name}.",
        )
    if len(licence_files) < len(verdict.needs_copy):
        raise ConfigError(
            "A parent's licence must travel with the weights, and the folder holds too few licence texts.",
            got=f"{', '.join(verdict.needs_copy)}; {len(licence_files)} files LICENSE*",
            allowed="one file LICENSE* for every such licence",
            fix="put each text into the folder as LICENSE.NAME (the parent's own folder on the hub has it).",
        )

"""What a survey says should make people look twice, in words."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Final, Literal

from evomerge.layout import Role
from evomerge.survey.values import Survey

Severity = Literal["note", "warning"]

HUGE: Final = 0.5
"""A delta of more than half the base's norm: no fine-tuning does that; the parent is probably from another base."""
LARGE_RMS: Final = 0.01
"""Deltas of this size do not survive random dropping (DARE, Yu et al. 2024, section 4)."""
ALIKE: Final = 0.999
_MATRICES: Final[tuple[Role, ...]] = ("attention", "mlp", "other")
_CONFLICT: Final = 0.55


@dataclass(frozen=True)
class Hazard:
    """One thing to look at.

    Attributes:
        severity: `warning`: the merge is likely to suffer; `note`: good to know.
        text: one sentence with its number.
    """

    severity: Severity
    text: str


def hazards_of(survey: Survey) -> tuple[Hazard, ...]:
    """What stands out among the parents, warnings first."""
    found = [*_of_models(survey), *_of_pairs(survey)]
    return tuple(sorted(found, key=lambda h: h.severity != "warning"))


def _of_models(survey: Survey) -> list[Hazard]:
    whole, found = survey.whole, []
    inside = survey.select(roles=_MATRICES)
    for i, name in enumerate(survey.models):
        relative = whole.relative(i)
        if survey.base is None:
            continue
        if relative == 0:
            found.append(Hazard("warning", f"{name} is the base: every entry is equal."))
        elif relative > HUGE:
            found.append(
                Hazard(
                    "warning",
                    f"{name} is {relative:.2f} of the base's norm away from it; fine-tuning moves a model by a few "
                    "hundredths, so it is probably not made from this base.",
                )
            )
        elif inside is not None and inside.rms(i) > LARGE_RMS:
            found.append(
                Hazard(
                    "warning",
                    f"{name}'s deltas are large (rms {inside.rms(i):.2g} in the layers' matrices): dropping entries at "
                    "random (dare, della) is known to fail above 0.01; keep densities near 1.",
                )
            )
        if 0 < whole.share_moved(i) < 0.5:
            found.append(Hazard("note", f"{name} changed only {100 * whole.share_moved(i):.0f} % of the entries."))
    return found


def _of_pairs(survey: Survey) -> list[Hazard]:
    whole, found = survey.whole, []
    for i, j in combinations(range(len(survey.models)), 2):
        names = f"{survey.models[i]} and {survey.models[j]}"
        apart = whole.gram[i][i] + whole.gram[j][j] - 2 * whole.gram[i][j]
        cosine, conflict = whole.cosine(i, j), whole.conflict(i, j)
        if whole.gram[i][i] > 0 and apart <= 1e-12 * whole.gram[i][i]:
            found.append(Hazard("warning", f"{names} are identical: one of them only adds genes."))
        elif cosine is not None and cosine > ALIKE and survey.base is not None:
            found.append(Hazard("note", f"{names} point the same way (cosine {cosine:.4f})."))
        elif conflict is not None and conflict > _CONFLICT and survey.base is not None:
            found.append(
                Hazard(
                    "note",
                    f"{names} change {100 * conflict:.0f} % of their common entries in opposite directions, more "
                    "than chance would.",
                )
            )
    return found

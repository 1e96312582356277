"""The report's section about the parents: how far each is from the base, how they point, what stands out."""

from __future__ import annotations

from itertools import combinations

from evomerge.report.blocks import captioned, folded, section
from evomerge.report.gene_values import GeneTable
from evomerge.report.genes import gene_map, largest
from evomerge.report.svg import escape, number
from evomerge.report.tables import NOT_SCORED, table
from evomerge.survey.hazards import hazards_of
from evomerge.survey.maps import DepthMap, conflict_map, cosine_map, norm_map
from evomerge.survey.values import Survey


def survey_section(survey: Survey | None) -> str:
    """The section; empty where nothing was measured."""
    if survey is None or not survey.sections:
        return ""
    origin = "the base" if survey.base is not None else "the models' mean"
    intro = (
        f"What each model changed, compared with {escape(origin)}, and how the changes of two models agree. A weight "
        "that moves much of the model begins the search with smaller steps."
    )
    hazards = "".join(f"<li>{escape(h.text)}</li>" for h in hazards_of(survey))
    pairs = [_drawn(m) for m in (cosine_map(survey), conflict_map(survey)) if m.rows]
    return section(
        "The parents",
        intro,
        f'<ul class="notes">{hazards}</ul>' if hazards else "",
        _models_table(survey),
        _pairs_table(survey),
        _drawn(norm_map(survey)),
        folded("Pairs of models by depth", *pairs) if pairs else "",
    )


def _drawn(found: DepthMap) -> str:
    genes = GeneTable(found.title, found.rows, found.columns, found.values)
    return captioned(gene_map(genes, largest([genes])), found.title)


def _models_table(survey: Survey) -> str:
    whole = survey.whole
    rows = [
        [escape(name), number(whole.norm(i)), number(whole.relative(i)), number(whole.rms(i)),
         f"{100 * whole.share_moved(i):.1f} %"]
        for i, name in enumerate(survey.models)
    ]  # fmt: skip
    return table(["model", "norm of delta", "in parts of the origin", "rms of an entry", "entries changed"], rows)


def _pairs_table(survey: Survey) -> str:
    whole = survey.whole
    rows = []
    for i, j in combinations(range(len(survey.models)), 2):
        values = (whole.cosine(i, j), whole.correlation(i, j), whole.conflict(i, j))
        shown = [NOT_SCORED if v is None else f"{v:.3f}" for v in values]
        rows.append([f"{escape(survey.models[i])} / {escape(survey.models[j])}", *shown])
    return table(["pair", "cosine", "kinship (correlation)", "sign conflict"], rows) if rows else ""

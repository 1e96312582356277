"""The genes of a merge by depth and module: read off its recipe, drawn as a heat map."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.errors import RecipeError
from evomerge.layout import Role, TensorInfo
from evomerge.recipe.recipe import Recipe, Rule
from evomerge.report.summary import GeneTable, MergeGenes
from evomerge.report.svg import Box, figure, label, rect, shorten, text_width

_MODULES: tuple[Role, ...] = ("attention", "mlp", "norm", "other")
_OUTSIDE: tuple[tuple[str, Role], ...] = (("embed", "embedding"), ("norm", "norm"), ("head", "head"))
_SHARED = "all parents"


def _rule(recipe: Recipe, layer: int | None, role: Role) -> Rule | None:
    try:
        return recipe.rule_for(TensorInfo("any", (), "F32", layer, role))
    except RecipeError:
        return None  # a recipe need not cover roles that its architecture lacks


def _value(rule: Rule | None, parent: str, parameter: str) -> float | None:
    if rule is None:
        return None
    source = rule.shared if parent == _SHARED else rule.per_parent.get(parent, {})
    value = source.get(parameter)
    return None if value is None or isinstance(value, bool) else float(value)


def _parameters(rules: Sequence[Rule]) -> list[tuple[str, bool]]:
    """(name, shared) of every number that some rule uses, in order of appearance."""
    found = [(k, False) for r in rules for values in r.per_parent.values() for k in values]
    found += [(k, True) for r in rules for k, v in r.shared.items() if not isinstance(v, bool)]
    return list(dict.fromkeys(found))


def _module_groups(recipe: Recipe, n_layers: int) -> list[tuple[str, Role]]:
    """Modules whose rules differ in some layer: (label, one role of the group); one group when none differ."""
    by_rules: dict[tuple[int, ...], list[Role]] = {}
    for role in _MODULES:
        rules = [_rule(recipe, layer, role) for layer in range(n_layers)]
        if any(r is not None for r in rules):
            by_rules.setdefault(tuple(id(r) for r in rules), []).append(role)
    return [("+".join(roles), roles[0]) for roles in by_rules.values()]


def merge_genes(entry_id: str, recipe: Recipe, n_layers: int | None = None) -> MergeGenes:
    """The numbers of a recipe, one table per parameter.

    Args:
        entry_id: whose recipe it is.
        recipe: the merge.
        n_layers: of the architecture; by default as many as the rules name.
    """
    depth = n_layers or max([layer + 1 for r in recipe.rules for layer in r.layers or ()], default=1)
    groups = _module_groups(recipe, depth) or [("", "other")]
    columns = ["embed", *(str(k) for k in range(depth)), "norm", "head"]
    tables = []
    for parameter, shared in _parameters(recipe.rules):
        rows, values = [], []
        for parent in [_SHARED] if shared else [p.name for p in recipe.parents]:
            for k, (group, role) in enumerate(groups):
                inside = [_value(_rule(recipe, layer, role), parent, parameter) for layer in range(depth)]
                outside = [_value(_rule(recipe, None, r), parent, parameter) if k == 0 else None for _, r in _OUTSIDE]
                row = (outside[0], *inside, *outside[1:])
                if any(v is not None for v in row):
                    rows.append(parent if len(groups) == 1 else f"{parent} · {group}")
                    values.append(row)
        tables.append(GeneTable(parameter, tuple(rows), tuple(columns), tuple(values)))
    methods = dict.fromkeys(r.method for r in recipe.rules)
    return MergeGenes(entry_id, tuple(methods), tuple(t for t in tables if t.rows))


def gene_map(table: GeneTable) -> str:
    """A heat map of one parameter: rows parents and modules, columns the depth; negative values in the other colour."""
    names = [shorten(r, 30) for r in table.rows]
    left = 24 + max([text_width(n) for n in names] + [40])
    cell = max(12.0, min(58.0, 760.0 / max(len(table.columns), 1)))
    known = [v for row in table.values for v in row if v is not None]
    top_value = max([abs(v) for v in known] + [1e-12])
    parts = []
    for r, (name, values) in enumerate(zip(names, table.values, strict=True)):
        y = 24 + 24 * r
        parts.append(label(left - 10, y + 15, name, anchor="end"))
        for c, value in enumerate(values):
            box = Box(left + cell * c + 1, y + 1, left + cell * (c + 1) - 1, y + 23)
            if value is None:
                parts.append(rect(box, "heat-none"))
                continue
            strength = abs(value) / top_value
            title = f"{table.parameter}, {table.rows[r]}, {table.columns[c]}: {value:.4g}"
            parts.append(rect(box, "heat" if value >= 0 else "heat-minus", opacity=0.04 + 0.9 * strength, title=title))
            if cell >= 30:
                css = "cell inverse" if strength > 0.6 else "cell"
                parts.append(label((box.left + box.right) / 2, y + 16, f"{value:.2f}", css, anchor="middle"))
    every = max(1, round(28 / cell))
    for c, column in enumerate(table.columns):
        if not column.isdigit() or int(column) % every == 0:
            parts.append(label(left + cell * (c + 0.5), 16, shorten(column, 7), "tick", anchor="middle"))
    wide = left + cell * len(table.columns) + 14
    return figure(wide, 30 + 24 * len(names), f"{table.parameter} by depth", *parts)

"""The genes of a merge by depth and module: read off its recipe, drawn as a heat map."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from evomerge.errors import RecipeError
from evomerge.layout import Role, TensorInfo
from evomerge.recipe.recipe import Recipe, Rule
from evomerge.report.gene_values import GeneTable, MergeGenes
from evomerge.report.marks import FULL
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


def constant_of(table: GeneTable) -> float | None:
    """The one value that a table holds everywhere, None when it holds several."""
    values = {v for row in table.values for v in row if v is not None}
    return next(iter(values)) if len(values) == 1 else None


def largest(tables: Iterable[GeneTable]) -> float:
    """The largest absolute value in tables of one parameter: what full colour stands for."""
    return max((abs(v) for t in tables for row in t.values for v in row if v is not None), default=0.0) or 1.0


def _names(table: GeneTable) -> list[str]:
    return [shorten(r, 30) for r in table.rows]


def _left(table: GeneTable) -> float:
    return 20 + max([text_width(n) for n in _names(table)] + [40])


def _cell_width(table: GeneTable) -> float:
    return max(12.0, min(58.0, (FULL - _left(table) - 14) / max(len(table.columns), 1)))


def map_width(table: GeneTable) -> float:
    """Pixels that `gene_map` needs."""
    return _left(table) + _cell_width(table) * len(table.columns) + 14


def gene_map(table: GeneTable, full: float) -> str:
    """A heat map of one parameter: rows parents and modules, columns the depth; negative values in another colour.

    Args:
        table: the values.
        full: the absolute value that full colour stands for, > 0.
    """
    names, left, cell = _names(table), _left(table), _cell_width(table)
    parts = []
    for r, (name, values) in enumerate(zip(names, table.values, strict=True)):
        y = 24 + 24.0 * r
        parts.append(label(left - 10, y + 15, name, anchor="end"))
        for c, value in enumerate(values):
            box = Box(left + cell * c + 1, y + 1, left + cell * (c + 1) - 1, y + 23)
            title = f"{table.parameter}, {table.rows[r]}, {table.columns[c]}"
            parts.append(_cell(box, value, full, title))
    every = max(1, round(28 / cell))
    for c, column in enumerate(table.columns):
        if not column.isdigit() or int(column) % every == 0:
            parts.append(label(left + cell * (c + 0.5), 16, column, "tick", anchor="middle"))
    return figure(map_width(table), 30 + 24 * len(names), f"{table.parameter} by depth", *parts)


def _cell(box: Box, value: float | None, full: float, title: str) -> str:
    if value is None:
        return rect(box, "heat-none", title=f"{title}: not used")
    strength = min(abs(value) / full, 1.0)
    css = "heat" if value >= 0 else "heat-minus"
    drawn = rect(box, css, opacity=0.03 + 0.9 * strength, title=f"{title}: {value:.4g}")
    if box.right - box.left < 30:
        return drawn
    ink = "cell inverse" if strength > 0.55 else "cell"
    return drawn + label((box.left + box.right) / 2, box.top + 15, f"{value:.2f}", ink, anchor="middle")

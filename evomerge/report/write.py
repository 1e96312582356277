"""Write the report of a run into its directory."""

from __future__ import annotations

from pathlib import Path

from evomerge.failpoints import reach
from evomerge.files import write_atomic
from evomerge.report.book import Book, RecipeOf
from evomerge.report.collect import summary_of
from evomerge.report.details import details_of, folder_report, recorded_recipe
from evomerge.report.html import render_report
from evomerge.runs.damage import damage_is_told


def write_report(folder: Path, recipe_of: RecipeOf | None = None) -> Path:
    """Write `report.html` and return its path.

    Args:
        folder: the run directory; the run may be going on.
        recipe_of: gives recipes of candidates, for the drawing of their genes; without it only recorded ones.

    Raises:
        ConfigError: when there is no run.
        StoreError: when its journal, manifest or answers are damaged.
        DiskFull: when there is no space; an older report stays.
    """
    with damage_is_told(folder):
        book = Book(folder)
        summary = summary_of(book)
        details = details_of(book, summary, recipe_of or recorded_recipe(book))
        path = folder_report(folder)
        page = render_report(summary, details)
    reach("before-report")
    write_atomic(path, page)
    reach("after-report")
    return path

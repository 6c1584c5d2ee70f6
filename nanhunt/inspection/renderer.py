"""The pages of an inspection, in the order in which they are offered, and which one a user asked for."""

from __future__ import annotations

from pathlib import Path

from nanhunt.inspection.document import InspectionJson
from nanhunt.inspection.markdown import InspectionMarkdown
from nanhunt.inspection.terminal import InspectionTerminal
from nanhunt.report.chosen import chosen

__all__ = ["PAGES", "choose_page"]

_Page = type[InspectionTerminal] | type[InspectionJson] | type[InspectionMarkdown]

PAGES: tuple[_Page, ...] = (InspectionTerminal, InspectionJson, InspectionMarkdown)


def choose_page(format: str | None, out: Path | None) -> _Page:
    """Return the page that a user asked for, else the terminal's. Raises UsageError for one that there is not."""
    return chosen(PAGES, format, out, of="an inspection's")

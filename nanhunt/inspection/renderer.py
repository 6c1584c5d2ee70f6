"""The pages of an inspection, in the order in which they are offered, and which one a user asked for."""

from __future__ import annotations

from pathlib import Path

from nanhunt.errors import UsageError
from nanhunt.inspection.document import InspectionJson
from nanhunt.inspection.markdown import InspectionMarkdown
from nanhunt.inspection.terminal import InspectionTerminal

__all__ = ["PAGES", "choose_page"]

_Page = type[InspectionTerminal] | type[InspectionJson] | type[InspectionMarkdown]

PAGES: tuple[_Page, ...] = (InspectionTerminal, InspectionJson, InspectionMarkdown)


def choose_page(format: str | None, out: Path | None) -> _Page:
    """Return the page that `--format` names, else the suffix of `out`, else the terminal's.

    Raises UsageError for a format or a suffix that there is none of.
    """
    names = ", ".join(page.name for page in PAGES)
    if format is not None:
        found = next((page for page in PAGES if page.name == format.lower()), None)
        if found is None:
            raise UsageError(f"--format {format}: an inspection's formats are {names}")
        return found
    if out is None or not out.suffix:
        return PAGES[0]
    found = next((page for page in PAGES if page.suffix == out.suffix.lower()), None)
    if found is None:
        raise UsageError(f"--out {out}: no page has the suffix {out.suffix}", hint=f"name the format: --format {names}")
    return found

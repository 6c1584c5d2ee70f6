"""The formats of a comparison, in the order in which they are offered, and which one a user asked for."""

from __future__ import annotations

from pathlib import Path

from nanhunt.report.chosen import chosen
from nanhunt.report.diff.html import DiffHtml
from nanhunt.report.diff.json import DiffJson
from nanhunt.report.diff.markdown import DiffMarkdown
from nanhunt.report.diff.terminal import DiffTerminal

__all__ = ["DIFF_RENDERERS", "choose_diff"]

_Renderer = type[DiffTerminal] | type[DiffJson] | type[DiffMarkdown] | type[DiffHtml]

DIFF_RENDERERS: tuple[_Renderer, ...] = (DiffTerminal, DiffJson, DiffMarkdown, DiffHtml)


def choose_diff(format: str | None, out: Path | None) -> _Renderer:
    """Return the renderer that a user asked for, else the terminal's. Raises UsageError for one that there is not."""
    return chosen(DIFF_RENDERERS, format, out, of="a comparison's")

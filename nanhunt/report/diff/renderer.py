"""The formats of a comparison, in the order in which they are offered, and which one a user asked for."""

from __future__ import annotations

from pathlib import Path

from nanhunt.errors import UsageError
from nanhunt.report.diff.html import DiffHtml
from nanhunt.report.diff.json import DiffJson
from nanhunt.report.diff.markdown import DiffMarkdown
from nanhunt.report.diff.terminal import DiffTerminal

__all__ = ["DIFF_RENDERERS", "choose_diff"]

_Renderer = type[DiffTerminal] | type[DiffJson] | type[DiffMarkdown] | type[DiffHtml]

DIFF_RENDERERS: tuple[_Renderer, ...] = (DiffTerminal, DiffJson, DiffMarkdown, DiffHtml)


def choose_diff(format: str | None, out: Path | None) -> _Renderer:
    """Return the renderer that `--format` names, else the suffix of `out`, else the terminal's.

    Raises UsageError for a format or a suffix that there is none of.
    """
    names = ", ".join(renderer.name for renderer in DIFF_RENDERERS)
    if format is not None:
        found = next((r for r in DIFF_RENDERERS if r.name == format.lower()), None)
        if found is None:
            raise UsageError(f"--format {format}: a comparison's formats are {names}")
        return found
    if out is None or not out.suffix:
        return DIFF_RENDERERS[0]
    found = next((r for r in DIFF_RENDERERS if r.suffix == out.suffix.lower()), None)
    if found is None:
        raise UsageError(f"--out {out}: no page has the suffix {out.suffix}", hint=f"name the format: --format {names}")
    return found

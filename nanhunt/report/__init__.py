"""The formats of a report, in the order in which they are offered; the first is the default."""

from __future__ import annotations

from nanhunt.report.json import JsonRenderer
from nanhunt.report.markdown import MarkdownRenderer
from nanhunt.report.terminal import TerminalRenderer

__all__ = ["RENDERERS"]

RENDERERS = (TerminalRenderer, JsonRenderer, MarkdownRenderer)

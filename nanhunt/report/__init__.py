"""The formats of a report, in the order in which they are offered; the first is the default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanhunt.report.renderer import Renderer

    RENDERERS: tuple[type[Renderer], ...]

__all__ = ["RENDERERS"]


def __getattr__(name: str) -> Any:
    """Import the renderers on first use: `nanhunt formats` writes its page without pyarrow, twice as fast."""
    if name != "RENDERERS":
        raise AttributeError(f"module 'nanhunt.report' has no attribute {name!r}")
    from nanhunt.report.html.page import HtmlRenderer
    from nanhunt.report.json import JsonRenderer
    from nanhunt.report.markdown import MarkdownRenderer
    from nanhunt.report.terminal import TerminalRenderer

    return (TerminalRenderer, JsonRenderer, MarkdownRenderer, HtmlRenderer)

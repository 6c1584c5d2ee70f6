"""`nanhunt formats`: facts of number formats, and what becomes of a value in each, or of a run's tensors."""

from __future__ import annotations

import json
import math
from pathlib import Path

from nanhunt.commands.terminal import color_wanted, terminal_width
from nanhunt.errors import UsageError
from nanhunt.report.formats_page import formats_document, render_formats, render_formats_markdown
from nanhunt.report.renderer import write_report

__all__ = ["formats", "formats_of_trace"]


def formats(names: list[str], values: list[str], *, format: str | None, out: Path | None) -> None:
    """Write the page of the named formats, all where none is named, with the fate of each value."""
    numbers = [_number(text) for text in values]
    kind = _kind(format, out)
    if kind == "json":
        text = json.dumps(formats_document(names, numbers), indent=2, allow_nan=False) + "\n"
    elif kind == "markdown":
        text = render_formats_markdown(names, numbers)
    else:
        text = render_formats(names, numbers, width=terminal_width(), color=out is None and color_wanted())
    write_report(text, out)


def formats_of_trace(trace: Path, names: list[str], *, format: str | None, out: Path | None) -> None:
    """Write what the named formats would do to the tensors of a trace; a summary of the usual ones where none is named.

    Raises TraceError for what is no trace, or one without tensors, UsageError for an unknown name.
    """
    from nanhunt.commands.trace_formats import trace_formats

    kind = _kind(format, out)
    page = trace_formats(trace, names)
    texts = {"json": page.document, "markdown": page.markdown}
    text = texts[kind]() if kind in texts else page.render(
        width=terminal_width(), color=out is None and color_wanted()
    )  # fmt: skip
    write_report(text, out)


def _kind(format: str | None, out: Path | None) -> str:
    """Return the format of the page, by the option or the file's suffix."""
    kind = format or {".json": "json", ".md": "markdown"}.get(out.suffix if out else "", "terminal")
    if kind not in ("json", "markdown", "terminal"):
        raise UsageError(f"--format {kind}: formats can be shown as terminal, json or markdown")
    return kind


def _number(text: str) -> float:
    """Read a value: 70000, 1e-8, 2^-24, 0x1p-24, inf, nan."""
    base, power, exponent = text.partition("^")
    try:
        if power:
            return math.ldexp(1.0, int(exponent)) if float(base) == 2.0 else float(base) ** int(exponent)
        return float.fromhex(text) if text.lower().lstrip("+-").startswith("0x") else float(text)
    except (ValueError, OverflowError):
        raise UsageError(f"--value {text}: not a number", hint="for example 70000, 1e-8, 2^-24, inf") from None

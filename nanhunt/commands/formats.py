"""`nanhunt formats`: facts of number formats, and what becomes of a value in each."""

from __future__ import annotations

import json
import math
from pathlib import Path

from nanhunt.commands.terminal import color_wanted, terminal_width
from nanhunt.errors import UsageError
from nanhunt.report.formats_page import formats_document, render_formats, render_formats_markdown
from nanhunt.report.renderer import write_report

__all__ = ["formats"]


def formats(names: list[str], values: list[str], *, format: str | None, out: Path | None) -> None:
    """Write the page of the named formats, all where none is named, with the fate of each value."""
    numbers = [_number(text) for text in values]
    kind = format or {".json": "json", ".md": "markdown"}.get(out.suffix if out else "", "terminal")
    if kind == "json":
        text = json.dumps(formats_document(names, numbers), indent=2, allow_nan=False) + "\n"
    elif kind == "markdown":
        text = render_formats_markdown(names, numbers)
    elif kind == "terminal":
        text = render_formats(names, numbers, width=terminal_width(), color=out is None and color_wanted())
    else:
        raise UsageError(f"--format {kind}: formats can be shown as terminal, json or markdown")
    write_report(text, out)


def _number(text: str) -> float:
    """Read a value: 70000, 1e-8, 2^-24, 0x1p-24, inf, nan."""
    base, power, exponent = text.partition("^")
    try:
        if power:
            return math.ldexp(1.0, int(exponent)) if float(base) == 2.0 else float(base) ** int(exponent)
        return float.fromhex(text) if text.lower().lstrip("+-").startswith("0x") else float(text)
    except (ValueError, OverflowError):
        raise UsageError(f"--value {text}: not a number", hint="for example 70000, 1e-8, 2^-24, inf") from None

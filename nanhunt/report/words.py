"""How reports spell numbers, places and text that came from a trace.

Names, source lines and messages of a trace were chosen by whoever wrote the model, the data or the file: `inert` has
what makes them harmless.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from nanhunt.inert import printable, prose

__all__ = [
    "binades", "counted", "duration", "listed", "number", "percent", "place", "printable", "prose", "scale", "size",
]  # fmt: skip


def number(value: float | None) -> str:
    """Return four significant digits, or the whole integer where it is one below 10 million; '-' for None."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf" if value > 0 else "-inf"
    # beyond seven digits nobody counts places: 3.403e38 says more than 340282346638528859811704183484516925440
    if float(value).is_integer() and abs(value) < 1e7:
        return str(int(value))
    mantissa, _, exponent = f"{value:.4g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def percent(fraction: float | None) -> str:
    """Return a fraction as a percentage of two significant digits; a small one never reads as none at all."""
    if fraction is None or not math.isfinite(fraction):
        return "-"
    if 0 < fraction < 1e-4:
        return "<0.01 %"
    return f"{100 * fraction:.2g} %" if fraction < 0.995 else f"{100 * fraction:.0f} %"


def binades(margin: float) -> str:
    """Return a margin with its sign, in powers of two: '+1.2 binades'."""
    if not math.isfinite(margin):
        return f"{number(margin)} binades"
    # -0.04 is beyond the end: it must not read as '-0.0'
    digits = 2 if 0 < abs(margin) < 0.05 else 1
    return f"{margin:+.{digits}f} binades"


def scale(factor: float | None) -> str:
    """Return a scale as '×256' or '×1/8'; '' for None, for 1 and for what is no scale."""
    if factor is None or not math.isfinite(factor) or factor <= 0 or factor == 1:
        return ""
    if factor < 1 and (1 / factor).is_integer():
        return f"×1/{number(1 / factor)}"
    return f"×{number(factor)}"


def size(count: float) -> str:
    """Return bytes with three digits, or two: '98.9 kB', '3.3 MB'; units are powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Return a time with two digits: '12 ms', '0.43 s', '12 s', '3 min', '2 h 05 min'."""
    if seconds < 0.1:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def counted(count: int, noun: str) -> str:
    """Return '1 tensor', '2 tensors'."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(items: Sequence[object], limit: int = 8) -> str:
    """Return '3, 5, 8' or, of more than `limit`, '3, 5 and 12 more'."""
    shown = ", ".join(printable(str(item)) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def place(module: str, name: str = "") -> str:
    """Return a tensor's full name; the root module, whose name is empty, is '(root)'."""
    if not module:
        return printable(name) or "(root)"
    if not name or name == module:
        return printable(module)
    return printable(name if name.startswith(f"{module}.") else f"{module}.{name}")

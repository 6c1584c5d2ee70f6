"""The page of `nanhunt formats`: number formats side by side, one format's card, a value's fate in each.

Numbers are exact where they can be, and start with `~` where they were rounded for the page. A table sheds detail, then
columns, then its table form, until it fits the width; it never cuts a number.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nanhunt.formats.catalogue import FORMATS, lookup
from nanhunt.formats.description import (
    card,
    codes_text,
    fate_facts,
    fate_words,
    format_facts,
    json_number,
    layout,
    yes_or_no,
)
from nanhunt.formats.notation import as_typed, decimal_text, exact_text, full_text, value_text
from nanhunt.formats.number_format import AnyFormat, BlockFormat, Fate, FateKind, NumberFormat, fate

__all__ = ["formats_document", "render_formats", "render_formats_markdown"]

_STYLES: dict[FateKind, str] = {
    "exact": "green",
    "rounded": "",
    "subnormal": "yellow",
    "flushed": "yellow",
    "saturated": "red",
    "overflow": "red",
    "nan": "red",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """A table as plain text, for terminal and Markdown alike; the first column names the row."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    #: a rich style for each row
    styles: list[str]


def formats_document(names: list[str], values: list[float]) -> dict[str, Any]:
    """Return formats and fates as JSON types; non-finite numbers are "NaN", "Infinity" and "-Infinity".

    No names stand for all formats. Raises UsageError for an unknown name.
    """
    formats = _chosen(names)
    return {
        "schema": 1,
        "formats": [format_facts(fmt) for fmt in formats],
        "values": [
            {"value": json_number(v), "fates": [fate_facts(fmt, fate(fmt, v)) for fmt in formats]} for v in values
        ],
    }


def render_formats(names: list[str], values: list[float], *, width: int, color: bool) -> str:
    """Return the page as terminal text of at most `width` columns; a single name asks for that format's card.

    Raises UsageError for an unknown name.
    """
    formats = _chosen(names)
    file = io.StringIO()
    out = Console(
        file=file, width=width, force_terminal=color, color_system="standard" if color else None, highlight=False
    )
    if names and len(formats) == 1:
        _print_card(out, formats[0])
    else:
        for variants in _catalogue_grids(formats):
            _print_fitting(out, variants)
    for value in values:
        _print_fates(out, formats, value)
    return "\n".join(line.rstrip() for line in file.getvalue().rstrip().splitlines()) + "\n"


def render_formats_markdown(names: list[str], values: list[float]) -> str:
    """Return the page as Markdown, in full detail; a single name asks for that format's card.

    Raises UsageError for an unknown name.
    """
    formats = _chosen(names)
    parts: list[str] = []
    if names and len(formats) == 1:
        parts.append(f"## {formats[0].name}: {formats[0].title}")
        parts.append("\n".join(f"- {label}: {text}" for label, text in card(formats[0])))
    else:
        parts += [_markdown(grids[0]) for grids in _catalogue_grids(formats)]
    for value in values:
        parts += [f"## {as_typed(value)} becomes", _markdown(_fate_grid(formats, value))]
        parts.append("\n".join(f"- {line}" for line in _notes(formats, value)))
    return "\n\n".join(filter(None, parts)) + "\n"


def _chosen(names: list[str]) -> list[AnyFormat]:
    """Return the named formats, each once, in the order given; all of them where none is named."""
    return list({fmt.name: fmt for fmt in map(lookup, names)}.values()) if names else list(FORMATS)


# Tables


def _fate_grid(formats: list[AnyFormat], value: float) -> _Grid:
    told = [(fmt, fate(fmt, value)) for fmt in formats]
    return _Grid(
        header=("format", "becomes", "relative error", "fate"),
        rows=[(fmt.name, _becomes(f), _error_text(f), fate_words(fmt, f)) for fmt, f in told],
        styles=[_STYLES[f.kind] for _, f in told],
    )


def _becomes(told: Fate) -> str:
    """Return the value after the cast; as it was typed where nothing happened to it."""
    return as_typed(told.value) if told.kind == "exact" and told.value else value_text(told.rounded)


def _error_text(told: Fate) -> str:
    """Return the relative error in two digits; `-` where there is none to speak of."""
    relative = told.relative_error
    if math.isnan(told.rounded) or not math.isfinite(relative):
        return "-"
    rounded = float(f"{relative:.1e}")
    return as_typed(rounded) if rounded == relative else "~" + as_typed(rounded)


def _notes(formats: list[AnyFormat], value: float) -> list[str]:
    """Return what the fates depend on, each said once for all formats it holds for."""
    notes: dict[str, list[str]] = {}
    for fmt in formats:
        if note := fate(fmt, value).note:
            notes.setdefault(note, []).append(fmt.name)
    return [f"{', '.join(names)}: {note}" for note, names in notes.items()]


def _catalogue_grids(formats: list[AnyFormat]) -> list[list[_Grid]]:
    """Return a table for plain and one for block formats, each from its fullest variant to its leanest."""
    numbers = [fmt for fmt in formats if isinstance(fmt, NumberFormat)]
    blocks = [fmt for fmt in formats if isinstance(fmt, BlockFormat)]
    tables = []
    if numbers:
        full = _number_grid(numbers, largest=full_text, small=full_text)
        powers = _number_grid(numbers, largest=full_text, small=_power)
        lean = _number_grid(numbers, largest=decimal_text, small=_power)
        tables.append([full, powers, lean, _without(lean, "NaN codes"), _without(lean, "NaN codes", "inf", "bits")])
    if blocks:
        lean = _block_grid(blocks, decimal_text)
        tables.append([_block_grid(blocks, full_text), lean, _without(lean, "eps", "smallest normal")])
    return tables


def _number_grid(
    formats: list[NumberFormat], *, largest: Callable[[float], str], small: Callable[[float], str]
) -> _Grid:
    def subnormal(fmt: NumberFormat) -> str:
        return "none" if fmt.smallest_subnormal is None else small(fmt.smallest_subnormal)

    cells: dict[str, Callable[[NumberFormat], str]] = {
        "format": lambda f: f.name,
        "bits": lambda f: str(f.bits),
        "sign/exp/ mantissa": layout,
        "largest": lambda f: largest(f.max),
        "smallest normal": lambda f: small(f.smallest_normal),
        "smallest subnormal": subnormal,
        "eps": lambda f: small(f.eps),
        "inf": lambda f: yes_or_no(f.has_infinity),
        "NaN codes": lambda f: codes_text(f.nan_codes),
    }
    rows = [tuple(cell(fmt) for cell in cells.values()) for fmt in formats]
    return _Grid(header=tuple(cells), rows=rows, styles=[""] * len(rows))


def _block_grid(formats: list[BlockFormat], text: Callable[[float], str]) -> _Grid:
    cells: dict[str, Callable[[BlockFormat], str]] = {
        "format": lambda f: f.name,
        "bits": lambda f: f"{f.bits:g}",
        "element": lambda f: f.element.name,
        "scale": lambda f: f"{f.scale.name}/{f.block_size}",
        "binades/ block": lambda f: f"{f.block_range:.1f}",
        "largest": lambda f: text(f.max),
        "smallest normal": lambda f: text(f.smallest_normal),
        "eps": lambda f: text(f.eps),
    }
    rows = [tuple(cell(fmt) for cell in cells.values()) for fmt in formats]
    return _Grid(header=tuple(cells), rows=rows, styles=[""] * len(rows))


def _power(value: float) -> str:
    """Return a power of two as such."""
    return exact_text(value) or decimal_text(value)


def _without(grid: _Grid, *dropped: str) -> _Grid:
    kept = [index for index, title in enumerate(grid.header) if title not in dropped]
    rows = [tuple(row[index] for index in kept) for row in grid.rows]
    return _Grid(header=tuple(grid.header[index] for index in kept), rows=rows, styles=grid.styles)


def _one_line(title: str) -> str:
    """Return a title whose break after a slash is closed again."""
    return title.replace("/ ", "/")


def _markdown(grid: _Grid) -> str:
    titles = tuple(_one_line(title) for title in grid.header)
    lines = [titles, tuple("---" for _ in grid.header), *grid.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# Terminal


def _print_card(out: Console, fmt: AnyFormat) -> None:
    out.print(Text(f"{fmt.name}: {fmt.title}", style="bold"))
    lines = Table.grid(padding=(0, 2))
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    for label, text in card(fmt):
        lines.add_row(Text(label), Text(text))
    out.print(lines)
    out.print()


def _print_fates(out: Console, formats: list[AnyFormat], value: float) -> None:
    out.print(Text(f"{as_typed(value)} becomes", style="bold"))
    _print_fitting(out, [_fate_grid(formats, value)])
    notes = _notes(formats, value)
    for line in notes:
        out.print(Text(line, style="dim"))
    if notes:
        out.print()


def _print_fitting(out: Console, variants: list[_Grid]) -> None:
    """Print the first variant that fits, or the last one as a list, a cell a line; then an empty line."""
    # Measured without a limit: within one, rich reports what is left of a column after cutting it.
    roomy = out.options.update(width=10_000)
    fitting = [grid for grid in variants if out.measure(_table(grid), options=roomy).maximum <= out.width]
    if fitting:
        out.print(_table(fitting[0]))
    else:
        _print_list(out, variants[-1])
    out.print()


def _print_list(out: Console, grid: _Grid) -> None:
    for row, style in zip(grid.rows, grid.styles, strict=True):
        out.print(Text(row[0], style="bold"))
        for title, cell in zip(grid.header[1:], row[1:], strict=True):
            out.print(Text(f"  {_one_line(title)}: {cell}", style=style))


def _table(grid: _Grid) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for index, title in enumerate(grid.header):
        # A title may break at its spaces, so that it does not widen a column of short numbers.
        cells = max((len(row[index]) for row in grid.rows), default=0)
        table.add_column(title.replace(" ", "\n") if len(title) > cells else title, no_wrap=True)
    for row, style in zip(grid.rows, grid.styles, strict=True):
        table.add_row(*(Text(cell) for cell in row), style=style)
    return table

"""Headroom on a page: a line a format with bars for its tensors, or every tensor of one format as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.cells import cell_len
from rich.text import Text

from nanhunt.diagnosis.cause import HeadroomRow
from nanhunt.report.headroom import FormatLine, TensorLine, bar, best_scale, judged_rows, level_of
from nanhunt.report.page import Page, column, middle
from nanhunt.report.words import binades, percent, place, printable

__all__ = ["LEVEL_STYLES", "put_formats", "put_table", "table_cells"]

#: Blue, yellow and red are told apart by those who do not tell red from green; a sign beside them says the same.
LEVEL_STYLES = {"roomy": "bright_blue", "near": "yellow", "beyond": "red"}

#: cells of a line below which it goes without a bar, and from which on the bar is longer, or long
_BARS_FROM = 68
_LONGER_BARS_FROM = 90
_WIDE_BARS_FROM = 100
#: cells of "infinite here, fp64: 6.885e4", and on a wide page of "2.7 % of elements to zero, <0.01 % of energy"
_SAID, _WIDE_SAID = 28, 44
#: the fewest cells that a name is cut to before a table loses a column
_NAME = 20


def put_formats(page: Page, lines: Sequence[FormatLine], *, roomy: bool, tight: bool) -> None:
    """Print a line a format, and its tensors below it: of formats that simply fit, and of those that do not."""
    formats = column((line.format for line in lines), 16)
    names = column((place(t.module, t.name) for line in lines for t in line.tensors), 40)
    for line in lines:
        style = LEVEL_STYLES[line.level]
        label = Text(f"{middle(line.format, formats)}  ", "bold").append(f"{line.mark} ", style)
        page.put(label, Text(line.text, style))
        for tensor in line.tensors if (roomy if line.level == "roomy" else tight) else ():
            mark = Text(f"{tensor.mark} ", LEVEL_STYLES[tensor.level])
            page.row(mark.append_text(_tensor_line(tensor, names, page.width - 6)), indent=4)


def _tensor_line(tensor: TensorLine, names: int, width: int) -> Text:
    """Return one tensor's line: name, role, where it lies in the format's range, the number that decides."""
    style = LEVEL_STYLES[tensor.level]
    cells = 24 if width >= _WIDE_BARS_FROM else 16 if width >= _LONGER_BARS_FROM else 8
    role = f"  {middle(printable(tensor.role), 11)} "
    said = _WIDE_SAID if width >= _WIDE_BARS_FROM else _SAID
    left = width - cell_len(role) - said - (cells + 6 if width >= _BARS_FROM else 0)
    line = Text(middle(place(tensor.module, tensor.name), max(min(names, left), 8)), "cyan").append(role, "dim")
    if width >= _BARS_FROM:
        drawn = bar(tensor.row, cells) if tensor.row is not None else None
        for text, beyond in drawn.pieces() if drawn is not None else [(" " * (cells + 4), False)]:
            line.append(text, "red" if beyond else style)
        line.append("  ")
    line.append(tensor.text, style)
    return line.append(f" {tensor.per}" if width >= _WIDE_BARS_FROM else "", "dim")


#: title, what a cell says, and how early the column goes where the page is narrow (0 never does)
_Column = tuple[str, Callable[[HeadroomRow], str], int]


def _under(per: str) -> Callable[[HeadroomRow], str]:
    def cell(row: HeadroomRow) -> str:
        lost = row.under(per)
        return "-" if lost is None else percent(lost.flushed_share)

    return cell


def _margin(margin: float) -> str:
    return binades(margin).removesuffix(" binades")


_COLUMNS: tuple[_Column, ...] = (
    ("role", lambda r: printable(r.role), 0),
    ("to overflow", lambda r: _margin(r.headroom.overflow_margin), 0),
    ("to underflow", lambda r: _margin(r.headroom.underflow_margin), 4),
    ("overflow", lambda r: percent(r.headroom.overflow_fraction), 3),
    ("subnormal", lambda r: percent(r.headroom.subnormal_fraction), 5),
    ("to zero", lambda r: percent(r.headroom.flushed_fraction), 0),
    ("of energy", lambda r: percent(r.headroom.flushed_energy), 6),
    ("per tensor", _under("tensor"), 0),
    ("per row", _under("row"), 2),
    ("per block", _under("block"), 1),
    ("best scale", best_scale, 7),
)


def table_cells(rows: Iterable[HeadroomRow]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return titles and cells of all columns but the name's that say anything of these rows, in full."""
    columns, cells = _filled(list(rows))
    return tuple(title for title, _, _ in columns), cells


def put_table(page: Page, rows: Sequence[HeadroomRow]) -> None:
    """Print every tensor of one format, worst first; a narrow page loses columns before names lose their middle."""
    columns, cells = _filled(rows)
    ranked = judged_rows(rows)
    widths = [max(len(title), *(len(line[i]) for line in cells)) for i, (title, _, _) in enumerate(columns)]
    kept = list(range(len(columns)))
    while sum(widths[i] + 2 for i in kept) + _NAME > page.width:
        goes = max(kept, key=lambda i: columns[i][2])
        if not columns[goes][2]:
            break
        kept.remove(goes)
    names = column((place(row.module, row.name) for row in rows), page.width - sum(widths[i] + 2 for i in kept))
    head = Text(middle("tensor", names), "bold")
    for i in kept:
        head.append(f"  {columns[i][0]:<{widths[i]}}" if not i else f"  {columns[i][0]:>{widths[i]}}", "bold")
    page.row(head, indent=0)
    for (row, told), line in zip(ranked, cells, strict=True):
        text = Text(middle(place(row.module, row.name), names), "cyan")
        for i in kept:
            text.append(f"  {line[i]:<{widths[i]}}" if not i else f"  {line[i]:>{widths[i]}}",
                        LEVEL_STYLES[level_of(told, row.headroom.format)] if i else "dim")  # fmt: skip
        page.row(text, indent=0)


def _filled(rows: Sequence[HeadroomRow]) -> tuple[list[_Column], list[tuple[str, ...]]]:
    """Return the columns in which any row says something, and their cells, worst row first."""
    lines = [tuple(cell(row) for _, cell, _ in _COLUMNS) for row, _ in judged_rows(rows)]
    filled = [i for i in range(len(_COLUMNS)) if any(line[i] not in ("-", "") for line in lines)]
    return [_COLUMNS[i] for i in filled], [tuple(line[i] for i in filled) for line in lines]

"""The comparison for a terminal: where the traces part, the way there by depth, the growth by step, and what to do next."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text

from nanhunt.comparison.comparison import Comparison, DepthRow
from nanhunt.report.diff import reading
from nanhunt.report.options import Options
from nanhunt.report.page import Page, column, middle
from nanhunt.report.sparkline import sparkline
from nanhunt.report.words import counted, number, percent, prose

__all__ = ["DiffTerminal"]

_STYLES = {"identical": "bold green", "agree": "bold green", "part": "bold red"}
_MARKS = {"within": " ", "inherited": "↓", "born": "✗"}
_ROWS = {"within": "dim", "inherited": "yellow", "born": "bold red"}
_NARROWEST = 40
#: cells of a depth row's numbers, beside its name
_NUMBERS = 46
_CURVE = 60
#: lines of a list under -v: a terminal is no place for the 30 000 rows of a large model's depth
_VERBOSE = 200


class DiffTerminal(Options):
    """A page of at most `width` cells; `top` limits what is listed, `verbose` lifts the limit to some hundred lines."""

    __slots__ = ()
    name: ClassVar[str] = "terminal"
    suffix: ClassVar[str] = ".txt"

    def render(self, comparison: Comparison) -> str:
        """Return the page."""
        page = Page(max(self.width, _NARROWEST))
        _verdict(page, comparison)
        _context(page, comparison, self)
        _depth(page, comparison, self)
        _steps(page, comparison)
        _others(page, comparison, self)
        _next(page, comparison)
        return page.text(color=self.color)


def _limit(options: Options, few: int) -> int:
    return max(_VERBOSE, few) if options.verbose else few


def _where(options: Options) -> str:
    """Return the option that shows what is left out."""
    return "-f json" if options.verbose else "-v"


def _field(page: Page, label: str, text: str, style: str = "") -> None:
    page.put(Text(f"{label:<9}", "dim"), Text(prose(text), style))


def _verdict(page: Page, comparison: Comparison) -> None:
    style = _STYLES[comparison.outcome]
    mark = "✗ " if comparison.outcome == "part" else "✓ "
    page.put(Text(mark, style), Text(prose(reading.headline(comparison)), "bold"), indent=0)
    for note in comparison.prefaces:
        _field(page, "before", note, "yellow")
    _field(page, "A", comparison.a, "dim")
    _field(page, "B", comparison.b, "dim")
    _field(page, "looked", f"{reading.looked(comparison)}: {reading.counts(comparison)}", "dim")
    if said := reading.unequal(comparison):
        _field(page, "exact", said)
    if comparison.closest is not None and comparison.outcome == "agree":
        near = comparison.closest
        said = f"step {near.step}, {reading.stage(near)}, {reading.place(near)}: {reading.told(near)}, {percent(near.ratio)} of its bound"
        _field(page, "nearest", said)


def _context(page: Page, comparison: Comparison, options: Options) -> None:
    differ = list(reading.settings(comparison, _limit(options, options.top)))
    notes = list(reading.alone(comparison, options.top))
    if not differ and not notes:
        return
    page.heading("around the runs")
    wide = column((name for name, _, _ in differ), 40)
    for name, a, b in differ:
        page.put(Text(f"{middle(name, wide)}  ", "dim"), Text(f"{a} → {b}"))
    more = len(comparison.settings) - len(differ)
    if more > 0:
        page.put(Text(f"and {counted(more, 'more setting')} ({_where(options)})", "dim"))
    for note in notes:
        page.put(Text("• ", "dim"), Text(prose(note)))


def _depth(page: Page, comparison: Comparison, options: Options) -> None:
    if comparison.outcome != "part" or not comparison.depth:
        return
    rows, hidden = reading.story(comparison, _limit(options, 3 * options.top))
    page.heading(f"step {comparison.depth_step} by depth", "✗ born, ↓ inherited; rounding: what it alone explains")
    wide = min(column((reading.place(row) for row in rows), page.width), max(page.width - _NUMBERS - 4, 12))
    head = f"{'':<{wide + 2}}{'rms in A':>11}{'rms in B':>11}{'apart':>10}{'rounding':>11}"
    page.row(Text(head, "dim"))
    last = ""
    for row in rows:
        if reading.stage(row) != last:
            last = reading.stage(row)
            page.row(Text(last, "dim italic"), indent=4)
        page.row(_row(row, wide))
    if hidden:
        page.put(Text(f"{counted(hidden, 'more row')} ({_where(options)})", "dim"))
    said = reading.inherited(comparison)
    if said:
        page.put(Text(said, "dim"))


def _row(row: DepthRow, wide: int) -> Text:
    line = Text(f"{_MARKS[row.verdict]} ", _ROWS[row.verdict]).append(
        middle(reading.place(row), wide), _ROWS[row.verdict]
    )
    line.append(f"{number(row.rms_a):>11}{number(row.rms_b):>11}", "dim")
    return line.append(f"{reading.share(row.apart):>10}", _ROWS[row.verdict]).append(
        f"{reading.share(row.bound):>11}", "dim"
    )


def _steps(page: Page, comparison: Comparison) -> None:
    series = reading.curves(comparison)
    if comparison.outcome == "identical" or len(comparison.by_step) < 2:
        return
    first = comparison.first.step if comparison.first else None
    steps = [row.step for row in comparison.by_step]
    mark = f", ✗ at step {first}" if first is not None else ""
    page.heading("by step", f"largest relative difference, steps {steps[0]} to {steps[-1]}{mark}")
    for name, label in reading.CURVES:
        if name not in series:
            continue
        at, values = series[name]
        line = Text()
        for cell in sparkline(at, values, onset=first, width=max(min(page.width - 46, _CURVE), 8)):
            line.append(cell.char, "bold red" if cell.mark else "cyan")
        page.put(
            Text(f"{label:<12}", "dim"), line.append(f"  {reading.share(values[0])} to {reading.share(values[-1])}")
        )


def _others(page: Page, comparison: Comparison, options: Options) -> None:
    lines = list(reading.others(comparison, _limit(options, options.top)))
    if lines:
        page.heading("born elsewhere as well", "more than the differences before it explain")
        for line in lines:
            page.put(Text("✗ ", "red"), Text(prose(line)))


def _next(page: Page, comparison: Comparison) -> None:
    found = reading.next_steps(comparison)
    if found:
        page.heading("next")
        for what, why in found:
            page.put(Text(prose(what), "cyan").append(f"  {prose(why)}", "dim"))

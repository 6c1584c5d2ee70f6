"""The terminal page's measurements besides the curves: the bad samples with their tokens, and the optimizer's health."""

from __future__ import annotations

from rich.text import Text

from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.report import words
from nanhunt.report.health import HealthRow, health_of
from nanhunt.report.options import Options
from nanhunt.report.page import Page, column, middle
from nanhunt.report.sample import FIELD_COLUMNS, Excerpt, bad_samples, field_rows
from nanhunt.report.sparkline import sparkline

__all__ = ["put_optimizer", "put_sample"]

#: Cells of a curve in a table.
_CURVE = 12


def put_sample(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    """Print the samples that carry the fault, their tokens with the bad positions in brackets, and the batch's fields."""
    samples, rest = bad_samples(diagnosis)
    if not samples:
        return
    alone = len(samples) == 1
    page.heading("bad sample" if alone else "bad samples", samples[0].which if alone else "")
    for i, sample in enumerate(samples):
        if i:
            page.put(Text())
        _sample(page, sample.facts if alone else (("sample", sample.which), *sample.facts))
    if rest > 0:
        page.put(Text(f"and {words.counted(rest, 'more sample')}", "dim"))
    rows = [tuple(words.printable(cell) for cell in row) for row in field_rows(diagnosis)]
    if rows:
        page.put(Text())
        _table(page, FIELD_COLUMNS, rows)


def _sample(page: Page, facts: tuple[tuple[str, str | Excerpt], ...]) -> None:
    labels = column((name for name, _ in facts), 20)
    for name, fact in facts:
        label = Text(f"{middle(words.printable(name), labels)}  ", "dim")
        page.put(label, _tokens(fact) if isinstance(fact, Excerpt) else Text(words.prose(fact)))


def _tokens(excerpt: Excerpt) -> Text:
    """Return values in a row; a bad one stands in brackets, for those who see no colour."""
    cells = [Text(f"… {excerpt.start} before", "dim")] if excerpt.start else []
    for value, is_bad in excerpt.values:
        shown = words.printable(value)
        cells.append(Text(f"[{shown}]", "bold red") if is_bad else Text(shown))
    cells += [Text(f"… {excerpt.rest} more", "dim")] if excerpt.rest else []
    return Text(" ").join(cells)


def _table(page: Page, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print a table without the columns in which no row says anything."""
    there = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    widths = {i: column((columns[i], *(row[i] for row in rows)), 24) for i in there}
    page.row(Text("  ".join(middle(columns[i], widths[i]) for i in there), "dim"))
    for row in rows:
        page.row(Text("  ".join(middle(row[i], widths[i]) for i in there)))


def put_optimizer(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    """Print Adam's health where there is a fault, or everything is asked for: of each measure the worst parameter."""
    found = health_of(diagnosis) if options.verbose or diagnosis.outcome == "fault" else None
    if found is None:
        return
    # a share of nothing is no news
    rows = [row for row in found.rows if options.verbose or row.worst != words.percent(0.0)]
    if not rows:
        return
    whose = f"{words.printable(found.optimizer)}, " if found.optimizer else ""
    page.heading("optimizer", f"{whose}step {found.step}: of each measure the parameter that is worst")
    labels, curve = column((row.label for row in rows), 24), max(5, *(min(len(row.steps), _CURVE) for row in rows))
    worst, median = max(5, *(len(row.worst) for row in rows)), max(6, *(len(row.median) for row in rows))
    # four gaps of two, and two cells before them
    names = column((row.parameter for row in rows), page.width - labels - curve - worst - median - 10)
    head = f"{'measure':<{labels}}  {middle('parameter', names)}  {'steps':<{curve}}  {'worst':>{worst}}  {'median':>{median}}"
    page.row(Text(head, "dim"))
    for row in rows:
        line = Text(f"{middle(row.label, labels)}  ").append(
            f"{middle(words.printable(row.parameter), names)}  ", "cyan"
        )
        line.append(f"{_curve(row):<{curve}}  ").append(f"{row.worst:>{worst}}", "bold").append(
            f"  {row.median:>{median}}", "dim"
        )
        page.row(line)
        if options.verbose:
            page.put(Text(row.says, "dim"), indent=4)


def _curve(row: HealthRow) -> str:
    cells = sparkline(row.steps, row.values, onset=None, width=_CURVE)
    return "".join(cell.char for cell in cells)

"""The terminal page's curves: loss, gradient norm, loss scale and rate over the steps, with onset and first sign marked."""

from __future__ import annotations

import math

from rich.text import Text

from nanhunt.diagnosis.cause import Diagnosis
from nanhunt.report import reading, words
from nanhunt.report.options import Options
from nanhunt.report.page import Page
from nanhunt.report.sparkline import Cell, sparkline

__all__ = ["put_curves", "put_ranks"]

_CURVES = (("loss", "loss"), ("grad_norm", "grad norm"), ("loss_scale", "loss scale"), ("lr", "lr"))
_LABEL = 12
#: cells of a sparkline: more say no more, and the eye no longer takes them in at once
_LONGEST, _SHORTEST = 64, 8
_STYLES = {"onset": "bold red", "non-finite": "red", "lead": "bold yellow"}


def put_curves(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    """Print the curves, each with its numbers, and below them where the first sign stands."""
    drawn = [(label, *diagnosis.series[name]) for name, label in _CURVES if any(diagnosis.series.get(name, ((), ())))]
    if not drawn:
        return
    first, last = min(steps[0] for _, steps, _ in drawn), max(steps[-1] for _, steps, _ in drawn)
    onset = diagnosis.onset.step if diagnosis.onset else None
    lead = diagnosis.onset.lead_step if diagnosis.onset and diagnosis.onset.lead_step != onset else None
    if first == last:
        page.heading("curves", f"step {first} alone")
        for label, _, values in drawn:
            page.put(Text(f"{label:<{_LABEL}}", "dim"), Text(words.number(values[-1])))
        return
    page.heading("curves", f"steps {first} to {last}" + (f", ✗ at step {onset}" if onset is not None else ""))
    told = [_told(steps, values, onset) for _, steps, values in drawn]
    # two cells before the label, two between curve and numbers
    width = min(max(page.width - _LABEL - 4 - max(map(len, told)), _SHORTEST), _LONGEST)
    curves = [sparkline(steps, values, onset=onset, width=width, lead=lead) for _, steps, values in drawn]
    longest = max(map(len, curves))
    for (label, *_), cells, numbers in zip(drawn, curves, told, strict=True):
        line = Text()
        for cell in cells:
            line.append(cell.char, _STYLES.get(cell.mark, "cyan"))
        line.append(" " * (longest - len(cells)))
        page.put(Text(f"{label:<{_LABEL}}", "dim"), line.append(f"  {numbers}"))
    if lead is not None:
        _first_sign(page, curves, lead)


def _first_sign(page: Page, curves: list[list[Cell]], lead: int) -> None:
    """Print an arrow below the cell of the first sign; it may lie before the steps that are drawn."""
    at = next((i for cells in curves for i, cell in enumerate(cells) if cell.mark == "lead"), None)
    if at is None:
        return
    said = f"first sign, step {lead}"
    fits = _LABEL + at + len(said) + 4 <= page.width
    arrow = Text(f"{' ' * (_LABEL + at)}^ {said}" if fits else f"{f'{said} ^':>{_LABEL + at + 1}}", "yellow")
    page.row(arrow)


def _told(steps: tuple[int, ...], values: tuple[float, ...], onset: int | None) -> str:
    """Return a curve's ends and, where they are neither of them, its value at the onset and its highest."""
    if len(set(values)) == 1:
        return f"{words.number(values[0])} throughout"
    said = [f"{words.number(values[0])} to {words.number(values[-1])}"]
    told = {values[0], values[-1]}
    if onset is not None and onset in steps[1:-1]:
        at_onset = values[steps.index(onset)]
        if at_onset not in told:
            said.append(f"{words.number(at_onset)} at ✗")
        told.add(at_onset)
    highest = max((v for v in values if math.isfinite(v)), default=math.nan)
    if highest > max((v for v in told if math.isfinite(v)), default=-math.inf):
        said.append(f"highest {words.number(highest)}")
    return ", ".join(said)


def put_ranks(page: Page, diagnosis: Diagnosis, options: Options) -> None:
    """Print a line a rank."""
    cells = reading.rank_cells(diagnosis)
    if not cells:
        return
    page.heading("ranks", f"at step {diagnosis.ranks[0].step}")
    rank, loss, norm = (max(len(row[i]) for row in cells) for i in range(3))
    for row in cells:
        page.put(Text(f"{row[0]:<{rank}}  ", "dim"), Text(f"{row[1]:<{loss}}  {row[2]:<{norm}}  {row[3]}"))

"""What a report says of number formats: a verdict a format, the tensors that decide it, and where they lie in its range.

Renderers for people share these lines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from nanhunt.diagnosis.cause import HeadroomRow
from nanhunt.diagnosis.format_verdict import BACKWARD, DECIDING, FORWARD, Answer, Deciding, FormatVerdict, judged
from nanhunt.formats.catalogue import lookup
from nanhunt.formats.number_format import BlockFormat, NumberFormat
from nanhunt.report.words import binades, counted, number, percent, place, printable, scale

__all__ = [
    "NARROW",
    "Bar",
    "FormatLine",
    "Level",
    "TensorLine",
    "bar",
    "best_scale",
    "format_lines",
    "in_brief",
    "judged_rows",
    "level_of",
    "looked",
    "said",
    "shares",
]

#: binades. A gradient scaler's growth takes one at a time, so two is one growth and one doubling of the data.
NARROW = 2.0

#: how near to an end, or beyond it
Level = Literal["roomy", "near", "beyond"]

#: what products are made of, and what they make: moments and updates are told with the advice
_OPERANDS = (*FORWARD, *BACKWARD, "grad")
_END = {"least loss scale": "≥", "most loss scale": "≤"}
_MARKS: dict[Level, str] = {"roomy": "✓", "near": "!", "beyond": "✗"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorLine:
    """One tensor in one format: what decides, and how near it is."""

    row: HeadroomRow | None
    module: str
    role: str
    name: str
    text: str
    #: whose scale that is under, in words; '' without one
    per: str
    level: Level
    #: the scale that brings it as high as it goes, '' where it is roomy without one or was infinite: `amax` is finite
    scale: str

    @property
    def mark(self) -> str:
        """The level as a sign, for those who see no colour."""
        return _MARKS[self.level]


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatLine:
    """A format's verdict in one sentence, and the tensors that go with it."""

    format: str
    text: str
    level: Level
    tensors: tuple[TensorLine, ...]

    @property
    def mark(self) -> str:
        """The level as a sign, for those who see no colour."""
        return _MARKS[self.level]


def format_lines(
    verdicts: Iterable[FormatVerdict], headroom: Iterable[HeadroomRow], *, everything: bool = False
) -> list[FormatLine]:
    """Return a line a format; its tensors are those that decide, or with `everything` all that are tight as well."""
    rows: dict[str, list[HeadroomRow]] = {}
    for row in headroom:
        rows.setdefault(row.headroom.format, []).append(row)
    return [_format_line(verdict, rows.get(verdict.format, []), everything) for verdict in verdicts]


def judged_rows(rows: Iterable[HeadroomRow]) -> list[tuple[HeadroomRow, Deciding]]:
    """Return rows, each with how well it fits its format, worst first."""
    judgements = [(row, judged(row, lookup(row.headroom.format))) for row in rows]
    return sorted(judgements, key=lambda pair: (-pair[1].answer, -pair[1].severity))


def _format_line(verdict: FormatVerdict, rows: list[HeadroomRow], everything: bool) -> FormatLine:
    of = {(row.module, row.role, row.name): row for row in rows}
    told = list(verdict.deciding)
    if everything:
        named = {(d.module, d.role, d.name) for d in told}
        ranked = judged_rows(row for row in rows if row.role in _OPERANDS)
        tight = (d for _, d in ranked if level_of(d, verdict.format) != "roomy")
        told += [d for d in tight if (d.module, d.role, d.name) not in named]
    tensors = tuple(_tensor_line(d, of.get((d.module, d.role, d.name)), verdict.format) for d in told)
    best = Answer.SCALED if _is_scaled(verdict.format) else Answer.FITS
    near = verdict.answer > best or any(tensor.level == "near" for tensor in tensors[:DECIDING])
    level: Level = "beyond" if verdict.answer is Answer.NOT else "near" if near else "roomy"
    text = _sentence(verdict) + (_tightest(verdict) if level == "roomy" else "")
    return FormatLine(format=verdict.format, text=text, level=level, tensors=tensors)


def _tightest(verdict: FormatVerdict) -> str:
    """Return which tensor comes nearest to an end, where any loses or nears anything at all."""
    first = next(iter(verdict.deciding), None)
    if first is None or not math.isfinite(first.number) or not first.number:
        return ""
    what = "nearest is" if first.what == "margin" else "most in"
    return f"; {what} {place(first.module, first.name)} ({first.role}): {said(first)}"


def _is_scaled(name: str) -> bool:
    """Whether a format is never used without a scale of each tensor."""
    fmt = lookup(name)
    return isinstance(fmt, NumberFormat) and fmt.bits <= 8


def in_brief(verdict: FormatVerdict, level: Level = "near") -> str:
    """Return the answer alone; of a roomy format with the tensor that comes nearest to an end."""
    return _answer(verdict) + (_tightest(verdict) if level == "roomy" else "")


def _sentence(verdict: FormatVerdict) -> str:
    """Return the answer, and what it does not rest on."""
    text = _answer(verdict)
    if not verdict.measured:
        block = isinstance(lookup(verdict.format), BlockFormat)
        text += "; " + ("each element in the block that suits it best" if block else "blocks were not looked at")
    elif isinstance(lookup(verdict.format), BlockFormat) or verdict.answer > Answer.SCALED:
        text += looked(verdict, "; blocks ")
    return text


def _answer(verdict: FormatVerdict) -> str:
    """Return the answer, of both sides where they differ."""
    forward, gradients = verdict.forward.answer, verdict.gradients.answer
    text = verdict.answer.words
    if Answer.UNTOLD in (forward, gradients) and verdict.answer is not Answer.NOT:
        text = f"forward {forward.words}, gradients {gradients.words.replace('fits', 'fit')}"
    elif forward is not gradients:
        text += f": forward {_short(forward)}, gradients {_with_range(verdict)}"
    elif verdict.answer is Answer.SCALED and _is_scaled(verdict.format):
        text += " per tensor"
    return text


def looked(verdict: FormatVerdict, lead: str) -> str:
    """Return on which part of the steps blocks were looked at, '' for all: figures without blocks are of every step."""
    if verdict.looked is None or verdict.looked[0] >= verdict.looked[1]:
        return ""
    return f"{lead}on {verdict.looked[0]} of {counted(verdict.looked[1], 'recorded step')}"


def _short(answer: Answer) -> str:
    """Return a side's answer behind the answer itself."""
    return "does not" if answer is Answer.NOT else answer.words


def _with_range(verdict: FormatVerdict) -> str:
    """Return the gradients' answer, with the loss scales that work where one does."""
    ends = {d.what: int(d.number) for d in verdict.gradients.deciding if d.what.endswith("loss scale")}
    low, high = ends.get("least loss scale"), ends.get("most loss scale")
    if verdict.gradients.answer is Answer.SCALED and low is not None and high is not None:
        return f"fit with a loss scale of 2^{low}" + (f" to 2^{high}" if low < high else "")
    return _short(verdict.gradients.answer).replace("does", "do").replace("fits", "fit")


def _tensor_line(told: Deciding, row: HeadroomRow | None, name: str) -> TensorLine:
    per = f"with a scale per {told.per}" if told.per and _is_scaled(name) else ""
    level = level_of(told, name)
    helps = told.what not in ("infinite", "vanished") and (level != "roomy" or bool(per))
    return TensorLine(
        row=row, module=told.module, role=told.role, name=told.name, text=said(told), per=per, level=level,
        scale=best_scale(row) if helps else "",
    )  # fmt: skip


def said(told: Deciding) -> str:
    """Return a tensor's deciding number in a few words."""
    if told.what in ("least loss scale", "most loss scale"):
        return f"{'needs' if told.what.startswith('least') else 'takes'} a loss scale {_END[told.what]} 2^{int(told.number)}"
    if told.what == "vanished":
        return "all zero in this run"
    if told.what == "infinite":
        return "infinite here" + (f", fp64: {number(told.number)}" if math.isfinite(told.number) else "")
    if told.what in ("margin", "overflow"):
        return f"{binades(told.number)} to overflow"
    if told.of_elements is None or told.of_energy is None:
        return f"{percent(told.number)} of {'energy' if told.what == 'energy' else 'elements'} to zero"
    return shares(told.of_elements, told.of_energy)


def shares(of_elements: float, of_energy: float) -> str:
    """Return how much becomes zero, by count and by energy."""
    if not of_elements and not of_energy:
        return "nothing to zero"
    return f"{percent(of_elements)} of elements to zero, {percent(of_energy)} of energy"


def level_of(told: Deciding, name: str) -> Level:
    """Return how near to an end of a format a tensor is."""
    if told.answer is Answer.NOT:
        return "beyond"
    if told.what == "margin":
        return "near" if told.number < NARROW else "roomy"
    return "near" if told.answer > Answer.FITS and not (told.answer is Answer.SCALED and _is_scaled(name)) else "roomy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Where a tensor lies in a format's range, smallest value to largest, in cells: below it, inside, above it."""

    below: bool
    first: int
    last: int
    cells: int
    above: bool

    def pieces(self) -> Iterator[tuple[str, bool]]:
        """Yield the bar's text in pieces, each with whether it lies beyond an end."""
        yield "█" if self.below else " ", True
        inside = "".join("█" if self.first <= i <= self.last else "░" for i in range(self.cells))
        yield f"│{inside}│", False
        yield "█" if self.above else " ", True

    def __str__(self) -> str:
        return "".join(text for text, _ in self.pieces())


def bar(row: HeadroomRow, cells: int) -> Bar | None:
    """Return a tensor's place in its format; under a scale where the format is used with one. None for no magnitude."""
    fmt = lookup(row.headroom.format)
    element = fmt.element if isinstance(fmt, BlockFormat) else fmt
    if not (0.0 < row.amin <= row.amax < math.inf):
        return None
    low, high = math.log2(element.smallest), math.log2(element.max)
    least, most = math.log2(row.amin), math.log2(row.amax)
    if isinstance(fmt, BlockFormat) or _is_scaled(fmt.name):
        # as high as the largest goes without overflow
        shift = math.floor(high - most + 1e-12)
        least, most = least + shift, most + shift
    first, last = (min(max(int((x - low) / (high - low) * cells), 0), cells - 1) for x in (least, most))
    overflows = row.overflowed is not None or bool(row.headroom.overflow_fraction)
    above = most > high and (overflows or row.headroom.overflow_fraction is None)
    nothing_inside = most < low - 1 or least > high
    return Bar(below=least <= low - 1, first=cells if nothing_inside else first, last=-1 if nothing_inside else last,
               cells=cells, above=above or row.overflowed is not None)  # fmt: skip


def best_scale(row: HeadroomRow | None) -> str:
    """Return the scale that brings a tensor as high as it goes, '' for one that helps nothing."""
    return "" if row is None or row.headroom.format == "nvfp4" else printable(scale(row.headroom.best_scale))

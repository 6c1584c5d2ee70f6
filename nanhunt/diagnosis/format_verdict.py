"""Whether a run fits a number format: as it is, with a scale, with one per block, or not; and which tensors decide.

Two questions are kept apart, because products have two formats: what goes forward (outputs, and weights as their
operands) and the gradients that go backward. Optimizer states are no operands, and have no say here.

How a tensor is judged. It overflows, or did in this run, or too much of it becomes zero: by energy, more than rounding
to the format could cost; and by count, of gradients because Adam takes the small ones for as much as the large, and of
what goes forward in 8 bits or 4 because each row has a result of its own. fp16 and bf16 are used
without a scale forward, and with one loss scale for all gradients, those of weights as well: what `loss_scale` says of a
scale of 1 is the answer here too. FP8 is never used without a scale: each tensor has
its own, by its amax in that step, or else each block. MX formats and NVFP4 bring theirs along.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from nanhunt.diagnosis.cause import HeadroomRow
from nanhunt.diagnosis.headroom import FORMATS_SHOWN
from nanhunt.diagnosis.loss_scale import FLUSHED, GRADIENTS, LossScales, ScaleEnd, loss_scales, vanished
from nanhunt.diagnosis.precision import ROWS
from nanhunt.diagnosis.tensors import MergedTensor
from nanhunt.formats.catalogue import lookup
from nanhunt.formats.number_format import AnyFormat, BlockFormat, NumberFormat
from nanhunt.trace.schema import Birth

__all__ = [
    "BACKWARD",
    "DECIDING",
    "FORWARD",
    "Answer",
    "Deciding",
    "FormatVerdict",
    "Side",
    "format_verdicts",
    "judged",
]

FORWARD = ("output", "weight")
BACKWARD = ("grad_output",)
#: Tensors named for each side of a verdict.
DECIDING = 3
#: Share of a gradient that may become zero in FP8, whose operands' products are summed and kept in a wider format.
FLUSHED_IN_FP8 = 0.05
#: The same in an FP4 format. E2M1 spans under four binades: of 32 normal elements a
#: seventh is zero by construction, and no recipe can help it.
FLUSHED_IN_FP4 = 0.25
#: Share of an output or a weight that an FP8 scale may flush beyond what a scale per row would: as many as a recipe's rows
#: that may be broken (`precision.ROWS`). Each row has a result of its own that hangs on it, and energy does not see a row
#: beside one large element elsewhere.
FORWARD_IN_FP8 = ROWS
#: The same in a format that brings its blocks along. What one flushes is small beside its own block's largest, for a
#: reason as a rule: of sharp softmaxes, E2M1 makes 94 % zero. More goes only where the scales of blocks do.
FORWARD_IN_BLOCKS = 0.95


class Answer(IntEnum):
    """How well a tensor, or a run, fits a format; larger is worse."""

    UNTOLD = 0
    FITS = 1
    SCALED = 2
    SCALED_PER_BLOCK = 3
    NOT = 4

    @property
    def words(self) -> str:
        """The answer as a reader says it."""
        return ("cannot be told", "fits", "fits with a scale", "fits with a scale per block", "does not fit")[self]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deciding:
    """One tensor's part in a verdict, and its number.

    `what` says of what: "margin" (binades to overflow), "overflow" (the same, beyond), "infinite" (it was, in this run;
    the number is what fp64 makes of it, as far as it is known), "vanished" (it was all zero, in this run), "energy" or "flushed" (shares that become zero), "least loss scale" and "most loss scale" (exponents). `per` is whose
    scale it is under.
    """

    module: str
    role: str
    name: str
    answer: Answer
    what: str
    number: float
    per: str = ""
    #: how far beyond what is allowed, to rank by
    severity: float = 0.0
    #: of "energy" and "flushed", both shares
    of_elements: float | None = None
    of_energy: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side's answer: its worst tensor's; and the tensors that decide it."""

    answer: Answer
    deciding: tuple[Deciding, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatVerdict:
    """Whether a run fits a format, forward and backward."""

    format: str
    forward: Side
    gradients: Side
    #: whether rows and blocks were looked at, where that matters
    measured: bool = True
    #: on how many recorded steps they were, and of how many; None where none were
    looked: tuple[int, int] | None = None

    @property
    def answer(self) -> Answer:
        """The worse of both."""
        return max(self.forward.answer, self.gradients.answer)

    @property
    def deciding(self) -> tuple[Deciding, ...]:
        """The tensors that decide, those of the worse side first."""
        both = (*self.forward.deciding, *self.gradients.deciding)
        return tuple(sorted(both, key=lambda d: (-d.answer, -d.severity)))[:DECIDING]


def format_verdicts(
    tensors: Sequence[MergedTensor],
    rows: Iterable[HeadroomRow],
    *,
    formats: Iterable[str] = FORMATS_SHOWN,
    birth: Birth | None = None,
) -> tuple[FormatVerdict, ...]:
    """Return a verdict for each of `formats` that `rows` are of; none where the trace holds no tensor.

    `birth` is the op that made the run's first non-finite value: inside a module, where no row shows its infinity.
    """
    by_format: dict[str, list[HeadroomRow]] = {}
    for row in rows:
        by_format.setdefault(row.headroom.format, []).append(row)
    return tuple(_verdict(name, tensors, by_format[name], birth) for name in formats if name in by_format)


def _verdict(name: str, tensors: Sequence[MergedTensor], rows: list[HeadroomRow], birth: Birth | None) -> FormatVerdict:
    fmt = lookup(name)
    forward = _side([*_born_infinite(birth, name), *(judged(row, fmt) for row in rows if row.role in FORWARD)])
    scales = loss_scales(tensors, fmt) if isinstance(fmt, NumberFormat) and fmt.bits > 8 else None
    gradients = _gone(vanished(tensors), name) or (
        _side(judged(row, fmt) for row in rows if row.role in BACKWARD)
        if scales is None
        else _under_loss_scale(scales, (row for row in rows if row.role in GRADIENTS))
    )
    needs_blocks = isinstance(fmt, BlockFormat) or max(forward.answer, gradients.answer) > Answer.SCALED
    used = [row for row in rows if row.role in (*FORWARD, *BACKWARD)]
    # with its scales, an element of MXFP8 has more than 8 bits
    scaleless = isinstance(fmt, NumberFormat) and fmt.bits > 8
    measured = scaleless or not needs_blocks or any(row.measured for row in used)
    looked = next((t.looked for t in tensors if t.looked[0]), None) if any(row.measured for row in rows) else None
    return FormatVerdict(format=name, forward=forward, gradients=gradients, measured=measured, looked=looked)


def _side(judgements: Iterable[Deciding]) -> Side:
    ranked = sorted(judgements, key=lambda d: (-d.answer, -d.severity))
    return Side(answer=ranked[0].answer if ranked else Answer.UNTOLD, deciding=tuple(ranked[:DECIDING]))


def _gone(gone: list[MergedTensor], name: str) -> Side | None:
    """Return the side of gradients that became zero in the run itself: no other format can be judged by them."""
    told = [
        Deciding(module=t.module, role=t.role, name=t.name, answer=Answer.NOT, what="vanished", number=0.0)
        for t in gone
        if name in t.formats
    ]
    return _side(told) if gone else None


def _born_infinite(birth: Birth | None, name: str) -> Iterator[Deciding]:
    """Yield the forward op that left the format's range in this run, where fp64 has a finite number for it."""
    if birth is None or birth.fp64 != "beyond-range" or birth.phase != "forward" or not birth.outputs:
        return
    dtype = birth.outputs[0].dtype.removeprefix("torch.")
    if dtype in (name, *lookup(name).aliases):
        number = birth.fp64_amax if birth.fp64_amax is not None else math.inf
        yield Deciding(module=birth.module, role="output", name="", answer=Answer.NOT, what="infinite", number=number,
                       severity=math.inf)  # fmt: skip


def _under_loss_scale(scales: LossScales, gradients: Iterable[HeadroomRow]) -> Side:
    """Return how gradients fit by the loss scales that work: without one where 1 does, the tightest told by its margin."""
    if scales.holds(1.0):
        return _side(
            Deciding(module=row.module, role=row.role, name=row.name, answer=Answer.FITS, what="margin",
                     number=row.headroom.overflow_margin, severity=-row.headroom.overflow_margin)
            for row in gradients
        )  # fmt: skip
    answer = Answer.SCALED if scales.works else Answer.NOT
    ends: list[tuple[ScaleEnd, str]] = [(scales.low, "least loss scale"), (scales.high, "most loss scale")]
    told = [
        Deciding(module=end.module, role=end.role, name=end.name, answer=answer, what=what, number=end.shift)
        for end, what in ends
    ]
    return Side(answer=answer, deciding=tuple(told))


def judged(row: HeadroomRow, fmt: AnyFormat) -> Deciding:
    """Return how one tensor fits a format, with the number that says so."""
    limits = _limits(fmt, row.role)
    plain = row.headroom

    def told(answer: Answer, what: str, number: float, severity: float, per: str = "", **shares: float) -> Deciding:
        return Deciding(module=row.module, role=row.role, name=row.name, answer=answer, what=what, number=number,
                        per=per, severity=severity, **shares)  # fmt: skip

    if row.overflowed is not None and row.role in FORWARD:
        # the first one before those that it spoiled
        return told(Answer.NOT, "infinite", math.inf, 1e15 - row.overflowed)
    if isinstance(fmt, NumberFormat) and fmt.bits <= 8:
        return _under_own_scale(row, limits)
    margin = plain.overflow_margin
    if plain.overflow_fraction if plain.overflow_fraction is not None else margin < 0.0:
        return told(Answer.NOT, "overflow", margin, math.inf if math.isnan(margin) else 100.0 - margin)
    flushed, energy = plain.flushed_fraction or 0.0, plain.flushed_energy or 0.0
    what, number, severity = _excess(flushed, energy, limits)
    shares = {"of_elements": flushed, "of_energy": energy}
    if severity > 1.0:
        return told(Answer.NOT, what, number, severity, "block" if isinstance(fmt, BlockFormat) else "", **shares)
    if isinstance(fmt, BlockFormat):
        return told(Answer.FITS, what, number, severity, "block", **shares)
    return told(Answer.FITS, "margin", margin, -margin)


def _under_own_scale(row: HeadroomRow, limits: tuple[float, float]) -> Deciding:
    """Return how a tensor fits FP8: with a scale of its own, with one a block, or not."""
    last = Deciding(
        module=row.module, role=row.role, name=row.name, answer=Answer.UNTOLD, what="margin", number=math.nan
    )
    own = row.under("row") if row.role in FORWARD else None
    for per, answer in (("tensor", Answer.SCALED), ("block", Answer.SCALED_PER_BLOCK)):
        lost = row.under(per)
        if lost is None:
            continue
        # forward, what is small beside its own row's largest is no loss of that row
        by_others = max(lost.flushed_share - (own.flushed_share if own is not None else 0.0), 0.0)
        what, number, severity = _excess(by_others, lost.energy_share, limits)
        if what == "flushed":
            number = lost.flushed_share
        if severity <= 1.0 and last.per:
            # of one that needs its blocks, what it would lose without them tells why
            return replace(last, answer=answer)
        last = replace(last, answer=answer if severity <= 1.0 else Answer.NOT, what=what, number=number, per=per,
                       severity=severity, of_elements=lost.flushed_share, of_energy=lost.energy_share)  # fmt: skip
        if severity <= 1.0:
            break
    return last


def _limits(fmt: AnyFormat, role: str) -> tuple[float, float]:
    """Return the shares of elements and of energy that may become zero.

    By energy: u^2, u = eps / 2, which is what rounding every element by half an ulp would cost. By count: of gradients in
    any format, and forward in those of 8 bits or 4.
    """
    element = fmt.element if isinstance(fmt, BlockFormat) else fmt
    if role in BACKWARD:
        count = FLUSHED_IN_FP4 if element.bits <= 4 else FLUSHED_IN_FP8 if element.bits <= 8 else FLUSHED
    elif role in FORWARD and element.bits <= 8:
        count = FORWARD_IN_BLOCKS if isinstance(fmt, BlockFormat) else FORWARD_IN_FP8
    else:
        count = math.inf
    return count, (element.eps / 2) ** 2


def _excess(flushed: float, energy: float, limits: tuple[float, float]) -> tuple[str, float, float]:
    """Return what is nearest to or furthest beyond its limit: its name, its share, and how many times the limit."""
    by_count, by_energy = flushed / limits[0], energy / limits[1]
    return ("flushed", flushed, by_count) if by_count > by_energy else ("energy", energy, by_energy)

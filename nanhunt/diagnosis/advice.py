"""What precision a run needs, in numbers: its loss scale, its FP8 gradients, and what has to stay in a wider format.

Every figure is of tensors that are named. Where the trace lacks them, the advice says what is missing and guesses at
nothing. Sentences are made of this by the report.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from nanhunt.diagnosis.cause import HeadroomRow
from nanhunt.diagnosis.format_verdict import BACKWARD, FORWARD, Answer, judged
from nanhunt.diagnosis.loss_scale import FLUSHED, GRADIENTS, LossScales, loss_scales, vanished
from nanhunt.diagnosis.tensors import MergedTensor
from nanhunt.formats.catalogue import BF16, E4M3FN, E5M2, FP16, lookup
from nanhunt.formats.number_format import NumberFormat
from nanhunt.formats.shared_scale import Lost
from nanhunt.trace.reader import Trace

__all__ = ["Advice", "GradientLoss", "Kept", "KeptTensor", "advice"]

#: Tensors named for each reason to stay wide.
NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientLoss:
    """What all gradients of outputs together lose in one FP8 format, under a scale per "tensor" or "block"."""

    format: str
    per: str
    lost: Lost
    #: largest relative error of a value that is stored with full precision: half an ulp
    rounding: float
    #: the tensor that loses the largest share of its elements
    module: str
    name: str
    worst: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptTensor:
    """A tensor that has to stay in a wider format, with the number that says so."""

    module: str
    role: str
    name: str
    number: float
    #: of what FP8 makes zero, both shares
    of_elements: float | None = None
    of_energy: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Tensors that have to stay wide for one reason, worst first, and how many there are of how many.

    `why` is "fp8-blocks" (E4M3 forward with E5M2 backward fit only with a scale per block), "fp8" (not even so),
    "fp8-tensor" (not with a scale per tensor, and blocks were not looked at), "moment" (too much of an optimizer's state is zero in `format`), "decay" (1 - beta2 is below half an ulp of `format`) or
    "update" (a typical update is below half an ulp of its weight in `format`).
    """

    why: str
    format: str
    count: int
    of: int
    tensors: tuple[KeptTensor, ...]
    number: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What precision the run needs."""

    loss_scale: LossScales | None
    #: least and largest loss scale that the run used; None where it used none
    used: tuple[float, float] | None
    gradients: tuple[GradientLoss, ...]
    kept: tuple[Kept, ...]
    #: what could not be told, and why
    missing: tuple[str, ...]
    #: whether gradients were held in fp16, where what is too small is zero before anybody looks
    in_fp16: bool = False


def advice(trace: Trace, tensors: Sequence[MergedTensor], rows: Sequence[HeadroomRow]) -> Advice | None:
    """Return what precision the run needs; None where the trace holds no tensor."""
    if not tensors:
        return None
    used = [v for v in trace.scalars("loss_scale").values() if 0.0 < v < math.inf]
    beta2 = max((v for v in trace.scalars("beta2").values() if 0.0 < v < 1.0), default=None)
    gradients = [t for t in tensors if t.role in GRADIENTS]
    gone = vanished(tensors)
    return Advice(
        loss_scale=loss_scales(tensors, FP16),
        used=(min(used), max(used)) if used else None,
        gradients=() if gone else tuple(_gradients(rows)),
        kept=(*_in_fp8(rows), *_moments(tensors, rows, beta2), *_updates(tensors)),
        missing=tuple(_missing(tensors, rows, len(gone))),
        in_fp16=any(FP16.name in t.formats for t in gradients),
    )


def _gradients(rows: Iterable[HeadroomRow]) -> Iterator[GradientLoss]:
    """Yield what E4M3 and E5M2 make of all gradients of outputs."""
    backward = [row for row in rows if row.role in BACKWARD]
    for per in ("tensor", "block"):
        for fmt in (E4M3FN, E5M2):
            here = [(row, lost) for row in backward if row.headroom.format == fmt.name and (lost := row.under(per))]
            if here:
                worst, least = max(here, key=lambda pair: pair[1].flushed_share)
                yield GradientLoss(
                    format=fmt.name, per=per, lost=sum((lost for _, lost in here), Lost()), rounding=fmt.eps / 2,
                    module=worst.module, name=worst.name, worst=least.flushed_share,
                )  # fmt: skip


def _in_fp8(rows: Iterable[HeadroomRow]) -> Iterator[Kept]:
    """Yield what needs blocks, and what does not fit with them either: E4M3 forward, E5M2 backward."""
    used = [
        judged(row, lookup(row.headroom.format))
        for row in rows
        if (row.headroom.format, row.role)
        in {*((E4M3FN.name, r) for r in FORWARD), *((E5M2.name, r) for r in BACKWARD)}
    ]
    reasons = {
        "fp8": [d for d in used if d.answer is Answer.NOT and d.per != "tensor"],
        "fp8-tensor": [d for d in used if d.answer is Answer.NOT and d.per == "tensor"],
        "fp8-blocks": [d for d in used if d.answer is Answer.SCALED_PER_BLOCK],
    }
    for why, found in reasons.items():
        found.sort(key=lambda d: -d.severity)
        if found:
            named = tuple(
                KeptTensor(module=d.module, role=d.role, name=d.name, number=d.number,
                           of_elements=d.of_elements, of_energy=d.of_energy)
                for d in found[:NAMED]
            )  # fmt: skip
            yield Kept(why=why, format="fp8", count=len(found), of=len(used), tensors=named)


def _moments(tensors: Sequence[MergedTensor], rows: Iterable[HeadroomRow], beta2: float | None) -> Iterator[Kept]:
    """Yield Adam's moments that a narrower format makes zero, and those that it keeps from decaying."""
    states = [row for row in rows if row.role in ("exp_avg", "exp_avg_sq")]
    for fmt in (FP16, BF16):
        here = [row for row in states if row.headroom.format == fmt.name]
        lost = [row for row in here if (row.headroom.flushed_fraction or 0.0) > FLUSHED]
        if lost:
            lost.sort(key=lambda row: -(row.headroom.flushed_fraction or 0.0))
            named = tuple(KeptTensor(module=r.module, role=r.role, name=r.name, number=r.headroom.flushed_fraction or 0.0)
                          for r in lost[:NAMED])  # fmt: skip
            yield Kept(why="moment", format=fmt.name, count=len(lost), of=len(here), tensors=named)
    second = [t for t in tensors if t.role == "exp_avg_sq"]
    if beta2 is not None and second and 1.0 - beta2 < BF16.eps / 4:
        # half an ulp is between eps/4 and eps/2 of a number, by its significand
        yield Kept(why="decay", format=BF16.name, count=len(second), of=len(second), tensors=(), number=1.0 - beta2)


def _updates(tensors: Sequence[MergedTensor]) -> Iterator[Kept]:
    """Yield the weights that a typical update does not move, if they were held in bf16, or are in fp16."""
    weights = {(t.module, t.name): t.rms for t in tensors if t.role == "weight"}
    updates = [(t, weights[t.module, t.name]) for t in tensors if t.role == "update" and (t.module, t.name) in weights]
    ratios = [(t, t.rms / weight) for t, weight in updates if t.rms is not None and weight]
    in_fp16 = any(FP16.name in t.formats for t in tensors if t.role == "weight")
    for fmt in (BF16, FP16) if in_fp16 else (BF16,):
        lost = sorted(((t, ratio) for t, ratio in ratios if ratio < _half_an_ulp(fmt)), key=lambda pair: pair[1])
        if lost:
            named = tuple(
                KeptTensor(module=t.module, role=t.role, name=t.name, number=ratio) for t, ratio in lost[:NAMED]
            )
            yield Kept(why="update", format=fmt.name, count=len(lost), of=len(ratios), tensors=named)


def _half_an_ulp(fmt: NumberFormat) -> float:
    """Return half an ulp, as a share of a number just below a power of two: what moves no weight of any significand."""
    return fmt.eps / 4


def _missing(tensors: Sequence[MergedTensor], rows: Iterable[HeadroomRow], gone: int) -> Iterator[str]:
    roles = {t.role for t in tensors}
    if gone:
        of = sum(t.role in BACKWARD for t in tensors)
        yield (
            f"{gone} of {of} gradients of outputs are zero in the run's own format already: a loss scale, or a format for "
            "them, cannot be told; a replay in fp32 or bf16 shows what they are"
        )
    if not roles & set(BACKWARD):
        yield "no gradient of an output is in the trace: how FP8 suits the backward pass cannot be told"
    if not roles & set(GRADIENTS):
        yield "no gradient is in the trace: a loss scale cannot be told"
    if "update" not in roles:
        yield "no update is in the trace: whether weights need a wider copy cannot be told"
    if not roles & {"exp_avg", "exp_avg_sq"}:
        yield "no moment is in the trace: which format the optimizer's state fits cannot be told"
    if not any(row.measured for row in rows):
        yield "rows and blocks were not looked at in this trace: what a scale per row or block leaves is not known"

"""The loss scales with which a run's gradients fit a format: from the one that saves the small, to the last that overflows none.

A scale of 2^k moves every gradient by k binades. The upper end is set by the one tensor with the largest gradient: the
largest k at which it is still within the format. The lower end is set by the tensor whose small elements lie deepest:
the smallest k at which no tensor loses more than `FLUSHED` of its elements to zero. Both are exact from extremes and
exponent histograms, but for elements on the very midpoint below the smallest value, and for tensors so large that a sample
of their elements is counted (`stats.sampling`): their lower ends are estimates.

What the trace cannot tell: an element that was zero in the run already, in fp16 without a scale, say. Where whole
gradients are, no range is told.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nanhunt.diagnosis.tensors import MergedTensor
from nanhunt.formats.catalogue import FORMATS, FP16
from nanhunt.formats.number_format import NumberFormat

__all__ = ["FLUSHED", "GRADIENTS", "LossScales", "ScaleEnd", "loss_scales", "vanished"]

#: Exponent of the largest power of two that a float holds.
_HIGHEST = 1023

#: Roles that carry the loss scale while they are in the format.
GRADIENTS = ("grad_output", "grad")
#: Share of a tensor's elements that may become zero: a fifth of the 5 % that cost fp16 training without fp32 master
#: weights its accuracy in Micikevicius et al., Mixed Precision Training, 2018.
FLUSHED = 0.01
#: Binades below its tensor's largest in the same step from which on an element adds nothing to an fp32 sum with it (half an
#: ulp of 1 is 2^-24, and what lies 24 binades below can be more); as many as lie there are not counted among the lost. Of
#: gradients of outputs, which are summed: Adam takes each element of a weight's by itself.
NEGLIGIBLE = 25
#: Binades that a recommended scale leaves above the largest gradient: one growth of the scaler, one doubling of the data.
SPARE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleEnd:
    """The tensor that sets an end of the range: its scale's exponent, and the magnitude that decides."""

    shift: int
    module: str
    role: str
    name: str
    magnitude: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LossScales:
    """The powers of two that work, from `low` to `high`; none does where `low.shift > high.shift`."""

    format: str
    low: ScaleEnd
    high: ScaleEnd

    @property
    def works(self) -> bool:
        """Whether any one scale works."""
        return self.low.shift <= self.high.shift

    @property
    def recommended(self) -> float | None:
        """1 where that works; else halfway between the ends, `SPARE` binades above where there is room; None for none."""
        if not self.works:
            return None
        if self.holds(1.0):
            return 1.0
        shift = min((self.low.shift + self.high.shift) // 2, self.high.shift - SPARE)
        return math.ldexp(1.0, max(shift, self.low.shift))

    def holds(self, scale: float) -> bool:
        """Whether a scale is within the range."""
        # by exponents: fp64's own ends are beyond a float
        return self.low.shift <= math.log2(scale) <= self.high.shift


def loss_scales(
    tensors: Sequence[MergedTensor], fmt: NumberFormat, roles: tuple[str, ...] = GRADIENTS
) -> LossScales | None:
    """Return the loss scales that `fmt` needs for the gradients of a run.

    None without gradients or their histograms, and where some have vanished.
    """
    gradients = [t for t in tensors if t.role in roles and t.exponents is not None]
    if not gradients or vanished(tensors):
        return None
    lows = [_end(t, _least(t, fmt), math.ldexp(1.0, min(_deepest(t), _HIGHEST))) for t in gradients]
    highs = [_end(t, _most(t.amax, fmt), t.amax) for t in tensors if t.role in roles and t.amax > 0.0]
    return LossScales(
        format=fmt.name,
        low=max(lows, key=lambda end: end.shift),
        high=min(highs, key=lambda end: (end.shift, -end.magnitude)),
    )


def vanished(tensors: Iterable[MergedTensor]) -> list[MergedTensor]:
    """Return the gradients of outputs that the run held in fp16 or FP8 and that are zero throughout: flushed already."""
    narrow = {fmt.name for fmt in FORMATS if isinstance(fmt, NumberFormat) and fmt.exponent_bits <= FP16.exponent_bits}
    return [t for t in tensors if t.role == "grad_output" and t.amax == 0.0 and narrow & set(t.formats)]


def _end(tensor: MergedTensor, shift: int, magnitude: float) -> ScaleEnd:
    return ScaleEnd(shift=shift, module=tensor.module, role=tensor.role, name=tensor.name, magnitude=magnitude)


def _least(tensor: MergedTensor, fmt: NumberFormat) -> int:
    """Return the smallest k at which 2^k leaves at most `FLUSHED` of a tensor's elements below half the smallest value."""
    return math.frexp(fmt.smallest)[1] - 2 - _deepest(tensor)


def _deepest(tensor: MergedTensor) -> int:
    """Return the largest exponent below which at most `FLUSHED` of the elements lie, negligible ones aside."""
    exponents = tensor.exponents
    assert exponents is not None
    negligible = int(tensor.depths[:, NEGLIGIBLE:].sum()) if tensor.role == "grad_output" else 0
    allowed, below = FLUSHED * exponents.total + negligible, 0
    for exponent, count in enumerate(exponents.counts, start=exponents.lowest):
        below += count
        if below > allowed:
            return exponent
    return exponents.lowest


def _most(amax: float, fmt: NumberFormat) -> int:
    """Return the largest k with amax x 2^k <= the format's largest value."""
    (end, exponent), (significand, own) = math.frexp(fmt.max), math.frexp(amax)
    return exponent - own - (significand > end)

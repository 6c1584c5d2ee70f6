"""A value under a loss scale: what the backward holds of it in its format, and what unscaling gives back.

The loss is multiplied by the scale, hence each gradient behind it, and the gradients are divided by it again before the
update. Between the two they live in the narrow format. Weights and their gradients are fp32 under autocast, so that the
division is fp32's: by a power of two it is exact, until it falls below fp32's own range.
"""

from __future__ import annotations

from dataclasses import dataclass

from nanhunt.formats.arithmetic import Arithmetic
from nanhunt.formats.catalogue import FP32
from nanhunt.formats.number_format import Fate, NumberFormat, fate

__all__ = ["Scaled", "under_loss_scale"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """A value's way through a scaled backward."""

    value: float
    scale: float
    #: what the narrow format makes of value * scale
    held: Fate
    #: held / scale in fp32
    unscaled: float


def under_loss_scale(fmt: NumberFormat, value: float, scale: float) -> Scaled:
    """Return what becomes of `value` in `fmt` under a loss scale; scale 1 is no scale."""
    held = fate(fmt, value * scale)
    return Scaled(value=value, scale=scale, held=held, unscaled=Arithmetic(fmt=FP32).divide(held.rounded, scale))

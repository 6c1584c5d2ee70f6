"""NumberFormat and BlockFormat: a format's parameters stored, its facts derived, a value's fate computed.

How it works. A format is its bit layout and a few conventions: which codes are infinities or NaNs, whether there is a
-0. Everything else follows: the largest value by decoding the largest finite code, rounding by counting steps of one
ulp. All of it is exact, because every value of every format here is a Python float, and multiplying or dividing one
by a power of two loses nothing at these sizes.

What a format does not fix is what a cast does beyond its range. `fate` follows the format's own convention, as
ml_dtypes implements it, and names in its note the casts that differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["AnyFormat", "BlockFormat", "Fate", "FateKind", "NumberFormat", "binades", "fate"]

FateKind = Literal["exact", "rounded", "subnormal", "flushed", "overflow", "saturated", "nan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberFormat:
    """A binary floating-point format of at most 64 bits.

    Codes are laid out as sign, biased exponent, fraction. `saturates` says that finite values beyond the largest become
    the largest; otherwise they become an infinity where there is one and NaN where there is none.
    """

    name: str
    title: str
    bits: int
    exponent_bits: int
    #: significand bits with the implicit one
    precision: int
    bias: int
    signed: bool = True
    has_infinity: bool
    #: number of codes that are NaN, both signs
    nan_codes: int
    has_negative_zero: bool = True
    has_zero: bool = True
    has_subnormals: bool = True
    saturates: bool = False
    #: other names, as `lookup` takes them
    aliases: tuple[str, ...] = ()
    #: a format of matrix units only: tensors are stored in another
    compute_only: bool = False
    #: what casts do at the ends of the range, and which of them differ
    casts: str = ""

    def decode(self, code: int) -> float:
        """Return the value of a code, 0 <= code < 2^bits."""
        sign, magnitude = divmod(code, 2 ** (self.bits - self.signed))
        if sign and not magnitude and not self.has_negative_zero:
            return math.nan
        if magnitude > self._largest_code:
            is_infinity = self.has_infinity and not magnitude % 2 ** (self.precision - 1)
            return math.copysign(math.inf, -sign) if is_infinity else math.nan
        return -self._decode_magnitude(magnitude) if sign else self._decode_magnitude(magnitude)

    def _decode_magnitude(self, code: int) -> float:
        field, fraction = divmod(code, 2 ** (self.precision - 1))
        if not field and self.has_zero:
            return math.ldexp(fraction, self.emin - self.precision + 1)
        return math.ldexp(2 ** (self.precision - 1) + fraction, field - self.bias - self.precision + 1)

    @property
    def _largest_code(self) -> int:
        """The code of the largest finite value: the last one, less what infinities and NaNs take."""
        last = (1 << (self.bits - self.signed)) - 1
        if self.has_infinity:
            return last - (1 << (self.precision - 1))
        # The formats called "fnuz" keep their only NaN where -0 would be, so no code at the end is lost.
        nan_in_place_of_negative_zero = self.signed and not self.has_negative_zero
        return last if nan_in_place_of_negative_zero else last - self.nan_codes // (1 + self.signed)

    @property
    def max(self) -> float:
        """Largest finite value."""
        return self._decode_magnitude(self._largest_code)

    @property
    def emax(self) -> int:
        """Exponent of the largest value: floor(log2(max))."""
        return math.frexp(self.max)[1] - 1

    @property
    def emin(self) -> int:
        """Exponent of the smallest normal value."""
        return int(self.has_zero) - self.bias

    @property
    def smallest_normal(self) -> float:
        """Smallest positive value with full precision; what `torch.finfo` calls `tiny`."""
        return math.ldexp(1.0, self.emin)

    @property
    def smallest_subnormal(self) -> float | None:
        """Smallest positive value below the normal ones; None for a format without subnormals."""
        return math.ldexp(1.0, self.emin - self.precision + 1) if self.has_subnormals else None

    @property
    def smallest(self) -> float:
        """Smallest positive value of any kind."""
        return self.smallest_subnormal or self.smallest_normal

    @property
    def eps(self) -> float:
        """Spacing at 1; rounding errs by half of it, relative, at most.

        1.0 for a format of powers of two. `torch.finfo(torch.float8_e5m2fnuz).eps` is 0.125; its values next to 1 are
        1.25 and 0.875, so the spacing is 0.25.
        """
        return math.ldexp(1.0, 1 - self.precision)

    @property
    def dynamic_range(self) -> float:
        """Binades from the smallest positive value to the largest."""
        return binades(self.max, self.smallest)

    @property
    def overflow_threshold(self) -> float:
        """Max + half an ulp: magnitudes below it round back to `max`, those above it are beyond the format.

        On the threshold itself the tie goes to the even code: away for fp16 (65520), back for E4M3FN (464).
        Infinity for fp64, because no Python float lies there.
        """
        return self.max + self.ulp(self.max) / 2

    @property
    def exp_limit(self) -> float:
        """Largest argument whose exp() the format holds: ln(max)."""
        return math.log(self.max)

    def ulp(self, value: float) -> float:
        """Return the spacing of the format's values from |value| upward, as if the exponent had no upper end.

        Below the smallest normal it is the smallest subnormal.
        """
        exponent = math.frexp(value)[1] - 1 if value else self.emin
        return math.ldexp(1.0, max(exponent, self.emin) - self.precision + 1)

    def overflows(self, value: float) -> bool:
        """Whether |value| is beyond the format after rounding to nearest, ties to even; infinities are."""
        return self._round_magnitude(abs(value)) > self.max

    def _round_magnitude(self, magnitude: float) -> float:
        """Round a non-negative number to nearest, ties to even, as if the exponent had no upper end."""
        if math.isinf(magnitude):
            return magnitude
        step = self.ulp(magnitude)
        rounded = round(magnitude / step) * step
        return rounded if rounded or self.has_zero else self.smallest


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFormat:
    """Elements of a narrow format that share a scale in each block, and in NVFP4 one more scale in the tensor.

    `max`, `smallest_normal` and the like are those of the scaled values: what some choice of scales can hold. Inside
    one block there are only `element.dynamic_range` binades, less what the scale's own rounding takes.
    """

    name: str
    title: str
    element: NumberFormat
    scale: NumberFormat
    block_size: int
    #: format of the second scale, one a tensor; None where blocks have the only one
    tensor_scale: NumberFormat | None = None
    aliases: tuple[str, ...] = ()
    casts: str = ""

    @property
    def bits(self) -> float:
        """Bits per element with its share of the block's scale; the tensor's scale is not counted."""
        return self.element.bits + self.scale.bits / self.block_size

    @property
    def tensor_reach(self) -> float:
        """Largest element times largest block scale: 2688 in NVFP4, onto which the tensor scale puts a tensor's amax."""
        return self.element.max * self.scale.max

    @property
    def max(self) -> float:
        """Largest scaled value."""
        return self.tensor_reach * (self.tensor_scale.max if self.tensor_scale else 1.0)

    @property
    def smallest_normal(self) -> float:
        """Smallest scaled value that keeps the element's full precision."""
        return self.element.smallest_normal * self._smallest_scale

    @property
    def smallest_subnormal(self) -> float | None:
        """Smallest positive scaled value below the normal ones."""
        smallest = self.element.smallest_subnormal
        return None if smallest is None else smallest * self._smallest_scale

    @property
    def smallest(self) -> float:
        """Smallest positive scaled value of any kind."""
        return self.element.smallest * self._smallest_scale

    @property
    def _smallest_scale(self) -> float:
        return self.scale.smallest * (self.tensor_scale.smallest if self.tensor_scale else 1.0)

    @property
    def eps(self) -> float:
        """Spacing at 1 where the scale is 1; the element's."""
        return self.element.eps

    @property
    def dynamic_range(self) -> float:
        """Binades from the smallest to the largest scaled value, over all choices of scales."""
        return binades(self.max, self.smallest)

    @property
    def block_range(self) -> float:
        """Binades inside one block, where all elements have the same scale."""
        return self.element.dynamic_range


AnyFormat: TypeAlias = NumberFormat | BlockFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What one value becomes in a format, rounded to nearest, ties to even.

    `kind`: "exact", "rounded", "subnormal" (stored, exactly or not, with fewer bits than a normal value), "flushed" (to
    zero), "overflow" (finite, became infinite), "saturated" (became the largest), "nan" (was or became NaN).
    The relative error is against `value`. Where the result is infinite or NaN and the value was not, so are the errors;
    a value that stays what it was, NaN included, has none.
    """

    format: str
    value: float
    rounded: float
    kind: FateKind
    absolute_error: float
    relative_error: float
    #: what the result depends on: casts that differ, or the block that was assumed
    note: str = ""


def fate(fmt: AnyFormat, value: float, *, saturating: bool | None = None) -> Fate:
    """Return what `value` becomes in `fmt`.

    `saturating` overrides the format's own convention beyond its range; a saturating cast takes infinities to the
    largest value as well. In a block format the value is taken as the largest magnitude of its block and of its tensor,
    elements saturate, and `saturating` changes nothing.
    """
    if isinstance(fmt, BlockFormat):
        rounded, kind = _cast_in_block(fmt, value)
        note = _block_note(fmt, value, kind)
    else:
        rounded, kind = _cast(fmt, value, saturating=fmt.saturates if saturating is None else saturating)
        lost_at_an_end = kind in ("overflow", "saturated", "nan") or math.isnan(value)
        kept_nan = math.isnan(value) and math.isnan(rounded)
        note = fmt.casts if lost_at_an_end and not kept_nan else ""
    unchanged = rounded == value or (math.isnan(rounded) and math.isnan(value))
    error = 0.0 if unchanged else abs(rounded - value)
    relative = error if unchanged or not value else error / abs(value)
    return Fate(
        format=fmt.name,
        value=value,
        rounded=rounded,
        kind=kind,
        absolute_error=error,
        relative_error=relative,
        note=note,
    )


def _cast(fmt: NumberFormat, value: float, *, saturating: bool) -> tuple[float, FateKind]:
    """Return the rounded value and what happened to it."""
    if math.isnan(value):
        # Without a NaN code something must be stored; ml_dtypes stores -0 and the MX standard leaves it open.
        return (math.nan, "nan") if fmt.nan_codes else (-0.0, "flushed")
    if (not fmt.signed and math.copysign(1.0, value) < 0) or (value == 0 and not fmt.has_zero):
        return math.nan, "nan"
    magnitude = fmt._round_magnitude(abs(value))
    if magnitude > fmt.max:
        if saturating:
            return math.copysign(fmt.max, value), "saturated"
        if fmt.has_infinity:
            return math.copysign(math.inf, value), "exact" if math.isinf(value) else "overflow"
        return math.nan, "nan"
    rounded = math.copysign(magnitude, value) if magnitude or fmt.has_negative_zero else 0.0
    if magnitude < fmt.smallest_normal and value:
        return rounded, "subnormal" if magnitude else "flushed"
    return rounded, "exact" if rounded == value else "rounded"


def _cast_in_block(fmt: BlockFormat, value: float) -> tuple[float, FateKind]:
    """Return what the largest magnitude of a block becomes, and how; elements saturate, as the MX standard has it."""
    if not math.isfinite(value):
        return math.nan, "nan"
    if value == 0:
        return value, "exact"
    scale = _block_scale(fmt, abs(value))
    if scale == 0 or math.isinf(scale):
        return math.copysign(scale, value), "overflow" if scale else "flushed"
    element, kind = _cast(fmt.element, value / scale, saturating=True)
    rounded = element * scale
    if kind in ("exact", "rounded"):
        kind = "exact" if rounded == value else "rounded"
    return rounded, kind


def _block_scale(fmt: BlockFormat, amax: float) -> float:
    """Return the scale that a block gets whose largest magnitude, and whose tensor's, is `amax`.

    One level (MX): the power of two 2^(floor(log2 amax) - emax of the element), held to the scale's range. This is the
    standard's own rule and torchao's default. It rounds the scale down, so that an amax with a significand beyond that
    of the element's largest saturates: 1 in 5 blocks for E4M3, 2 in 5 for E2M1.
    Two levels (NVFP4): tensor scale amax / tensor_reach, block scale amax / (largest element x tensor scale).
    """
    if fmt.tensor_scale is None:
        exponent = math.frexp(amax)[1] - 1 - fmt.element.emax
        return math.ldexp(1.0, min(max(exponent, fmt.scale.emin), fmt.scale.emax))
    tensor_scale, _ = _cast(fmt.tensor_scale, amax / fmt.tensor_reach, saturating=False)
    if tensor_scale == 0 or math.isinf(tensor_scale):
        return tensor_scale
    block_scale, _ = _cast(fmt.scale, amax / fmt.element.max / tensor_scale, saturating=True)
    return block_scale * tensor_scale


def _block_note(fmt: BlockFormat, value: float, kind: FateKind) -> str:
    """Say which block was assumed, and what becomes of its other elements where the value spoils them."""
    if not math.isfinite(value):
        return f"the scale becomes NaN, and with it every element of the {'tensor' if fmt.tensor_scale else 'block'}"
    note = f"as the largest magnitude of its {'block and tensor' if fmt.tensor_scale else 'block'}"
    return f"{note}; the scale is rounded down to a power of two" if kind == "saturated" else note


def binades(larger: float, smaller: float) -> float:
    """Return log2(larger / smaller), without forming a quotient that float64 cannot hold."""
    (m, e), (n, f) = math.frexp(larger), math.frexp(smaller)
    return math.log2(m / n) + (e - f)

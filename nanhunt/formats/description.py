"""A format and a fate told: as the lines of a card, in words, and as JSON types."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from nanhunt.formats.notation import decimal_text, exact_text, full_text, value_text
from nanhunt.formats.number_format import AnyFormat, BlockFormat, Fate, NumberFormat

__all__ = ["card", "codes_text", "fate_facts", "fate_words", "format_facts", "json_number", "layout", "yes_or_no"]


def card(fmt: AnyFormat) -> list[tuple[str, str]]:
    """Return every fact of a format as (label, text)."""
    subnormal = fmt.smallest_subnormal
    return [
        *(_block_layout(fmt) if isinstance(fmt, BlockFormat) else _number_layout(fmt)),
        ("largest", full_text(fmt.max)),
        ("smallest normal", full_text(fmt.smallest_normal)),
        ("smallest subnormal", "none" if subnormal is None else full_text(subnormal)),
        ("eps, spacing at 1", full_text(fmt.eps)),
        ("dynamic range", f"{fmt.dynamic_range:.1f} binades from smallest to largest"),
        *(_number_limits(fmt) if isinstance(fmt, NumberFormat) else []),
        ("casts", fmt.casts),
        ("also called", ", ".join(fmt.aliases) or "-"),
    ]


def _number_layout(fmt: NumberFormat) -> list[tuple[str, str]]:
    return [
        ("bits", f"{fmt.bits}, in matrix units only" if fmt.compute_only else f"{fmt.bits}"),
        ("sign/exponent/mantissa", f"{layout(fmt)}, exponent bias {fmt.bias}"),
        ("infinity", yes_or_no(fmt.has_infinity)),
        ("NaN codes", codes_text(fmt.nan_codes)),
        ("zero, negative zero", f"{yes_or_no(fmt.has_zero)}, {yes_or_no(fmt.has_negative_zero)}"),
    ]


def _number_limits(fmt: NumberFormat) -> list[tuple[str, str]]:
    # Half an ulp above fp64's largest value is no float, hence fractions.
    threshold = full_text(Fraction(fmt.max) + Fraction(fmt.ulp(fmt.max)) / 2)
    tie = "beyond" if fmt.overflows(fmt.overflow_threshold) else "back"
    becomes = "the largest (saturates)" if fmt.saturates else _beyond(fmt)
    whole = [("whole numbers", f"without gaps up to {full_text(min(2.0**fmt.precision, math.floor(fmt.max)))}")]
    return [
        ("beyond the largest", f"becomes {becomes}"),
        ("overflow threshold", f"{threshold}; less rounds back to the largest, the tie goes {tie}"),
        ("exp(x) saturates" if fmt.saturates else "exp(x) overflows", f"above x = {fmt.exp_limit:.4f}"),
        *(whole if fmt.has_zero else []),
    ]


def _block_layout(fmt: BlockFormat) -> list[tuple[str, str]]:
    tensor = f", and one of {fmt.tensor_scale.name} per tensor" if fmt.tensor_scale else ""
    return [
        ("bits an element", f"{fmt.bits:g}, the block's scale included"),
        ("element", f"{fmt.element.name}, {layout(fmt.element)}, largest {decimal_text(fmt.element.max)}"),
        ("scale", f"one of {fmt.scale.name} per {fmt.block_size} elements{tensor}"),
        ("range inside a block", f"{fmt.block_range:.1f} binades"),
        ("beyond the largest", "saturates within its block"),
    ]


def format_facts(fmt: AnyFormat) -> dict[str, Any]:
    """Return a format as JSON types: parameters, derived facts, and the exact texts under `exact`."""
    ends = {"max": fmt.max, "smallest_normal": fmt.smallest_normal, "smallest_subnormal": fmt.smallest_subnormal}
    ends["eps"] = fmt.eps
    facts: dict[str, Any] = {"name": fmt.name, "title": fmt.title, "bits": fmt.bits}
    if isinstance(fmt, BlockFormat):
        tensor_scale = fmt.tensor_scale.name if fmt.tensor_scale else None
        facts |= {"kind": "block", "element": fmt.element.name, "scale": fmt.scale.name, "tensor_scale": tensor_scale}
        facts |= {"block_size": fmt.block_size, "block_range": fmt.block_range}
    else:
        stored = ("exponent_bits", "precision", "bias", "signed", "has_infinity", "nan_codes", "has_negative_zero")
        facts |= {"kind": "number"} | {key: getattr(fmt, key) for key in stored}
        facts |= {"has_zero": fmt.has_zero, "has_subnormals": fmt.has_subnormals, "compute_only": fmt.compute_only}
        facts |= {"overflow_threshold": json_number(fmt.overflow_threshold), "exp_limit": fmt.exp_limit}
    facts |= ends | {"dynamic_range": fmt.dynamic_range, "beyond_largest": _beyond(fmt)}
    exact = {key: None if end is None else exact_text(end) for key, end in ends.items()}
    return facts | {"exact": exact, "casts": fmt.casts, "aliases": list(fmt.aliases)}


def _beyond(fmt: AnyFormat) -> str:
    """Return what the format's own convention makes of a finite value beyond the largest."""
    if isinstance(fmt, BlockFormat) or fmt.saturates:
        return "saturated"
    return "inf" if fmt.has_infinity else "NaN"


def layout(fmt: NumberFormat) -> str:
    """Return sign/exponent/mantissa bits, the implicit one not counted: 1/8/7 for bf16."""
    return f"{int(fmt.signed)}/{fmt.exponent_bits}/{fmt.precision - 1}"


def codes_text(codes: int) -> str:
    """Return a number of NaN codes; those of wide formats as 2^k-2."""
    return str(codes) if codes < 10_000 else f"2^{(codes + 2).bit_length() - 1}-2"


def yes_or_no(truth: bool) -> str:
    """Return a truth as a table says it."""
    return "yes" if truth else "no"


def fate_facts(fmt: AnyFormat, told: Fate) -> dict[str, Any]:
    """Return a fate as JSON types; the value itself is left to the caller."""
    return {
        "format": told.format,
        "becomes": json_number(told.rounded),
        "kind": told.kind,
        "words": fate_words(fmt, told),
        "absolute_error": json_number(told.absolute_error),
        "relative_error": json_number(told.relative_error),
        "note": told.note,
    }


def json_number(value: float) -> float | str:
    """Return a number as JSON can hold it: non-finite ones are "NaN", "Infinity" and "-Infinity"."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def fate_words(fmt: AnyFormat, told: Fate) -> str:
    """Return the kind of fate as a reader says it."""
    if told.kind == "nan":
        return _nan_words(fmt, told.value)
    return {
        "exact": "exact",
        "rounded": "rounded",
        "subnormal": "subnormal, rounded" if told.absolute_error else "subnormal, exact",
        "flushed": "no NaN: becomes 0" if math.isnan(told.value) else "flushed to 0",
        "overflow": f"overflows to {told.rounded:g}",
        "saturated": f"saturates at {value_text(told.rounded)}",
    }[told.kind]


def _nan_words(fmt: AnyFormat, value: float) -> str:
    """Return why a value ends as NaN."""
    if math.isnan(value):
        return "NaN"
    if isinstance(fmt, BlockFormat):
        return "spoils its block"
    if not fmt.signed and math.copysign(1.0, value) < 0:
        return "no sign: NaN"
    if value == 0:
        return "no zero: NaN"
    return "no infinity: NaN" if math.isinf(value) else "overflows to NaN"

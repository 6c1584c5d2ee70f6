"""Makes docs/formats.md: what number formats do to the numbers of a training run, each figure worked out by the library.

docs/generate.py writes and checks it. A sentence that holds a figure takes it from the same functions as the tables, so
that no figure here was typed.
"""

from __future__ import annotations

import math

from figures import power, table, text
from log_sum_exp import naive_way, shifted, stable_way

from nanhunt.formats.arithmetic import Arithmetic
from nanhunt.formats.catalogue import BF16, E4M3FN, FORMATS, FP16, FP32
from nanhunt.formats.headroom import headroom
from nanhunt.formats.loss_scale import Scaled, under_loss_scale
from nanhunt.formats.notation import as_typed
from nanhunt.formats.number_format import NumberFormat, fate
from nanhunt.report.formats_page import render_formats_markdown

__all__ = ["formats_page"]

SCALES = (1.0, 2.0**8, 2.0**16)
LOSS, GRADIENT, LARGE_GRADIENT = 0.001, 1e-6, 2.0
WEIGHT, UPDATE, UPDATES = 0.02, 3e-5, 100
TOKENS = 4096

NUMBERS = [fmt for fmt in FORMATS if isinstance(fmt, NumberFormat)]


def formats_page() -> str:
    """Return the page."""
    sections = [catalogue, close_to_one, beyond_the_end, naive_way, stable_way, shifted, loss_scales, sums, updates]
    head = (
        "# Number formats\n\n"
        "What a format does to the numbers of a training run. Every figure was worked out by `nanhunt.formats` when this "
        "page was made; one that was rounded for the page begins with `~`, the others are exact. `nanhunt formats "
        f"--value {as_typed(LOSS)}` does the same for a number of yours, `nanhunt formats --dtype bf16` shows one format "
        "whole."
    )
    return "\n\n".join([head, *(section().strip() for section in sections)]) + "\n"


# The catalogue and two values


def catalogue() -> str:
    """Return the tables of formats."""
    return (
        "## Side by side\n\n"
        "Exponent bits buy range, mantissa bits buy precision. bf16 has fp32's exponent and "
        f"{BF16.precision - 1} mantissa bits for its {FP32.precision - 1}: it reaches {text(BF16.max)}, and its numbers "
        f"above 1 are {text(BF16.eps)} apart. fp16 is {text(BF16.eps / FP16.eps)} times finer and ends at "
        f"{text(FP16.max)}. Of the two FP8 formats, e4m3fn has the finer steps for weights and activations, e5m2 the "
        "range for gradients.\n\n"
        + render_formats_markdown([], [])
        + "\nA block format keeps a scale for some neighbours together. Its reach over a tensor is vast; *inside a block* "
        "there are only so many binades (powers of two) from the smallest to the largest element, and the largest one "
        "decides where they lie."
    )


def close_to_one() -> str:
    """Return what 1.0001 becomes."""
    value = 1.0001
    kept = [fmt.name for fmt in NUMBERS if fate(fmt, value).rounded != 1]
    return (
        fates(value) + f"\n\nOnly {' and '.join(kept)} tell it from 1. Half a spacing is the border: "
        f"{text(FP16.eps / 2)} in fp16, {text(BF16.eps / 2)} in bf16. So does 1 + ε end as 1, a decay of 0.9999 as no "
        "decay, and a probability close to 1 as certainty."
    )


def beyond_the_end() -> str:
    """Return what 70000 becomes."""
    value = 70000.0
    return (
        fates(value) + f"\n\nfp16 ends at {text(FP16.max)}, and from {text(FP16.overflow_threshold)} on a number is "
        f"infinite. bf16 holds it, {text(fate(BF16, value).absolute_error)} off, for its numbers are "
        f"{text(BF16.ulp(value))} apart here. The narrowest formats say nothing at all: they store their largest number. "
        "A block format divides by its scale first."
    )


def fates(value: float) -> str:
    """Return one value's section of the page that `nanhunt formats` prints."""
    return "## " + render_formats_markdown([], [value]).partition("## ")[2].strip()


# Loss scales


def loss_scales() -> str:
    """Return what becomes of a loss and of gradients under loss scales."""
    small = {scale: under_loss_scale(FP16, GRADIENT, scale) for scale in SCALES}
    lowest, highest = window(FP16)
    skipped = int(math.log2(SCALES[-1])) - highest
    rows = [[fmt.name, *map(power, ends)] for fmt in NUMBERS if (ends := window(fmt))]
    return (
        "## A loss and a gradient, with and without a loss scale\n\n"
        "A loss scale multiplies the loss, hence every gradient behind it; the gradients are divided by it before the "
        "update. *Held* is what the backward has in its format, *unscaled* what the optimizer gets, in fp32. "
        f"A loss of {as_typed(LOSS)}:\n\n{scale_table(LOSS)}\n\n"
        f"The formats of 16 bits hold it ({percent(under_loss_scale(FP16, LOSS, 1.0))} off in fp16, "
        f"{percent(under_loss_scale(BF16, LOSS, 1.0))} in bf16): it is not the loss that needs the scale. In e4m3fn, "
        f"without one, it comes back as {text(under_loss_scale(E4M3FN, LOSS, 1.0).unscaled)}. A gradient of "
        f"{as_typed(GRADIENT)}:\n\n{scale_table(GRADIENT)}\n\n"
        f"In fp16 it is subnormal: {text(small[1.0].held.rounded / FP16.smallest)} times the smallest number there is, and "
        f"{percent(small[1.0])} off. A scale of {power(8)} brings it among the normal numbers "
        f"({percent(small[2.0**8])}). Without a scale, gradients from {text(FP16.smallest / 2)} down are zero. bf16 needs no "
        f"scale: its range is fp32's. A gradient of {as_typed(LARGE_GRADIENT)} is the other end:\n\n"
        f"{scale_table(LARGE_GRADIENT)}\n\n"
        f"Where a backward has both, these powers of two keep {as_typed(GRADIENT)} normal and "
        f"{as_typed(LARGE_GRADIENT)} finite:\n\n{table(['format', 'from', 'to'], [[n, *c] for n, *c in rows])}\n\n"
        f"For fp16 {power(lowest)} to {power(highest)}: a scaler that starts at {power(16)} skips {skipped} steps until "
        "it is down there, and that is its ordinary work. A format whose lowest scale is above its highest has none that "
        "fits: that is what scales for each tensor or block are for."
    )


def scale_table(value: float) -> str:
    """Return what is held of a value, and what comes back, in each format under each scale."""
    titles = ["no scale", *(f"{power(int(math.log2(s)))}: {part}" for s in SCALES[1:] for part in ("held", "unscaled"))]
    rows = []
    for fmt in NUMBERS:
        plain, *scaled = (under_loss_scale(fmt, value, scale) for scale in SCALES)
        rows.append([fmt.name, held(plain), *(cell for s in scaled for cell in (held(s), text(s.unscaled)))])
    return table(["format", *titles], rows)


def held(way: Scaled) -> str:
    """Return what the backward holds, and in brackets what happened where it was more than rounding."""
    kind = way.held.kind
    return text(way.held.rounded) + (f" ({kind})" if kind not in ("exact", "rounded", "nan") else "")


def window(fmt: NumberFormat) -> tuple[int, int]:
    """Return the exponents of the lowest and highest scale that keep both gradients; the lowest is 0 at least."""
    room = headroom(fmt, amax=LARGE_GRADIENT, amin=GRADIENT, exponents=None)
    assert room.best_shift is not None
    return max(0, math.ceil(-room.underflow_margin)), room.best_shift


def percent(way: Scaled) -> str:
    """Return the relative error of what is held, in two digits."""
    return f"~{100 * way.held.relative_error:.2g} %"


# Sums and updates


def sums() -> str:
    """Return where a running sum of 1s stalls."""
    rows = []
    for fmt in NUMBERS:
        stall = Arithmetic(fmt=fmt).stall_of_ones()
        mean = min(stall, float(TOKENS)) / TOKENS
        rows.append([fmt.name, text(stall), text(mean)])
    stall = Arithmetic(fmt=BF16).stall_of_ones()
    return (
        "## A running sum of 1s\n\n"
        f"Add 1 again and again: where the spacing reaches 2, or the range ends, adding 1 changes nothing. So does a "
        f"counter stop, a position repeat, and the mean of {TOKENS} token losses of 1 become far less than 1. Matrix units "
        f"add in fp32 for this reason.\n\n{table(['format', 'stalls at', f'mean of {TOKENS} ones'], rows)}\n\n"
        f"{text(stall)} in bf16: Adam's step counter, kept in bf16, would stop there. Its second moment with "
        f"β₂ = 0.999 cannot decay: a thousandth less rounds back everywhere, to "
        f"{text(Arithmetic(fmt=BF16).multiply(1.0, 0.999))} from 1."
    )


def updates() -> str:
    """Return what a small update does to a weight."""
    rows = []
    for fmt in (f for f in NUMBERS if f.signed):
        arithmetic = Arithmetic(fmt=fmt)
        weight, step = arithmetic.rounded(WEIGHT), -UPDATE
        half = fmt.ulp(weight) / 2
        after = arithmetic.repeated(weight, step, UPDATES)
        rows.append([fmt.name, text(weight), text(half), text(arithmetic.add(weight, step)), text(after)])
    titles = ["format", "weight", "half a spacing", "after one update", f"after {UPDATES}"]
    return (
        "## A weight and its update\n\n"
        f"A weight of {as_typed(WEIGHT)}, an update of -{as_typed(UPDATE)}, {UPDATES} times: the exact end is "
        f"{text(WEIGHT - UPDATES * UPDATE)}. The update itself is fp32 here; the weight is stored after each.\n\n"
        f"{table(titles, rows)}\n\n"
        "An update smaller than half a spacing changes nothing, however often it comes: the bf16 weight stands still and "
        "no NaN tells of it. In fp16 each update moves the weight by a whole number of spacings, so that "
        f"{UPDATES} of them end elsewhere than they should. Hence fp32 master weights, or stochastic rounding, which is "
        "right on average."
    )

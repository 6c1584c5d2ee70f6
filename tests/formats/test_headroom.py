"""Histogram laws, and headroom against counting the elements themselves."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanhunt.formats.catalogue import FORMATS, lookup
from nanhunt.formats.headroom import ExponentHistogram, Headroom, headroom
from nanhunt.formats.number_format import BlockFormat, NumberFormat, fate

NUMBERS = [f for f in FORMATS if isinstance(f, NumberFormat)]
SIGNED = [f for f in NUMBERS if f.signed]

histograms = st.builds(
    ExponentHistogram,
    st.integers(-1074, 1023),
    st.lists(st.integers(0, 2**40), max_size=12).map(tuple),
)
exponent_lists = st.lists(st.integers(-1074, 1023), max_size=40)


def counted(exponents: list[int]) -> ExponentHistogram:
    """A histogram made the simplest way: one bin at a time."""
    lowest = min(exponents, default=0)
    bins = range(lowest, max(exponents, default=-1) + 1)
    return ExponentHistogram(lowest, tuple(exponents.count(e) for e in bins))


def of_values(values: np.ndarray) -> ExponentHistogram:
    magnitudes = np.abs(values[(values != 0) & np.isfinite(values)])
    return counted((np.frexp(magnitudes)[1] - 1).tolist())


@given(histograms, histograms, histograms)
def test_addition_is_associative_and_commutative(
    a: ExponentHistogram, b: ExponentHistogram, c: ExponentHistogram
) -> None:
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert hash(a + b) == hash(b + a)


@given(histograms)
def test_the_empty_histogram_is_the_zero_of_addition(a: ExponentHistogram) -> None:
    assert a + ExponentHistogram(0, ()) == a == ExponentHistogram(5, (0, 0)) + a


@given(exponent_lists, exponent_lists)
def test_the_sum_counts_both_sets(left: list[int], right: list[int]) -> None:
    assert counted(left) + counted(right) == counted(left + right)


@given(histograms, st.integers(0, 5), st.integers(0, 5))
def test_empty_bins_at_the_ends_do_not_matter(a: ExponentHistogram, before: int, after: int) -> None:
    padded = ExponentHistogram(a.lowest - before, (0,) * before + a.counts + (0,) * after)
    assert padded == a
    assert hash(padded) == hash(a)
    assert padded.trimmed() == a
    if a.total:
        assert a.trimmed().counts[0]
        assert a.trimmed().counts[-1]


def test_different_counts_differ() -> None:
    assert ExponentHistogram(0, (1,)) != ExponentHistogram(1, (1,))
    assert ExponentHistogram(0, (1,)) != ExponentHistogram(0, (2,))
    assert ExponentHistogram(0, (1,)) != (0, (1,))


@given(exponent_lists, st.integers(-1100, 1100))
def test_fractions_are_shares_of_the_elements(exponents: list[int], cut: int) -> None:
    histogram, n = counted(exponents), len(exponents)
    assert histogram.total == n
    assert histogram.fraction_below(cut) == (sum(e < cut for e in exponents) / n if n else 0)
    assert histogram.fraction_from(cut) == (sum(e >= cut for e in exponents) / n if n else 0)


@given(exponent_lists, st.integers(-50, 50))
def test_a_shift_is_a_multiplication_by_a_power_of_two(exponents: list[int], k: int) -> None:
    assert counted(exponents).shifted(k) == counted([e + k for e in exponents])
    assert counted(exponents).shifted(k).shifted(-k) == counted(exponents)


def judged(fmt: NumberFormat | BlockFormat, values: np.ndarray) -> Headroom:
    magnitudes = np.abs(values[(values != 0) & np.isfinite(values)])
    amax, amin = (float(magnitudes.max()), float(magnitudes.min())) if magnitudes.size else (0.0, 0.0)
    return headroom(fmt, amax=amax, amin=amin, exponents=of_values(values))


@pytest.mark.parametrize("fmt", SIGNED, ids=lambda f: f.name)
@pytest.mark.parametrize("scale", [-30, -14, 0, 9, 17])
def test_fractions_equal_those_of_casting_every_element(fmt: NumberFormat, scale: int) -> None:
    rng = np.random.default_rng(abs(scale))
    values = rng.standard_normal(1500) * 2.0 ** rng.uniform(scale - 12, scale + 2, 1500)
    fates = [fate(fmt, v) for v in np.abs(values).tolist()]
    n = len(fates)
    top = math.frexp(fmt.max)[1] - 1
    beyond = [abs(f.value) for f in fates if f.kind in ("overflow", "saturated", "nan")]
    hidden = sum(math.frexp(v)[1] - 1 == top for v in beyond)
    told = judged(fmt, values)
    assert told.overflow_fraction is not None
    assert len(beyond) - hidden <= round(told.overflow_fraction * n) <= len(beyond)
    assert (told.overflow_fraction > 0) == bool(beyond)
    assert told.flushed_fraction == pytest.approx(sum(f.kind == "flushed" for f in fates) / n)
    # By value before rounding: the upper half ulp below the smallest normal rounds up to it.
    below = sum(abs(f.value) < fmt.smallest_normal and f.kind != "flushed" for f in fates)
    assert told.subnormal_fraction == pytest.approx(below / n)


def test_fp16_counts_are_those_of_numpys_own_cast() -> None:
    rng = np.random.default_rng(5)
    values = (rng.standard_normal(20_000) * 2.0 ** rng.uniform(-34, 20, 20_000)).astype(np.float32)
    with np.errstate(over="ignore"):
        cast = values.astype(np.float16)
    told = judged(lookup("fp16"), values.astype(np.float64))
    near_the_end = ((np.abs(values) >= 65520) & (np.abs(values) < 65536)).mean()
    assert told.overflow_fraction == pytest.approx(np.isinf(cast).mean(), abs=near_the_end + 1e-12)
    assert told.flushed_fraction == pytest.approx((cast == 0).mean())


@pytest.mark.parametrize("fmt", NUMBERS, ids=lambda f: f.name)
def test_margins_are_zero_at_the_ends_and_count_binades(fmt: NumberFormat) -> None:
    at_the_ends = headroom(fmt, amax=fmt.max, amin=fmt.smallest_normal, exponents=None)
    assert (at_the_ends.overflow_margin, at_the_ends.underflow_margin, at_the_ends.best_shift) == (0, 0, 0)
    inside = headroom(fmt, amax=fmt.max / 8, amin=fmt.smallest_normal * 4, exponents=None)
    assert (inside.overflow_margin, inside.underflow_margin, inside.best_shift) == (3, 2, 3)


def test_margins_are_negative_beyond_the_ends() -> None:
    told = headroom(lookup("fp16"), amax=70144.0, amin=2.0**-20, exponents=None)
    assert told.overflow_margin == pytest.approx(math.log2(65504 / 70144))
    assert told.overflow_margin < 0
    assert told.underflow_margin == -6


def test_fractions_are_none_without_a_histogram() -> None:
    told = headroom(lookup("fp16"), amax=1.0, amin=1.0, exponents=None)
    assert (told.overflow_fraction, told.subnormal_fraction, told.flushed_fraction) == (None, None, None)


def test_a_value_between_the_largest_and_the_threshold_does_not_overflow() -> None:
    rounds_back = judged(lookup("fp16"), np.array([65519.0, 1.0]))
    assert rounds_back.overflow_fraction == 0
    assert rounds_back.overflow_margin < 0
    assert judged(lookup("fp16"), np.array([65520.0, 1.0])).overflow_fraction == 0.5
    assert judged(lookup("e4m3fn"), np.array([464.0, 1.0])).overflow_fraction == 0
    assert judged(lookup("e4m3fn"), np.array([465.0, 1.0])).overflow_fraction == 0.5


def test_a_constant_tensor_in_the_last_binade_overflows_as_a_whole() -> None:
    assert judged(lookup("e4m3fn"), np.full(10, 500.0)).overflow_fraction == 1
    assert judged(lookup("fp16"), np.full(10, 2.0**-25)).flushed_fraction == 1
    assert judged(lookup("fp16"), np.array([2.0**-25, 1.0])).flushed_fraction == 0.5


def test_formats_without_a_zero_flush_nothing() -> None:
    told = judged(lookup("e8m0fnu"), np.array([1e-300, 1.0]))
    assert told.flushed_fraction == 0
    assert told.subnormal_fraction == 0.5


def test_nothing_is_lost_in_fp64() -> None:
    told = judged(lookup("fp64"), np.array([5e-324, 1.7976931348623157e308]))
    assert (told.overflow_fraction, told.flushed_fraction, told.subnormal_fraction) == (0, 0, 0.5)
    assert told.underflow_margin == -52


@given(st.floats(min_value=5e-324, allow_infinity=False), st.sampled_from([*NUMBERS, lookup("mxfp8")]))
def test_the_best_scale_brings_amax_within_one_binade_of_the_end(amax: float, fmt: NumberFormat | BlockFormat) -> None:
    told = headroom(fmt, amax=amax, amin=amax, exponents=None)
    assert told.best_shift is not None
    assert told.best_scale == 2.0**told.best_shift
    if isinstance(fmt, NumberFormat) and told.best_shift < 1023:
        # In exact integers, as the product may be neither a normal float nor a float at all.
        n, d = amax.as_integer_ratio()
        end, unit = fmt.max.as_integer_ratio()
        up, down = 2 ** max(told.best_shift, 0), 2 ** max(-told.best_shift, 0)
        assert n * up * unit <= end * d * down < 2 * n * up * unit


def test_an_all_zero_tensor_has_all_the_room_there_is() -> None:
    told = headroom(lookup("fp16"), amax=0.0, amin=0.0, exponents=ExponentHistogram())
    assert told.overflow_margin == told.underflow_margin == math.inf
    assert (told.overflow_fraction, told.subnormal_fraction, told.flushed_fraction) == (0, 0, 0)
    assert told.best_shift is None
    assert told.best_scale is None


@pytest.mark.parametrize("wrong", [math.inf, math.nan, -1.0])
def test_magnitudes_that_are_not_finite_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="finite magnitudes"):
        headroom(lookup("fp16"), amax=wrong, amin=1.0, exponents=None)
    with pytest.raises(ValueError, match="finite magnitudes"):
        headroom(lookup("fp16"), amax=1.0, amin=wrong, exponents=None)


def test_a_block_format_reaches_as_far_as_element_and_scale_together() -> None:
    told = judged(lookup("mxfp8"), np.array([1e30, 1e-30]))
    assert told.overflow_margin == pytest.approx(math.log2(448 * 2.0**127 / 1e30))
    assert told.underflow_margin == pytest.approx(math.log2(1e-30 / 2.0**-133))
    assert (told.overflow_fraction, told.flushed_fraction, told.best_shift) == (0, 0, 0)
    assert judged(lookup("mxfp8"), np.array([1e300, 1.0])).overflow_fraction == 0.5


def test_nvfp4_puts_amax_at_its_end_and_measures_from_there() -> None:
    rng = np.random.default_rng(2)
    values = rng.standard_normal(4000) * 2.0 ** rng.uniform(-30, 0, 4000)
    told = judged(lookup("nvfp4"), values)
    assert told.overflow_margin == told.overflow_fraction == told.best_shift == 0
    # An element alone in its block: below half of the smallest scale times the smallest element it is zero.
    unit = np.abs(values).max() / 2688
    smallest_scale = float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).smallest_subnormal)  # type: ignore[no-untyped-call]
    flushed = (np.abs(values) <= 0.25 * smallest_scale * unit).mean()
    binade = 1 / 15
    assert flushed - binade <= told.flushed_fraction <= flushed


@given(st.floats(min_value=5e-324, allow_infinity=False))
def test_a_tensor_scale_makes_no_overflow_by_its_own_rounding(amax: float) -> None:
    if amax <= lookup("nvfp4").max:
        told = headroom(
            lookup("nvfp4"), amax=amax, amin=amax, exponents=ExponentHistogram(math.frexp(amax)[1] - 1, (1,))
        )
        assert told.overflow_margin >= 0
        assert told.overflow_fraction == 0


@given(st.lists(st.floats(2.0**-40, 2.0**10), min_size=1, max_size=50), st.sampled_from(["fp16", "e4m3fn", "e5m2"]))
def test_flushed_energy_is_right_to_a_factor_of_four_and_exact_at_both_ends(values: list[float], name: str) -> None:
    fmt = lookup(name)
    told = judged(fmt, np.array(values))
    lost = [v for v in values if fate(fmt, v).kind == "flushed"]
    assert told.flushed_energy is not None
    if not lost or len(lost) == len(values):
        assert told.flushed_energy == bool(lost)
        return
    seen = sorted(values)[: round((told.flushed_fraction or 0.0) * len(values))]  # ties at the midpoint may be left out
    true = math.fsum(v * v for v in seen) / math.fsum(v * v for v in values)
    assert true / 4.000001 <= told.flushed_energy <= true * 4.000001

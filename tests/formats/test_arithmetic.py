"""Arithmetic in a format against that of numpy and ml_dtypes, and against fifty digits."""

from __future__ import annotations

import math
import operator
import random
from collections.abc import Callable
from decimal import Decimal, localcontext

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanhunt.formats.arithmetic import Arithmetic
from nanhunt.formats.catalogue import BF16, E4M3FN, E8M0FNU, FP16, FP32, FP64, TF32, lookup
from nanhunt.formats.number_format import NumberFormat

DTYPES = {
    "fp64": np.float64,
    "fp32": np.float32,
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e2m3fn": ml_dtypes.float6_e2m3fn,
    "e3m2fn": ml_dtypes.float6_e3m2fn,
    "e2m1fn": ml_dtypes.float4_e2m1fn,
}
OPERATIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
}

# Overflow, 0/0 and inf - inf are what these tests do.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def number(name: str) -> NumberFormat:
    fmt = lookup(name)
    assert isinstance(fmt, NumberFormat)
    return fmt


def values(fmt: NumberFormat) -> list[float]:
    """Values from all over a format, its infinities and NaN too."""
    drawn = random.Random(5)
    codes = [drawn.randrange(2**fmt.bits) for _ in range(400)] if fmt.bits > 8 else range(2**fmt.bits)
    ends = [0.0, -0.0, 1.0, 3.0, fmt.max, -fmt.max, fmt.smallest, fmt.smallest_normal]
    return [*map(fmt.decode, codes), *ends]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("name", DTYPES)
def test_an_operation_is_numpys_own_in_that_dtype(name: str, operation: str) -> None:
    fmt, rng = number(name), np.random.default_rng(1)
    pool = np.array(values(fmt))
    a, b = rng.choice(pool, 3000), rng.choice(pool, 3000)
    theirs = OPERATIONS[operation](a.astype(DTYPES[name]), b.astype(DTYPES[name])).astype(np.float64)
    ours = np.array(
        [getattr(Arithmetic(fmt=fmt), operation)(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    )
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    if fmt.nan_codes:  # the sign of the zero that stands for a NaN differs between versions of ml_dtypes
        same &= np.isnan(ours) | (np.signbit(ours) == np.signbit(theirs))
    assert same.all(), [(x, y, o, t) for x, y, o, t, ok in zip(a, b, ours, theirs, same, strict=True) if not ok][:5]


@pytest.mark.parametrize("fmt", [FP32, FP16, BF16, TF32, E4M3FN], ids=lambda f: f.name)
def test_exp_and_log_are_the_nearest_numbers(fmt: NumberFormat) -> None:
    arithmetic = Arithmetic(fmt=fmt)
    with localcontext() as context:
        context.prec = 50
        for x in [v for v in values(fmt) if math.isfinite(v)]:
            if abs(x) < 700:
                assert_nearest(fmt, arithmetic.exp(x), Decimal(x).exp())
            if x > 0:
                assert_nearest(fmt, arithmetic.log(x), Decimal(x).ln())


def assert_nearest(fmt: NumberFormat, rounded: float, exact: Decimal) -> None:
    if abs(exact) > Decimal(fmt.overflow_threshold):
        assert not math.isfinite(rounded)
    else:
        assert abs(Decimal(rounded) - exact) <= Decimal(fmt.ulp(float(exact))) / 2


@pytest.mark.parametrize("x", [0.0, -0.0, -1.0, math.inf, -math.inf, math.nan, 1e4, -1e4, 710.0])
def test_exp_and_log_at_the_ends_are_numpys(x: float) -> None:
    arithmetic = Arithmetic(fmt=FP64)
    for ours, theirs in ((arithmetic.exp(x), np.exp(x)), (arithmetic.log(x), np.log(x))):
        assert ours == theirs or (math.isnan(ours) and math.isnan(theirs))


def test_a_saturating_arithmetic_has_no_infinity() -> None:
    arithmetic = Arithmetic(fmt=E4M3FN, saturating=True)
    assert (arithmetic.exp(12.0), arithmetic.add(448.0, 448.0), arithmetic.log(0.0)) == (448.0, 448.0, -448.0)
    assert math.isnan(Arithmetic(fmt=E4M3FN).exp(12.0))


@pytest.mark.parametrize("name", [name for name in DTYPES if name not in ("fp64", "fp32")])
def test_a_sum_of_ones_stalls_where_counting_does(name: str) -> None:
    dtype = DTYPES[name]
    total, one = dtype(0), dtype(1)
    while dtype(total + one) != total:
        total = dtype(total + one)
    assert Arithmetic(fmt=number(name)).stall_of_ones() == float(total)


def test_a_sum_of_ones_in_the_wide_formats_stalls_at_two_to_their_precision() -> None:
    assert Arithmetic(fmt=FP32).stall_of_ones() == np.float32(2**24) == np.float32(2**24) + np.float32(1)
    assert Arithmetic(fmt=FP64).stall_of_ones() == 2.0**53
    assert Arithmetic(fmt=E8M0FNU).stall_of_ones() == 4.0


def test_repeating_stops_early_without_changing_the_result() -> None:
    arithmetic = Arithmetic(fmt=BF16)
    assert arithmetic.repeated(0.0, 1.0, 10**9) == 256.0
    assert arithmetic.repeated(0.0, 1.0, 100) == 100.0
    assert math.isnan(arithmetic.repeated(math.inf, -math.inf, 10**9))


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=6))
def test_running_sums_round_after_each_term(terms: list[float]) -> None:
    stored = np.array(terms, dtype=np.float16)
    theirs = np.cumsum(stored, dtype=np.float16).astype(float).tolist()
    assert list(Arithmetic(fmt=FP16).running_sums(tuple(stored.astype(float).tolist()))) == theirs


def test_the_running_sums_of_nothing_are_none() -> None:
    assert Arithmetic(fmt=FP16).running_sums(()) == ()

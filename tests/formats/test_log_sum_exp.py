"""Log-sum-exp in a format: the exact value, and which way survives what."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanhunt.formats.arithmetic import Arithmetic
from nanhunt.formats.catalogue import BF16, E4M3FN, FP16, FP32, FP64
from nanhunt.formats.log_sum_exp import exact, naive, stable

logits = st.lists(st.floats(-300, 300), min_size=1, max_size=6).map(tuple)


@given(logits)
def test_the_exact_value_is_numpys(values: tuple[float, ...]) -> None:
    assert exact(values) == pytest.approx(np.logaddexp.reduce(values), rel=1e-13, abs=1e-13)


@given(logits)
def test_the_stable_way_is_finite_and_near_in_fp32(values: tuple[float, ...]) -> None:
    assert stable(Arithmetic(fmt=FP32), values).result == pytest.approx(exact(values), rel=1e-6, abs=1e-6)


@given(logits)
def test_in_fp64_both_ways_are_the_exact_value_while_exp_is_finite(values: tuple[float, ...]) -> None:
    assert naive(Arithmetic(fmt=FP64), values).result == pytest.approx(exact(values), rel=1e-13, abs=1e-13)


@pytest.mark.parametrize("fmt", [FP32, FP16, BF16], ids=lambda f: f.name)
def test_the_naive_way_overflows_right_above_the_exp_limit_and_the_stable_way_does_not(fmt) -> None:  # type: ignore[no-untyped-def]
    arithmetic = Arithmetic(fmt=fmt)
    above = fmt.exp_limit + fmt.ulp(fmt.exp_limit)
    assert naive(arithmetic, (above,)).result == math.inf
    assert naive(arithmetic, (fmt.exp_limit - fmt.ulp(fmt.exp_limit),)).result < math.inf
    assert stable(arithmetic, (above,)).result == arithmetic.rounded(above)


def test_the_naive_way_is_minus_infinity_where_every_exp_is_flushed() -> None:
    assert naive(Arithmetic(fmt=FP16), (-18.0, -19.0)).result == -math.inf
    assert stable(Arithmetic(fmt=FP16), (-18.0, -19.0)).result == pytest.approx(-17.6867, abs=0.01)


def test_a_cast_that_saturates_hides_the_overflow() -> None:
    worked = naive(Arithmetic(fmt=E4M3FN, saturating=True), (12.0, 11.0))
    assert (worked.exponentials, worked.sums, worked.result) == ((448.0, 448.0), (448.0, 448.0), 6.0)


def test_a_nan_among_the_values_is_the_largest_wherever_it_stands() -> None:
    for values in ((math.nan, 1.0), (1.0, math.nan)):
        assert math.isnan(stable(Arithmetic(fmt=FP32), values).largest)
        assert math.isnan(stable(Arithmetic(fmt=FP32), values).result)

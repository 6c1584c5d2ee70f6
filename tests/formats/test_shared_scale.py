"""Depths below a scale's largest magnitude, against scaling and casting with ml_dtypes."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanhunt.formats.catalogue import lookup
from nanhunt.formats.number_format import NumberFormat
from nanhunt.formats.shared_scale import CLASS_TOPS, DEPTHS, Lost, class_of, depth_limits

CASTS = {"e4m3fn": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2, "e2m1fn": ml_dtypes.float4_e2m1fn}
losts = st.builds(Lost, of=st.integers(0, 2**40), flushed=st.integers(0, 2**40), subnormal=st.integers(0, 2**40))


@pytest.mark.parametrize("name", CASTS)
@pytest.mark.parametrize("seed", range(6))
def test_limits_are_those_of_a_cast_after_scaling(name: str, seed: int) -> None:
    fmt = lookup(name)
    assert isinstance(fmt, NumberFormat)
    rng = np.random.default_rng(seed)
    values = np.abs(rng.standard_normal(4000) * 2.0 ** rng.uniform(-40, 0, 4000)).astype(np.float32).astype(np.float64)
    amax = values.max()
    factor = math.ldexp(1.0, math.floor(math.log2(fmt.max / amax)))
    cast = (values * factor).astype(CASTS[name]).astype(np.float64)
    depth = np.frexp(amax)[1] - np.frexp(values)[1]
    below, flushing = depth_limits(fmt, class_of(amax))
    assert np.array_equal(depth >= flushing, cast == 0)
    assert np.array_equal(depth >= below, values * factor < fmt.smallest_normal)
    assert flushing < DEPTHS


@given(st.floats(min_value=5e-324, allow_infinity=False))
def test_every_magnitude_has_one_class_and_a_power_of_two_does_not_change_it(magnitude: float) -> None:
    significand = 2 * math.frexp(magnitude)[0]
    found = class_of(magnitude)
    assert significand <= CLASS_TOPS[found]
    assert found == 0 or significand > CLASS_TOPS[found - 1]
    assert class_of(significand) == found


@given(losts, losts, losts)
def test_losses_add_up_in_any_order(a: Lost, b: Lost, c: Lost) -> None:
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert a + Lost() == a


def test_shares_of_nothing_are_zero_and_energy_that_float64_does_not_hold_tells_nothing() -> None:
    assert (Lost().flushed_share, Lost().subnormal_share, Lost().energy_share) == (0, 0, 0)
    assert Lost(of=1, flushed=1, energy=math.inf, flushed_energy=math.inf).energy_share == 0
    assert Lost(of=4, flushed=1, subnormal=2, energy=8.0, flushed_energy=2.0).energy_share == 0.25

"""A folded curve loses no extreme, no cross, and nothing around the onset."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from nanhunt.report.fold import POINTS, folded

VALUES = st.floats(allow_nan=True, allow_infinity=True)


def test_a_curve_that_is_short_enough_comes_back_as_it_is() -> None:
    values = tuple(float(i) for i in range(POINTS))
    assert folded(range(POINTS), values) == (tuple(range(POINTS)), values)


def test_a_spike_of_one_step_and_a_nan_of_one_step_are_kept_where_they_stand() -> None:
    values = [1.0] * 100_000
    values[777], values[60_123], values[99_998] = 50.0, math.nan, -3.0
    steps, short = folded(range(5, 100_005), values)
    at = dict(zip(steps, short, strict=True))
    assert at[782] == 50.0
    assert math.isnan(at[60_128])
    assert at[100_003] == -3.0
    assert len(steps) <= POINTS + 3


def test_every_step_around_a_marked_one_is_kept_exactly() -> None:
    values = [math.sin(i) for i in range(20_000)]
    at = dict(zip(*folded(range(20_000), values, [12_000, 12_090, None]), strict=True))
    assert all(at[step] == values[step] for step in range(11_950, 12_141))


@given(st.lists(VALUES, max_size=300), st.lists(st.integers(-10, 320), max_size=2), st.integers(20, 120))
def test_a_folded_curve_is_a_part_of_the_curve_with_its_ends_and_extremes(
    values: list[float], marked: list[int], points: int
) -> None:
    steps, short = folded(range(len(values)), values, marked, points)
    assert list(steps) == sorted(set(steps))
    assert [repr(values[step]) for step in steps] == [repr(v) for v in short]
    finite = [v for v in values if math.isfinite(v)]
    if values:
        assert steps[0] == 0
        assert steps[-1] == len(values) - 1
    if finite:
        assert {min(finite), max(finite)} <= set(short)
    assert all(map(math.isfinite, short)) == all(map(math.isfinite, values))
    assert len(steps) <= max(1.5 * points, 101 * len(marked)) + 5

"""Curves in one line: the onset and the non-finite are never averaged away."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanhunt.report.sparkline import sparkline


def drawn(values: list[float], onset: int | None = None, width: int = 80) -> str:
    return "".join(c.char for c in sparkline(range(len(values)), values, onset=onset, width=width))


def test_values_rise_from_the_lowest_block_to_the_highest() -> None:
    assert drawn([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"


def test_the_onset_is_marked_in_its_own_place() -> None:
    cells = sparkline((10, 11, 12), (1.0, 9.0, 1.0), onset=11, width=80)
    assert [c.mark for c in cells] == ["", "onset", ""]
    assert cells[1].char == "✗"


def test_an_onset_between_recorded_steps_is_marked_at_the_next() -> None:
    assert [c.mark for c in sparkline((0, 10, 20), (1.0, 1.0, 1.0), onset=11, width=80)] == ["", "", "onset"]


def test_an_onset_after_the_last_value_gets_a_cell_within_the_width() -> None:
    cells = sparkline(range(100), [1.0] * 100, onset=100, width=20)
    assert len(cells) == 20
    assert cells[-1].mark == "onset"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_value_is_a_cross_wherever_it_hides(bad: float) -> None:
    assert drawn([1.0] * 500 + [bad] + [1.0] * 499, width=10).count("✗") == 1


def test_a_spike_of_one_step_survives_many_steps_a_cell() -> None:
    assert "█" in drawn([1.0] * 500 + [50.0] + [1.0] * 499, width=10)


def test_a_curve_over_many_decades_is_not_flat_before_its_spike() -> None:
    assert len(set(drawn([10.0**k for k in range(8)]))) == 8


def test_a_flat_curve_and_the_largest_floats_are_drawn() -> None:
    assert drawn([3.0, 3.0]) == "▁▁"
    assert drawn([-1.7e308, 1.7e308]) == "▁█"
    assert drawn([5e-324, 1.7e308]) == "▁█"
    assert drawn([]) == ""


@given(
    st.lists(st.floats(), max_size=50),
    st.integers(min_value=2, max_value=30),
    st.one_of(st.none(), st.integers(min_value=-3, max_value=60)),
)
def test_no_curve_is_wider_than_asked_and_every_onset_shows_once(
    values: list[float], width: int, onset: int | None
) -> None:
    cells = sparkline(range(len(values)), values, onset=onset, width=width)
    assert len(cells) <= width
    assert [c.mark for c in cells].count("onset") == (onset is not None)

"""When attention scores have grown: over steps, and not by one batch."""

from __future__ import annotations

import math

import pytest

from nanhunt.diagnosis.scores import Attention, is_rising


def attention(values: list[float], entropy: list[float] | None = None, keys: float = 16.0) -> Attention:
    return Attention(
        module="attn",
        scores=dict(enumerate(values)),
        is_bound=False,
        exact={},
        entropy=dict(enumerate(entropy or [])),
        keys=keys,
    )


def test_a_steady_rise_is_its_last_value_over_the_first_half() -> None:
    assert attention([10, 10, 10, 10, 20, 40]).grown(5) == pytest.approx(4.0)


@pytest.mark.parametrize(
    "values", [[10] * 8, [40, 30, 20, 10, 5, 4], [10, 10, 10, 10, 10, 99], [5, 9], [-4, -3, -2, -1]]
)
def test_what_is_flat_or_falls_or_leaps_once_or_is_short_or_negative_has_not_grown(values: list[float]) -> None:
    assert attention(values).grown(len(values)) == 1.0


def test_a_collapse_at_the_end_takes_nothing_from_a_rise() -> None:
    assert attention([50, 50, 50, 60, 70, 110, 150, 1]).grown(7) == pytest.approx(3.0)


def test_steps_behind_the_limit_and_values_that_are_not_finite_do_not_count() -> None:
    assert attention([10, 10, 10, 10, 11, 11, 99, 99]).grown(3) == 1.0
    assert attention([10, 10, 10, 10, 20, 40, math.inf, math.nan]).grown(7) == pytest.approx(4.0)


def test_saturation_is_an_entropy_far_below_what_the_keys_allow() -> None:
    assert attention([1, 1], [2.0, 0.3]).is_saturated(1)
    assert not attention([1, 1], [0.3, 2.0]).is_saturated(1)
    assert not attention([1, 1]).is_saturated(1)


def test_rising_is_the_second_half_above_the_first() -> None:
    assert is_rising([1, 2, 3, 4])
    assert not is_rising([1, 3, 2, 4])
    assert not is_rising([])

"""Statistics add up: measured in parts, in any order and grouping, they are those of the whole."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanhunt.stats.summarize import summarize
from nanhunt.stats.tensor_stats import TensorStats

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
VALUES = st.one_of(
    st.floats(width=32),
    st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, 6e-8, 65504.0, 2.0**-149, 1.0, -1.0]),
)

#: Sums of a piece are taken in fp32, and pieces are added in fp64.
FP32 = 2.0**-18


@st.composite
def splits(draw: st.DrawFn) -> tuple[Tensor, list[Tensor]]:
    """A tensor, and its parts by random cuts; empty parts are among them."""
    dtype = draw(st.sampled_from(DTYPES))
    tensor = torch.tensor(draw(st.lists(VALUES, max_size=40)), dtype=torch.float64).to(dtype)
    cuts = sorted(draw(st.lists(st.integers(0, len(tensor)), max_size=5)))
    edges = [0, *cuts, len(tensor)]
    return tensor, [tensor[a:b] for a, b in itertools.pairwise(edges)]


def added(parts: list[TensorStats]) -> TensorStats:
    total = TensorStats()
    for part in parts:
        total = total + part
    return total


def assert_same(a: TensorStats, b: TensorStats) -> None:
    exact = ("numel", "nan", "posinf", "neginf", "zero", "subnormal", "amax", "amin")
    assert [getattr(a, f) for f in exact] == [getattr(b, f) for f in exact]
    # sums agree to float64 rounding of the terms, which may cancel
    room = FP32 * (math.sqrt(a.numel * a.sum_of_squares) + 1e-300)
    assert a.sum == pytest.approx(b.sum, rel=FP32, abs=room)
    assert a.sum_of_squares == pytest.approx(b.sum_of_squares, rel=FP32)
    if a.numel:
        assert nonzero(a) == nonzero(b)


def nonzero(stats: TensorStats) -> dict[int, int]:
    assert stats.exponents is not None
    return {stats.exponents.lowest + i: c for i, c in enumerate(stats.exponents.counts) if c}


@settings(deadline=None, max_examples=120)
@given(splits())
def test_the_parts_of_a_tensor_add_up_to_the_whole(split: tuple[Tensor, list[Tensor]]) -> None:
    tensor, parts = split
    assert_same(added([summarize(p) for p in parts]), summarize(tensor))


@settings(deadline=None, max_examples=60)
@given(splits(), st.randoms(use_true_random=False))
def test_order_and_grouping_do_not_matter(split: tuple[Tensor, list[Tensor]], draw: object) -> None:
    stats = [summarize(p) for p in split[1]]
    shuffled = list(reversed(stats))
    half = len(stats) // 2
    assert_same(added(shuffled), added(stats))
    assert_same(added(stats[:half]) + added(stats[half:]), added(stats))


@settings(deadline=None, max_examples=40)
@given(splits())
def test_the_empty_statistics_change_nothing(split: tuple[Tensor, list[Tensor]]) -> None:
    stats = summarize(split[0])
    for total in (stats + TensorStats(), TensorStats() + stats):
        assert total == stats or not stats.numel


def test_a_sum_without_exponents_on_one_side_has_none() -> None:
    with_, without = summarize(torch.ones(2)), summarize(torch.ones(2), histogram=False)
    assert (with_ + without).exponents is None


def test_exponents_reach_over_both_parts_ranges() -> None:
    both = summarize(torch.tensor([2.0**-140])) + summarize(torch.tensor([2.0**100]))
    assert nonzero(both) == {-140: 1, 100: 1}


def test_facts_are_derived_from_the_sums_as_numpy_has_them() -> None:
    values = torch.tensor([3.0, -1.0, 4.0, math.inf, math.nan, 1.5], dtype=torch.float64)
    finite = values[torch.isfinite(values)].numpy()
    stats = summarize(values)
    assert stats.mean == pytest.approx(finite.mean())
    assert stats.std == pytest.approx(finite.std())
    assert stats.l2 == pytest.approx(float((finite**2).sum()) ** 0.5)
    assert (stats.finite, stats.is_finite) == (4, False)


def test_a_spread_beyond_the_rounding_of_the_mean_is_never_negative() -> None:
    assert summarize(torch.full((1000,), 1e8 + 0.1, dtype=torch.float64)).std == pytest.approx(0.0, abs=2.0)


def test_squares_beyond_float64_are_infinite_and_raise_nothing() -> None:
    stats = summarize(torch.tensor([1e200, -1e200], dtype=torch.float64))
    assert stats.l2 == math.inf
    assert stats.std is not None

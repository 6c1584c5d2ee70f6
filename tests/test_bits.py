"""Differences are counted and named as the bits show them; NumPy is the oracle of bits and of distances."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanhunt.bits import compare, kept_copies

FLOATS = {torch.float32: np.int32, torch.float64: np.int64, torch.float16: np.int16}


def flipped(value: torch.Tensor, bit: int) -> torch.Tensor:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[value.element_size()]
    bits = value.clone().view(integer)
    bits ^= torch.tensor(1 << bit if bit < 8 * value.element_size() - 1 else torch.iinfo(integer).min, dtype=integer)
    return bits.view(value.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_any_single_flipped_bit_is_a_flip_at_its_coordinate(dtype: torch.dtype) -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    for bit in range(8 * weight.element_size()):
        other = weight.clone()
        other[3, 2] = flipped(weight[3, 2].reshape(1), bit)[0]
        found = compare({"w": weight, "b": weight[0]}, {"w": other, "b": weight[0]})
        assert (found.elements, found.one_bit, found.is_flip) == (1, 1, True)
        assert (found.worst, found.coordinate, found.names) == ("w", (3, 2), ("w",))


def test_a_factor_of_a_power_of_two_is_a_flip_though_several_bits_differ() -> None:
    weight = torch.tensor([1.5, 0.75])
    found = compare({"w": weight}, {"w": torch.tensor([1.5 * 2.0**7, 0.75])})
    assert (found.elements, found.power_of_two, found.is_flip) == (1, 1, True)


def test_rounding_everywhere_is_no_flip() -> None:
    weight = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    found = compare({"w": weight}, {"w": torch.nextafter(weight, torch.full_like(weight, math.inf))})
    assert (found.elements, found.ulps, found.is_flip) == (1000, 1.0, False)
    assert found.relative < 1e-6


def test_nan_equals_nan_and_the_two_zeros_differ() -> None:
    assert compare({"w": torch.tensor([math.nan, math.inf])}, {"w": torch.tensor([math.nan, math.inf])}).is_same
    assert compare({"w": torch.tensor([0.0])}, {"w": torch.tensor([-0.0])}).elements == 1


def test_a_value_that_is_not_finite_on_one_side_is_counted_and_leaves_the_norm_alone() -> None:
    found = compare({"w": torch.tensor([3.0, 4.0, 1.0])}, {"w": torch.tensor([3.0, 4.0, math.nan])})
    assert (found.elements, found.nonfinite, found.relative, found.ulps) == (1, 1, 0.0, None)


def test_what_stands_on_one_side_only_is_left_out() -> None:
    found = compare({"a": torch.ones(2), "b": torch.ones(3)}, {"b": torch.ones(4), "c": torch.ones(2)})
    assert (found.of_tensors, found.is_same) == (0, True)


@given(st.lists(st.tuples(st.floats(width=32), st.floats(width=32)), min_size=1, max_size=20))
def test_distances_and_counts_are_those_of_the_bits(pairs: list[tuple[float, float]]) -> None:
    a, b = (np.array(side, dtype=np.float32) for side in zip(*pairs, strict=True))
    found = compare({"w": torch.from_numpy(a)}, {"w": torch.from_numpy(b)})
    differ = a.view(np.int32) != b.view(np.int32)
    assert found.elements == int(differ.sum())
    xor = (a.view(np.int32) ^ b.view(np.int32)).view(np.uint32)[differ]
    assert found.one_bit == sum(int(x).bit_count() == 1 for x in xor)
    finite = differ & np.isfinite(a) & np.isfinite(b)
    if finite.any():
        keys = [
            np.where(v.view(np.int32) < 0, -(v.view(np.int32).astype(np.int64) & 0x7FFFFFFF), v.view(np.int32))
            for v in (a, b)
        ]
        distances = sorted(int(d) for d in np.abs(keys[0] - keys[1])[finite])
        assert found.ulps == distances[(len(distances) - 1) // 2]


def test_copies_end_where_the_budget_does_the_small_ones_first() -> None:
    tensors = {"big": torch.ones(100), "small": torch.ones(2), "middle": torch.ones(10)}
    assert list(kept_copies(tensors, 60)) == ["small", "middle"]


@pytest.mark.parametrize(
    "value", [torch.ones(2, dtype=torch.complex64), torch.eye(2).to_sparse()], ids=["complex", "sparse"]
)
def test_less_ordinary_tensors_are_compared_by_their_numbers(value: Any) -> None:
    copies = kept_copies({"w": value}, 1 << 20)
    assert compare(copies, copies).of_tensors == 1

"""A CPU's two kernels, the one that Numba compiles and the one without it, count alike."""

from __future__ import annotations

import dataclasses
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nanhunt.stats
from nanhunt.stats import cpu_kernel
from nanhunt.stats.summarize import summarize


@given(
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from([1, 7, 1023, 4096, 4097, 1 << 15, (1 << 15) + 5, (1 << 18) + 1, 600_000]),
    st.integers(-60, 60),
    st.lists(
        st.tuples(st.integers(0, 599_999), st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 1e-41, 3e38]))
    ),
)
@settings(max_examples=60, deadline=None)
def test_both_kernels_of_a_cpu_count_the_same(
    dtype: torch.dtype, size: int, scale: int, special: list[tuple[int, float]]
) -> None:
    tensor = (torch.randn(size, generator=torch.Generator().manual_seed(size)) * 2.0**scale).to(dtype)
    for place, value in special:
        tensor[place % size] = torch.tensor(value, dtype=torch.float64)  # as a number, one beyond the dtype is refused
    found = summarize(tensor)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_kernel, "_code", lambda: None)
        plain = summarize(tensor)
    assert dataclasses.replace(found, sum=0.0, sum_of_squares=0.0) == dataclasses.replace(
        plain, sum=0.0, sum_of_squares=0.0
    )
    wide = tensor.double()[tensor.isfinite()]
    squares = float(wide.square().sum())
    assert found.sum_of_squares == pytest.approx(squares, rel=2.0**-16)
    assert plain.sum_of_squares == pytest.approx(squares, rel=2.0**-16)
    assert found.sum == pytest.approx(float(wide.sum()), abs=2.0**-16 * float(wide.abs().sum()))


def test_a_cpu_without_numba_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernel, "_code", cpu_kernel._code.__wrapped__)
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "nanhunt.stats.cpu_code", raising=False)
    monkeypatch.delattr(nanhunt.stats, "cpu_code", raising=False)
    assert cpu_kernel._code() is None
    assert summarize(torch.tensor([1.0, math.nan])).nan == 1


@pytest.mark.parametrize("is_compiled", [True, False])
@pytest.mark.parametrize("size", [3, 100_000])
def test_a_tensor_that_was_measured_can_be_resized_as_before(
    monkeypatch: pytest.MonkeyPatch, is_compiled: bool, size: int
) -> None:
    if not is_compiled:
        monkeypatch.setattr(cpu_kernel, "_code", lambda: None)
    weight = torch.ones(size)
    assert summarize(weight).sum == size
    weight.untyped_storage().resize_(0)  # as FSDP does with a gathered weight
    assert weight.untyped_storage().size() == 0

"""A look tells what torch's own isnan and isinf tell, of any dtype and layout, for as long as the queue lives."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nanhunt.stats.flags import FINITE, FlagQueue, Flags

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
BAD = [(), (math.nan,), (math.inf,), (-math.inf,), (math.inf, -math.inf), (math.nan, math.inf)]


def flags_of(tensor: Tensor) -> Flags:
    queue = FlagQueue()
    ticket = queue.look(tensor)
    return queue.fetch()[ticket]


def expected(tensor: Tensor) -> Flags:
    nan = bool(torch.isnan(tensor).any())
    return Flags(nan, not nan and bool((tensor == math.inf).any()), not nan and bool((tensor == -math.inf).any()))


@pytest.mark.parametrize(("dtype", "bad"), list(product(FLOATS, BAD)))
def test_a_look_agrees_with_isnan_and_isinf(dtype: torch.dtype, bad: tuple[float, ...]) -> None:
    tensor = torch.randn(7, 5).to(dtype)
    tensor.view(-1)[3 : 3 + len(bad)] = torch.tensor(bad, dtype=dtype)
    assert flags_of(tensor) == expected(tensor)
    assert flags_of(tensor.t()) == expected(tensor)


@pytest.mark.parametrize("bad", BAD)
def test_many_at_once_are_told_what_each_is_told(bad: tuple[float, ...]) -> None:
    tensors = [torch.randn(2, 3), torch.arange(4), torch.empty(0), torch.randn(5).half(), torch.randn(3, 4).t()]
    tensors[3][: len(bad)] = torch.tensor(bad)
    queue = FlagQueue()
    tickets, signed = queue.look_at_all(tensors), queue.look_at_all(tensors, signed=True)
    flags = queue.fetch()
    assert [flags[t] for t in signed] == [flags_of(t) for t in tensors]
    assert [flags[t].bad for t in tickets] == [flags_of(t).bad for t in tensors]
    assert queue.fetch() == flags


@pytest.mark.cuda
@pytest.mark.parametrize(("dtype", "bad"), list(product(FLOATS, BAD)))
def test_a_look_agrees_with_isnan_and_isinf_on_a_gpu(dtype: torch.dtype, bad: tuple[float, ...]) -> None:
    tensor = torch.randn(70, 50).to("cuda", dtype)
    tensor.view(-1)[3 : 3 + len(bad)] = torch.tensor(bad, dtype=dtype)
    parts = [tensor, tensor.t(), tensor[:, 1:9], tensor[::2], torch.zeros(3, device="cuda", dtype=dtype)]
    queue = FlagQueue()
    alone, together = [queue.look(t) for t in parts], queue.look_at_all(parts)
    flags = queue.fetch()
    assert [flags[t] for t in alone] == [expected(t) for t in parts]
    assert [(flags[t].nan, flags[t].bad) for t in together] == [(expected(t).nan, expected(t).bad) for t in parts]


@given(st.lists(st.floats(width=32), max_size=20))
def test_a_look_agrees_on_any_floats(values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    assert flags_of(tensor) == expected(tensor)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_finite_tensor_whose_sum_overflows_is_finite(dtype: torch.dtype) -> None:
    largest = torch.full((64,), torch.finfo(dtype).max, dtype=dtype)
    assert not bool(torch.isfinite(largest.sum()))
    assert flags_of(largest) == FINITE


def test_a_look_holds_what_the_tensor_was_and_not_what_became_of_it() -> None:
    queue, tensor = FlagQueue(), torch.zeros(3)
    before = queue.look(tensor)
    tensor[0] = math.nan
    after = queue.look(tensor)
    tensor.zero_()
    flags = queue.fetch()
    assert flags[before] == FINITE
    assert flags[after].nan


@pytest.mark.filterwarnings("ignore:Sparse")
def test_unusual_tensors_are_looked_at_by_their_numbers() -> None:
    spoiled = torch.tensor([1.0, math.nan])
    assert flags_of(torch.complex(torch.zeros(2), spoiled)).nan
    assert flags_of(torch.sparse_coo_tensor(torch.tensor([[0, 2]]), spoiled, (4,))).nan
    assert flags_of(torch.tensor([[1.0, math.inf]]).to_sparse_csr()).posinf
    assert flags_of(spoiled.to(torch.float8_e4m3fn)).nan
    assert flags_of(torch.nested.nested_tensor([torch.zeros(1), spoiled], layout=torch.jagged)).nan
    assert flags_of(torch.nn.Parameter(spoiled)).nan


def test_what_holds_no_such_numbers_is_no_trouble() -> None:
    for tensor in (torch.arange(3), torch.tensor([True]), torch.zeros(0), torch.empty(2, device="meta")):
        assert flags_of(tensor) == FINITE

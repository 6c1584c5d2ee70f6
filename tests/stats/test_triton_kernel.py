"""The Triton kernel against the plain one: the same counts, extremes and exponents to the bit, sums to fp32's rounding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nanhunt.stats.summarize import StatsQueue, summarize
from nanhunt.stats.tensor_stats import TensorStats

pytestmark = pytest.mark.cuda

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def ordinary(size: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def adversarial(size: int, dtype: torch.dtype) -> Tensor:
    """Return numbers over all of the dtype's range, with every kind of special value strewn in."""
    draw = torch.Generator().manual_seed(size)
    bits = {4: torch.int32, 2: torch.int16}[dtype.itemsize]
    info = torch.iinfo(bits)
    x = torch.randint(info.min, info.max, (size,), generator=draw, dtype=torch.int64).to(bits).view(dtype).clone()
    special = [
        0.0,
        -0.0,
        math.inf,
        -math.inf,
        math.nan,
        torch.finfo(dtype).tiny,
        torch.finfo(dtype).tiny / 2,
        torch.finfo(dtype).max,
    ]
    for index, value in enumerate(special):
        x[index::97] = value
    return x


def check(found: TensorStats, tensor: Tensor, *, exact: bool = True) -> None:
    expected = summarize(tensor.cpu())
    for name in ("numel", "nan", "posinf", "neginf", "zero", "subnormal", "amax", "amin"):
        assert getattr(found, name) == getattr(expected, name), name
    if exact:
        assert found.exponents == expected.exponents
    wide = tensor.detach().cpu().double().flatten()
    wide = wide[wide.isfinite()].numpy()
    scale = float(np.abs(wide).sum()) + 1e-300
    assert abs(found.sum - math.fsum(wide.tolist())) <= 2.0**-18 * scale
    squares = float(np.square(wide).sum())
    assert found.sum_of_squares == pytest.approx(squares, rel=2.0**-18) or squares == math.inf


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [0, 1, 2, 31, 2047, 2048, 2049, 8192, 70_001, 1 << 20])
def test_ordinary_and_adversarial_tensors_measure_as_on_the_cpu(size: int, dtype: torch.dtype) -> None:
    for tensor in (ordinary(size, dtype), adversarial(size, dtype), torch.zeros(size, dtype=dtype)):
        check(summarize(tensor.cuda()), tensor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e4])
def test_squares_beyond_single_precision_are_summed(scale: float, dtype: torch.dtype) -> None:
    tensor = (ordinary(40_000, torch.float32) * scale).to(dtype)
    check(summarize(tensor.cuda()), tensor)


@pytest.mark.parametrize("dtype", DTYPES)
def test_above_a_size_extremes_and_counts_are_of_every_element_and_exponents_of_a_part(dtype: torch.dtype) -> None:
    tensor = ordinary(5_000_001, dtype)
    tensor[4_999_999], tensor[3_000_000], tensor[17] = 1024.0, math.nan, 0.0
    found = summarize(tensor.cuda())
    check(found, tensor, exact=False)
    assert found.exponents is not None
    full = summarize(tensor.cpu()).exponents
    assert full is not None
    assert found.exponents.total == pytest.approx(found.numel, rel=0.03)
    assert found.exponents == summarize(tensor).exponents
    for exponent in range(-6, 2):  # shares of a part are those of the whole, to its noise
        share = found.exponents.fraction_below(exponent)
        assert share == pytest.approx(full.fraction_below(exponent), abs=0.01)
    assert summarize(tensor.cuda()).exponents == found.exponents


@pytest.mark.parametrize("dtype", DTYPES)
def test_views_are_measured_wherever_they_lie(dtype: torch.dtype) -> None:
    base = ordinary(300 * 200, dtype).cuda().reshape(300, 200)
    views = [base.t(), base[1:], base[:, 3:], base[::2, ::3], base.flatten()[1:], base[:1].expand(50, 200), base[5, 5]]
    for view in views:
        check(summarize(view), view)


def test_many_tensors_in_one_launch_measure_as_each_alone() -> None:
    sizes = [0, 1, 5, 2048, 9_999, 300_000, 4_500_000, 17]
    tensors = [
        ordinary(size, dtype, seed).cuda() for seed, (size, dtype) in enumerate(zip(sizes * 3, DTYPES * 8, strict=True))
    ]
    tensors += [
        tensors[3][1:],
        tensors[5].reshape(1000, -1).t(),
        torch.arange(10, device="cuda"),
        torch.randn(9, dtype=torch.float64, device="cuda"),
    ]
    queue = StatsQueue()
    tickets = queue.add_all(tensors)
    together = queue.collect()
    for tensor, ticket in zip(tensors, tickets, strict=True):
        found = together[ticket]
        assert found is not None
        alone = summarize(tensor)
        assert (found.numel, found.zero, found.amax, found.amin) == (alone.numel, alone.zero, alone.amax, alone.amin)
        assert found.exponents == alone.exponents
        assert found.sum_of_squares == pytest.approx(alone.sum_of_squares, rel=1e-6)


@pytest.fixture
def mesh() -> Iterator[Any]:
    dist = pytest.importorskip("torch.distributed")
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cuda", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_of_a_dtensor_the_shard_that_lies_here_is_measured_as_a_plain_tensor_is(dtype: torch.dtype, mesh: Any) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    whole = ordinary(64 * 1024, dtype).reshape(64, 1024).cuda()
    whole[0, :3] = torch.tensor([math.nan, 0.0, math.inf])
    shard = distribute_tensor(whole, mesh, [Shard(0)])
    queue = StatsQueue()
    tickets = [queue.add(shard), queue.add(nn.Parameter(shard)), *queue.add_all([whole, shard])]
    found = queue.collect()
    assert len({repr(found[t]) for t in tickets if t is not None}) == 1
    assert found[0] == summarize(whole)


def test_parts_merge_to_the_whole() -> None:
    tensor = adversarial(30_000, torch.float32).cuda()
    for cut in (1, 2048, 17_777):
        both, whole = summarize(tensor[:cut]) + summarize(tensor[cut:]), summarize(tensor)
        assert (both.nan, both.zero, both.subnormal, both.amax, both.amin) == (
            whole.nan, whole.zero, whole.subnormal, whole.amax, whole.amin,
        )  # fmt: skip
        assert both.exponents == whole.exponents


def test_more_tensors_than_a_step_ever_had_find_room() -> None:
    queue = StatsQueue()
    for _ in range(2):
        tickets = [queue.add(torch.full((3,), float(i), device="cuda")) for i in range(2500)]
        stats = queue.collect()
        assert [s.amax for t in tickets if (s := stats[t]) is not None] == [float(i) for i in range(2500)]


def test_measuring_waits_for_nothing() -> None:
    queue, tensors = StatsQueue(), [torch.randn(1000, device="cuda"), torch.randn(3_000_000, device="cuda").bfloat16()]
    queue.add_all(tensors)
    queue.collect()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for tensor in tensors:
            queue.add(tensor)
        queue.add_all(tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(queue.collect()) == 4


def test_more_than_two_to_the_31_elements_are_counted() -> None:
    if torch.cuda.get_device_properties(0).total_memory < 16 << 30:
        pytest.skip("needs 16 GB")
    tensor = torch.ones(2**31 + 4097, dtype=torch.bfloat16, device="cuda")
    tensor[-1], tensor[5], tensor[2**31 + 7] = 3.0, math.nan, 0.0
    found = summarize(tensor)
    assert (found.numel, found.nan, found.zero, found.amax, found.amin) == (2**31 + 4097, 1, 1, 3.0, 1.0)
    assert found.sum == pytest.approx(2**31 + 4097 - 3 + 3, rel=1e-6)

"""The kernel against numpy in float64, on tensors that are made to trip it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanhunt.formats.headroom import ExponentHistogram
from nanhunt.stats import cpu_kernel, torch_kernel
from nanhunt.stats.summarize import StatsQueue, summarize
from nanhunt.stats.tensor_stats import TensorStats
from nanhunt.stats.torch_kernel import is_measurable, plain_values
from tests.stats.oracles import exact_values, exponent_counts, smallest_normal, stats_of

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
EIGHT_BIT = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
KINDS = [torch.float32, torch.bfloat16, torch.float64, torch.complex64, torch.float8_e5m2, torch.int64, torch.bool]
WHOLE = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]

#: Sums of a piece are taken in fp32, and pieces are added in fp64.
FP32 = 2.0**-18


@pytest.fixture(autouse=True, params=["compiled", "plain"])
def code(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test both of a CPU's kernels: without Numba there is one."""
    if request.param == "plain":
        monkeypatch.setattr(cpu_kernel, "_code", lambda: None)
    else:
        pytest.importorskip("numba")


def all_bits(dtype: torch.dtype) -> Tensor:
    """Every value of an 8-bit format, or of a 16-bit one, once."""
    width = torch.empty((), dtype=dtype).element_size() * 8
    codes = torch.arange(2**width, dtype=torch.int64)
    return codes.to(torch.uint8).view(dtype) if width == 8 else (codes - 2**15).to(torch.int16).view(dtype)


def hostile(dtype: torch.dtype) -> Tensor:
    """Zeros of both signs, infinities, NaNs, subnormals, powers of two and their neighbours, extremes."""
    info = torch.finfo(dtype)
    smallest = info.smallest_normal * info.eps
    powers = [2.0**e for e in range(-12, 13)]
    neighbours = [p * (1 + s * info.eps) for p in powers for s in (-0.5, 1)]
    values = [
        *(0.0, -0.0, math.nan, math.inf, -math.inf, -math.nan),
        *(info.max, info.min, info.smallest_normal, smallest, -smallest, 3 * smallest, info.smallest_normal - smallest),
        *powers,
        *neighbours,
    ]
    return torch.tensor(values, dtype=torch.float64).to(dtype)


def check(tensor: Tensor, *, device: str = "cpu") -> TensorStats:
    """Hold the kernel's statistics against the oracle's and return them."""
    stats, values = summarize(tensor.to(device), exact=True), exact_values(tensor)
    terms = float(np.abs(values[np.isfinite(values)] / 4).sum()) * 4
    for field, expected in stats_of(values, smallest_normal(tensor.dtype)).items():
        got = getattr(stats, field)
        if field == "sum":  # the largest and the smallest cancel: what is left has their rounding
            assert got == pytest.approx(expected, rel=FP32, abs=FP32 * terms), field
        elif field == "sum_of_squares":
            assert got == pytest.approx(expected, rel=FP32), field
        else:
            assert got == expected, field
    if tensor.is_floating_point() or tensor.is_complex():
        assert stats.exponents is not None
        counts = {stats.exponents.lowest + i: c for i, c in enumerate(stats.exponents.counts) if c}
        assert counts == exponent_counts(values)
    else:
        assert stats.exponents is None
    return stats


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_hostile_values_are_counted_exactly(dtype: torch.dtype, device: str) -> None:
    tensor = hostile(dtype)
    if dtype in (torch.float32, torch.float64):
        check(tensor, device=device)
    # 16-bit formats are small enough to be tried whole
    else:
        check(torch.cat([tensor, all_bits(dtype)]), device=device)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_way_that_never_waits_for_a_device_counts_the_same(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_kernel, "_may_be_nonfinite", lambda x: True)
    monkeypatch.setattr(torch_kernel, "_exponents", torch_kernel._exponents_by_frexp)
    check(hostile(dtype))
    check(torch.linspace(-3, 3, 257).to(dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", EIGHT_BIT, ids=str)
def test_every_value_of_an_eight_bit_format_is_counted_exactly(dtype: torch.dtype, device: str) -> None:
    stats = check(all_bits(dtype), device=device)
    assert stats.numel == 256


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", WHOLE, ids=str)
def test_integers_and_booleans_are_read_as_numbers_without_exponents(dtype: torch.dtype, device: str) -> None:
    check(torch.tensor([0, 1, 1, 0, 1]).to(dtype), device=device)
    if dtype is not torch.bool:
        info = torch.iinfo(dtype)
        check(torch.tensor([info.min, info.max, 0], dtype=dtype), device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_numbers_count_as_pairs(dtype: torch.dtype, device: str) -> None:
    parts = hostile(torch.float32).double()
    tensor = torch.complex(parts, parts.flip(0)).to(dtype)
    assert check(tensor, device=device).numel == 2 * len(parts)
    check(tensor.conj(), device=device)
    check(tensor.conj().imag, device=device)


LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    lambda t: t.reshape(0) if t.numel() == 0 else t[:0],
    lambda t: t[:1],
    lambda t: t[3],
    lambda t: t[:7],
    lambda t: t[::3],
    lambda t: t.flip(0),
    lambda t: t[:60].reshape(4, 15).t(),
    lambda t: t[:60].reshape(3, 4, 5)[:, 1:, ::2],
    lambda t: t[1].expand(2, 3),
    lambda t: t[:0].reshape(2, 0, 5),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_any_shape_and_stride_is_measured_element_by_element(
    dtype: torch.dtype, layout: Callable[[Tensor], Tensor]
) -> None:
    check(layout(hostile(dtype)))


def test_an_empty_tensor_has_no_elements_and_no_extremes() -> None:
    for histogram in (True, False):
        stats = summarize(torch.empty(0), histogram=histogram)
        assert (stats.numel, stats.amax, stats.amin, stats.mean, stats.std) == (0, 0.0, 0.0, None, None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.5])
def test_a_tensor_of_one_value_is_that_value(value: float) -> None:
    for count in (1, 5):
        check(torch.full((count,), value))


def test_only_the_finite_elements_have_a_mean() -> None:
    stats = summarize(torch.tensor([math.nan, math.inf, 2.0, 4.0]))
    assert (stats.mean, stats.std, stats.rms) == pytest.approx((3.0, 1.0, math.sqrt(10)))


def test_a_sum_of_fp16_does_not_overflow() -> None:
    stats = check(torch.full((1000,), 60_000.0, dtype=torch.float16))
    assert stats.sum == 1000 * 59_968 + 1000 * 32  # 60 000 is itself an fp16 number


@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_a_tensor_measured_in_chunks_is_measured_the_same(
    dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = hostile(dtype)
    whole = summarize(tensor)
    monkeypatch.setattr(torch_kernel, "CHUNK", chunk)
    parts = check(tensor)
    assert parts.exponents == whole.exponents
    assert check(tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32)).numel >= len(tensor)


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_a_size_at_the_chunks_edge_loses_no_element(offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_kernel, "CHUNK", 32)
    check(torch.linspace(-1, 1, 64 + offset))


@pytest.mark.filterwarnings("ignore:Sparse")
def test_of_a_sparse_tensor_the_stored_values_are_measured_those_of_one_place_added_up() -> None:
    twice = torch.sparse_coo_tensor(torch.tensor([[0, 2, 2]]), torch.tensor([1.0, 2.0, 3.0]), (4,))
    stats = summarize(twice)
    assert (stats.numel, stats.amax, stats.sum) == (2, 5.0, 6.0)
    assert check(torch.eye(3).to_sparse()).numel == 3
    assert summarize(torch.eye(3).to_sparse_csr()).numel == 3


def test_measuring_leaves_the_tensor_the_graph_and_the_generators_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    leaf = torch.randn(5, requires_grad=True)
    torch.set_rng_state(before)
    tensor = leaf * 2
    version, node = tensor._version, tensor.grad_fn
    summarize(tensor)
    assert (tensor._version, tensor.grad_fn) == (version, node)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [10, 10_000, 100_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_after_a_look_inside_of_inference_mode_there_is_another_outside(dtype: torch.dtype, size: int) -> None:
    tensor = torch.ones(size, dtype=dtype)

    def looks() -> list[float]:
        with torch.inference_mode():
            inside = summarize(tensor).sum
        return [inside, summarize(tensor).sum]

    # what a thread keeps for its looks is made in its first one
    with ThreadPoolExecutor(1) as another:
        assert another.submit(looks).result() == [size, size]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_threads_and_the_edges_of_their_pieces_change_no_count(dtype: torch.dtype, threads: int) -> None:
    draw = torch.Generator().manual_seed(0)
    tensor = torch.randn((3 << 18) + 1, generator=draw).to(dtype)
    at = torch.randperm(tensor.numel(), generator=draw)[: len(hostile(dtype)) - 1]
    tensor[at], tensor[-1] = hostile(dtype)[1:], math.inf
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(tensor)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("size", [10, 5_000])
def test_a_subclass_that_numpy_does_not_read_is_measured(size: int) -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    assert summarize(TwoTensor(torch.ones(size), torch.ones(size))).sum == size


def test_autocast_does_not_change_what_is_measured() -> None:
    tensor = hostile(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert summarize(tensor) == summarize(tensor)
        check(tensor)


def test_what_cannot_be_measured_is_known_beforehand() -> None:
    nested = torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged)
    for tensor in (torch.ones(2, device="meta"), torch.ones(2).to_mkldnn(), nested):
        assert not is_measurable(tensor)
        with pytest.raises(TypeError, match="cannot measure"):
            summarize(tensor)


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="torch before 2.8")
def test_packed_four_bit_numbers_are_not_measured() -> None:
    assert not is_measurable(torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2))


def test_plain_values_are_strided_and_real() -> None:
    assert plain_values(torch.ones(2, dtype=torch.complex64)).shape == (2, 2)
    assert plain_values(torch.eye(3).to_sparse()).layout is torch.strided


def test_a_queue_returns_each_tensor_under_its_own_ticket_and_is_empty_after_it() -> None:
    queue = StatsQueue()
    tensors = [torch.ones(3), torch.zeros(2, dtype=torch.float64), torch.ones(2, device="meta"), torch.tensor([7])]
    tickets = [queue.add(t, histogram=i != 0) for i, t in enumerate(tensors)]
    assert len(queue) == 3
    stats = queue.collect()
    assert [None if t is None or (s := stats[t]) is None else s.sum for t in tickets] == [3.0, 0.0, None, 7.0]
    assert (len(queue), len(queue.collect())) == (0, 0)


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 5000), st.booleans()), max_size=12))
@settings(max_examples=60, deadline=None)
def test_tensors_of_several_kinds_in_turn_are_told_what_each_alone_is_told(
    asked: list[tuple[torch.dtype, int, bool]],
) -> None:
    queue = StatsQueue()
    tensors = [torch.arange(size).to(dtype) for dtype, size, _ in asked]
    singly = [queue.add(t, histogram=histogram) for t, (*_, histogram) in zip(tensors, asked, strict=True)]
    together = queue.add_all(tensors)
    stats = queue.collect()
    for tensor, (*_, histogram), one, other in zip(tensors, asked, singly, together, strict=True):
        assert one is not None
        assert (stats[one], stats[other]) == (summarize(tensor, histogram=histogram), summarize(tensor))


@pytest.mark.cuda
def test_a_queue_takes_tensors_of_several_devices() -> None:
    queue = StatsQueue()
    for device in ("cpu", "cuda"):
        queue.add(hostile(torch.float16).to(device))
    first, second = queue.collect()
    assert dataclasses.replace(first, sum=0.0, sum_of_squares=0.0) == dataclasses.replace(
        second, sum=0.0, sum_of_squares=0.0
    )


@pytest.mark.parametrize("size", [(1 << 20) + 1, (1 << 20) + 64 * 1024, (1 << 21) + 77])
def test_above_a_size_exponents_are_of_one_tile_in_64_and_all_else_of_every_element(size: int) -> None:
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(size))
    tensor[size - 2], tensor[5000], tensor[70_000] = 2.0**20, 0.0, math.nan
    stats = summarize(tensor)
    places = [group * 64 + (group * 39) % 64 for group in range(size // 1024 // 64 + 1)]
    tiles = [tensor[place * 1024 :][:1024] for place in places if (place + 1) * 1024 <= size]
    magnitudes = torch.cat(tiles).double().abs().numpy()
    magnitudes = magnitudes[np.isfinite(magnitudes) & (magnitudes > 0)]
    expected = 64 * np.bincount((np.floor(np.log2(magnitudes)) + 200).astype(int))
    assert stats.exponents is not None
    for extreme in (stats.amax, stats.amin):  # counted once where no tile holds one of its size
        index = int(np.floor(np.log2(extreme))) + 200
        expected = np.pad(expected, (0, max(0, index + 1 - len(expected))))
        expected[index] = max(expected[index], 1)
    assert list(stats.exponents.counts) == list(expected[expected.nonzero()[0][0] :])
    zeros = int((tensor == 0).sum())
    assert (stats.numel, stats.nan, stats.zero, stats.amax) == (size, 1, zeros, 2.0**20)
    wide = tensor[tensor.isfinite()].double()
    assert stats.sum_of_squares == pytest.approx(float((wide * wide).sum()), rel=FP32)


@pytest.mark.parametrize("shape", [(512, 4096), (4096, 1024), (1024, 2048), (2049, 1536)])
def test_a_sample_meets_every_column_and_every_row_of_a_head(shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    for small in (
        (slice(None), slice(1024, None)),
        (slice(1, None, 64), slice(None)),
        (slice(0, None, 2), slice(None)),
    ):
        tensor = torch.randn(shape, generator=draw)
        tensor[small] *= 2.0**-40
        whole = measured_exactly(tensor)
        sampled = summarize(tensor).exponents
        assert sampled is not None
        assert sampled.total == pytest.approx(tensor.numel(), rel=0.05)
        assert sampled.fraction_below(-25) == pytest.approx(whole.fraction_below(-25), abs=0.06)


def measured_exactly(tensor: torch.Tensor) -> ExponentHistogram:
    exponents = torch.frexp(tensor[tensor != 0])[1].long() - 1
    low = int(exponents.min())
    return ExponentHistogram(low, tuple(torch.bincount(exponents - low).tolist()))


def test_weights_as_they_are_loaded_are_counted_whole() -> None:
    tensor = torch.randn(1 << 21, generator=torch.Generator().manual_seed(1))
    tensor[1234567] = 2.0**60
    queue = StatsQueue()
    queue.add_all([tensor], exact=True)
    (stats,) = queue.collect()
    assert stats is not None
    assert stats.exponents == measured_exactly(tensor)


@pytest.mark.parametrize("spread", [1e-1, 1e-3, 1e-5])
def test_the_spread_of_numbers_far_from_zero_keeps_its_digits(spread: float) -> None:
    tensor = 1.0 + spread * torch.randn(300_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = float(np.std(tensor.float().double().numpy()))
    assert summarize(tensor.float()).std == pytest.approx(expected, rel=1e-4)

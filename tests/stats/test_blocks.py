"""What row and block scales leave, against a loop that scales each block and casts it with ml_dtypes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from nanhunt.formats.catalogue import lookup
from nanhunt.formats.number_format import BlockFormat
from nanhunt.stats import blocks
from nanhunt.stats.blocks import LOOKS, SEEN, measure_blocks

E4M3, E5M2, E2M1 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float4_e2m1fn
CASTS = {"e4m3fn": E4M3, "e5m2": E5M2, "mxfp8_e4m3": E4M3, "mxfp4": E2M1, "nvfp4": E2M1}


def normal(*shape: int, spread: float = 1.0, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g) * torch.exp2(spread * torch.randn(*shape, generator=g))


def broken() -> Tensor:
    x = normal(5, 150, spread=4)
    x[0, 3], x[1, 7], x[2, 9], x[3, :40] = math.nan, math.inf, -math.inf, -0.0
    x[4] = math.nan
    return x


CASES: dict[str, Callable[[], Tensor]] = {
    "normal": lambda: normal(130, 300, spread=3),
    "ties in bf16": lambda: normal(64, 256, spread=6).bfloat16(),
    "ties in fp16": lambda: normal(64, 256, spread=3).half(),
    "fp8": lambda: normal(8, 64).to(torch.float8_e5m2),
    "fp64 far out": lambda: normal(9, 70, spread=3).double() * 2.0**-300,
    "fp32 subnormals": lambda: normal(40, 40, spread=2) * 2.0**-128 * 2.0**-8,
    "NaN, inf and -0": broken,
    "all NaN": lambda: torch.full((3, 40), math.nan),
    "all zero": lambda: torch.zeros(3, 40),
    "one element": lambda: torch.tensor([1.75]),
    "no dimension": lambda: torch.tensor(-3.0),
    "empty": lambda: torch.zeros(0, 5),
    "1-D": lambda: normal(333, spread=8),
    "one column": lambda: normal(200, 1, spread=5),
    "4-D": lambda: normal(3, 4, 5, 37, spread=5),
    "transposed": lambda: normal(70, 300, spread=5).t(),
    "strided": lambda: normal(40, 600, spread=5)[::3, ::2],
    "powers of two": lambda: torch.exp2(torch.arange(-40.0, 41.0)).repeat(3, 1),
    "at the ends": lambda: torch.tensor([[1.75, 1.5, 1.7501, 1.5001, 2.0, 0.1, 1e-3, 1e-6] * 20]),
}


def blocks_of(matrix: np.ndarray, height: int, width: int) -> Iterator[np.ndarray]:
    for r in range(0, matrix.shape[0], height):
        for c in range(0, matrix.shape[1], width):
            yield matrix[r : r + height, c : c + width].ravel()


def naive_scale(block: np.ndarray, fmt: str, amax: float) -> float:
    """Return what the elements of a block are multiplied by; tried, not derived."""
    peak = block.max()
    if fmt == "nvfp4":
        unit = float(np.float32(amax / 2688))
        if not unit:
            return 0.0
        scale = float(np.float64(min(peak / 6 / unit, 448.0)).astype(E4M3)) * unit
        return 1 / scale if scale else 0.0
    end = float(ml_dtypes.finfo(CASTS[fmt]).max)
    exponent = math.frexp(end)[1] - math.frexp(peak)[1] + 1
    while math.ldexp(peak, exponent) > end:
        exponent -= 1
    return math.ldexp(1.0, exponent)


def naive(tensor: Tensor, is_parameter: bool) -> list[float]:
    x = tensor.double().numpy()
    if not x.size:
        return [0.0] * (len(SEEN) + 3 * len(LOOKS))
    if x.ndim < 2:
        matrix = x.reshape(1, -1)
    else:
        matrix = x.reshape(x.shape[0], -1) if is_parameter else x.reshape(-1, x.shape[-1])
    matrix = np.abs(np.where(np.isfinite(matrix), matrix, 0.0))
    there = matrix[matrix > 0]
    told = [float(matrix.size), float(there.size), float(np.sum(there**2))]
    for per, name in LOOKS:
        fmt = lookup(name)
        element = fmt.element if isinstance(fmt, BlockFormat) else fmt
        height = 128 if per == "block" and is_parameter else 1
        width = {"row": max(matrix.shape[1], 1), "block": 128}.get(per) or int(per)
        flushed = subnormal = 0
        energy = 0.0
        for block in blocks_of(matrix, height, width):
            some = block[block > 0]
            if some.size == 0:
                continue
            scaled = some * naive_scale(some, name, matrix.max())
            zero = scaled.astype(CASTS[name]).astype(np.float64) == 0
            flushed += int(zero.sum())
            subnormal += int(((scaled < element.smallest_normal) & ~zero).sum())
            energy += float(np.sum(some[zero] ** 2))
        told += [flushed, subnormal, energy]
    return told


def measured(tensor: Tensor, is_parameter: bool) -> list[float]:
    wide = tensor.double().abs()
    finite = torch.where(torch.isfinite(wide), wide, 0.0)
    amax = finite.max() if finite.numel() else torch.zeros((), dtype=torch.float64)
    return measure_blocks(tensor, amax=amax, is_parameter=is_parameter).tolist()


@pytest.mark.parametrize("is_parameter", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_counts_are_those_of_scaling_and_casting_every_block(
    case: str, is_parameter: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_MOST", 1 << 18)  # all of them
    tensor = CASES[case]()
    told, expected = measured(tensor, is_parameter), naive(tensor, is_parameter)
    energies = {2, *range(5, len(told), 3)}
    assert [n for i, n in enumerate(told) if i not in energies] == [
        n for i, n in enumerate(expected) if i not in energies
    ]
    assert told == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("top", [1.5, 1.75])
def test_no_scale_takes_a_peak_beyond_the_end_and_twice_of_it_would(top: float) -> None:
    peaks = torch.tensor([1.0, 1.5, 1.5001, 1.75, 1.7501, 1.999, 3e-30, 7e20], dtype=torch.float64)
    scaled = peaks * blocks._power_of_two(peaks, top)
    assert bool((scaled <= top).all())
    assert bool((2 * scaled > top).all())


def test_a_large_tensor_is_sampled_in_whole_blocks_and_always_the_same_ones() -> None:
    for shape in [(1500, 700), (1500, 5000), (70_000,)]:
        weight = normal(*shape, spread=3)
        told = measured(weight, True)
        assert told == measured(weight, True)
        assert told[0] % 128 == 0
        assert 1 << 13 <= told[0] <= 1 << 15
        assert measured(weight, False)[0] <= 1 << 15


def test_what_a_sample_tells_is_near_what_the_whole_tensor_tells() -> None:
    weight = normal(700, 400)
    told, whole = measured(weight, True), naive(weight, True)
    for at in range(3, len(told), 3):
        assert told[at] / told[1] == pytest.approx(whole[at] / whole[1], rel=0.1, abs=1e-3)


def test_a_rows_scale_is_that_of_the_whole_row_where_columns_are_left_out() -> None:
    x = torch.ones(1, 200_000)
    x[0, 200] = 2.0**40  # a column that is not looked at
    told = dict(zip([*SEEN, *(f"{a} {b} {c}" for a, b in LOOKS for c in "fse")], measured(x, False), strict=True))
    assert told["seen"] < 200_000
    assert told["row e4m3fn f"] == told["of"] == told["seen"]
    assert told["32 mxfp8_e4m3 f"] == 0


def test_the_tensor_is_left_as_it_was() -> None:
    x = broken().requires_grad_()
    before = x.detach().clone()
    measured(x, True)
    assert torch.equal(torch.nan_to_num(x), torch.nan_to_num(before))
    assert x.grad is None

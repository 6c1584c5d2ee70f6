"""Rounding is ml_dtypes' to the bit, TF32's that of whole numbers; lots fall on the two neighbours, and are fair."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from nanhunt.formats.catalogue import BF16, FP16, lookup
from nanhunt.formats.number_format import NumberFormat, fate
from nanhunt.recipes.rounding import rounded, rounded_by_lot, rounded_to_tf32

#: formats without an infinity: finite values beyond the end become the end, where ml_dtypes makes NaN of E4M3's
SATURATING = {
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e2m1fn": ml_dtypes.float4_e2m1fn,
    "e2m3fn": ml_dtypes.float6_e2m3fn,
    "e3m2fn": ml_dtypes.float6_e3m2fn,
}
WITH_INFINITY = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16}
EVERY = {**SATURATING, **WITH_INFINITY}


def number_format(name: str) -> NumberFormat:
    fmt = lookup(name)
    assert isinstance(fmt, NumberFormat)
    return fmt


def every_bf16() -> Tensor:
    return (torch.arange(1 << 16, dtype=torch.int32) << 16).view(torch.float32)


def random_bits(count: int = 3_000_000) -> Tensor:
    """All exponents, NaN and infinities among them, and as many values near 1, where narrow formats have theirs."""
    draw = torch.Generator().manual_seed(1)
    bits = torch.randint(-(2**31), 2**31 - 1, (count,), generator=draw, dtype=torch.int64).to(torch.int32)
    near = torch.randn(count, generator=draw) * torch.exp2(torch.randint(-20, 18, (count,), generator=draw).float())
    return torch.cat([bits.view(torch.float32), near])


def ties_of(fmt: NumberFormat) -> Tensor:
    """Middles between neighbours, the fp32 values on both sides of them, the ends, and zeros."""
    first = [math.ldexp(k + 0.5, fmt.emin - fmt.precision + 1) for k in range(2 * 2**fmt.precision)]
    steps = range(max(fmt.emin, -60), min(fmt.emax, 60) + 1)
    middles = first + [
        math.ldexp(1 + (k + 0.5) / 2 ** (fmt.precision - 1), e) for e in steps for k in range(2 ** (fmt.precision - 1))
    ]
    ends = [fmt.max, fmt.overflow_threshold, fmt.smallest / 2, fmt.smallest, fmt.smallest_normal, 0.0]
    at = torch.tensor(middles + ends, dtype=torch.float64).float()
    up, down = torch.nextafter(at, torch.tensor(torch.inf)), torch.nextafter(at, torch.tensor(0.0))
    some = torch.cat([at, up, down])
    return torch.cat([some, -some])


def by_ml_dtypes(values: Tensor, name: str) -> np.ndarray:
    """Cast by ml_dtypes; where the format saturates, its end stands for what is beyond, and NaN for no number."""
    x, fmt = values.numpy(), number_format(name)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = x.astype(EVERY[name]).astype(np.float32)
    if name in SATURATING:
        cast = np.where(np.isfinite(x) & (np.abs(x) > fmt.max), np.copysign(np.float32(fmt.max), x), cast)
        cast = np.where(np.isfinite(x), cast, np.float32(np.nan))
    return cast


def assert_same_bits(got: Tensor, expected: np.ndarray) -> None:
    a, b = got.numpy(), expected.astype(np.float32)
    assert a.shape == b.shape
    nan = np.isnan(b)
    assert np.array_equal(np.isnan(a), nan)
    assert np.array_equal(np.where(nan, 0, a).view(np.uint32), np.where(nan, np.float32(0), b).view(np.uint32))


@pytest.mark.parametrize("name", EVERY)
def test_every_bf16_pattern_millions_of_fp32_patterns_and_all_ties_round_as_in_ml_dtypes(name: str) -> None:
    fmt = number_format(name)
    for values in (every_bf16(), random_bits(), ties_of(fmt)):
        assert_same_bits(rounded(values, fmt), by_ml_dtypes(values, name))


@pytest.mark.parametrize("name", EVERY)
def test_a_value_of_the_format_stays_with_its_sign(name: str) -> None:
    fmt = number_format(name)
    own = torch.tensor([v for v in map(fmt.decode, range(2**fmt.bits)) if math.isfinite(v)])
    assert_same_bits(rounded(own, fmt), own.numpy())
    assert_same_bits(rounded(rounded(random_bits(1000), fmt), fmt), rounded(random_bits(1000), fmt).numpy())


@pytest.mark.parametrize("name", SATURATING)
def test_no_finite_value_leaves_the_format_and_no_other_comes_back_finite(name: str) -> None:
    fmt = number_format(name)
    far = torch.tensor([fmt.max * 1.01, fmt.max * 4, 3e38, -3e38])
    assert rounded(far, fmt).tolist() == [fmt.max, fmt.max, fmt.max, -fmt.max]
    assert rounded(torch.tensor([torch.inf, -torch.inf, torch.nan]), fmt).isnan().all()
    for value in (fmt.max * 1.01, fmt.smallest / 3, 1.1):  # the table of the report tells the same
        assert fate(fmt, value, saturating=True).rounded == rounded(torch.tensor([value]).float(), fmt).item()


def tf32_by_whole_numbers(bits: int) -> int:
    """Round the low 13 bits of a finite fp32 pattern away, to nearest, ties to even."""
    magnitude, sign = bits & 0x7FFFFFFF, bits & 0x80000000
    quotient, rest = divmod(magnitude, 1 << 13)
    quotient += rest > 1 << 12 or (rest == 1 << 12 and quotient % 2 == 1)
    return sign | (quotient << 13)


def test_tf32_rounds_as_whole_numbers_do_subnormals_and_ends_too() -> None:
    some = torch.cat([
        random_bits(20_000), ties_of(number_format("tf32"))[:40_000],
        torch.tensor([1e-45, -1e-45, 1.1754942e-38, 3.4028235e38, -3.4028235e38, 0.0, -0.0, 2.0**-137]),
    ])  # fmt: skip
    finite = some[some.isfinite()]
    got = rounded_to_tf32(finite).view(torch.int32).tolist()
    patterns = [b & 0xFFFFFFFF for b in finite.view(torch.int32).tolist()]
    assert [b & 0xFFFFFFFF for b in got] == [tf32_by_whole_numbers(b) for b in patterns]
    ends = torch.tensor([torch.inf, -torch.inf, torch.nan])
    assert rounded_to_tf32(ends).tolist()[:2] == [math.inf, -math.inf]
    assert rounded_to_tf32(ends)[2].isnan()
    assert torch.equal(rounded(finite, number_format("tf32")), rounded_to_tf32(finite))


@pytest.mark.parametrize("name", [*EVERY, "tf32"])
def test_shape_and_strides_change_no_value(name: str) -> None:
    fmt, draw = number_format(name), torch.Generator()
    whole = torch.randn(6, 10, 4, generator=draw.manual_seed(2))
    for part in (
        whole.transpose(0, 2),
        whole[:, ::3],
        whole[..., 1],
        whole[2, 3, 1],
        whole[:0],
        whole[0, 0, :1].expand(5),
    ):
        flat = rounded(part.contiguous().reshape(-1), fmt)
        assert torch.equal(rounded(part, fmt).reshape(-1), flat)
        if name != "tf32":
            lots = rounded_by_lot(part, fmt, draw.manual_seed(3))
            assert lots.shape == part.shape
            assert torch.equal(lots, rounded_by_lot(part.contiguous(), fmt, draw.manual_seed(3)))


# --- by lot -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_a_lot_falls_on_one_of_the_two_neighbours(name: str) -> None:
    fmt, draw = number_format(name), torch.Generator().manual_seed(4)
    x = torch.cat([random_bits(200_000), ties_of(fmt)])
    x = x[x.isfinite() & (x.abs() < fmt.max)]
    own = sorted({v for v in map(fmt.decode, range(2**fmt.bits)) if math.isfinite(v)})
    values = np.array(own)
    below = values[np.searchsorted(values, x.double().numpy(), side="right") - 1]
    above = values[np.searchsorted(values, x.double().numpy(), side="left")]
    got = rounded_by_lot(x, fmt, draw).double().numpy()
    assert ((got == below) | (got == above)).all()
    assert (got == below).any()
    assert (got == above).any()


@pytest.mark.parametrize("name", EVERY)
def test_a_value_of_the_format_stays_whatever_the_lot(name: str) -> None:
    fmt, draw = number_format(name), torch.Generator().manual_seed(5)
    own = torch.tensor([v for v in map(fmt.decode, range(2**fmt.bits)) if math.isfinite(v)])
    many = own.repeat(1 + 6_000_000 // len(own))  # a sum with the draw would move one in a million
    assert torch.equal(rounded_by_lot(many, fmt, draw), many)


@pytest.mark.parametrize("name", EVERY)
def test_lots_are_unbiased_in_the_mean(name: str) -> None:
    fmt, draw, count = number_format(name), torch.Generator().manual_seed(6), 100_000
    for share in (0.03, 0.25, 0.5, 0.9):
        for base, ulp in (
            (fmt.smallest_normal, fmt.smallest),
            (0.0, fmt.smallest),
            (1.0, fmt.eps),
            (-2.0, 2 * fmt.eps),
        ):
            x = math.copysign(1.0, base) * (abs(base) + share * ulp)
            error = float(rounded_by_lot(torch.full((count,), x), fmt, draw).double().mean()) - float(np.float32(x))
            assert abs(error) < 6 * ulp * math.sqrt(share * (1 - share) / count), (share, base)


@pytest.mark.parametrize("name", EVERY)
def test_lots_end_where_rounding_to_nearest_ends(name: str) -> None:
    fmt, draw = number_format(name), torch.Generator().manual_seed(7)
    for x in (torch.tensor([torch.nan, torch.inf, -torch.inf]), torch.tensor([3.4e38, -3.4e38])):
        if name != "bf16" or not x.isfinite().all():  # 3.4e38 lies between bf16's largest and infinity: either is right
            assert_same_bits(rounded_by_lot(x, fmt, draw), rounded(x, fmt).numpy())


def test_a_generator_in_the_same_state_draws_the_same_lots() -> None:
    for fmt in (BF16, FP16, number_format("e2m1fn")):
        x, draw = torch.randn(1000), torch.Generator().manual_seed(8)
        before = draw.get_state()
        first, second = rounded_by_lot(x, fmt, draw), rounded_by_lot(x, fmt, draw)
        draw.set_state(before)
        assert not torch.equal(first, second)
        assert torch.equal(first, rounded_by_lot(x, fmt, draw))

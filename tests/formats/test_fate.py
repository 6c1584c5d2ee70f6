"""A value's fate against the casts of torch and ml_dtypes, bit by bit."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanhunt.formats.catalogue import FORMATS, lookup
from nanhunt.formats.number_format import BlockFormat, NumberFormat, fate

TORCH = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "e4m3fn": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "e4m3fnuz": torch.float8_e4m3fnuz,
    "e5m2fnuz": torch.float8_e5m2fnuz,
}

ML_DTYPES = {
    "bf16": ml_dtypes.bfloat16,
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e8m0fnu": ml_dtypes.float8_e8m0fnu,
    "e2m3fn": ml_dtypes.float6_e2m3fn,
    "e3m2fn": ml_dtypes.float6_e3m2fn,
    "e2m1fn": ml_dtypes.float4_e2m1fn,
}

# Overflow, flushing and NaN are what these tests cast.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

NUMBERS = [f for f in FORMATS if isinstance(f, NumberFormat)]
BLOCKS = [f for f in FORMATS if isinstance(f, BlockFormat)]

SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 2.0**-149, -(2.0**-149), 2.0**-127, 1.5 * 2.0**-128]


def random_fp32() -> np.ndarray:
    """Random bit patterns, hence every exponent, and values crowded about 1."""
    rng = np.random.default_rng(7)
    patterns = rng.integers(0, 2**32, 6000, dtype=np.uint32).view(np.float32)
    ordinary = (rng.standard_normal(6000) * 2.0 ** rng.integers(-20, 18, 6000)).astype(np.float32)
    return np.concatenate([patterns, ordinary]).astype(np.float64)


def around_the_codes(fmt: NumberFormat) -> np.ndarray:
    """Each finite value of a format, each midpoint between neighbours, and a step of fp32 to either side of those."""
    bits = min(fmt.bits, 16)
    codes = range(2**bits) if bits <= 8 else range(0, 2**bits, 37)
    values = [v for v in map(fmt.decode, codes) if math.isfinite(v)]
    exact = np.array([w for v in values for w in (v, v + math.copysign(fmt.ulp(v), v) / 2)], dtype=np.float32)
    up, down = np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(-np.inf))
    return np.concatenate([exact, up, down]).astype(np.float64)


def inputs(fmt: NumberFormat) -> np.ndarray:
    wide = np.array([]) if fmt.name == "fp32" else around_the_codes(fmt)
    ends = [fmt.max, fmt.overflow_threshold, fmt.smallest_normal, fmt.smallest, fmt.smallest / 2]
    around = [np.nextafter(np.float32(e), np.float32(s)) for e in ends for s in (-np.inf, np.inf)]
    both_signs = [s * float(v) for v in [*ends, *around] for s in (1, -1)]
    return np.concatenate([wide, random_fp32(), SPECIAL, both_signs]).astype(np.float32).astype(np.float64)


def assert_same(ours: list[float], theirs: np.ndarray, given_values: np.ndarray) -> None:
    mine = np.array(ours)
    same = (mine == theirs) & (np.signbit(mine) == np.signbit(theirs)) | (np.isnan(mine) & np.isnan(theirs))
    assert same.all(), [(v, a, b) for v, a, b, ok in zip(given_values, mine, theirs, same, strict=True) if not ok][:5]


@pytest.mark.parametrize("name", TORCH)
def test_rounding_is_torchs(name: str) -> None:
    fmt = lookup(name)
    assert isinstance(fmt, NumberFormat)
    values = inputs(fmt)
    # From float64 for fp32, else from float32: torch casts a double to fp8 through a float, which rounds twice.
    source = torch.from_numpy(values if name == "fp32" else values.astype(np.float32))
    theirs = source.to(TORCH[name]).double().numpy()
    torch_saturates = name == "e4m3fn" and math.isfinite(torch.tensor(1e9).to(TORCH[name]).item())
    assert_same([fate(fmt, v, saturating=torch_saturates).rounded for v in values.tolist()], theirs, values)


@pytest.mark.parametrize("name", ["e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz"])
def test_every_fp16_value_rounds_to_fp8_as_torch_rounds_it(name: str) -> None:
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    cast = torch.from_numpy(values).to(TORCH[name])
    torch_saturates = name == "e4m3fn" and math.isfinite(torch.tensor(1e9).to(TORCH[name]).item())
    ours = [fate(lookup(name), v, saturating=torch_saturates).rounded for v in values.astype(np.float64).tolist()]
    assert_same(ours, cast.double().numpy(), values)


@pytest.mark.parametrize("name", ML_DTYPES)
def test_rounding_is_that_of_ml_dtypes(name: str) -> None:
    fmt = lookup(name)
    assert isinstance(fmt, NumberFormat)
    values = inputs(fmt)
    if fmt.nan_codes == 0:
        # A NaN's sign bit reaches the stored zero in some versions of ml_dtypes; that is tested on its own below.
        values = values[~np.isnan(values)]
    if name == "e8m0fnu":
        # ml_dtypes and torch round every fp32 subnormal above 2^-127 up to 2^-126, 1.01 x 2^-127 too: not to nearest.
        values = values[(values <= 2.0**-127) | (values >= 1.5 * 2.0**-127)]
    theirs = values.astype(np.float32).astype(ML_DTYPES[name]).astype(np.float64)
    assert_same([fate(fmt, v).rounded for v in values.tolist()], theirs, values)


def test_doubles_round_to_fp32_and_fp16_as_numpy_rounds_them() -> None:
    rng = np.random.default_rng(3)
    values = rng.standard_normal(4000) * 2.0 ** rng.integers(-160, 135, 4000)
    with np.errstate(over="ignore"):
        for name, dtype in (("fp32", np.float32), ("fp16", np.float16)):
            assert_same(
                [fate(lookup(name), v).rounded for v in values.tolist()],
                values.astype(dtype).astype(np.float64),
                values,
            )


@pytest.mark.parametrize("fmt", NUMBERS, ids=lambda f: f.name)
def test_every_value_of_a_format_is_its_own_fate(fmt: NumberFormat) -> None:
    step = max(1, 2**fmt.bits // 5000)
    for value in map(fmt.decode, range(0, 2**fmt.bits, step)):
        told = fate(fmt, value)
        assert told.rounded == value or (math.isnan(value) and told.kind == "nan")
        assert told.absolute_error == told.relative_error == 0
        assert told.kind in ("exact", "subnormal", "nan")


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(NUMBERS))
def test_a_finite_rounded_value_is_within_half_an_ulp(value: float, fmt: NumberFormat) -> None:
    told = fate(fmt, value)
    if told.kind in ("exact", "rounded", "subnormal", "flushed") and (fmt.has_zero or value >= fmt.smallest):
        assert told.absolute_error <= fmt.ulp(value) / 2
        assert fate(fmt, told.rounded).rounded == told.rounded


@given(st.floats(allow_nan=False), st.sampled_from([f for f in NUMBERS if f.signed]))
def test_fate_is_odd_in_the_value(value: float, fmt: NumberFormat) -> None:
    plus, minus = fate(fmt, value), fate(fmt, -value)
    assert plus.kind == minus.kind
    assert plus.rounded == -minus.rounded or math.isnan(plus.rounded)


@pytest.mark.parametrize(
    ("name", "value", "kind", "rounded"),
    [
        ("fp16", 65519.99, "rounded", 65504.0),
        ("fp16", 65520.0, "overflow", math.inf),
        ("fp16", -65520.0, "overflow", -math.inf),
        ("fp16", 2.0**-25, "flushed", 0.0),
        ("fp16", 1.01 * 2.0**-25, "subnormal", 2.0**-24),
        ("fp16", 2.0**-24, "subnormal", 2.0**-24),
        ("fp16", math.inf, "exact", math.inf),
        ("e4m3fn", 464.0, "rounded", 448.0),
        ("e4m3fn", 464.1, "nan", math.nan),
        ("e4m3fn", -math.inf, "nan", math.nan),
        ("e4m3fnuz", 248.0, "nan", math.nan),
        ("e4m3fnuz", -0.0, "exact", 0.0),
        ("e4m3fnuz", -1e-9, "flushed", 0.0),
        ("e5m2", 61440.0, "overflow", math.inf),
        ("e2m1fn", 100.0, "saturated", 6.0),
        ("e2m1fn", -math.inf, "saturated", -6.0),
        ("e2m1fn", math.nan, "flushed", -0.0),
        ("e8m0fnu", 3.0, "rounded", 4.0),
        ("e8m0fnu", 0.0, "nan", math.nan),
        ("e8m0fnu", -1.0, "nan", math.nan),
        ("e8m0fnu", 5e-324, "rounded", 2.0**-127),
        ("fp64", 5e-324, "subnormal", 5e-324),
        ("fp64", 1.7976931348623157e308, "exact", 1.7976931348623157e308),
        ("tf32", 1 + 2.0**-11, "rounded", 1.0),
        ("tf32", 1 + 3 * 2.0**-11, "rounded", 1 + 2.0**-9),
    ],
)
def test_the_kind_of_fate_at_the_ends(name: str, value: float, kind: str, rounded: float) -> None:
    told = fate(lookup(name), value)
    assert told.kind == kind
    assert told.rounded == rounded or (math.isnan(told.rounded) and math.isnan(rounded))
    assert math.copysign(1, told.rounded) == math.copysign(1, rounded)


def test_a_saturating_cast_stops_at_the_largest_and_so_do_infinities() -> None:
    assert fate(lookup("e4m3fn"), 1e9, saturating=True).rounded == 448
    assert fate(lookup("e5m2"), -math.inf, saturating=True).rounded == -57344
    assert fate(lookup("e4m3fn"), math.nan, saturating=True).kind == "nan"


def test_errors_of_a_lost_value_are_not_numbers() -> None:
    overflow = fate(lookup("fp16"), 1e6)
    assert overflow.absolute_error == overflow.relative_error == math.inf
    assert math.isnan(fate(lookup("e4m3fn"), 1e6).relative_error)
    assert fate(lookup("fp16"), 1e-9).relative_error == 1.0
    assert fate(lookup("bf16"), 1.01).relative_error == pytest.approx((1.01 - 1.0078125) / 1.01)


def test_a_note_tells_that_casts_differ_beyond_the_largest_only() -> None:
    assert "448" in fate(lookup("e4m3fn"), 500.0).note
    assert fate(lookup("e4m3fn"), 400.0).note == ""
    assert fate(lookup("e4m3fn"), math.nan).note == ""
    assert "NaN as -0" in fate(lookup("e2m1fn"), math.nan).note


def mx_block_maximum(fmt: BlockFormat, value: float) -> float:
    """The OCP rule, by ml_dtypes: a power-of-two scale rounded down, elements clamped to their largest."""
    scale = np.exp2(np.clip(np.floor(np.log2(abs(value))) - fmt.element.emax, -127, 127))
    clamped = np.clip(np.float32(value / scale), -fmt.element.max, fmt.element.max)
    return float(clamped.astype(ML_DTYPES[fmt.element.name]).astype(np.float64) * scale)


@pytest.mark.parametrize("fmt", [f for f in BLOCKS if f.tensor_scale is None], ids=lambda f: f.name)
def test_the_maximum_of_an_mx_block_follows_the_ocp_rule(fmt: BlockFormat) -> None:
    rng = np.random.default_rng(11)
    values = (rng.standard_normal(500) * 2.0 ** rng.integers(-140, 120, 500)).astype(np.float32).tolist()
    for value in values:
        if value:
            assert fate(fmt, value).rounded == mx_block_maximum(fmt, value)


def test_an_mxfp4_block_maximum_saturates_by_up_to_a_quarter() -> None:
    told = fate(lookup("mxfp4"), 7.99)
    assert (told.rounded, told.kind) == (6.0, "saturated")
    assert "largest magnitude of its block" in told.note


@given(st.floats(min_value=2.0**-100, max_value=2.0**127))
def test_the_maximum_of_an_nvfp4_tensor_survives_to_the_precision_of_its_fp32_scale(value: float) -> None:
    told = fate(lookup("nvfp4"), value)
    assert told.kind in ("exact", "rounded")
    assert told.relative_error <= 2.0**-24


@pytest.mark.parametrize("fmt", BLOCKS, ids=lambda f: f.name)
def test_a_nonfinite_element_spoils_its_block(fmt: BlockFormat) -> None:
    for value in (math.inf, -math.inf, math.nan):
        told = fate(fmt, value)
        assert told.kind == "nan"
        assert "every element" in told.note
    assert fate(fmt, 0.0).kind == "exact"


def test_nvfp4_scale_ends_are_those_of_fp32() -> None:
    assert fate(lookup("nvfp4"), 1e300).kind == "overflow"
    assert fate(lookup("nvfp4"), 1e-60).kind == "flushed"
    assert fate(lookup("mxfp8"), 1e300).kind == "saturated"
    assert fate(lookup("mxfp8"), 1e-60).kind == "flushed"

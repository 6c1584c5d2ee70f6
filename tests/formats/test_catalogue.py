"""The catalogue's constants against torch.finfo, ml_dtypes.finfo and every code of every format that has an oracle."""

from __future__ import annotations

import math
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch

from nanhunt.errors import UsageError
from nanhunt.formats import catalogue
from nanhunt.formats.catalogue import FORMATS, lookup
from nanhunt.formats.number_format import BlockFormat, NumberFormat

NUMBERS = [f for f in FORMATS if isinstance(f, NumberFormat)]
BLOCKS = [f for f in FORMATS if isinstance(f, BlockFormat)]

TORCH = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "e4m3fn": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "e4m3fnuz": torch.float8_e4m3fnuz,
    "e5m2fnuz": torch.float8_e5m2fnuz,
}

# torch has it from 2.7 on.
E8M0 = [torch.float8_e8m0fnu] if hasattr(torch, "float8_e8m0fnu") else []

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


def all_values(name: str) -> np.ndarray:
    """Every code of a format of at most 16 bits, decoded by its oracle, as float64."""
    bits = lookup(name).bits
    codes = np.arange(2**bits, dtype=np.uint16 if bits > 8 else np.uint8)
    with np.errstate(invalid="ignore"):
        return codes.view(np.float16 if name == "fp16" else ML_DTYPES[name]).astype(np.float64)


SMALL = ["fp16", *ML_DTYPES]


@pytest.mark.parametrize("name", SMALL)
def test_every_code_decodes_as_the_oracle_does(name: str) -> None:
    fmt = lookup(name)
    assert isinstance(fmt, NumberFormat)
    ours = np.array([fmt.decode(code) for code in range(2**fmt.bits)])
    theirs = all_values(name)
    np.testing.assert_array_equal(ours, theirs)
    signs = ~np.isnan(theirs)
    np.testing.assert_array_equal(np.signbit(ours[signs]), np.signbit(theirs[signs]))


@pytest.mark.parametrize("name", SMALL)
def test_facts_follow_from_enumerating_all_codes(name: str) -> None:
    fmt = lookup(name)
    assert isinstance(fmt, NumberFormat)
    values = all_values(name)
    finite = values[np.isfinite(values)]
    assert fmt.max == finite.max()
    assert fmt.smallest == finite[finite > 0].min()
    assert fmt.nan_codes == np.isnan(values).sum()
    assert fmt.has_infinity == bool(np.isinf(values).any())
    assert fmt.has_zero == bool((values == 0).any())
    assert fmt.has_negative_zero == bool(((values == 0) & np.signbit(values)).any())
    assert fmt.signed == bool((finite < 0).any())
    above_one = finite[finite > 1].min()
    assert fmt.eps == above_one - 1


@pytest.mark.parametrize("name", TORCH)
def test_facts_agree_with_torch_finfo(name: str) -> None:
    fmt, info = lookup(name), torch.finfo(TORCH[name])
    assert fmt.bits == info.bits
    assert fmt.max == info.max
    assert fmt.smallest_normal == info.tiny == info.smallest_normal
    # torch says 0.125 for e5m2fnuz; the enumeration above says 0.25.
    assert fmt.eps == (0.25 if name == "e5m2fnuz" else info.eps)


@pytest.mark.parametrize("name", ML_DTYPES)
def test_facts_agree_with_ml_dtypes_finfo(name: str) -> None:
    fmt, info = lookup(name), ml_dtypes.finfo(ML_DTYPES[name])  # type: ignore[no-untyped-call]
    assert isinstance(fmt, NumberFormat)
    assert fmt.bits == info.bits
    assert fmt.max == float(info.max)
    assert fmt.smallest_normal == float(info.smallest_normal)
    assert fmt.smallest == float(info.smallest_subnormal)
    assert fmt.eps == float(info.eps)
    assert fmt.precision == info.nmant + 1
    assert fmt.exponent_bits == info.iexp or name == "e8m0fnu"


@pytest.mark.parametrize("name", ["fp64", "fp32", "fp16"])
def test_facts_agree_with_numpy_finfo(name: str) -> None:
    fmt, info = lookup(name), np.finfo(lookup(name).aliases[0])
    assert (fmt.max, fmt.smallest_normal, fmt.smallest_subnormal, fmt.eps) == (
        float(info.max),
        float(info.smallest_normal),
        float(info.smallest_subnormal),
        float(info.eps),
    )


def test_tf32_has_the_exponents_of_fp32_and_the_precision_of_fp16() -> None:
    assert catalogue.TF32.smallest_normal == catalogue.FP32.smallest_normal
    assert catalogue.TF32.eps == catalogue.FP16.eps
    assert catalogue.TF32.max == 3.4011621342146535e38
    assert catalogue.TF32.compute_only


@pytest.mark.parametrize("fmt", NUMBERS, ids=lambda f: f.name)
def test_layouts_fill_their_bits(fmt: NumberFormat) -> None:
    assert fmt.signed + fmt.exponent_bits + fmt.precision - 1 == fmt.bits


@pytest.mark.parametrize(
    ("name", "threshold"),
    [("fp16", 65520.0), ("e4m3fn", 464.0), ("e5m2", 61440.0), ("e4m3fnuz", 248.0), ("e5m2fnuz", 61440.0)],
)
def test_overflow_begins_half_an_ulp_above_the_largest(name: str, threshold: float) -> None:
    fmt = lookup(name)
    assert isinstance(fmt, NumberFormat)
    assert fmt.overflow_threshold == threshold
    assert not fmt.overflows(math.nextafter(threshold, 0))
    assert fmt.overflows(-math.nextafter(threshold, math.inf))
    # The tie goes to the even code: 448 is even, the largest of the others is odd.
    assert fmt.overflows(threshold) == (name != "e4m3fn")


@pytest.mark.parametrize(
    ("name", "limit"), [("fp16", 11.0899), ("bf16", 88.7189), ("fp32", 88.7228), ("fp64", 709.7827)]
)
def test_exp_limit_is_where_exp_leaves_the_format(name: str, limit: float) -> None:
    fmt = lookup(name)
    assert isinstance(fmt, NumberFormat)
    assert fmt.exp_limit == pytest.approx(limit, abs=5e-5)
    x = torch.tensor([fmt.exp_limit * (1 - 1e-6), fmt.exp_limit * 1.001], dtype=torch.float64)
    assert torch.isfinite(x.exp().to(TORCH[name])).tolist() == [True, False]


def test_block_formats_have_the_ranges_of_their_definitions() -> None:
    assert catalogue.MXFP8_E4M3.block_range == pytest.approx(17.8, abs=0.05)
    assert catalogue.MXFP8_E5M2.block_range == pytest.approx(31.8, abs=0.05)
    assert catalogue.MXFP4.block_range == pytest.approx(3.6, abs=0.05)
    assert catalogue.NVFP4.tensor_reach == 2688
    assert [f.bits for f in BLOCKS] == [8.25, 8.25, 6.25, 6.25, 4.25, 4.5]


def test_every_constant_is_listed_once_and_no_name_is_taken_twice() -> None:
    constants = [value for value in vars(catalogue).values() if isinstance(value, NumberFormat | BlockFormat)]
    assert sorted(f.name for f in constants) == sorted(f.name for f in FORMATS)
    spellings = [spelling for f in FORMATS for spelling in (f.name, *f.aliases)]
    assert len(catalogue._BY_NAME) == len(spellings) == len(set(spellings))


@pytest.mark.parametrize("dtype", [*TORCH.values(), *E8M0])
def test_lookup_takes_the_names_that_torch_prints(dtype: torch.dtype) -> None:
    fmt = lookup(str(dtype))
    assert fmt.bits == torch.finfo(dtype).bits
    assert lookup(str(dtype).removeprefix("torch.")) is fmt


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("BF16", "bf16"),
        ("torch.half", "fp16"),
        ("float", "fp32"),
        ("double", "fp64"),
        ("fp8", "e4m3fn"),
        ("E4M3", "e4m3fn"),
        ("FP8-E5M2", "e5m2"),
        ("TensorFloat-32", "tf32"),
        (" mxfp8 ", "mxfp8_e4m3"),
        ("NVFP4", "nvfp4"),
        ("fp4", "e2m1fn"),
        ("e8m0", "e8m0fnu"),
    ],
)
def test_lookup_takes_the_names_that_people_use(spelling: str, name: str) -> None:
    assert lookup(spelling).name == name


def test_an_unknown_name_is_answered_with_the_nearest_and_the_list() -> None:
    with pytest.raises(UsageError, match=r"bloat16.*bfloat16") as caught:
        lookup("bloat16")
    assert caught.value.hint is not None
    assert all(f.name in caught.value.hint for f in FORMATS)
    with pytest.raises(UsageError, match=r"unknown number format 'qqq'$"):
        lookup("qqq")
    with pytest.raises(UsageError):
        lookup("")


def test_formats_import_the_standard_library_only() -> None:
    program = (
        "import sys; before = set(sys.modules)\n"
        "import nanhunt.formats.catalogue, nanhunt.formats.headroom, nanhunt.formats.description\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "['nanhunt']"

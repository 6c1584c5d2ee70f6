"""The catalogue of number formats: one constant each, FORMATS in order, lookup by any name that people use.

Layouts follow IEEE 754 (fp64, fp32, fp16), the OCP 8-bit specification (E4M3FN, E5M2), the OCP microscaling
specification (E8M0, FP6, FP4, MX) and ml_dtypes' names. A suffix tells what was given up: `fn` has no infinity,
`fnuz` has neither infinity nor -0, `fnu` is unsigned and has no infinity.
"""

from __future__ import annotations

import difflib

from nanhunt.errors import UsageError
from nanhunt.formats.number_format import AnyFormat, BlockFormat, NumberFormat

__all__ = [
    "BF16",
    "E2M1FN",
    "E2M3FN",
    "E3M2FN",
    "E4M3FN",
    "E4M3FNUZ",
    "E5M2",
    "E5M2FNUZ",
    "E8M0FNU",
    "FORMATS",
    "FP16",
    "FP32",
    "FP64",
    "MXFP4",
    "MXFP6_E2M3",
    "MXFP6_E3M2",
    "MXFP8_E4M3",
    "MXFP8_E5M2",
    "NVFP4",
    "TF32",
    "lookup",
]

FP64 = NumberFormat(
    name="fp64",
    title="IEEE double precision",
    bits=64,
    exponent_bits=11,
    precision=53,
    bias=1023,
    has_infinity=True,
    nan_codes=2**53 - 2,
    aliases=("float64", "double", "f64"),
    casts="torch and numpy give inf for finite values beyond the largest",
)

FP32 = NumberFormat(
    name="fp32",
    title="IEEE single precision",
    bits=32,
    exponent_bits=8,
    precision=24,
    bias=127,
    has_infinity=True,
    nan_codes=2**24 - 2,
    aliases=("float32", "float", "single", "f32"),
    casts="torch and numpy give inf for finite values beyond the largest",
)

TF32 = NumberFormat(
    name="tf32",
    title="TensorFloat-32: fp32's range with fp16's precision, inside matrix units",
    bits=19,
    exponent_bits=8,
    precision=11,
    bias=127,
    has_infinity=True,
    nan_codes=2046,
    aliases=("tensorfloat32",),
    compute_only=True,
    casts="no torch dtype: matrix units round fp32 operands to it; they may flush its subnormals",
)

FP16 = NumberFormat(
    name="fp16",
    title="IEEE half precision",
    bits=16,
    exponent_bits=5,
    precision=11,
    bias=15,
    has_infinity=True,
    nan_codes=2046,
    aliases=("float16", "half", "f16"),
    casts="torch and numpy give inf for finite values beyond the largest",
)

BF16 = NumberFormat(
    name="bf16",
    title="bfloat16: fp32's range in 16 bits",
    bits=16,
    exponent_bits=8,
    precision=8,
    bias=127,
    has_infinity=True,
    nan_codes=254,
    aliases=("bfloat16", "bfloat", "brainfloat16"),
    casts="torch and ml_dtypes give inf for finite values beyond the largest",
)

E4M3FN = NumberFormat(
    name="e4m3fn",
    title="FP8 for weights and activations: one more bit of precision, no infinity",
    bits=8,
    exponent_bits=4,
    precision=4,
    bias=7,
    has_infinity=False,
    nan_codes=2,
    aliases=("float8_e4m3fn", "e4m3", "fp8", "float8", "fp8_e4m3", "fp8_e4m3fn"),
    casts=(
        "torch casts saturate at 448 from 2.12 on, infinities too, and gave NaN before; ml_dtypes gives NaN; "
        "OCP allows both"
    ),
)

E5M2 = NumberFormat(
    name="e5m2",
    title="FP8 for gradients: fp16's exponent, two bits of fraction",
    bits=8,
    exponent_bits=5,
    precision=3,
    bias=15,
    has_infinity=True,
    nan_codes=6,
    aliases=("float8_e5m2", "fp8_e5m2", "bf8"),
    casts="torch and ml_dtypes give inf; OCP allows a saturating cast as well, which gives 57344",
)

E4M3FNUZ = NumberFormat(
    name="e4m3fnuz",
    title="FP8 of earlier AMD hardware: E4M3 with bias 8, no infinity, no -0",
    bits=8,
    exponent_bits=4,
    precision=4,
    bias=8,
    has_infinity=False,
    nan_codes=1,
    has_negative_zero=False,
    aliases=("float8_e4m3fnuz", "fp8_e4m3fnuz"),
    casts="torch and ml_dtypes give NaN for what is beyond the largest, infinities too",
)

E5M2FNUZ = NumberFormat(
    name="e5m2fnuz",
    title="FP8 of earlier AMD hardware: E5M2 with bias 16, no infinity, no -0",
    bits=8,
    exponent_bits=5,
    precision=3,
    bias=16,
    has_infinity=False,
    nan_codes=1,
    has_negative_zero=False,
    aliases=("float8_e5m2fnuz", "fp8_e5m2fnuz"),
    casts="torch and ml_dtypes give NaN for what is beyond the largest, infinities too",
)

E8M0FNU = NumberFormat(
    name="e8m0fnu",
    title="block scale: a power of two, no sign, no zero",
    bits=8,
    exponent_bits=8,
    precision=1,
    bias=127,
    signed=False,
    has_infinity=False,
    nan_codes=1,
    has_negative_zero=False,
    has_zero=False,
    has_subnormals=False,
    aliases=("float8_e8m0fnu", "e8m0", "ue8m0"),
    casts="ml_dtypes gives NaN for zeros and negatives; torch drops the sign and takes 0 to 2^-127",
)

E2M3FN = NumberFormat(
    name="e2m3fn",
    title="FP6 with more precision",
    bits=6,
    exponent_bits=2,
    precision=4,
    bias=1,
    has_infinity=False,
    nan_codes=0,
    saturates=True,
    aliases=("float6_e2m3fn", "e2m3", "fp6_e2m3"),
    casts="no torch dtype; ml_dtypes saturates, infinities too, and stores NaN as -0",
)

E3M2FN = NumberFormat(
    name="e3m2fn",
    title="FP6 with more range",
    bits=6,
    exponent_bits=3,
    precision=3,
    bias=3,
    has_infinity=False,
    nan_codes=0,
    saturates=True,
    aliases=("float6_e3m2fn", "e3m2", "fp6", "float6", "fp6_e3m2"),
    casts="no torch dtype; ml_dtypes saturates, infinities too, and stores NaN as -0",
)

E2M1FN = NumberFormat(
    name="e2m1fn",
    title="FP4: 0, 0.5, 1, 1.5, 2, 3, 4, 6 with either sign",
    bits=4,
    exponent_bits=2,
    precision=2,
    bias=1,
    has_infinity=False,
    nan_codes=0,
    saturates=True,
    aliases=("float4_e2m1fn", "float4_e2m1fn_x2", "e2m1", "fp4", "float4", "fp4_e2m1"),
    casts="torch has a packed dtype and no cast to it; ml_dtypes saturates, infinities too, and stores NaN as -0",
)

_MX_CASTS = "elements saturate within their block; an inf or NaN makes the scale NaN, and with it the whole block"

MXFP8_E4M3 = BlockFormat(
    name="mxfp8_e4m3",
    title="MXFP8 with E4M3 elements",
    element=E4M3FN,
    scale=E8M0FNU,
    block_size=32,
    aliases=("mxfp8",),
    casts=_MX_CASTS,
)

MXFP8_E5M2 = BlockFormat(
    name="mxfp8_e5m2",
    title="MXFP8 with E5M2 elements",
    element=E5M2,
    scale=E8M0FNU,
    block_size=32,
    casts=_MX_CASTS,
)

MXFP6_E2M3 = BlockFormat(
    name="mxfp6_e2m3",
    title="MXFP6 with E2M3 elements",
    element=E2M3FN,
    scale=E8M0FNU,
    block_size=32,
    casts=_MX_CASTS,
)

MXFP6_E3M2 = BlockFormat(
    name="mxfp6_e3m2",
    title="MXFP6 with E3M2 elements",
    element=E3M2FN,
    scale=E8M0FNU,
    block_size=32,
    # The wider of the two, as plain "fp6" is: gradients want range first.
    aliases=("mxfp6",),
    casts=_MX_CASTS,
)

MXFP4 = BlockFormat(
    name="mxfp4",
    title="MXFP4",
    element=E2M1FN,
    scale=E8M0FNU,
    block_size=32,
    aliases=("mxfp4_e2m1",),
    casts=_MX_CASTS,
)

NVFP4 = BlockFormat(
    name="nvfp4",
    title="NVFP4: FP4 with an E4M3 scale a block and an fp32 scale a tensor",
    element=E2M1FN,
    scale=E4M3FN,
    block_size=16,
    tensor_scale=FP32,
    casts="elements saturate within their block; an inf or NaN reaches the tensor scale, and with it every element",
)

#: every format, widest first, block formats last
FORMATS: tuple[AnyFormat, ...] = (
    FP64,
    FP32,
    TF32,
    FP16,
    BF16,
    E4M3FN,
    E5M2,
    E4M3FNUZ,
    E5M2FNUZ,
    E8M0FNU,
    E2M3FN,
    E3M2FN,
    E2M1FN,
    MXFP8_E4M3,
    MXFP8_E5M2,
    MXFP6_E2M3,
    MXFP6_E3M2,
    MXFP4,
    NVFP4,
)


def lookup(name: str) -> AnyFormat:
    """Return the format called `name`: its own name or any alias, in any case, `torch.` before it or not.

    Raises UsageError with the nearest name for one that is not known.
    """
    found = _BY_NAME.get(_normalised(name))
    if found is not None:
        return found
    spellings = {_normalised(spelling): spelling for fmt in FORMATS for spelling in (fmt.name, *fmt.aliases)}
    near = difflib.get_close_matches(_normalised(name), spellings, n=1)
    nearest = f"; did you mean {spellings[near[0]]}?" if near else ""
    raise UsageError(f"unknown number format {name!r}{nearest}", hint="known: " + ", ".join(f.name for f in FORMATS))


def _normalised(name: str) -> str:
    """Return a name without its module, its separators and its case: "torch.Float8_E4M3FN" -> "float8e4m3fn"."""
    return name.strip().casefold().rpartition(".")[2].replace("_", "").replace("-", "").replace(" ", "")


_BY_NAME = {_normalised(spelling): fmt for fmt in FORMATS for spelling in (fmt.name, *fmt.aliases)}

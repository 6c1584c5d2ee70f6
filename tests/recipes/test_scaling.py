"""Quantized operands are those of a slow program made of numpy and ml_dtypes, at every granularity and rule of scales."""

from __future__ import annotations

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from nanhunt.formats.catalogue import lookup
from nanhunt.formats.number_format import NumberFormat, fate
from nanhunt.recipes.hadamard import mixed
from nanhunt.recipes.recipe import Operand
from nanhunt.recipes.scaling import LOSSES, losses, quantize

DTYPES = {
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e2m1fn": ml_dtypes.float4_e2m1fn,
}
ENDS = {"e4m3fn": 448.0, "e5m2": 57344.0, "e2m1fn": 6.0}
TOPS = {"e4m3fn": 8, "e5m2": 15, "e2m1fn": 2}  # exponents of the ends
OPERANDS = {
    "tensor-e4m3": Operand(format="e4m3fn"),
    "tensor-e5m2": Operand(format="e5m2"),
    "line": Operand(format="e4m3fn", block=(1, 128)),
    "tile": Operand(format="e4m3fn", block=(128, 128)),
    "mxfp8-up": Operand(format="e4m3fn", block=(1, 32), scale="up"),
    "mxfp8-floor": Operand(format="e4m3fn", block=(1, 32), scale="floor"),
    "mxfp4-floor": Operand(format="e2m1fn", block=(1, 32), scale="floor"),
    "mxfp4-up": Operand(format="e2m1fn", block=(1, 32), scale="up"),
    "nvfp4": Operand(format="e2m1fn", block=(1, 16), scale="nvfp4"),
    "nvfp4-square": Operand(format="e2m1fn", block=(16, 16), scale="nvfp4"),
}
f32 = np.float32


def cast(x: np.ndarray, name: str) -> np.ndarray:
    """Cast as a saturating unit does; NaN of what is not finite."""
    end = f32(ENDS[name])
    with np.errstate(invalid="ignore"):
        held = np.clip(x, -end, end).astype(DTYPES[name]).astype(f32)
    return np.where(np.isfinite(x), held, f32(np.nan))


def slow(x: np.ndarray, operand: Operand) -> np.ndarray:
    """Return the values that an operand becomes, block by block."""
    out = np.empty_like(x)
    whole = np.abs(x).max() if x.size else f32(0)
    if operand.block == "tensor":
        return one_block(x, operand, whole)
    down, across = operand.block
    for lead in itertools.product(*map(range, x.shape[:-2])):
        for i in range(0, x.shape[-2], down):
            for j in range(0, x.shape[-1], across):
                at = (*lead, slice(i, i + down), slice(j, j + across))
                out[at] = one_block(x[at], operand, whole)
    return out


def one_block(x: np.ndarray, operand: Operand, whole: np.floating) -> np.ndarray:
    name, end = operand.format, f32(ENDS[operand.format])
    amax = np.abs(x).max()
    with np.errstate(all="ignore"):
        if operand.scale == "fp32":
            scale = f32(1)
            if np.isfinite(amax) and amax > 0:
                scale = min(f32(end / amax), np.finfo(f32).max)
            return cast(x * scale, name) * (f32(1) / scale)
        if operand.scale == "nvfp4":
            if not np.isfinite(whole):
                return np.full_like(x, np.nan)
            tensor = f32(whole / f32(448 * 6)) or f32(1)
            block = f32(cast(np.array(f32(f32(amax / end) / tensor)), "e4m3fn") * tensor)
            return cast(x / block, name) * block if block else np.zeros_like(x)
        if not np.isfinite(amax):
            return np.full_like(x, np.nan)
        if amax == 0:
            return np.zeros_like(x)
        power = math.floor(math.log2(float(amax))) - TOPS[name]  # fp64 is exact enough: amax is an fp32 number
        if operand.scale == "up":
            power = math.ceil(math.log2(float(amax) / ENDS[name]))
        power = min(max(power, -127), 127)
        return (cast((x.astype(np.float64) / 2.0**power).astype(f32), name) * np.float64(2.0**power)).astype(f32)


def operands() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    spread = normal(37, 301) * torch.exp2(torch.randint(-30, 30, (37, 301), generator=draw).float())
    outlier, holes, nan, inf = normal(40, 160), normal(40, 160), normal(40, 160), normal(40, 160)
    outlier[3, 5] = 3e6
    holes[:, 32:64], holes[7] = 0.0, 0.0
    nan[4, 40], inf[9, 150] = torch.nan, -torch.inf
    return {
        "normal": normal(64, 256), "odd": normal(3, 17), "three": normal(2, 5, 70), "one": normal(1, 1),
        "four": normal(2, 2, 3, 33), "spread": spread, "outlier": outlier, "holes": holes, "zeros": torch.zeros(5, 40),
        "tiny": normal(20, 40) * 1e-38, "subnormal": normal(20, 40) * 1e-43, "huge": normal(20, 40).clamp(-3, 3) * 1e38,
        "nan": nan, "inf": inf, "bf16": normal(33, 65).bfloat16(), "strided": normal(65, 33).t(),
        "powers": torch.exp2(torch.arange(-60, 60).float()).repeat(3, 2),
    }  # fmt: skip


def assert_equal_with_nan(got: Tensor, expected: np.ndarray) -> None:
    a, nan = got.numpy(), np.isnan(expected)
    assert np.array_equal(np.isnan(a), nan)
    assert np.array_equal(a[~nan], expected[~nan])


@pytest.mark.parametrize("kind", OPERANDS)
def test_an_operand_becomes_what_a_slow_program_makes_of_it(kind: str) -> None:
    for name, tensor in operands().items():
        made = quantize(tensor, OPERANDS[kind])
        assert made.values.shape == tensor.shape, name
        assert made.values.dtype is torch.float32
        try:
            assert_equal_with_nan(made.values, slow(tensor.float().numpy(), OPERANDS[kind]))
        except AssertionError as error:
            raise AssertionError(name) from error


@pytest.mark.parametrize("kind", OPERANDS)
def test_nothing_is_left_of_nothing(kind: str) -> None:
    for shape in ((0, 40), (40, 0), (2, 0, 40), (0, 3, 4), (0, 0)):
        made = quantize(torch.zeros(shape), OPERANDS[kind])
        assert made.values.shape == shape
        assert losses(torch.zeros(shape), made, element(kind)).tolist() == [0.0] * len(LOSSES)


@pytest.mark.parametrize("kind", OPERANDS)
def test_one_nan_spoils_itself_or_all_that_share_its_scale_and_no_more(kind: str) -> None:
    x, operand = operands()["nan"], OPERANDS[kind]
    spoilt = quantize(x, operand).values.isnan()
    assert spoilt[4, 40]
    if operand.scale == "fp32":
        assert int(spoilt.sum()) == 1
    elif operand.scale == "nvfp4":  # the tensor's scale is every element's
        assert spoilt.all()
    else:
        assert int(spoilt.sum()) == 32
        assert spoilt[4, 32:64].all()


@pytest.mark.parametrize("kind", [k for k, o in OPERANDS.items() if o.scale == "up"])
def test_a_scale_that_is_rounded_up_cuts_no_element_off(kind: str) -> None:
    for name in ("normal", "spread", "outlier", "powers"):
        x = operands()[name]
        assert float(losses(x, quantize(x, OPERANDS[kind]), element(kind))[1]) == 0.0


def test_a_scale_that_is_rounded_down_cuts_off_what_the_standard_does() -> None:
    x = torch.randn(4000, 32, generator=torch.Generator().manual_seed(3))
    for kind, share in (("mxfp8-floor", 0.193), ("mxfp4-floor", 0.415)):  # of blocks whose amax is log-uniform
        at = torch.exp2(torch.rand(4000, generator=torch.Generator().manual_seed(4)))  # in [1, 2)
        even = x / x.abs().amax(dim=1, keepdim=True) * at[:, None]
        cut = losses(even[:, :], quantize(even, OPERANDS[kind]), element(kind))[1]
        end = ENDS[OPERANDS[kind].format]
        step = 32.0 if "8" in kind else 2.0
        top = 2.0 ** TOPS[OPERANDS[kind].format]
        beyond = even.double().abs() > (end + step / 2) / top
        assert float(cut) == pytest.approx(float(beyond.sum()) / even.numel(), abs=1e-12)
        above = float((at > end / top).double().mean())
        assert above == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(("kind", "block"), [
    ("mxfp8-floor", "mxfp8_e4m3"), ("mxfp4-floor", "mxfp4"), ("nvfp4", "nvfp4"),
])  # fmt: skip
def test_the_largest_of_a_block_fares_as_the_table_of_formats_says(kind: str, block: str) -> None:
    fmt, operand = lookup(block), OPERANDS[kind]
    draw = torch.Generator().manual_seed(5)
    for value in torch.randn(200, generator=draw) * torch.exp2(torch.randint(-40, 40, (200,), generator=draw).float()):
        x = torch.zeros(1, 16)
        x[0, 3], x[0, 4] = value, value / 3
        got, told = float(quantize(x, operand).values[0, 3]), fate(fmt, float(value)).rounded
        if kind == "nvfp4":  # there in fp64, here in the fp32 of the hardware
            assert got == pytest.approx(told, rel=1e-6)
        else:
            assert got == told


def test_a_scale_for_another_amax_cuts_off_or_flushes() -> None:
    x = torch.tensor([[1.0, 0.5, 2.0**-10, 4.0]])
    small = quantize(x, Operand(format="e4m3fn"), amax=torch.tensor(1.0))
    assert small.values.tolist() == [[1.0, 0.5, 0.0009765625, 1.0]]
    large = quantize(x, Operand(format="e4m3fn"), amax=torch.tensor(2.0**20))
    assert large.values[0, 2] == 0
    zero, endless = (quantize(x, Operand(format="e4m3fn"), amax=torch.tensor(a)) for a in (0.0, torch.inf))
    assert zero.values.tolist() == endless.values.tolist() == [[1.0, 0.5, 0.0, 4.0]]  # the scale 1


def element(kind: str) -> NumberFormat:
    fmt = lookup(OPERANDS[kind].format)
    assert isinstance(fmt, NumberFormat)
    return fmt


@pytest.mark.parametrize("kind", OPERANDS)
def test_losses_are_those_of_their_formulas_in_float64(kind: str) -> None:
    fmt = element(kind)
    half = {"e4m3fn": 16.0, "e5m2": 4096.0, "e2m1fn": 1.0}[OPERANDS[kind].format]
    for name, tensor in operands().items():
        made = quantize(tensor, OPERANDS[kind])
        x, values = tensor.double().numpy(), made.values.double().numpy()
        inverse = np.broadcast_to(made.inverse.double().numpy(), x.shape)
        x, values = np.where(np.isfinite(x), x, 0), np.where(np.isfinite(values), values, 0)
        there = max((x != 0).sum(), 1)
        flushed = ((x != 0) & (values == 0)).sum() / there
        with np.errstate(invalid="ignore"):
            # a block whose scale became zero is flushed
            saturated = ((np.abs(x) > inverse * (fmt.max + half)) & (inverse > 0)).sum() / there
        norms, gone = np.sqrt((x * x).sum(-1)), np.sqrt(((values - x) ** 2).sum(-1))
        error = math.sqrt((gone**2).sum()) / max(math.sqrt((norms**2).sum()), torch.finfo(torch.float32).tiny)
        rows = ((gone > 0.5 * norms) & (norms > 0)).sum() / max((norms > 0).sum(), 1)
        got = losses(tensor, made, fmt)
        assert got.dtype is torch.float64
        assert got.tolist() == pytest.approx([flushed, saturated, error, rows], rel=1e-9, abs=1e-12), name


def test_a_draw_is_used_by_operands_that_ask_for_lots_only() -> None:
    x, draw = torch.randn(8, 64), torch.Generator().manual_seed(1)
    before = draw.get_state()
    plain = quantize(x, OPERANDS["mxfp4-floor"], generator=draw)
    assert torch.equal(draw.get_state(), before)
    lots = quantize(x, Operand(format="e2m1fn", block=(1, 32), scale="floor", stochastic=True), generator=draw)
    assert not torch.equal(lots.values, plain.values)
    assert torch.equal(lots.inverse, plain.inverse)


# --- the random Hadamard transform ------------------------------------------------------------------------------------


def test_the_transform_is_orthonormal_and_keeps_products() -> None:
    matrix = mixed(torch.eye(16)).double()
    assert torch.allclose(matrix @ matrix.T, torch.eye(16, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(matrix.abs(), torch.full_like(matrix, 0.25))
    for columns in (16, 48, 37, 1):
        draw = torch.Generator().manual_seed(columns)
        a, b = torch.randn(2, 5, columns, generator=draw), torch.randn(2, 7, columns, generator=draw)
        got = mixed(a).double() @ mixed(b).double().transpose(-2, -1)
        assert torch.allclose(got, a.double() @ b.double().transpose(-2, -1), atol=1e-5)
    assert torch.equal(mixed(torch.eye(16)), mixed(torch.eye(16)))


def test_the_transform_spreads_an_outlier_over_its_group_alone() -> None:
    x = torch.zeros(1, 32)
    x[0, 20] = 16.0
    assert mixed(x).abs().tolist() == [[0.0] * 16 + [4.0] * 16]
    assert mixed(torch.zeros(3, 0)).shape == (3, 0)

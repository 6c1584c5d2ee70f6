"""On a CPU, products of fp32 tensors take operands in TF32, forward and backward, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanhunt.recipes.catalogue import lookup
from nanhunt.recipes.emulator import Emulator
from tests.recipes.emulated import CPU, assert_near, seeded


def by_integers(x: Tensor) -> Tensor:
    """Round to 10 bits of mantissa, to nearest, ties to even, in whole numbers of fp64."""
    _, exponent = torch.frexp(x.double())
    ulp = torch.ldexp(torch.ones_like(x, dtype=torch.float64), exponent - 11)
    return torch.round(x.double() / ulp) * ulp


def under(forward: Callable[[], Tensor], gradient: Tensor | None = None) -> Tensor:
    with Emulator(lookup("tf32"), CPU).active({}, ()):
        out = forward()
        if gradient is not None:
            out.backward(gradient)  # type: ignore[no-untyped-call]
    return out.detach()


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_module_multiplies_operands_in_tf32_and_adds_in_fp32(bias: bool) -> None:
    layer, x, dy = nn.Linear(48, 40, bias=bias), seeded(7, 48, seed=1).requires_grad_(), seeded(7, 40, seed=2)
    if bias:
        layer.bias.data.fill_(1 + 2.0**-20)  # an addend keeps all of its bits
    out = under(lambda: layer(x), dy)
    a, w, g = (by_integers(t.detach()) for t in (x, layer.weight, dy))
    assert_near(out, a @ w.T + (layer.bias.detach().double() if bias else 0), rtol=1e-6)
    assert_near(x.grad, g @ w, rtol=1e-6)
    assert_near(layer.weight.grad, g.T @ a, rtol=1e-6)
    assert_near(layer(x), x.detach().double() @ layer.weight.detach().double().T + (
        layer.bias.detach().double() if bias else 0), rtol=1e-6)  # fmt: skip
    assert float((out - layer(x).detach()).abs().max()) > 1e-5


def test_operands_have_the_bits_of_tf32_whatever_the_script_allows() -> None:
    x, y = seeded(64, 256, seed=9), seeded(256, 64, seed=10)
    torch.set_float32_matmul_precision("medium")
    try:
        out = under(lambda: x @ y)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert_near(out, by_integers(x) @ by_integers(y), rtol=1e-6)


def test_convolutions_and_products_without_a_weight_are_in_tf32_too() -> None:
    layer, x = nn.Conv1d(4, 6, 3), seeded(2, 4, 10, seed=3)
    out = under(lambda: layer(x))
    a, w = by_integers(x), by_integers(layer.weight.detach())
    assert_near(out, F.conv1d(a, w, layer.bias.detach().double()), rtol=1e-6)
    q, k = seeded(3, 5, 8, seed=4), seeded(3, 5, 8, seed=5)
    assert_near(under(lambda: q @ k.transpose(1, 2)), by_integers(q) @ by_integers(k).transpose(1, 2), rtol=1e-6)
    c = seeded(3, 5, 5, seed=6)
    got = under(lambda: torch.baddbmm(c, q, k.transpose(1, 2), alpha=2.0))
    assert_near(got, c.double() + 2 * by_integers(q) @ by_integers(k).transpose(1, 2), rtol=1e-6)


def test_what_is_no_product_and_what_is_not_fp32_is_untouched_to_the_bit() -> None:
    x = seeded(50, 6, seed=7)
    prelu, norm = nn.PReLU(6), nn.LayerNorm(6)
    calls: list[Callable[[], Tensor]] = [
        lambda: prelu(x), lambda: norm(x), lambda: F.gelu(x), lambda: x * x, lambda: x.softmax(-1), lambda: x.sum(0),
        lambda: x.double() @ x.double().T, lambda: x.bfloat16() @ x.bfloat16().T,
    ]  # fmt: skip
    for call in calls:
        assert torch.equal(under(call), call().detach())


def test_under_autocast_the_narrow_format_is_what_counts() -> None:
    layer, x = nn.Linear(16, 16), seeded(4, 16, seed=8)

    def narrow() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(x)  # type: ignore[no-any-return]

    assert torch.equal(under(narrow), narrow().detach())

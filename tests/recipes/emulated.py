"""Run a function under a recipe, and compute by hand what its products must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nanhunt.recipes.catalogue import RECIPES
from nanhunt.recipes.emulator import Emulator
from nanhunt.recipes.hadamard import mixed
from nanhunt.recipes.recipe import Products, Recipe
from nanhunt.recipes.scaling import quantize

CPU = torch.device("cpu")
#: the recipes' products; gradients to nearest, so that a computation by hand needs no lots
PRODUCTS: dict[str, Products] = {
    r.name: replace(r.products, gradient=replace(r.products.gradient, stochastic=False))
    for r in RECIPES
    if r.products is not None and not r.products.delayed
}


def emulator_of(products: Products, **settings: object) -> Emulator:
    return Emulator(Recipe(name="test", title="", products=replace(products, **settings)), CPU)  # type: ignore[arg-type]


def under(
    products: Products, weights: Mapping[str, Tensor], forward: Callable[[], Tensor], gradient: Tensor | None = None
) -> tuple[Tensor, Emulator]:
    """Run forward and, with a gradient of its output, backward under these products; gradients of before are dropped."""
    emulator = emulator_of(products)
    with emulator.active(weights, ()):
        out = forward()
        if gradient is not None:
            out.backward(gradient)  # type: ignore[no-untyped-call]
    return out.detach(), emulator


def by_hand(products: Products, x: Tensor, w: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return out, dx and dW of x (…, tokens, K) with w (…, N, K), each product in fp64 of quantized operands."""

    def product(left: Tensor, a: str, right: Tensor, b: str, *, mix: bool = False) -> Tensor:
        given: Sequence[Tensor] = [mixed(t) if mix else t for t in (left, right)]
        values = [quantize(t, getattr(products, role)).values.double() for t, role in zip(given, (a, b), strict=True)]
        return values[0] @ values[1].transpose(-2, -1)

    t = lambda tensor: tensor.transpose(-2, -1)  # noqa: E731
    return (
        product(x, "input", w, "weight"),
        product(dy, "gradient", t(w), "weight"),
        product(t(dy), "gradient", t(x), "input", mix=products.hadamard),
    )


def assert_near(got: Tensor | None, expected: Tensor, *, rtol: float = 1e-5) -> None:
    """Equal up to the order of sums in fp32; rounding of operands would show a thousand times larger."""
    assert got is not None
    assert got.shape == expected.shape
    error = torch.linalg.vector_norm(got.detach().double() - expected) / torch.linalg.vector_norm(expected).clamp(
        min=1e-30
    )
    assert float(error) < rtol, float(error)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

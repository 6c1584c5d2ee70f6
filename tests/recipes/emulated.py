"""Run a function under a recipe, and compute by hand what its products must be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nanhunt.recipes.catalogue import RECIPES
from nanhunt.recipes.emulator import Emulator
from nanhunt.recipes.hadamard import mixed
from nanhunt.recipes.recipe import Products, Recipe
from nanhunt.recipes.scaling import quantize
from nanhunt.training.config_precision import PrecisionConfig
from nanhunt.training.recipe_choice import built_emulator, chosen_precision
from nanhunt.training.run import DTYPES, TrainingRun
from tests.conftest import tiny_run

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


def run_under(
    name: str,
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    data: Iterable[Any],
    *,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2),
    **settings: Any,
) -> TrainingRun:
    """Return a run under a recipe, put together in the order in which `assemble` does it; "" is no recipe."""
    choice = chosen_precision(PrecisionConfig(), name or None)
    if choice.recipe_params and not (choice.recipe and choice.recipe.wide_update):
        model.to(DTYPES[choice.recipe_params])
    made = optimizer(model)
    emulator = built_emulator(choice, model, CPU, is_custom=False, assumptions=[])
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if choice.scaler else None
    return tiny_run(
        model, loss, data, optimizer=made, emulator=emulator, recipe=choice.name, autocast=choice.autocast,
        scaler=scaler, **settings,
    )  # fmt: skip

"""The recipes by name, and lookup of one or several joined by `+`."""

from __future__ import annotations

import difflib
from dataclasses import replace

from nanhunt.errors import UsageError
from nanhunt.recipes.recipe import Operand, Products, Recipe, joined

__all__ = ["NARROW", "RECIPES", "by_lot", "lookup"]

#: What weights may be stored in without an fp32 copy.
NARROW = ("fp16", "bf16")

_E4M3 = Operand(format="e4m3fn")
_E5M2 = Operand(format="e5m2")
_HYBRID = Products(input=_E4M3, weight=_E4M3, gradient=_E5M2)
#: 1×128 of activations and gradients, 128×128 of weights (DeepSeek-V3 technical report, arXiv 2412.19437, section 3.3.2).
_LINE, _TILE = Operand(format="e4m3fn", block=(1, 128)), Operand(format="e4m3fn", block=(128, 128))
#: OCP's blocks with NVIDIA's rounding of scales, which never cuts an amax off ("Recipes for pre-training LLMs with MXFP8",
#: arXiv 2506.08027).
_MX8 = Operand(format="e4m3fn", block=(1, 32), scale="up")
_MX4 = Operand(format="e2m1fn", block=(1, 32), scale="floor")
#: "Pretraining large language models with NVFP4", arXiv 2509.25149: 16×16 weights, lots for gradients, Hadamard for dW.
_NV4 = Operand(format="e2m1fn", block=(1, 16), scale="nvfp4")

#: every recipe, plainest first
RECIPES: tuple[Recipe, ...] = (
    Recipe(name="fp32", title="no autocast, weights in fp32", autocast="none", params="fp32"),
    Recipe(name="tf32", title="operands of all products of fp32 tensors rounded to TF32", tf32=True),
    Recipe(
        name="fp16",
        title="autocast in fp16 over fp32 weights, the scaler as the config has it",
        autocast="fp16",
        params="fp32",
    ),
    Recipe(name="bf16", title="autocast in bf16 over fp32 weights", autocast="bf16", params="fp32"),
    Recipe(
        name="amp-fp16",
        title="autocast in fp16 over fp32 weights, with a GradScaler",
        autocast="fp16",
        params="fp32",
        scaler=True,
    ),
    Recipe(name="pure-fp16", title="weights, moments and all else in fp16", autocast="none", params="fp16"),
    Recipe(name="pure-bf16", title="weights, moments and all else in bf16", autocast="none", params="bf16"),
    Recipe(
        name="bf16-no-master",
        title="weights in bf16 with no fp32 copy, moments in fp32",
        autocast="none",
        params="bf16",
        wide_update=True,
    ),
    Recipe(name="fp8-hybrid", title="products in E4M3 forward, E5M2 backward, a scale a tensor", products=_HYBRID),
    Recipe(
        name="fp8-e4m3",
        title="products in E4M3 forward and backward, a scale a tensor",
        products=replace(_HYBRID, gradient=_E4M3),
    ),
    Recipe(
        name="fp8-delayed",
        title="fp8-hybrid with scales from the amax of earlier steps",
        products=replace(_HYBRID, delayed=True),
    ),
    Recipe(
        name="fp8-block",
        title="products in E4M3 throughout, a scale for 1×128 (weights: 128×128), as DeepSeek-V3",
        products=Products(input=_LINE, weight=_TILE, gradient=_LINE),
    ),
    Recipe(
        name="mxfp8",
        title="products in MXFP8: E4M3 throughout, a power of two for 32",
        products=Products(input=_MX8, weight=_MX8, gradient=_MX8),
    ),
    Recipe(
        name="mxfp4",
        title="products in MXFP4: E2M1 with a power of two for 32, gradients rounded by lot",
        products=Products(input=_MX4, weight=_MX4, gradient=replace(_MX4, stochastic=True)),
    ),
    Recipe(
        name="nvfp4",
        title="products in NVFP4: E2M1 with an E4M3 scale for 16 (weights: 16×16), gradients rounded by lot",
        products=Products(
            input=_NV4, weight=replace(_NV4, block=(16, 16)), gradient=replace(_NV4, stochastic=True), hadamard=True
        ),
    ),
    Recipe(name="states-bf16", title="moments stored in bf16", states="bf16"),
    Recipe(name="states-8bit", title="moments stored in 8 bits, a scale for 256", states="int8"),
    Recipe(name="stochastic", title="what an update writes is rounded up or down by lot", stochastic=True),
)


def lookup(name: str) -> Recipe:
    """Return the recipe of a name, or of several joined by `+`.

    Raises UsageError with the nearest name for one that is not known, and for two that set the same thing. Whether
    `stochastic` has anything to round hangs on the config's weights too (`by_lot`).
    """
    found: Recipe | None = None
    for part in name.split("+"):
        recipe = _one(part.strip())
        try:
            found = recipe if found is None else joined(found, recipe)
        except ValueError as error:
            raise UsageError(f"recipe {name!r}: {error}", hint="join recipes that set different things") from error
    assert found is not None
    return by_lot(found, found.params)


def by_lot(recipe: Recipe, params: str | None) -> Recipe:
    """Return a recipe whose lots round what it writes, with weights stored in `params`.

    torch writes into narrow weights to nearest: for lots the update is computed in fp32, and moments stay as narrow.
    """
    if not recipe.stochastic or recipe.wide_update or params not in NARROW:
        return recipe
    return replace(recipe, wide_update=True, states=recipe.states or ("bf16" if params == "bf16" else None))


def _one(name: str) -> Recipe:
    recipes = {recipe.name: recipe for recipe in RECIPES}
    if name in recipes:
        return recipes[name]
    near = difflib.get_close_matches(name, recipes, n=1)
    nearest = f"; did you mean {near[0]}?" if near else ""
    raise UsageError(f"unknown precision recipe {name!r}{nearest}", hint="known: " + ", ".join(recipes))

"""The run without its precision recipe, or with other scales in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from nanhunt.bench import Bench, Made, NotApplicableError
from nanhunt.interventions import OtherRecipe
from nanhunt.recipes.catalogue import lookup
from nanhunt.recipes.emulator import Emulator
from nanhunt.recipes.recipe import Products, Recipe
from nanhunt.training.recipe_choice import recipe_in_words

__all__ = ["other_recipe"]


@contextmanager
def other_recipe(bench: Bench, change: OtherRecipe) -> Iterator[Made]:
    """Leave products in their own precision, scale operands by their present amax, or by blocks."""
    emulator = bench.run.emulator
    if emulator is None or emulator.recipe.products is None:
        raise NotApplicableError("the run has no recipe that quantizes products")
    other = _changed(emulator, emulator.recipe.products, change)
    with emulator.instead(other):
        off = f"precision recipe {other.name}: products in their own precision"
        yield Made(readback=[off if other.products is None else recipe_in_words(other)])


def _changed(emulator: Emulator, products: Products, change: OtherRecipe) -> Recipe:
    recipe = emulator.recipe
    if change.to == "none":
        return replace(recipe, products=None, name=f"{recipe.name} off")
    if change.to == "present":
        if not products.delayed:
            raise NotApplicableError(f"{recipe.name} scales by the present amax already")
        return replace(recipe, products=replace(products, delayed=False), name=f"{recipe.name}, present amax")
    if products.input.block != "tensor":
        raise NotApplicableError(f"{recipe.name} scales by blocks already")
    blocks = lookup("fp8-block").products
    assert blocks is not None
    return replace(recipe, products=replace(blocks, skip=products.skip), name="fp8-block")

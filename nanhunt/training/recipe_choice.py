"""What a run is computed and stored in: the config's precision, or the recipe that the command line puts in its place."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from nanhunt.errors import ConfigError, UsageError
from nanhunt.formats.catalogue import lookup as lookup_format
from nanhunt.recipes.catalogue import NARROW, by_lot, lookup
from nanhunt.recipes.emulator import Emulator, is_meant
from nanhunt.recipes.recipe import Operand, Recipe
from nanhunt.training.config_precision import GradScalerConfig, PrecisionConfig
from nanhunt.training.run import DTYPES

__all__ = ["PrecisionChoice", "built_emulator", "chosen_precision", "recipe_in_words"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionChoice:
    """The formats of a run. `recipe` is there where more is asked for than autocast, a cast and a scaler."""

    #: "fp16", "bf16" or None
    autocast: str | None
    #: arguments of `torch.amp.GradScaler`, None without one
    scaler: dict[str, Any] | None
    #: what the config casts the model to, and what the recipe does
    params: str | None
    recipe_params: str | None = None
    recipe: Recipe | None = None
    #: the recipe's name, whatever it asks for; "" without one
    name: str = ""


def chosen_precision(config: PrecisionConfig, override: str | None) -> PrecisionChoice:
    """Return the formats of a run; what a recipe sets stands before the config's other keys.

    `override` is a recipe's name, in place of the config's; modules that the config's recipe skips are skipped still.
    Raises UsageError where `--precision` names no recipe.
    """
    autocast, scaler = config.autocast, config.scaler_arguments()
    recipe = _recipe(config, override)
    if recipe is None:
        return PrecisionChoice(autocast=_named(autocast), scaler=scaler, params=config.params)
    params = recipe.params or config.params
    if recipe.scaler and scaler is None:
        scaler = GradScalerConfig().model_dump()
    if recipe.params in NARROW:
        scaler = None  # it would be asked to unscale narrow gradients, which torch refuses of fp16
    recipe = by_lot(recipe, params)
    if recipe.stochastic and not (recipe.wide_update or recipe.states == "bf16"):
        raise UsageError(
            f"recipe {recipe.name!r}: nothing that it writes is rounded", hint="join it: bf16-no-master+stochastic"
        )
    return PrecisionChoice(
        autocast=_named(recipe.autocast or autocast),
        scaler=scaler,
        params=config.params,
        recipe_params=params if recipe.wide_update else recipe.params,
        recipe=recipe if recipe.is_emulated else None,
        name=recipe.name,
    )


def _named(autocast: str) -> str | None:
    return None if autocast == "none" else autocast


def _recipe(config: PrecisionConfig, override: str | None) -> Recipe | None:
    options = config.recipe
    if override is None and options is None:
        return None
    try:
        recipe = lookup(override if override is not None else options.name if options is not None else "")
    except UsageError as error:
        raise UsageError(f"--precision {override}: {error.message}", hint=error.hint) from error
    if options is None or recipe.products is None:
        return recipe
    products = replace(
        recipe.products, skip=tuple(options.skip), amax_history=options.amax_history, margin=options.margin
    )
    return replace(recipe, products=products)


def built_emulator(
    choice: PrecisionChoice, model: nn.Module, device: torch.device, is_custom: bool, assumptions: list[str]
) -> Emulator | None:
    """Return what emulates the recipe; cast the weights of one whose moments stay in fp32, now that these are loaded."""
    if is_custom and choice.name and (choice.scaler or choice.autocast):
        assumptions.append(f"precision {choice.name}: train_step has its own autocast and scaler, and these stay")
    if choice.recipe is None:
        if choice.name:
            assumptions.append(f"precision recipe {choice.name}: {lookup(choice.name).title}")
        return None
    products = choice.recipe.products
    if products is not None and not is_custom:
        _check_skipped(products.skip, model)
    assumptions.append(recipe_in_words(choice.recipe))
    if choice.recipe.wide_update and choice.recipe_params is not None:
        model.to(DTYPES[choice.recipe_params])
    return Emulator(choice.recipe, device)


def _check_skipped(patterns: tuple[str, ...], model: nn.Module) -> None:
    """Refuse a pattern that means no module: the recipe would take what it was to leave alone."""
    names = [name for name, _ in model.named_modules() if name]
    for pattern in patterns:
        if not any(is_meant(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, [*names, *(name.rpartition(".")[2] for name in names)], n=1)
            nearest = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"precision.recipe.skip: the model has no module {pattern!r}{nearest}")


def recipe_in_words(recipe: Recipe) -> str:
    """Return what a recipe does, as a sentence for the trace's assumptions."""
    said = []
    products = recipe.products
    if products is not None:
        roles = {"inputs": products.input, "weights": products.weight, "gradients": products.gradient}
        formats = ", ".join(f"{role} {_operand(operand)}" for role, operand in roles.items())
        when = f"the largest amax of {products.amax_history} steps" if products.delayed else "the present amax"
        left = f"; left as they are: {', '.join(products.skip)}" if products.skip else ""
        said.append(f"products with weights take {formats}; scales from {when}, sums in fp32{left}")
    if recipe.tf32:
        said.append("products of fp32 tensors are in TF32")
    if recipe.wide_update:
        said.append("no fp32 copy of the weights: an update is computed in fp32 and rounded into them")
    if recipe.states:
        said.append(f"moments are stored in {'bf16' if recipe.states == 'bf16' else '8 bits, a scale for 256'}")
    if recipe.stochastic:
        said.append(
            f"{'weights and moments' if recipe.wide_update else 'moments'} that an update writes are rounded by lot"
        )
    return f"precision recipe {recipe.name}: {'; '.join(said)}"


def _operand(operand: Operand) -> str:
    block = "a scale a tensor" if operand.block == "tensor" else f"a scale for {operand.block[0]}×{operand.block[1]}"
    lots = ", rounded by lot" if operand.stochastic else ""
    return f"{lookup_format(operand.format).name} ({block}{lots})"

"""Recipes by name: alone, joined, in conflict, unknown; and as a config has them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from nanhunt.errors import ConfigError, UsageError
from nanhunt.recipes.catalogue import RECIPES, lookup
from nanhunt.recipes.recipe import Recipe
from nanhunt.training.config_precision import PrecisionConfig
from nanhunt.training.recipe_choice import built_emulator, chosen_precision, recipe_in_words

NAMES = [r.name for r in RECIPES]
SETTINGS = [f.name for f in fields(Recipe) if f.name not in ("name", "title")]


def chosen(override: str | None = None, **config: Any) -> Any:
    return chosen_precision(PrecisionConfig.model_validate(config), override)


def test_names_are_unique_and_titles_are_single_lines() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert all(r.title and "\n" not in r.title for r in RECIPES)


@pytest.mark.parametrize("first", [r for r in RECIPES if r.name != "stochastic"], ids=lambda r: r.name)
def test_two_recipes_join_where_they_set_different_things_and_conflict_where_not(first: Recipe) -> None:
    for second in RECIPES:
        sets = [{k: getattr(r, k) for k in SETTINGS if getattr(r, k) not in (None, False)} for r in (first, second)]
        both = sets[0].keys() & sets[1].keys()
        name = f"{first.name}+{second.name}"
        if any(sets[0][k] != sets[1][k] for k in both):
            with pytest.raises(UsageError, match="both set"):
                lookup(name)
        elif second.name != "stochastic":
            recipe = lookup(name)
            assert recipe.name == name
            assert {k: getattr(recipe, k) for k in sets[0] | sets[1]} == sets[0] | sets[1]


def test_a_conflict_names_what_both_set() -> None:
    for name, both in {"fp8-block+mxfp8": "products", "fp16+bf16": "autocast", "states-bf16+states-8bit": "states",
                       "pure-bf16+pure-fp16": "params", "pure-bf16+amp-fp16": "autocast"}.items():  # fmt: skip
        first, second = name.split("+")
        with pytest.raises(UsageError) as told:
            lookup(name)
        assert f"{first} and {second} both set {both}" in told.value.message


def test_lots_need_something_that_is_rounded() -> None:
    for name in ("stochastic", "fp8-hybrid+stochastic", "states-8bit+stochastic"):
        with pytest.raises(UsageError) as told:
            chosen_precision(PrecisionConfig(), name)
        assert "bf16-no-master+stochastic" in str(told.value.hint)
    narrow = chosen_precision(PrecisionConfig(params="bf16"), "stochastic")
    assert narrow.recipe is not None
    assert (narrow.recipe.wide_update, narrow.recipe.states, narrow.recipe_params) == (True, "bf16", "bf16")
    for name in ("pure-bf16+stochastic", "stochastic+pure-bf16"):
        recipe = lookup(name)
        assert recipe.wide_update
        assert recipe.states == "bf16"
    assert lookup("bf16-no-master+stochastic").states is None


@pytest.mark.parametrize(("name", "near"), [
    ("fp8-hybird", "fp8-hybrid"), ("mxfp", "mxfp8"), ("bf16-nomaster", "bf16-no-master"), ("fp8-hybrid+tf23", "tf32"),
])  # fmt: skip
def test_an_unknown_name_is_told_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError) as told:
        lookup(name)
    assert f"did you mean {near}?" in told.value.message
    with pytest.raises(UsageError, match="--precision"):
        chosen(name)


def test_spaces_around_a_plus_are_no_part_of_a_name() -> None:
    assert lookup("fp8-block + states-bf16").states == "bf16"
    for empty in ("", "+", "fp8-block+"):
        with pytest.raises(UsageError):
            lookup(empty)


# --- what a run gets --------------------------------------------------------------------------------------------------


def test_a_recipe_stands_before_the_configs_own_keys_and_leaves_what_it_does_not_set() -> None:
    assert chosen(autocast="bf16").autocast == "bf16"
    assert chosen("fp8-hybrid", autocast="bf16").autocast == "bf16"
    assert chosen("fp32", autocast="bf16").autocast is None
    assert chosen("fp8-hybrid+fp16", autocast="bf16").autocast == "fp16"
    assert chosen("bf16-no-master", autocast="fp16", grad_scaler=True).autocast is None
    assert chosen("states-8bit", params="bf16").params == "bf16"


def test_a_scaler_comes_with_amp_fp16_and_goes_with_narrow_weights() -> None:
    assert chosen("amp-fp16").scaler is not None
    assert chosen("fp16").scaler is None
    own = {"init_scale": 8.0}
    assert chosen("amp-fp16", grad_scaler=own).scaler["init_scale"] == 8.0
    for name in ("pure-fp16", "pure-bf16", "bf16-no-master"):
        assert chosen(name, grad_scaler=own).scaler is None


def test_a_config_may_name_a_recipe_or_describe_it() -> None:
    plain = chosen(recipe="fp8-delayed").recipe.products
    assert (plain.skip, plain.amax_history, plain.margin) == ((), 1024, 0)
    whole = {"name": "fp8-delayed+bf16", "skip": ["head", "blocks.*.k"], "amax_history": 16, "margin": 2}
    choice = chosen(recipe=whole)
    products = choice.recipe.products
    assert (products.skip, products.amax_history, products.margin) == (("head", "blocks.*.k"), 16, 2)
    assert choice.autocast == "bf16"
    said = recipe_in_words(choice.recipe)
    for part in ("fp8-delayed+bf16", "16 steps", "left as they are: head, blocks.*.k"):
        assert part in said


def test_the_command_lines_recipe_keeps_what_the_config_skips() -> None:
    config = {"recipe": {"name": "fp8-block", "skip": ["head"]}}
    assert chosen("mxfp8", **config).recipe.products.skip == ("head",)
    assert chosen("mxfp8", **config).recipe.products.input.scale == "up"
    assert chosen("bf16", **config).recipe is None


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.name != "stochastic"], ids=lambda r: r.name)
def test_every_recipe_says_what_it_does(recipe: Recipe) -> None:
    choice = chosen(recipe.name)
    assert choice.name == recipe.name
    if choice.recipe is not None:
        said = recipe_in_words(choice.recipe)
        assert said.startswith(f"precision recipe {recipe.name}: ")
        assert not said.endswith(": ")


def test_a_format_by_name_is_that_of_the_weights_too() -> None:
    for name in ("fp32", "fp16", "bf16", "amp-fp16"):
        choice = chosen_precision(PrecisionConfig(params="bf16"), name)
        assert choice.recipe_params == "fp32"
        assert (choice.scaler is not None) == (name == "amp-fp16")


@pytest.mark.parametrize(("recipe", "said"), [
    ({"name": "bf16", "skip": ["a"]}, "skip: the recipe bf16 quantizes no product"),
    ({"name": "fp8-hybrid", "margin": 3, "amax_history": 4}, "amax_history and margin: the recipe fp8-hybrid has no delayed"),
    ({"name": "states-8bit", "margin": 0}, "margin: the recipe states-8bit has no delayed"),
])  # fmt: skip
def test_an_option_that_would_do_nothing_is_refused(recipe: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PrecisionConfig(recipe=recipe)  # type: ignore[arg-type]


def test_a_pattern_that_means_no_module_is_refused_with_the_nearest() -> None:
    choice = chosen_precision(PrecisionConfig(recipe={"name": "fp8-hybrid", "skip": ["lm_haed"]}), None)  # type: ignore[arg-type]
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "lm_head": nn.Linear(2, 2)})
    with pytest.raises(ConfigError, match="no module 'lm_haed'; did you mean 'lm_head'"):
        built_emulator(choice, model, torch.device("cpu"), False, [])

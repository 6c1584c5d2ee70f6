"""Recipes on a GPU: matrix units give what the emulation gives, and each recipe runs there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nanhunt.recipes.catalogue import RECIPES, lookup
from nanhunt.recipes.emulator import Emulator
from nanhunt.recipes.recipe import Operand
from nanhunt.recipes.scaled_mm import can_scaled_mm, scaled_mm
from nanhunt.recipes.scaling import quantize
from nanhunt.training.batches import BatchSource
from nanhunt.training.step import StepWatch, train_step
from tests.conftest import tiny_run

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("formats", [("e4m3fn", "e4m3fn"), ("e5m2", "e4m3fn"), ("e4m3fn", "e5m2")])
def test_matrix_units_multiply_as_the_emulation_does(formats: tuple[str, str]) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("the card has no FP8 matrix units")
    torch.manual_seed(0)
    left = quantize(torch.randn(64, 256, device="cuda"), Operand(format=formats[0]))
    right = quantize(torch.randn(48, 256, device="cuda"), Operand(format=formats[1]))
    assert can_scaled_mm(left, right, formats)
    exact = left.values.double() @ right.values.double().t()
    # Hopper's units keep some 14 bits of a sum
    torch.testing.assert_close(scaled_mm(left, right, formats).double(), exact, rtol=2**-10, atol=2**-10 * 16)


def test_what_does_not_suit_the_units_is_emulated() -> None:
    odd = quantize(torch.randn(64, 24, device="cuda"), Operand(format="e4m3fn"))
    wide = quantize(torch.randn(64, 32, device="cuda"), Operand(format="e5m2"))
    blocks = quantize(torch.randn(64, 32, device="cuda"), Operand(format="e4m3fn", block=(1, 16)))
    assert not can_scaled_mm(odd, odd, ("e4m3fn", "e4m3fn"))
    assert not can_scaled_mm(wide, wide, ("e5m2", "e5m2"))
    assert not can_scaled_mm(blocks, blocks, ("e4m3fn", "e4m3fn"))


@pytest.mark.parametrize("name", [r.name for r in RECIPES if r.is_emulated] + ["bf16-no-master+stochastic"])
def test_a_step_under_a_recipe_is_near_the_plain_one_and_leaves_the_switches(name: str) -> None:
    if name == "stochastic":
        pytest.skip("it joins others")
    losses = {}
    switches = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for recipe in ("", name):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)).cuda()
        batches = [torch.randn(32, 64, generator=torch.Generator().manual_seed(i)) for i in range(4)]
        run = tiny_run(model, lambda m, b: F.mse_loss(m(b).float(), b.float()), batches)
        run.device = torch.device("cuda")
        run.batches = BatchSource(batches, first_step=0, accumulate=1, device=run.device)
        if recipe:
            found = lookup(recipe)
            if found.params:
                model.bfloat16()
                run.batches = BatchSource(batches, first_step=0, accumulate=1, device=run.device, floats=torch.bfloat16)
            run.emulator = Emulator(found, torch.device("cuda"))
        losses[recipe] = [train_step(run, step, StepWatch()).loss for step in range(3)]
    assert losses[name] == pytest.approx(losses[""], rel=0.1)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == switches

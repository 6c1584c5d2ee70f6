"""A value under a loss scale against torch's own casts and unscaling."""

from __future__ import annotations

import math

import pytest
import torch

from nanhunt.formats.catalogue import BF16, E5M2, FP16
from nanhunt.formats.loss_scale import under_loss_scale
from nanhunt.formats.number_format import NumberFormat

TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16, "e5m2": torch.float8_e5m2}


@pytest.mark.parametrize("scale", [1.0, 2.0**8, 2.0**16, 3.0])
@pytest.mark.parametrize("value", [0.001, 1e-6, 1e-8, 2.0, -1e-6, 0.0])
@pytest.mark.parametrize("fmt", [FP16, BF16, E5M2], ids=lambda f: f.name)
def test_what_is_held_and_what_comes_back_are_torchs(fmt: NumberFormat, value: float, scale: float) -> None:
    way = under_loss_scale(fmt, value, scale)
    held = (torch.tensor(value, dtype=torch.float64) * scale).float().to(TORCH[fmt.name]).float()
    assert way.held.rounded == held.item()
    assert way.unscaled == (held / scale).item()


def test_a_scale_of_two_to_the_sixteenth_saves_what_fp16_flushes_and_loses_what_it_held() -> None:
    assert under_loss_scale(FP16, 1e-8, 1.0).held.kind == "flushed"
    assert under_loss_scale(FP16, 1e-8, 2.0**16).unscaled == pytest.approx(1e-8, rel=2.0**-11)
    assert under_loss_scale(FP16, 2.0, 1.0).unscaled == 2.0
    assert under_loss_scale(FP16, 2.0, 2.0**16).unscaled == math.inf

"""What counts as broken: more than rounding can lose; and a step beside fp32 by the formulas of norms and cosines."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from nanhunt.diagnosis.precision import LostOperand, PrecisionFacts, StepBeside, broken_from
from nanhunt.hunt.what_if import _compared
from nanhunt.recipes.recipe import Operand
from nanhunt.recipes.scaling import LOSSES, element_format, losses, quantize
from nanhunt.report.precision import first_break, lost, step_beside, worst_gradients

BLOCKS: dict[str, list[Operand]] = {
    "e4m3fn": [Operand(format="e4m3fn"), Operand(format="e4m3fn", block=(1, 32), scale="up")],
    "e5m2": [Operand(format="e5m2")],
    "e2m1fn": [
        Operand(format="e2m1fn", block=(1, 32), scale="up"),
        Operand(format="e2m1fn", block=(1, 16), scale="nvfp4"),
    ],
}


def operand(**values: Any) -> LostOperand:
    base = {"step": 3, "weight": "a.w", "role": "input", "format": "e4m3fn"}
    return LostOperand(**{**base, "flushed": 0.0, "saturated": 0.0, "error": 0.01, "rows": 0.0, **values})


@pytest.mark.parametrize("fmt", BLOCKS)
def test_rounding_of_ordinary_tensors_never_counts_as_broken(fmt: str) -> None:
    for kind in BLOCKS[fmt]:
        for seed in range(20):
            draw = torch.Generator().manual_seed(seed)
            x = torch.randn(40, 96, generator=draw) * torch.exp2(torch.randint(-30, 30, (1,), generator=draw).float())
            told = dict(zip(LOSSES, losses(x, quantize(x, kind), element_format(kind)).tolist(), strict=True))
            assert not operand(format=fmt, **told).is_broken, (kind, told)


@pytest.mark.parametrize("fmt", BLOCKS)
def test_a_scale_for_a_far_smaller_amax_and_one_for_a_far_larger_count_as_broken(fmt: str) -> None:
    x = torch.randn(40, 96, generator=torch.Generator().manual_seed(0))
    for amax in (1e-3, 1e12):
        made = quantize(x, Operand(format=fmt), amax=torch.tensor(amax))
        told = dict(zip(LOSSES, losses(x, made, element_format(Operand(format=fmt))).tolist(), strict=True))
        assert operand(format=fmt, **told).is_broken
        assert (told["saturated"] > 0.5) == (amax < 1)
        assert (told["flushed"] == 1) == (amax > 1)


def test_the_bound_is_an_ulp_of_each_element() -> None:
    assert {f: broken_from(f) for f in ("e4m3fn", "e5m2", "e2m1fn", "bf16")} == {
        "e4m3fn": 0.125, "e5m2": 0.25, "e2m1fn": 0.5, "bf16": 2.0**-7,
    }  # fmt: skip


def test_rows_count_for_inputs_and_weights_and_not_for_gradients() -> None:
    assert operand(rows=0.3).is_broken
    assert operand(rows=0.3, role="weight").is_broken
    assert not operand(rows=0.3, role="gradient").is_broken
    assert not operand(rows=0.05).is_broken
    assert operand(error=math.nan).is_broken
    assert math.isinf(operand(error=math.nan).badness)
    assert operand(error=0.2, role="gradient").badness == pytest.approx(1.6)
    for broken in (operand(error=0.2), operand(rows=0.3)):
        assert broken.badness > 1
    assert operand().badness < 1


def test_a_gradient_beside_fp32_is_compared_by_its_norms() -> None:
    draw = torch.Generator().manual_seed(1)
    wide = {n: torch.randn(30, 5, generator=draw) for n in "abc"}
    own = {
        n: g + k * torch.randn(30, 5, generator=draw) for (n, g), k in zip(wide.items(), (0.1, 1.0, 0.0), strict=True)
    }
    got = _compared(own, wide)
    a, b = (torch.cat([g[n].double().flatten() for n in "abc"]) for g in (own, wide))
    assert got["cosine"] == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=1e-9)
    assert got["error"] == pytest.approx(float((a - b).norm() / b.norm()), rel=1e-6)
    assert [w["name"] for w in got["worst"]] == ["b", "a", "c"]
    assert got["worst"][0]["error"] == pytest.approx(float((own["b"] - wide["b"]).norm() / wide["b"].norm()), rel=1e-5)
    assert got["worst"][2]["cosine"] == pytest.approx(1.0)


def test_zero_and_non_finite_gradients_are_told_without_a_number_that_is_none() -> None:
    one, zero, nan = torch.ones(4), torch.zeros(4), torch.full((4,), torch.nan)
    assert _compared({"a": zero}, {"a": one})["cosine"] is None
    assert _compared({"a": one}, {"a": zero})["error"] is None
    found = _compared({"a": nan, "b": one}, {"a": one, "b": one})
    assert math.isnan(found["cosine"])
    assert found["worst"][0]["name"] == "a"
    assert math.isnan(found["error"])


def test_elements_flushed_beside_one_channel_count_for_inputs_and_weights_and_not_for_gradients() -> None:
    for role, broken in (("input", True), ("weight", True), ("gradient", False)):
        assert operand(role=role, flushed=0.99, error=0.03).is_broken == broken
    assert not operand(flushed=0.05).is_broken
    assert not operand(format="e2m1fn", flushed=0.5, error=0.1).is_broken  # as a GELU's output is


def test_the_sentences_name_what_was_lost_and_how() -> None:
    facts = PrecisionFacts(recipe="r", quantized=2, skipped=(), beside=(), first=None, worst=(operand(),))
    assert first_break(facts) == "no operand of a product loses more than rounding in its format loses"
    broken = operand(error=0.5, flushed=0.75, saturated=0.01)
    assert lost(broken) == (
        "50 % of its norm lost in e4m3fn, where rounding loses less than 12 %; "
        "75 % of its elements flushed to zero, 1 % cut off at the end"
    )
    assert lost(operand(rows=0.5)) == "50 % of its rows lose half of their norm in e4m3fn"
    beside = StepBeside(step=1, loss=2.0, loss_fp32=1.0, cosine=None, error=None, worst=(("a.w", math.nan, math.nan),))
    assert step_beside(beside) == "step 1: loss 2, in fp32 1"
    assert worst_gradients(beside) == ""
    assert worst_gradients(replace(beside, worst=(("a.w", 0.5, 0.9),))) == "furthest off in step 1: a.w 50 %"
    nan = StepBeside(step=1, loss=math.nan, loss_fp32=1.0, cosine=math.nan, error=math.nan, worst=())
    assert step_beside(nan) == "step 1: loss NaN, in fp32 1; the gradient is not finite"
    assert (
        lost(operand(flushed=0.99)) == "99 % of its elements flushed to zero in e4m3fn, beside one that sets the scale"
    )
    assert worst_gradients(nan) == ""

"""Loss scales, verdicts and advice, on traces made by hand whose answers are known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanhunt.diagnosis.advice import Advice, Kept, advice
from nanhunt.diagnosis.cause import HeadroomRow
from nanhunt.diagnosis.format_verdict import Answer, FormatVerdict, format_verdicts
from nanhunt.diagnosis.headroom import headroom_rows
from nanhunt.diagnosis.loss_scale import LossScales, loss_scales
from nanhunt.diagnosis.tensors import merged_tensors
from nanhunt.formats.catalogue import FP16, lookup
from nanhunt.formats.headroom import Headroom
from nanhunt.formats.shared_scale import Lost
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import Birth, Observation, Operand
from tests.diagnosis.test_tensors import scalar, seen, trace_of


def grad(values: Any, module: str = "g", **more: Any) -> Observation:
    return seen(values, role="grad_output", module=module, **more)


def scales_of(trace: Trace) -> LossScales | None:
    return loss_scales(merged_tensors(trace), FP16)


def verdicts_of(trace: Trace, birth: Birth | None = None) -> dict[str, FormatVerdict]:
    tensors = merged_tensors(trace)
    return {v.format: v for v in format_verdicts(tensors, headroom_rows(tensors), birth=birth)}


def advice_of(trace: Trace) -> Advice:
    tensors = merged_tensors(trace)
    found = advice(trace, tensors, headroom_rows(tensors))
    assert found is not None
    return found


# --- the loss scale --------------------------------------------------------------------------------------------------


def test_the_range_of_loss_scales_is_set_by_the_largest_gradient_and_the_deepest_small_ones(tmp_path: Path) -> None:
    big = grad([2.0**-20] * 10, "big")
    small = grad([2.0**-40] * 10, "small")
    found = scales_of(trace_of(tmp_path, [big, small]))
    assert found is not None
    assert (found.high.shift, found.high.module) == (35, "big")  # 2^15 is within 65504, 2^16 is not
    assert (found.low.shift, found.low.module) == (15, "small")  # 2^-25 rounds to zero by its tie; its binade does not
    assert found.works
    assert found.recommended == 2.0**25
    assert found.holds(2.0**15)
    assert not found.holds(2.0**36)


@pytest.mark.parametrize("seed", range(5))
def test_numpys_own_cast_confirms_both_ends(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    tensors = [
        (rng.standard_normal(3000) * 2.0 ** rng.uniform(-12, -6, 3000) * 2.0**-e).astype(np.float32) for e in (4, 9, 15)
    ]
    found = scales_of(trace_of(tmp_path, [grad(x, f"m{i}") for i, x in enumerate(tensors)]))
    assert found is not None

    def casts(shift: int) -> list[np.ndarray]:
        with np.errstate(over="ignore"):
            return [np.ldexp(x.astype(np.float64), shift).astype(np.float16) for x in tensors]

    def worst(shift: int) -> float:
        return max(float(((c == 0) & (x != 0)).mean()) for c, x in zip(casts(shift), tensors, strict=True))

    assert worst(found.low.shift) <= 0.01 < worst(found.low.shift - 1)
    assert all(np.isfinite(c).all() for c in casts(found.high.shift))
    assert not all(np.isfinite(c).all() for c in casts(found.high.shift + 1))


def test_where_two_tensors_disagree_no_scale_works_and_both_are_named(tmp_path: Path) -> None:
    found = scales_of(trace_of(tmp_path, [grad([1000.0], "loud"), grad([2.0**-60] * 9, "quiet")]))
    assert found is not None
    assert not found.works
    assert found.recommended is None
    assert (found.high.module, found.low.module) == ("loud", "quiet")


def test_the_runs_own_loss_scale_is_divided_out_of_output_gradients_alone(tmp_path: Path) -> None:
    rows = [grad([2.0**-4]), seen([2.0**-4], role="grad", module="w"), scalar("loss_scale", 2.0**16)]
    trace = trace_of(tmp_path, rows)
    assert {t.module: t.amax for t in merged_tensors(trace)} == {"g": 2.0**-20, "w": 2.0**-4}
    assert advice_of(trace).used == (2.0**16, 2.0**16)


def test_a_recommended_scale_leaves_room_above_and_is_in_the_range(tmp_path: Path) -> None:
    for low in range(-30, -10):
        found = scales_of(trace_of(tmp_path, [grad([1.0]), grad([2.0**low] * 3, "s")]))
        assert found is not None
        assert found.recommended is not None
        assert found.holds(found.recommended)
        assert found.recommended <= 2.0**13 or found.recommended == 2.0**found.low.shift


def test_elements_that_are_negligible_beside_the_largest_of_their_step_ask_for_no_loss_scale(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, [grad([2.0**-10] * 5 + [2.0**-140] * 5), grad([2.0**-20] * 10, step=1)])
    found = scales_of(trace)
    assert found is not None
    assert found.low.shift == -5  # the second step's 2^-20 decide, not the first one's 2^-140
    verdicts = verdicts_of(trace)
    assert verdicts["bf16"].gradients.answer is verdicts["fp16"].gradients.answer is Answer.FITS


@pytest.mark.parametrize(
    ("weight_gradient", "low", "high", "recommended", "answer"),
    [
        (2.0**-30, 5, 25, 2.0**15, Answer.SCALED),  # too small for fp16, where the output's gradient is not
        (327680.0, -15, -3, 2.0**-9, Answer.SCALED),  # beyond its end
        (2.0**10, -15, 5, 1.0, Answer.FITS),  # a scale below 1 would work, and none is needed
    ],
)
def test_the_verdict_on_gradients_is_whether_one_is_among_the_loss_scales_that_work(
    weight_gradient: float, low: int, high: int, recommended: float, answer: Answer, tmp_path: Path
) -> None:
    rows = [seen([1.0]), grad([2.0**-10] * 9), seen([weight_gradient] * 9, role="grad", module="w", name="weight")]
    trace = trace_of(tmp_path, rows)
    found, verdict = scales_of(trace), verdicts_of(trace)["fp16"]
    assert found is not None
    assert (found.low.shift, found.high.shift, found.recommended) == (low, high, recommended)
    assert verdict.gradients.answer is answer
    assert found.holds(1.0) is (answer is Answer.FITS)
    assert verdicts_of(trace)["bf16"].gradients.answer is Answer.FITS


def test_where_no_loss_scale_works_the_tensors_at_its_ends_decide(tmp_path: Path) -> None:
    rows = [seen([1.0]), grad([1.0]), seen([2.0**20], role="grad", module="loud"),
            seen([2.0**-40] * 9, role="grad", module="quiet")]  # fmt: skip
    side = verdicts_of(trace_of(tmp_path, rows))["fp16"].gradients
    assert (side.answer, [d.module for d in side.deciding]) == (Answer.NOT, ["quiet", "loud"])


def test_a_range_of_loss_scales_beyond_what_a_float_holds_is_no_error(tmp_path: Path) -> None:
    tensors = merged_tensors(trace_of(tmp_path, [grad([2.0**-20])]))
    found = loss_scales(tensors, lookup("fp64"))
    assert found is not None
    assert found.high.shift > 1024 - 1
    assert found.holds(1.0)


@pytest.mark.parametrize(
    ("role", "depth", "low"),
    [("grad_output", 24, 9), ("grad_output", 25, -15), ("grad", 25, 10)],
)
def test_what_adds_nothing_to_an_fp32_sum_is_negligible_but_to_adam_it_is_not(
    role: str, depth: int, low: int, tmp_path: Path
) -> None:
    assert np.float32(1) + np.float32(1.5 * 2.0**-24) > 1
    assert np.float32(1) + np.float32(1.5 * 2.0**-25) == 1
    values = [2.0**-10] * 5 + [1.5 * 2.0 ** (-10 - depth)] * 5
    found = scales_of(trace_of(tmp_path, [seen(values, role=role)]))
    assert found is not None
    assert found.low.shift == low


def test_without_gradients_no_loss_scale_is_told(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, [seen([1.0])])
    assert scales_of(trace) is None
    assert any("loss scale cannot be told" in text for text in advice_of(trace).missing)


def test_gradients_that_vanished_in_the_run_tell_nothing_of_scales_and_speak_against_its_format(tmp_path: Path) -> None:
    rows = [seen([1.0], dtype="float16"), grad([1e-6], dtype="float16"), grad([0.0, 0.0], "gone", dtype="float16")]
    trace = trace_of(tmp_path, rows)
    assert scales_of(trace) is None
    found = verdicts_of(trace)
    assert found["fp16"].answer is Answer.NOT
    assert (found["fp16"].deciding[0].module, found["fp16"].deciding[0].what) == ("gone", "vanished")
    assert found["e4m3fn"].gradients.answer is Answer.UNTOLD
    assert "1 of 2 gradients" in advice_of(trace).missing[0]
    assert (
        verdicts_of(trace_of(tmp_path, [grad([1.0]), grad([0.0], "masked", dtype="float32")]))["fp16"].answer
        is Answer.FITS
    )


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_any_overflow_forward_is_a_misfit_and_names_the_tensor(tmp_path: Path) -> None:
    found = verdicts_of(trace_of(tmp_path, [seen([70000.0, 1.0], module="hot"), seen([1.0], module="cold")]))
    assert (found["fp16"].forward.answer, found["fp16"].deciding[0].module) == (Answer.NOT, "hot")
    assert found["fp16"].deciding[0].what == "overflow"
    assert found["bf16"].answer is Answer.FITS


def test_gradients_that_fp16_flushes_fit_with_a_loss_scale(tmp_path: Path) -> None:
    verdict = verdicts_of(trace_of(tmp_path, [seen([1.0]), grad([1e-9] * 5)]))["fp16"]
    assert (verdict.forward.answer, verdict.gradients.answer) == (Answer.FITS, Answer.SCALED)
    assert {d.what for d in verdict.gradients.deciding} == {"least loss scale", "most loss scale"}


def test_moments_have_no_say_in_a_verdict(tmp_path: Path) -> None:
    rows = [seen([1.0]), *(seen([1e-30], role=role, module=role) for role in ("exp_avg", "exp_avg_sq", "update"))]
    assert verdicts_of(trace_of(tmp_path, rows))["fp16"].answer is Answer.FITS


def test_fp8_is_never_used_without_a_scale(tmp_path: Path) -> None:
    found = verdicts_of(trace_of(tmp_path, [seen([1e-9, 2e-9]), grad([1e6])]))
    assert found["e4m3fn"].answer is found["e5m2"].answer is Answer.SCALED


def row(role: str, format: str, **scaled: Lost) -> HeadroomRow:
    plain = Headroom(format=format, overflow_margin=5.0, underflow_margin=1.0, overflow_fraction=0.0,
                     subnormal_fraction=0.0, flushed_fraction=0.9, flushed_energy=0.9, best_shift=0)  # fmt: skip
    return HeadroomRow(
        module="m", role=role, name="", headroom=plain, scaled=tuple(scaled.items()), measured=len(scaled) > 1
    )


def lost(count: float, energy: float) -> Lost:
    return Lost(of=1000, flushed=round(1000 * count), energy=1.0, flushed_energy=energy)


@pytest.mark.parametrize(
    ("role", "tensor", "block", "answer"),
    [
        ("output", lost(0.1, 1e-9), lost(0, 0), Answer.SCALED),
        ("output", lost(0.11, 1e-9), lost(0, 0), Answer.SCALED_PER_BLOCK),
        ("weight", lost(0.99, 1e-9), lost(0.5, 1e-9), Answer.NOT),
        ("grad", lost(0.99, 1e-9), lost(0.5, 1e-9), Answer.UNTOLD),
        ("grad_output", lost(0.5, 1e-9), lost(0, 0), Answer.SCALED_PER_BLOCK),
        ("grad_output", lost(0.5, 1e-9), lost(0.5, 1e-9), Answer.NOT),
        ("output", lost(0.0, 0.01), lost(0, 0.001), Answer.SCALED_PER_BLOCK),  # u^2 of E4M3 is 0.0039
        ("output", lost(0.0, 0.0039), lost(0, 0), Answer.SCALED),
        ("grad_output", lost(0.05, 0.0), lost(0, 0), Answer.SCALED),
        ("grad_output", lost(0.051, 0.0), lost(0, 0), Answer.SCALED_PER_BLOCK),
    ],
)
def test_what_may_become_zero_is_by_energy_and_by_count(role: str, tensor: Lost, block: Lost, answer: Answer) -> None:
    (verdict,) = format_verdicts((), [row(role, "e4m3fn", tensor=tensor, block=block)])
    assert verdict.answer is answer
    assert verdict.measured


def test_an_outlier_that_takes_nearly_every_row_from_fp8_is_a_misfit_however_much_energy_it_has(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal(2**16).astype(np.float32)
    values[777] = 2.0**21
    (decides,) = verdicts_of(trace_of(tmp_path, [seen(values)]))["e4m3fn"].forward.deciding
    assert (decides.answer, decides.what) == (Answer.NOT, "flushed")
    assert decides.of_elements is not None
    assert decides.of_energy is not None
    assert decides.of_elements > 0.99
    assert decides.of_energy < 1e-6


def test_what_is_small_beside_its_own_row_is_no_loss_of_a_row() -> None:
    soft = lost(0.6, 1e-9)  # what a softmax has ruled out
    for rows, answer in ((soft, Answer.SCALED), (lost(0.4, 0), Answer.NOT)):
        (verdict,) = format_verdicts((), [row("output", "e4m3fn", tensor=soft, row=rows, block=soft)])
        assert verdict.answer is answer


@pytest.mark.parametrize(("share", "answer"), [(0.94, Answer.FITS), (0.96, Answer.NOT)])
def test_forward_a_block_format_may_lose_all_but_what_its_blocks_are_scaled_by(share: float, answer: Answer) -> None:
    part = row("output", "nvfp4")
    told = replace(part, measured=True, headroom=replace(part.headroom, flushed_fraction=share, flushed_energy=0.0))
    (verdict,) = format_verdicts((), [told])
    assert verdict.answer is answer


def test_without_a_look_at_blocks_a_misfit_per_tensor_says_that_blocks_were_not_looked_at(tmp_path: Path) -> None:
    (verdict,) = format_verdicts((), [row("grad_output", "e4m3fn", tensor=lost(0.5, 0.0))])
    assert verdict.answer is Answer.NOT
    assert not verdict.measured
    found = verdicts_of(trace_of(tmp_path, [seen([1.0])]))
    assert {name for name, other in found.items() if not other.measured} == {"mxfp8_e4m3", "mxfp4", "nvfp4"}


def test_fp4_gradients_may_lose_a_quarter() -> None:
    part = row("grad_output", "mxfp4")
    for share, answer in [(0.25, Answer.FITS), (0.26, Answer.NOT)]:
        told = replace(part, measured=True, headroom=replace(part.headroom, flushed_fraction=share, flushed_energy=0.0))
        (verdict,) = format_verdicts((), [told])
        assert verdict.answer is answer


def test_the_op_that_left_the_range_of_its_format_decides_against_it_where_no_row_shows_it(tmp_path: Path) -> None:
    out = Operand(name="out", dtype="float16", shape=[1])
    birth = Birth(kind="inf-from-finite", seq=1, phase="forward", op="aten.mul", module="mlp", outputs=[out],
                  fp64="beyond-range", fp64_amax=68852.0)  # fmt: skip
    trace = trace_of(tmp_path, [seen([1.0])])
    found = verdicts_of(trace, birth)
    assert found["fp16"].answer is Answer.NOT
    assert (found["fp16"].deciding[0].module, found["fp16"].deciding[0].number) == ("mlp", 68852.0)
    assert found["bf16"].answer is Answer.FITS
    assert verdicts_of(trace, replace(birth, fp64="in-range"))["fp16"].answer is Answer.FITS


def test_the_first_infinity_of_a_run_stands_before_those_that_it_spoiled(tmp_path: Path) -> None:
    rows = [
        seen([1.0, math.inf], module=m, seq=s, dtype="float16") for m, s in (("late", 9), ("first", 4), ("later", 12))
    ]
    decides = verdicts_of(trace_of(tmp_path, rows))["fp16"].deciding
    assert [d.module for d in decides] == ["first", "late", "later"]


def test_a_verdict_is_as_bad_as_its_worse_side_and_names_three_tensors_at_most(tmp_path: Path) -> None:
    rows = [seen([1e5 * (i + 1)], module=f"m{i}") for i in range(5)]
    verdict = verdicts_of(trace_of(tmp_path, [*rows, grad([1.0])]))["fp16"]
    assert [d.module for d in verdict.deciding] == ["m4", "m3", "m2"]
    assert (verdict.answer, verdict.gradients.answer) == (Answer.NOT, Answer.FITS)


# --- advice ----------------------------------------------------------------------------------------------------------


def kept_for(found: Advice, why: str) -> list[Kept]:
    return [kept for kept in found.kept if kept.why == why]


def test_weights_whose_updates_are_below_half_an_ulp_need_a_wider_copy(tmp_path: Path) -> None:
    rows = [
        row_
        for name, ratio in (("stuck", 2.0**-9.1), ("moves", 2.0**-8.9))
        for row_ in (seen([1.0] * 4, role="weight", name=name), seen([ratio] * 4, role="update", name=name))
    ]
    (kept,) = kept_for(advice_of(trace_of(tmp_path, rows)), "update")
    assert (kept.format, kept.count, kept.of) == ("bf16", 1, 2)
    assert (kept.tensors[0].name, kept.tensors[0].number) == ("stuck", pytest.approx(2.0**-9.1))


def test_moments_that_fp16_makes_zero_are_named_worst_first(tmp_path: Path) -> None:
    rows = [
        seen([1e-9] * 3, role="exp_avg_sq", name="v"),
        seen([1e-9, 1.0], role="exp_avg", name="m"),
        seen([1.0], role="exp_avg_sq"),
    ]
    (kept,) = kept_for(advice_of(trace_of(tmp_path, rows)), "moment")
    assert (kept.format, kept.count, kept.of) == ("fp16", 2, 3)
    assert [(t.role, t.number) for t in kept.tensors] == [("exp_avg_sq", 1.0), ("exp_avg", 0.5)]


@pytest.mark.parametrize(("beta2", "told"), [(0.999, True), (0.95, False)])
def test_second_moments_that_bf16_keeps_from_decaying_are_told_by_beta2(
    beta2: float, told: bool, tmp_path: Path
) -> None:
    rows = [seen([1.0], role="exp_avg_sq"), scalar("beta2", beta2)]
    assert bool(kept_for(advice_of(trace_of(tmp_path, rows)), "decay")) is told


def test_the_two_fp8_formats_are_compared_by_what_all_output_gradients_lose(tmp_path: Path) -> None:
    # 2^-20 below the largest: zero in E4M3 (18 binades), a number in E5M2 (32)
    trace = trace_of(tmp_path, [grad([1.0, 2.0**-20]), grad([1.0, 0.5], "whole")])
    found = {g.format: g for g in advice_of(trace).gradients}
    assert (found["e4m3fn"].lost.flushed_share, found["e4m3fn"].worst, found["e4m3fn"].module) == (0.25, 0.5, "g")
    assert found["e5m2"].lost.flushed == 0
    assert (found["e4m3fn"].rounding, found["e5m2"].rounding) == (2.0**-4, 2.0**-3)


def test_a_verdict_tells_on_how_many_recorded_steps_blocks_were_looked_at(tmp_path: Path) -> None:
    look = ["output", "m", "", 1, 1, 1, 1.0, 0, 0, 0.0]
    notes = [{"step": step, "looks": [["block", "e4m3fn"]], "tensors": [look]} for step in (0, 1)]
    found = verdicts_of(trace_of(tmp_path, [seen([1.0], step) for step in range(3)], notes))
    assert (found["e4m3fn"].looked, found["nvfp4"].looked) == ((2, 3), None)
    assert verdicts_of(trace_of(tmp_path, [seen([1.0])]))["e4m3fn"].looked is None


def test_what_does_not_fit_fp8_is_told_by_whether_its_blocks_were_looked_at(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, [grad([1.0, 2.0**-45])])
    assert [kept.why for kept in advice_of(trace).kept] == ["fp8-tensor"]
    tensors = merged_tensors(trace)
    bad = row("output", "e4m3fn", tensor=lost(0.9, 0), block=lost(0.8, 0))
    found = advice(trace, tensors, [bad])
    assert found is not None
    (kept,) = kept_for(found, "fp8")
    assert kept.tensors[0].of_elements == 0.8


def test_what_the_trace_lacks_is_said(tmp_path: Path) -> None:
    missing = " ".join(advice_of(trace_of(tmp_path, [seen([1.0])])).missing)
    for word in ("gradient of an output", "loss scale", "update", "moment", "rows and blocks"):
        assert word in missing


def test_a_trace_without_tensors_gets_no_advice(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, [scalar("loss", 1.0)])
    assert advice(trace, [], ()) is None


def test_formats_are_judged_in_the_order_asked_for(tmp_path: Path) -> None:
    tensors = merged_tensors(trace_of(tmp_path, [seen([1.0])]))
    rows = headroom_rows(tensors, ["bf16", "fp32"])
    assert [v.format for v in format_verdicts(tensors, rows, formats=["fp32", "bf16"])] == ["fp32", "bf16"]
    assert lookup("fp32").name == "fp32"

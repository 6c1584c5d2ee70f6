"""Borders between causes that no small loss on a CPU reaches: written traces with the numbers that decide."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from nanhunt.diagnosis.births import producers
from nanhunt.diagnosis.cause import Grade, NotApplicable, Suspect
from nanhunt.diagnosis.causes import (
    activation_overflow,
    domain_error,
    epsilon_underflow,
    fp8_saturation,
    fully_masked_softmax,
    gradient_overflow,
    gradient_underflow,
    lost_update,
    low_precision_accumulation,
    mask_fill_overflow,
    naive_exp_log,
    singular_gradient,
    where_trap,
    zero_denominator,
)
from nanhunt.diagnosis.diagnose import diagnose
from nanhunt.diagnosis.divisors import zero_divisor
from nanhunt.diagnosis.ops import base, flushed_epsilons, limit, number
from nanhunt.formats.headroom import ExponentHistogram
from nanhunt.interventions import Trial
from nanhunt.stats.tensor_stats import TensorStats
from nanhunt.trace.schema import Birth, Element, NoteKind, Observation, Onset, Operand
from tests.diagnosis.conftest import EvidenceOf

ONSET = Onset(kind="nan", step=7, phase="forward", detail="loss is NaN")


def operand(name: str, dtype: str = "float32", numel: int = 8, **more: Any) -> Operand:
    return Operand(name=name, dtype=dtype, shape=[numel], numel=numel, **more)


def overflow(op: str, given: Operand, peak: float, **more: Any) -> Birth:
    """An op whose fp64 result is finite and beyond its output's format."""
    more.setdefault("phase", "forward")
    return Birth(
        kind="inf-from-finite", seq=40, op=op, inputs=[given], fp64="beyond-range", fp64_amax=peak, bad=2, of=given.numel,
        outputs=[operand("output", given.dtype, given.numel, posinf=2)], **more,
    )  # fmt: skip


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "name"),
    [("aten.div_.Tensor", "div"), ("aten._foreach_addcdiv_.ScalarList", "addcdiv"), ("aten._softmax", "_softmax"),
     ("aten.pow.Tensor_Scalar", "pow"), (None, "")],
)  # fmt: skip
def test_an_ops_bare_name_has_no_overload_and_no_mark(op: str | None, name: str) -> None:
    assert base(op) == name


@pytest.mark.parametrize("epsilon", [1e-12, 1e-8, 2e-8, 4e-8, 1e-7, 1e-6, 1e-4])
def test_an_epsilon_is_flushed_where_numpy_says_so(epsilon: float) -> None:
    assert bool(flushed_epsilons(f"x / (n + {epsilon!r})", "float16")) == (float(np.float16(epsilon)) == 0.0)
    assert not flushed_epsilons(f"x / (n + {epsilon!r})", "bfloat16")
    assert float(ml_dtypes.bfloat16(epsilon)) > 0


def test_small_numbers_are_read_from_code_and_others_are_not() -> None:
    assert flushed_epsilons("x / (n + 10 ** -9) * 0.5 - y2e-9", "float16") == [pytest.approx(1e-9)]
    assert flushed_epsilons("x / n", "float16") == []
    assert flushed_epsilons("x + 1e-12", "int64") == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"])
def test_limits_are_torchs(dtype: str) -> None:
    assert limit(dtype) == torch.finfo(getattr(torch, dtype)).max


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, None])
def test_any_number_can_be_said(value: float | None) -> None:
    assert number(value)


def test_a_zero_is_said_without_its_sign() -> None:
    assert number(-0.0) == "0"


# --- range ------------------------------------------------------------------------------------------------------------


def test_overflow_is_proved_only_beyond_the_outputs_own_format(evidence_of: EvidenceOf) -> None:
    for dtype, peak, told in [("float16", 66246.0, True), ("bfloat16", 66246.0, False), ("float32", 1e39, True)]:
        evidence = evidence_of(ONSET, overflow("aten.addmm", operand("mat1", dtype, amax=900.0), peak))
        assert (activation_overflow.CAUSE.examine(evidence) is not None) == told


def test_overflow_is_silent_when_the_value_was_carried_in(evidence_of: EvidenceOf) -> None:
    birth = Birth(kind="carried", seq=1, phase="forward", op="aten.mm", facts={"inherited": "parameter h.weight"})
    assert activation_overflow.CAUSE.examine(evidence_of(ONSET, birth)) is None


def test_overflow_asks_fp32_for_nothing_where_the_line_fixes_the_format(evidence_of: EvidenceOf) -> None:
    given = operand("self", "float16", amax=300.0)
    free = activation_overflow.CAUSE.examine(
        evidence_of(ONSET, overflow("aten.mul.Tensor", given, 9e4, code="y = x * x"))
    )
    fixed = overflow("aten.mul.Tensor", given, 9e4, code="y = x.half() * x.half()")
    by_hand = activation_overflow.CAUSE.examine(evidence_of(ONSET, fixed))
    assert isinstance(free, Suspect)
    assert {p.trial for p in free.predictions} == {"fp32", "bf16"}
    assert isinstance(by_hand, Suspect)
    assert by_hand.predictions == ()


def test_scores_inside_a_fused_attention_count_where_its_output_fits(evidence_of: EvidenceOf) -> None:
    def fused(scores: float) -> Birth:
        return Birth(
            kind="nan-from-finite", seq=3, phase="forward", op="aten._scaled_dot_product_flash_attention", fp64="in-range",
            fp64_amax=3.0, outputs=[operand("output.0", "float16", nan=4)], facts={"score_amax": scores},
        )  # fmt: skip

    assert activation_overflow.CAUSE.examine(evidence_of(ONSET, fused(7e4))) is not None
    assert activation_overflow.CAUSE.examine(evidence_of(ONSET, fused(6e4))) is None


def test_one_large_activation_is_no_mask_constant(evidence_of: EvidenceOf) -> None:
    cast = Birth(
        kind="inf-from-finite", seq=3, phase="forward", op="aten._to_copy", fp64="beyond-range", fp64_amax=7e4, bad=1, of=8,
        inputs=[operand("self", amax=7e4, amin=0.3, low=-7e4, high=2.0)],
        outputs=[operand("output", "float16", neginf=1)],
        elements=[Element(coordinate=[3], inputs=[-7e4], output=-math.inf, fp64=-7e4)],
    )  # fmt: skip
    evidence = evidence_of(ONSET, cast)
    assert mask_fill_overflow.CAUSE.examine(evidence) is None
    assert activation_overflow.CAUSE.examine(evidence) is not None


@pytest.mark.parametrize("posinf", [3, 0])
def test_scores_over_a_temperature_of_zero_are_not_masked(posinf: int, evidence_of: EvidenceOf) -> None:
    scores = Birth(
        kind="inf-from-finite", seq=40, phase="forward", op="aten.div.Tensor", fp64="non-finite", bad=8, of=8,
        inputs=[operand("self", amax=2.0), operand("other", numel=1, zero=1)],
        outputs=[operand("output", posinf=posinf, neginf=8 - posinf)],
        elements=[Element(coordinate=[0], inputs=[-1.0, 0.0], output=-math.inf, fp64=-math.inf)],
    )  # fmt: skip
    softmax = Birth(
        kind="nan-from-inf", seq=50, phase="forward", op="aten._softmax", facts={"fully_masked_rows": 1, "rows": 8}
    )
    evidence = evidence_of(ONSET, scores, softmax)
    assert fully_masked_softmax.CAUSE.examine(evidence) is None
    suspect = zero_denominator.CAUSE.examine(evidence)
    assert isinstance(suspect, Suspect)
    assert suspect.grade is Grade.PROVED


def test_a_row_that_overflowed_to_minus_infinity_is_not_masked(evidence_of: EvidenceOf) -> None:
    scores = overflow("aten.bmm", operand("self", "float16", amax=4e3), 1e6)
    softmax = Birth(
        kind="nan-from-inf", seq=50, phase="forward", op="aten._softmax", facts={"fully_masked_rows": 1, "rows": 8}
    )
    assert fully_masked_softmax.CAUSE.examine(evidence_of(ONSET, scores, softmax)) is None


def test_infinities_in_rows_with_a_finite_score_are_ordinary(evidence_of: EvidenceOf) -> None:
    softmax = Birth(
        kind="nan-from-inf", seq=50, phase="forward", op="aten._softmax", facts={"fully_masked_rows": 0, "rows": 8}
    )
    assert fully_masked_softmax.CAUSE.examine(evidence_of(ONSET, softmax)) is None


def test_a_sum_is_low_precision_only_where_its_terms_are_small(evidence_of: EvidenceOf) -> None:
    small = evidence_of(ONSET, overflow("aten.sum", operand("self", "float16", 20000, amax=10.0), 2e5))
    assert low_precision_accumulation.CAUSE.examine(small) is not None
    assert activation_overflow.CAUSE.examine(small) is None
    large = evidence_of(ONSET, overflow("aten.sum", operand("self", "float16", 4, amax=6e4), 2e5))
    assert low_precision_accumulation.CAUSE.examine(large) is None
    assert activation_overflow.CAUSE.examine(large) is not None


@pytest.mark.parametrize(("fp32", "found"), [(0.06, True), (0.1, True), (0.4, False)])
def test_a_spike_that_is_gone_in_fp32_on_the_same_weights_is_the_formats(
    evidence_of: EvidenceOf, fp32: float, found: bool
) -> None:
    onset = Onset(kind="loss-spike", step=24, phase="forward", lead_step=24)
    body = {"step": 24, "format": "bf16", "own": 0.53, "fp32": fp32, "baseline": 0.062}
    answer = low_precision_accumulation.examine(evidence_of(onset, notes=[(NoteKind.LOSS_TWIN, body)]))
    assert isinstance(answer, Suspect) == found


def test_accumulation_in_bf16_cannot_be_told_and_says_why(evidence_of: EvidenceOf) -> None:
    spike = Onset(kind="loss-spike", step=7, phase="forward")
    notes = [(NoteKind.OPTIMIZER, {"weight_dtypes": ["bfloat16"]})]
    answer = low_precision_accumulation.CAUSE.examine(
        evidence_of(spike, notes=notes, config={"train": {"accumulate": 8}})
    )
    assert isinstance(answer, NotApplicable)
    assert "8 micro-batches" in answer.reason
    assert low_precision_accumulation.CAUSE.examine(evidence_of(spike, notes=notes)) is None


# --- gradients and the scaler -----------------------------------------------------------------------------------------


def scaled(peak: float, scale: float | None, *, unscaled_bad: bool, in_a_row: int = 1) -> dict[str, Any]:
    given = operand("self", "float32", amax=peak)
    birth = overflow("aten._to_copy", given, peak, phase="backward", node="ToCopyBackward0")
    birth.outputs[0] = operand("output", "float16", posinf=2)
    rows = [Observation(step=7, phase="update", role="scalar", name="loss_scale", value=scale)] if scale else []
    note = {"step": 7, "scale": scale, "unscaled_nonfinite": unscaled_bad, "in_a_row": in_a_row}
    return {"birth": birth, "rows": rows, "notes": [(NoteKind.SKIPPED, note)] if scale else []}


def gradient_answer(evidence_of: EvidenceOf, peak: float, scale: float | None, **more: Any) -> object:
    parts = scaled(peak, scale, **more)
    onset = Onset(kind="inf", step=7, phase="backward")
    evidence = evidence_of(onset, parts["birth"], rows=parts["rows"], notes=parts["notes"], to="gradient")
    return gradient_overflow.CAUSE.examine(evidence)


def test_what_overflows_without_a_loss_scale_is_the_gradients_own_doing(evidence_of: EvidenceOf) -> None:
    # a step whose gradient no scale mends is looked at with a scale of 1: the peak is the gradient itself
    for peak in (1e5, 1e10):
        answer = gradient_answer(evidence_of, peak, 65536.0, unscaled_bad=True)
        assert isinstance(answer, Suspect)
        assert "at a loss scale of 1 too" in answer.summary


def test_skips_without_end_are_the_scales_and_a_scale_of_one_cures(evidence_of: EvidenceOf) -> None:
    answer = gradient_answer(evidence_of, 1e5, 65536.0, unscaled_bad=False, in_a_row=25)
    assert isinstance(answer, Suspect)
    assert {p.trial: p.expect for p in answer.predictions} == {"fp32": "cured", "scale-1": "cured"}


def test_without_a_scaler_no_scale_trial_is_asked_for(evidence_of: EvidenceOf) -> None:
    answer = gradient_answer(evidence_of, 1e5, None, unscaled_bad=False)
    assert isinstance(answer, Suspect)
    assert answer.grade is Grade.PROVED
    assert [p.trial for p in answer.predictions] == ["fp32"]


def test_an_explosion_beyond_fp32_is_not_the_formats(evidence_of: EvidenceOf) -> None:
    birth = overflow("aten.mm", operand("self", "float32", amax=1e30), 1e40, phase="backward", node="MmBackward0")
    assert gradient_overflow.CAUSE.examine(evidence_of(Onset(kind="inf", step=7, phase="backward"), birth)) is None


TWIN = {
    "step": 7, "flushed": 0.9, "energy_lost": 0.4, "zero_twin": 0.1, "nonzero_twin": 900, "amax_twin": 3e-8, "zero_share": 0.9,
    "worst": [{"parameter": "h.weight", "flushed": 1.0}],
}  # fmt: skip
STALL = Onset(kind="stall", step=7, phase="backward", module="h", name="weight")


def test_flushed_gradients_predict_a_cure_by_scale_only_where_it_lifts_them(evidence_of: EvidenceOf) -> None:
    def trials(**change: Any) -> set[str]:
        answer = gradient_underflow.CAUSE.examine(evidence_of(STALL, notes=[(NoteKind.TWIN, {**TWIN, **change})]))
        assert isinstance(answer, Suspect)
        return {p.trial for p in answer.predictions}

    assert trials() == {"fp32", "loss-scale"}
    assert trials(amax_twin=1e-12) == {"fp32"}  # times 65536 still below 2^-24
    assert trials(zero_twin=0.8) == set()  # most zeros are dead units, and stay


def test_a_stall_without_a_twin_cannot_be_told(evidence_of: EvidenceOf) -> None:
    assert isinstance(gradient_underflow.CAUSE.examine(evidence_of(STALL)), NotApplicable)


def test_an_erased_norm_is_not_an_underflow(evidence_of: EvidenceOf) -> None:
    erased = {
        "kind": "erased", "serious": True, "step": 7, "phase": "forward", "module": "norm", "op": "aten.pow.Tensor_Scalar",
        "source": "train.py:5", "dtype": "float16", "elements": 64, "of": 64, "amax": 0.5, "samples": [],
        "at": {"op": "aten.rsqrt", "module": "norm", "source": "train.py:5"},
    }  # fmt: skip
    evidence = evidence_of(STALL, notes=[(NoteKind.TWIN, {**TWIN, "amax_twin": 0.5}), (NoteKind.SILENT, erased)])
    assert gradient_underflow.CAUSE.examine(evidence) is None
    answer = activation_overflow.CAUSE.examine(evidence)
    assert isinstance(answer, Suspect)
    assert (answer.location.module, answer.grade) == ("norm", Grade.PROVED)
    assert activation_overflow.CAUSE.examine(evidence_of(STALL, notes=[(NoteKind.TWIN, TWIN)])) is None


def frozen(dtype: str, rate: float) -> dict[str, Any]:
    weight = TensorStats(numel=100, amax=0.1, amin=0.01, sum_of_squares=100 * 0.05**2)
    grad = TensorStats(numel=100, amax=1e-3, amin=1e-4, sum_of_squares=100 * 1e-6)
    rows = [
        Observation(step=7, phase="update", role="weight", module="h", name="weight", dtype=dtype, stats=weight),
        Observation(step=7, phase="unscale", role="grad", module="h", name="weight", dtype=dtype, stats=grad),
        Observation(step=7, phase="update", role="scalar", module="h", name="weight.frozen", value=0.97),
        Observation(step=7, phase="update", role="scalar", name="lr", value=rate),
    ]
    groups = [{"lr": rate, "betas": [0.9, 0.95], "eps": 1e-8}]
    return {"rows": rows, "notes": [(NoteKind.OPTIMIZER, {"class": "AdamW", "groups": groups})]}


@pytest.mark.parametrize(
    ("dtype", "rate", "grade"),
    [("bfloat16", 1e-6, Grade.PROVED), ("bfloat16", 1e-2, Grade.SUPPORTED), ("float32", 1e-6, None),
     ("float32", 1e-10, Grade.PROVED)],
)  # fmt: skip
def test_a_lost_update_is_proved_by_half_an_ulp(
    dtype: str, rate: float, grade: Grade | None, evidence_of: EvidenceOf
) -> None:
    onset = Onset(kind="stall", step=7, phase="update", module="h", name="weight")
    answer = lost_update.CAUSE.examine(evidence_of(onset, **frozen(dtype, rate)))
    assert (answer.grade if isinstance(answer, Suspect) else None) == grade
    weight = torch.tensor(0.05, dtype=getattr(torch, dtype))
    if grade is Grade.PROVED:
        assert weight + rate == weight


def test_a_lost_update_without_its_rows_cannot_be_told(evidence_of: EvidenceOf) -> None:
    onset = Onset(kind="stall", step=7, phase="update")
    assert isinstance(lost_update.CAUSE.examine(evidence_of(onset)), NotApplicable)


# --- zeros, logarithms, exponentials ----------------------------------------------------------------------------------


def logarithm(given: Operand, code: str = "") -> Birth:
    return Birth(
        kind="inf-from-finite", seq=40, phase="forward", op="aten.log", inputs=[given], fp64="non-finite", bad=1, of=8,
        outputs=[operand("output", given.dtype, neginf=1)], code=code,
        elements=[Element(coordinate=[0], inputs=[0.0], output=-math.inf, fp64=-math.inf)],
    )  # fmt: skip


def above(*ops: dict[str, Any]) -> list[tuple[NoteKind, dict[str, Any]]]:
    """The ops that an operand of origin `op 30` comes from, each made by the next."""
    chain = [{"index": 30 - i, "writers": [29 - i], **op} for i, op in enumerate(ops)]
    return [(NoteKind.ANCESTRY, {"ops": chain})]


ZEROED = operand("self", zero=2, amax=1.0, amin=0.25, origin="op 30")
SOFTMAX = {"op": "aten._softmax", "numel": 8, "zero": 2}


def test_a_vanished_probability_is_told_from_a_masked_one_and_from_a_mere_zero(evidence_of: EvidenceOf) -> None:
    mul, fill = {"op": "aten.mul.Tensor"}, {"op": "aten.masked_fill.Scalar", "neginf": 2}
    vanished = evidence_of(ONSET, logarithm(ZEROED), notes=above(SOFTMAX, mul))
    masked = evidence_of(ONSET, logarithm(ZEROED), notes=above(SOFTMAX, fill))
    plain = evidence_of(ONSET, logarithm(ZEROED), notes=above({"op": "aten.relu", "numel": 8, "zero": 2}, mul))
    answers = [
        (naive_exp_log.CAUSE.examine(e) is not None, domain_error.CAUSE.examine(e) is not None)
        for e in (vanished, masked, plain)
    ]
    assert answers == [(True, False), (False, True), (False, True)]


def test_the_logarithm_of_a_zero_in_the_batch_is_no_more_than_consistent(evidence_of: EvidenceOf) -> None:
    given = operand("self", zero=1, amax=1.0, amin=0.25, origin="batch depth")
    answer = domain_error.CAUSE.examine(evidence_of(ONSET, logarithm(given)))
    assert isinstance(answer, Suspect)
    assert answer.grade is Grade.CONSISTENT


def test_an_epsilon_that_fp16_holds_is_not_accused(evidence_of: EvidenceOf) -> None:
    given = operand("self", "float16", zero=1, amax=1.0, amin=0.25)
    for code, told in [("(p + 1e-8).log()", True), ("(p + 1e-6).log()", False), ("p.log()", False)]:
        evidence = evidence_of(ONSET, logarithm(given, code))
        assert (epsilon_underflow.CAUSE.examine(evidence) is not None) == told
        assert (domain_error.CAUSE.examine(evidence) is None) == told


@pytest.mark.parametrize(("epsilon", "dtype", "told"), [(1e-8, "float16", True), (1e-4, "float16", False),
                                                      (1e-8, "float32", False), (1e-8, "bfloat16", False)])  # fmt: skip
def test_adams_epsilon_is_accused_only_where_it_rounds_to_zero(
    epsilon: float, dtype: str, told: bool, evidence_of: EvidenceOf
) -> None:
    birth = Birth(
        kind="nan-from-finite", seq=9, phase="update", op="aten.addcdiv_", fp64="non-finite", bad=1, of=8,
        inputs=[operand("self", dtype), operand("tensor1", dtype), operand("tensor2", dtype, zero=1)],
        outputs=[operand("output", dtype, nan=1)], elements=[Element(coordinate=[0], inputs=[1.0, 0.0, 0.0], output=math.nan)],
    )  # fmt: skip
    notes = [(NoteKind.OPTIMIZER, {"class": "AdamW", "groups": [{"eps": epsilon}]})]
    onset = Onset(kind="nan", step=0, phase="update")
    answer = epsilon_underflow.CAUSE.examine(evidence_of(onset, birth, notes=notes, to="weight"))
    assert (answer is not None) == told


@pytest.mark.parametrize(
    ("dtype", "argument", "told"),
    [("float16", 11.0, False), ("float16", 11.2, True), ("bfloat16", 88.8, True), ("float32", 88.7, False),
     ("float32", 88.8, True), ("float64", 709.0, False), ("float64", 710.0, True)],
)  # fmt: skip
def test_exp_is_accused_from_its_formats_end_on(
    dtype: str, argument: float, told: bool, evidence_of: EvidenceOf
) -> None:
    assert bool(torch.tensor(argument, dtype=getattr(torch, dtype)).exp().isinf()) == told
    birth = overflow("aten.exp", operand("self", dtype, high=argument, amax=argument), 1e5)
    assert (naive_exp_log.CAUSE.examine(evidence_of(ONSET, birth)) is not None) == told


@pytest.mark.parametrize(
    ("way", "first"),
    [
        (["aten.exp", "aten.div.Tensor"], "replace"),
        (["aten.exp", "aten.sum.dim_IntList", "aten.div.Tensor"], "replace"),
        (["aten.exp", "aten.add.Tensor", "aten.log"], "replace"),
        (["aten.exp", "aten.mul.Tensor", "aten.add.Tensor"], "bound"),
        (["aten.exp", "aten.sub.Tensor", "aten.sum.dim_IntList"], "bound"),
        ([], "bound"),
    ],
)
def test_the_first_fix_of_an_exp_is_a_stable_op_only_where_one_is_written_out(
    way: list[str], first: str, evidence_of: EvidenceOf
) -> None:
    birth = overflow("aten.exp", operand("self", high=700.0, amax=700.0), 1e200)
    answer = naive_exp_log.CAUSE.examine(evidence_of(ONSET, birth, way=way))
    assert isinstance(answer, Suspect)
    assert answer.fixes[0].startswith(first)


def test_a_divisor_is_followed_to_the_op_that_made_it(evidence_of: EvidenceOf) -> None:
    notes = above({"op": "aten.clamp_min", "numel": 4, "zero": 1}, {"op": "aten.linalg_vector_norm"})
    given = operand("other", "float16", 12, zero=3, amax=2.0, amin=0.5, origin="op 30")
    birth = Birth(
        kind="nan-from-finite", seq=40, phase="forward", op="aten.div.Tensor", inputs=[operand("self", "float16", 12), given],
        code="F.normalize(h)", elements=[Element(coordinate=[0], inputs=[0.0, 0.0], output=math.nan)],
    )  # fmt: skip
    evidence = evidence_of(ONSET, birth, notes=notes)
    assert [m.op for m in producers(evidence, birth, given)] == ["clamp_min", "linalg_vector_norm"]
    zero = zero_divisor(birth, evidence)
    assert zero is not None
    assert (zero.kind, zero.epsilon) == ("epsilon", 1e-12)


# --- backward ---------------------------------------------------------------------------------------------------------


def slope(incoming: float, discarded: dict[str, Any]) -> Birth:
    return Birth(
        kind="nan-from-finite" if incoming == 0 else "inf-from-finite", seq=9, phase="backward", op="aten.div.Tensor",
        node="SqrtBackward0", forward_op="aten.sqrt", fp64="non-finite", bad=1, of=8,
        inputs=[operand("self", amax=1.0), operand("other", zero=1, amax=1.0)], outputs=[operand("output", nan=1)],
        elements=[Element(coordinate=[0], inputs=[incoming, 0.0], output=math.nan)], facts=discarded,
    )  # fmt: skip


ALL: dict[str, Any] = {"discarded_by": "aten.where.self", "discarded": "all", "discard_checked": True}
PART, UNASKED = ALL | {"discarded": "part"}, ALL | {"discard_checked": False}


@pytest.mark.parametrize(
    ("incoming", "discarded", "grades"),
    [
        (0.0, ALL, {"where-trap": "proved"}),
        (0.0, PART, {"where-trap": "supported", "singular-gradient": "proved"}),
        (0.0, UNASKED, {"where-trap": "supported", "singular-gradient": "consistent"}),
        (0.5, UNASKED, {"singular-gradient": "proved"}),
        (0.0, {}, {"singular-gradient": "proved"}),
        (0.0, {"zero_factor": "aten.mul.Tensor"}, {"singular-gradient": "proved"}),
    ],
)
def test_a_trap_needs_both_a_select_that_was_asked_and_the_zero(
    incoming: float, discarded: dict[str, Any], grades: dict[str, str], evidence_of: EvidenceOf
) -> None:
    onset = Onset(kind="nan", step=7, phase="backward")
    evidence = evidence_of(onset, slope(incoming, discarded), to="gradient")
    answers = [c.examine(evidence) for c in (where_trap.CAUSE, singular_gradient.CAUSE)]
    assert {a.cause: a.grade for a in answers if isinstance(a, Suspect)} == grades


@pytest.mark.parametrize(("outcome", "grade"), [("cured", "proved"), ("failed", "proved"), ("persists", "refuted")])
def test_a_double_where_that_shows_the_value_to_be_used_refutes_a_trap(
    outcome: str, grade: str, evidence_of: EvidenceOf
) -> None:
    ran: dict[str, Any] = {"exact": "persists", "safe-argument": outcome}
    notes = [(NoteKind.TRIAL, Trial(name=n, outcome=o, detail="").to_json()) for n, o in ran.items()]
    evidence = evidence_of(Onset(kind="nan", step=7, phase="backward"), slope(0.0, ALL), to="gradient", notes=notes)
    told = {s.cause: s.grade for s in diagnose(evidence.trace).suspects}
    assert told["where-trap"] == grade


def test_the_fix_of_a_trap_names_the_other_lines_that_its_trial_made_safe(evidence_of: EvidenceOf) -> None:
    readback = (
        "4 elements of what net.py:9 is given: the slope at 0.5; 2 elements of what net.py:7 is given: the slope at 1"
    )
    trial = Trial(name="safe-argument", outcome="cured", detail="", readback=readback).to_json()
    evidence = evidence_of(
        Onset(kind="nan", step=7, phase="backward"),
        dataclasses.replace(slope(0.0, ALL), source="net.py:9"),
        to="gradient",
        notes=[(NoteKind.TRIAL, trial)],
    )
    answer = where_trap.CAUSE.examine(evidence)
    assert isinstance(answer, Suspect)
    assert answer.fixes[0].endswith("; the trial made net.py:7 safe as well")


@pytest.mark.parametrize(("outcome", "found"), [("cured", "where-trap"), ("persists", "domain-error")])
def test_a_root_of_a_negative_that_a_select_leaves_out_is_a_domain_error_where_its_values_are_used_after_all(
    outcome: str, found: str, evidence_of: EvidenceOf
) -> None:
    root = Birth(
        kind="nan-from-finite", seq=3, phase="forward", op="aten.sqrt", node=None, fp64="non-finite", bad=2, of=8,
        inputs=[operand("self", amax=1.0)], outputs=[operand("output", nan=2)],
        elements=[Element(coordinate=[0], inputs=[-2e-4], output=math.nan)], facts=ALL,
    )  # fmt: skip
    ran: dict[str, Any] = {"exact": "persists", "safe-argument": outcome}
    notes = [(NoteKind.TRIAL, Trial(name=n, outcome=o, detail="").to_json()) for n, o in ran.items()]
    evidence = evidence_of(Onset(kind="nan", step=7, phase="forward"), root, to="gradient", notes=notes)
    assert diagnose(evidence.trace).suspects[0].cause == found


# --- FP8 --------------------------------------------------------------------------------------------------------------


def pile(last: int, previous: int, amax: float = 448.0) -> Observation:
    stats = TensorStats(numel=1000, amax=amax, amin=1.0, exponents=ExponentHistogram(6, (500, previous, last)))
    return Observation(step=6, phase="forward", role="output", module="down", dtype="float8_e4m3fn", stats=stats)


def test_a_pile_at_the_end_of_fp8_is_told_from_a_scaled_maximum(evidence_of: EvidenceOf) -> None:
    spike = Onset(kind="loss-spike", step=7, phase="forward")
    assert fp8_saturation.CAUSE.examine(evidence_of(spike, rows=[pile(200, 40)])) is not None
    assert fp8_saturation.CAUSE.examine(evidence_of(spike, rows=[pile(1, 40)])) is None
    assert fp8_saturation.CAUSE.examine(evidence_of(spike, rows=[pile(200, 40, amax=416.0)])) is None


def test_a_cast_beyond_e5m2_is_proved(evidence_of: EvidenceOf) -> None:
    birth = overflow("aten._to_copy", operand("self", amax=7e4), 7e4)
    birth.outputs[0] = operand("output", "float8_e5m2", posinf=2)
    evidence = evidence_of(ONSET, birth)
    answer = fp8_saturation.CAUSE.examine(evidence)
    assert isinstance(answer, Suspect)
    assert answer.grade is Grade.PROVED
    assert activation_overflow.CAUSE.examine(evidence) is None

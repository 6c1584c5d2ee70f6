"""bad-sample and bad-target: what the batch itself proves, and the faults that only happen to go with a sample."""

from __future__ import annotations

import math

import pytest

from nanhunt.diagnosis.cause import Grade, Suspect
from nanhunt.diagnosis.causes import bad_sample, bad_target
from nanhunt.trace.schema import NoteKind, Onset
from tests.diagnosis.builders_b import (
    batch,
    birth,
    evidence,
    floats,
    integers,
    lineage,
    nan,
    operand,
    samples,
    spike,
    steady,
    tensor,
)

CALM = [2.1, 2.3, 1.9, 2.2, 2.0, 2.4, 2.2, 2.1]
THROUGH_THE_MODEL = lineage(("aten.addmm", "side"), ("aten.add.Tensor", ""), ("aten.nll_loss_forward", ""))
AT_THE_LOSS = lineage(("aten.log", ""), ("aten.sub.Tensor", ""), ("aten.mean", ""))


def inherited(field: str = "x", **more: object) -> tuple[NoteKind, dict[str, object]]:
    given = operand("mat1", f"batch {field}", nan=1)
    return birth(
        "aten.addmm", kind="carried", module="side", inputs=[given], facts={"inherited": f"batch {field}"}, **more
    )


def accused(answer: object) -> Suspect:
    assert isinstance(answer, Suspect)
    return answer


# --- bad-sample ------------------------------------------------------------------------------------------------------


def test_a_nan_in_an_input_is_proved_by_its_count_and_its_sample_is_named() -> None:
    found = accused(
        bad_sample.examine(
            evidence(
                nan(phase="batch", name="x"),
                notes=[inherited(), THROUGH_THE_MODEL, batch(floats("x", CALM, [0, 0, 0, 1, 0, 0, 0, 0])), samples(3)],
            )
        )
    )
    assert found.grade is Grade.PROVED
    assert found.location.samples == (3,)
    assert found.exhibits[0].value == 1
    assert {(p.trial, p.expect) for p in found.predictions} == {("drop-samples", "cured"), ("drop-placebo", "persists")}


def test_a_batch_that_is_bad_as_a_whole_is_swapped_and_not_thinned() -> None:
    found = accused(
        bad_sample.examine(
            evidence(
                nan(phase="batch", name="x"), notes=[inherited(), THROUGH_THE_MODEL, batch(floats("x", CALM, [4] * 8))]
            )
        )
    )
    assert [p.trial for p in found.predictions] == ["swap-batch"]


@pytest.mark.parametrize(("op", "depth"), [("aten.addmm", 1), ("aten.exp", 0)])
def test_a_far_outlier_that_carries_the_fault_is_supported(op: str, depth: int) -> None:
    sizes = [*CALM[:7], 6000.0]
    found = accused(
        bad_sample.examine(
            evidence(nan(samples=[7]), notes=[birth(op, fp64="beyond-range"), batch(floats("x", sizes)), samples(7)])
        )
    )
    assert (found.grade, found.location.samples, found.depth) == (Grade.SUPPORTED, (7,), depth)


def test_an_outlier_that_does_not_carry_the_fault_is_left_alone() -> None:
    sizes = [*CALM[:7], 6000.0]
    notes = [birth("aten.log", fp64="non-finite"), batch(floats("x", sizes)), samples(2)]
    assert bad_sample.examine(evidence(nan(samples=[2]), notes=notes)) is None


@pytest.mark.parametrize(
    "made",
    [
        birth("aten._softmax", kind="nan-from-inf", fp64="non-finite", facts={"fully_masked_rows": 4}),
        birth("aten.div.Tensor", kind="nan-from-finite", fp64="non-finite"),
        birth("aten.mul.Tensor", fp64="beyond-range", inputs=[operand("self", amax=1.0, amin=1.0)]),
    ],
    ids=["fully-masked row", "constant image", "mask constant"],
)
def test_a_sample_that_only_triggers_an_undefined_operation_is_not_bad(
    made: tuple[NoteKind, dict[str, object]],
) -> None:
    notes = [made, batch(floats("x", CALM)), samples(5)]
    assert bad_sample.examine(evidence(nan(samples=[5]), notes=notes)) is None


def test_samples_alone_are_only_a_signature() -> None:
    notes = [birth("aten.mm", fp64="beyond-range"), batch(integers("ids", 3, 250)), samples(5)]
    found = accused(bad_sample.examine(evidence(nan(samples=[5]), notes=notes)))
    assert found.grade is Grade.CONSISTENT
    assert not found.predictions


def test_samples_that_overflow_first_in_a_run_that_diverged_are_innocent() -> None:
    losses = steady(30, 33, 3.0, s34=60.0, s35=9000.0, s36=math.inf)
    notes = [birth("aten.mse_loss", fp64="beyond-range"), batch(floats("x", CALM)), samples(5)]
    assert bad_sample.examine(evidence(nan(samples=[5]), notes=notes, scalars={"loss": losses})) is None


def test_a_sample_whose_own_loss_stands_out_before_any_update_explains_a_spike() -> None:
    losses = [2.0, 2.2, 1.9, 40.0, 2.1, 2.0, 2.3, 2.1]
    note = (NoteKind.SAMPLE_LOSSES, {"step": 36, "losses": losses, "outliers": [3]})
    found = accused(bad_sample.examine(evidence(spike(phase="forward", samples=[3]), notes=[note])))
    assert found.location.samples == (3,)
    assert found.exhibits[0].value == 40.0


def test_sample_losses_after_a_damaging_update_accuse_no_sample() -> None:
    note = (NoteKind.SAMPLE_LOSSES, {"step": 37, "losses": [15.0, 14.0, 15.5, 90.0], "outliers": [3]})
    assert bad_sample.examine(evidence(spike(36, "update"), notes=[note])) is None


def test_a_pocket_of_other_data_is_seen_by_its_spread_and_told_with_its_extent() -> None:
    spread = {s: 58.0 if 36 <= s <= 38 else 1.0 for s in range(30, 41)}
    rows = [tensor(s, "batch", "x", rms=v, phase="batch") for s, v in spread.items()]
    found = accused(bad_sample.examine(evidence(spike(phase="forward"), rows=rows)))
    assert "steps 36 to 38" in found.summary
    assert not found.predictions


def test_a_hard_batch_of_ordinary_spread_is_not_called_bad() -> None:
    rows = [tensor(s, "batch", "x", rms=1.0 + 0.1 * (s % 3), phase="batch") for s in range(30, 41)]
    assert bad_sample.examine(evidence(spike(phase="forward"), rows=rows)) is None


def test_a_rate_jump_on_the_same_step_takes_the_blame_from_the_batch() -> None:
    rows = [tensor(s, "batch", "x", rms=60.0 if s == 36 else 1.0, phase="batch") for s in range(30, 41)]
    rates = steady(30, 34, 1e-3) | dict.fromkeys(range(35, 41), 0.3)
    assert bad_sample.examine(evidence(spike(phase="forward"), rows=rows, scalars={"lr": rates})) is None


def test_a_nan_weight_is_no_bad_sample() -> None:
    made = birth("aten.mm", kind="carried", facts={"inherited": "parameter h.weight"})
    assert bad_sample.examine(evidence(nan(phase="load"), notes=[made, batch(floats("x", CALM)), samples(0)])) is None


# --- bad-target ------------------------------------------------------------------------------------------------------


def raised(message: str, module: str = "", **more: object) -> tuple[Onset, tuple[NoteKind, dict[str, object]]]:
    onset = Onset(kind="exception", step=36, phase="forward", module=module, detail=message)
    return onset, (NoteKind.EXCEPTION, {"type": "IndexError", "message": message, "module": module, **more})


def test_the_number_of_the_message_in_the_batch_is_proof() -> None:
    onset, note = raised("Target 30 is out of bounds.")
    found = accused(
        bad_target.examine(evidence(onset, notes=[note, batch(integers("x", 0, 29), integers("y", 0, 30))]))
    )
    assert (found.grade, found.location.parameter) == (Grade.PROVED, "y")


def test_an_id_beyond_the_table_that_raised_is_proof() -> None:
    onset, note = raised("index out of range in self", module="embed")
    table = tensor(30, "weight", "embed.weight", phase="load", shape=(50, 16))
    found = accused(bad_target.examine(evidence(onset, notes=[note, batch(integers("ids", 0, 50))], rows=[table])))
    assert found.grade is Grade.PROVED
    assert any(e.value == 50.0 and e.threshold == 49.0 for e in found.exhibits)


def test_ids_within_the_table_are_no_proof() -> None:
    onset, note = raised("index out of range in self", module="embed")
    table = tensor(30, "weight", "embed.weight", phase="load", shape=(50, 16))
    found = accused(bad_target.examine(evidence(onset, notes=[note, batch(integers("ids", 0, 49))], rows=[table])))
    assert found.grade is Grade.SUPPORTED


def test_a_probability_target_outside_of_its_range_is_named_without_integers() -> None:
    onset, note = raised("all elements of target should be between 0 and 1")
    found = accused(bad_target.examine(evidence(onset, notes=[note, batch(floats("y", CALM))])))
    assert found.grade is Grade.CONSISTENT


@pytest.mark.parametrize("message", ["CUDA out of memory", "mat1 and mat2 shapes cannot be multiplied (4x8 and 16x2)"])
def test_other_exceptions_are_not_its_business(message: str) -> None:
    onset, note = raised(message)
    assert bad_target.examine(evidence(onset, notes=[note, batch(integers("ids", 0, 50))])) is None


def test_the_log_of_a_zero_target_is_proved() -> None:
    given = operand("self", "batch depth", zero=1, low=0.0)
    notes = [birth("aten.log", fp64="non-finite", inputs=[given]), AT_THE_LOSS, samples(4)]
    found = accused(bad_target.examine(evidence(nan(samples=[4]), notes=notes)))
    assert (found.grade, found.location.samples, found.location.parameter) == (Grade.PROVED, (4,), "depth")


@pytest.mark.parametrize(("op", "found"), [("aten.add.Tensor", True), ("aten.exp", False)])
def test_a_target_that_is_shifted_on_its_way_is_a_target_still(op: str, found: bool) -> None:
    maker = {"index": 9, "op": op, "numel": 8, "zero": 0, "neginf": 0, "writers": [], "scalars": [1.0],
             "origins": ["batch y"], "source": "a.py:3", "code": ""}  # fmt: skip
    above = (NoteKind.ANCESTRY, {"ops": [maker]})
    made = birth("aten.lgamma", inputs=[operand("self", "op 9", low=-1.0)], fp64="non-finite")
    answer = bad_target.examine(evidence(nan(), notes=[above, made, lineage(("aten.lgamma", ""), ("aten.mean", ""))]))
    assert (answer is not None) == found


def test_the_log_of_a_zero_input_that_goes_through_the_model_is_no_target() -> None:
    given = operand("self", "batch mel", zero=1, low=0.0)
    notes = [birth("aten.log", fp64="non-finite", inputs=[given]), THROUGH_THE_MODEL]
    assert bad_target.examine(evidence(nan(), notes=notes)) is None


def test_the_log_of_a_zero_that_the_model_computed_is_no_target() -> None:
    given = operand("self", "op 12", zero=1, low=0.0)
    assert (
        bad_target.examine(evidence(nan(), notes=[birth("aten.log", fp64="non-finite", inputs=[given]), AT_THE_LOSS]))
        is None
    )


def test_a_positive_target_is_innocent_of_a_bad_prediction() -> None:
    inputs = [operand("self", "op 3", zero=1, low=0.0), operand("other", "batch y", low=0.5)]
    assert bad_target.examine(evidence(nan(), notes=[birth("aten.div.Tensor", inputs=inputs), AT_THE_LOSS])) is None


def test_a_nan_that_enters_at_the_loss_is_a_target_and_no_sample() -> None:
    made = birth("aten.mse_loss", kind="carried", facts={"inherited": "batch y"},
                 inputs=[operand("self", "op 9"), operand("target", "batch y", nan=1)])  # fmt: skip
    told = evidence(
        nan(phase="batch", name="y"),
        notes=[made, lineage(("aten.mse_loss", "")), batch(floats("y", CALM, [0, 1, 0, 0, 0, 0, 0, 0]))],
    )
    assert accused(bad_target.examine(told)).grade is Grade.PROVED
    assert bad_sample.examine(told) is None


# --- inputs or targets -------------------------------------------------------------------------------------------------


def exchanged(
    batch_loss: float, chance: float | None, change: float = 1.0, recorded: int = 6, labels: float = 2.0
) -> tuple[object, object]:
    """What bad-target and bad-sample say of a batch that is bad on a healthy state, whose layers changed so many times."""
    losses = {"own": 4.0, "batch_on_healthy_state": batch_loss, "healthy_batch_on_state": 0.5}
    body = {"step": 36, "healthy_step": 33, "baseline": 0.4, "losses": losses, "chance": chance}
    rows = [
        tensor(s, "output", "head", rms=2.0 * (change if s == 36 else 1.0 + 0.01 * (s % 3)), phase="forward")
        for s in range(36 - recorded, 37)
    ]
    rows += [
        tensor(s, "batch", "1", rms=math.hypot(m, 1.4), mean=m, phase="batch")
        for s in range(36 - recorded, 37)
        for m in [labels if s == 36 else 2.0]
    ]
    told = evidence(
        spike(36, "forward"),
        notes=[(NoteKind.FACTORIAL, body)],
        rows=rows,
        scalars={"loss": steady(30, 35, 0.4) | {36: 4.0}, "lr": dict.fromkeys(range(30, 37), 1e-3)},
    )
    return bad_target.examine(told), bad_sample.examine(told)


def test_a_classifier_that_is_sure_and_wrong_of_ordinary_inputs_has_the_targets_of_others() -> None:
    target, sample = exchanged(3.8, math.log(5))
    assert (accused(target).grade, accused(target).location.phase) == (Grade.SUPPORTED, "batch")
    assert sample is None


@pytest.mark.parametrize(
    "told",
    [
        {"batch_loss": 3.8, "chance": None},
        {"batch_loss": 3.8, "chance": 4.6},
        {"batch_loss": 3.8, "chance": 1.6, "change": 1.8},
        {"batch_loss": 3.8, "chance": 1.6, "change": 0.4},
        {"batch_loss": 3.8, "chance": 1.6, "recorded": 3},
        {"batch_loss": 3.8, "chance": 1.6, "labels": 7.0},
    ],
    ids=["no classifier", "a guess", "louder inputs", "fainter inputs", "too few steps", "other classes"],
)
def test_a_bad_batch_is_bad_as_a_whole_where_its_inputs_are_other_data_or_unknown(
    told: dict[str, float | None],
) -> None:
    target, sample = exchanged(**told)  # type: ignore[arg-type]
    assert target is None
    assert accused(sample).grade is Grade.SUPPORTED

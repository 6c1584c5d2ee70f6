"""State, code and machine: what was bad before the step, what the loop did, and what a repetition shows."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanhunt.diagnosis.cause import Grade, NotApplicable, Suspect
from nanhunt.diagnosis.causes import (
    bad_init,
    faulty_backward,
    hardware_fault,
    nondeterminism,
    poisoned_state,
    rank_divergence,
    training_loop_bug,
)
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.trace.reader import Trace
from nanhunt.trace.schema import CLIP_OF_NOTHING, NoteKind, Observation, Onset
from tests.diagnosis.builders_b import (
    ADAMW,
    batch,
    birth,
    evidence,
    health,
    integers,
    nan,
    operand,
    spike,
    steady,
    tensor,
    written,
)

FRESH = {**ADAMW, "with_state": 0, "state_steps": []}


def accused(answer: object) -> Suspect:
    assert isinstance(answer, Suspect)
    return answer


def poison(name: str = "h.weight", where: str = "parameter", **counts: Any) -> tuple[NoteKind, dict[str, Any]]:
    module, _, leaf = name.rpartition(".")
    body = {"where": where, "module": module, "name": leaf, "nan": 0, "posinf": 0, "neginf": 0, "numel": 4096}
    return NoteKind.POISON, body | counts | {"coordinates": [[4, 9]]}


def carried(source: str) -> tuple[NoteKind, dict[str, Any]]:
    return birth("aten.mm", kind="carried", facts={"inherited": source})


# --- poisoned-state ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"), [("parameter", "h.weight"), ("buffer", "bn.running_var"), ("state", "h.weight.exp_avg")]
)
def test_what_the_loss_inherits_from_and_was_bad_at_load_is_proved(kind: str, name: str) -> None:
    found = accused(
        poisoned_state.examine(evidence(nan(30, "load"), notes=[poison(name, kind, nan=1), carried(f"{kind} {name}")]))
    )
    assert (found.grade, found.location.parameter, found.location.phase) == (Grade.PROVED, name, "load")
    assert (found.exhibits[0].value, found.exhibits[0].threshold) == (1.0, 0.0)
    assert {p.expect for p in found.predictions if p.refutes} == {"persists"}


@pytest.mark.parametrize("others", [[], ["h.weight"]])
def test_statistics_that_batches_fill_again_are_no_reason_to_go_back_where_all_weights_are_finite(
    others: list[str],
) -> None:
    bad = [poison("bn.running_mean", "buffer", nan=8), *(poison(name, nan=1) for name in others)]
    found = accused(poisoned_state.examine(evidence(nan(30, "load"), notes=[*bad, carried("buffer bn.running_mean")])))
    assert any("reset_running_stats" in fix for fix in found.fixes) == (not others)


def test_whole_tensors_of_nan_and_single_elements_tell_of_different_pasts() -> None:
    def claims(**counts: Any) -> str:
        told = evidence(nan(30, "load"), notes=[poison(**counts), carried("parameter h.weight")])
        return " ".join(e.claim for e in accused(poisoned_state.examine(told)).exhibits)

    assert "every element" in claims(nan=4096)
    assert "single elements" in claims(nan=3)


def test_without_a_zoom_the_checkpoint_alone_proves_it_at_the_first_step_only() -> None:
    assert accused(poisoned_state.examine(evidence(nan(30), notes=[poison(nan=1)]))).grade is Grade.PROVED
    assert poisoned_state.examine(evidence(nan(34), notes=[poison(nan=1)])) is None


@pytest.mark.parametrize(
    "notes",
    [
        [poison("mask", "buffer", neginf=15), birth("aten._softmax", kind="nan-from-inf")],
        [poison("bn.running_var", "buffer", nan=8), birth("aten.log", fp64="non-finite")],
        [carried("batch x")],
    ],
    ids=["a mask of -inf", "a spoiled buffer that nothing read", "the batch brought it"],
)
def test_what_the_fault_does_not_come_from_is_not_blamed(notes: list[Any]) -> None:
    onset = nan(30, "batch", name="x") if notes[0][0] is NoteKind.BIRTH else nan(30)
    assert poisoned_state.examine(evidence(onset, notes=notes)) is None


def loaded(name: str, exponents: dict[int, int], numel: int, **more: Any) -> Observation:
    """A weight at load with so many elements by binary exponent."""
    low, high = min(exponents), max(exponents)
    counts = tuple(exponents.get(e, 0) for e in range(low, high + 1))
    amax = 1.5 * 2.0**high
    return tensor(
        30, "weight", name, phase="load", numel=numel, amax=amax, amin=2.0**low, exponents=(low, counts), **more
    )


NORMAL = {-20: 1, -12: 30, -9: 300, -7: 1500, -6: 1900, -5: 360, -4: 5}


def test_a_flipped_exponent_bit_in_a_trained_weight_is_seen_by_the_gap_below_it() -> None:
    rows = [loaded("h.weight", NORMAL | {122: 1}, 4097), loaded("g.weight", NORMAL, 4096)]
    found = accused(poisoned_state.examine(evidence(nan(30), notes=[birth("aten.mm", fp64="beyond-range")], rows=rows)))
    assert (found.grade, found.location.parameter) == (Grade.SUPPORTED, "h.weight")
    assert found.exhibits[0].threshold == 2.0**-3


def test_ordinary_heavy_tails_are_no_flip() -> None:
    rows = [loaded("h.weight", NORMAL | {-1: 3, 3: 1, 6: 1}, 4101)]
    assert poisoned_state.examine(evidence(spike(36), rows=rows)) is None


@pytest.mark.parametrize(("reason", "found"), [("lost-update", True), ("no-motion", True), ("underflow", False)])
def test_an_infinite_root_that_no_update_moves_past_is_told_of_a_stall(reason: str, found: bool) -> None:
    stall = Onset(kind="stall", step=30, phase="update", module="h", name="weight")
    notes = [poison("h.weight.sum", "state", posinf=4096), (NoteKind.STALL, {"reason": reason, "step": 30})]
    answer = poisoned_state.examine(evidence(stall, notes=notes))
    assert (answer is not None) == found
    if found:
        suspect = accused(answer)
        assert (suspect.grade, suspect.location.parameter) == (Grade.PROVED, "h.weight.sum")
        assert not any("carried" in e.claim for e in suspect.exhibits)


def test_a_stall_elsewhere_is_not_the_bad_states() -> None:
    stall = Onset(kind="stall", step=30, phase="update", module="g", name="weight")
    notes = [poison("h.weight.sum", "state", posinf=4096), (NoteKind.STALL, {"reason": "lost-update", "step": 30})]
    assert poisoned_state.examine(evidence(stall, notes=notes)) is None


# --- bad-init --------------------------------------------------------------------------------------------------------------


def head(missing: bool = True) -> dict[str, Any]:
    return {"match": f"matched 1 of 2 tensors{'; missing, left as built: head.weight' if missing else ''}"}


def test_a_tensor_that_the_checkpoint_lacks_and_that_is_nan_was_never_initialised() -> None:
    rows = [loaded("h.weight", NORMAL, 4096), loaded("head.weight", NORMAL, 4098, nan=2)]
    notes = [poison("head.weight", nan=2), carried("parameter head.weight")]
    found = accused(bad_init.examine(evidence(nan(30, "load"), notes=notes, rows=rows, **head())))
    assert (found.location.parameter, found.depth) == ("head.weight", 1)
    assert bad_init.examine(evidence(nan(30, "load"), notes=notes, rows=rows, **head(missing=False))) is None


def test_finite_garbage_is_seen_by_its_size_and_its_spread() -> None:
    rows = [loaded("h.weight", NORMAL, 4096), loaded("g.weight", NORMAL, 4096)]
    garbage = loaded("head.weight", {-149: 900, -60: 20, -8: 10, 40: 30, 100: 7}, 967)
    assert (
        accused(bad_init.examine(evidence(nan(30), rows=[*rows, garbage], **head()))).location.parameter
        == "head.weight"
    )
    assert bad_init.examine(evidence(nan(30), rows=rows, **head())) is None


def first_loss(loss: float, optimizer: dict[str, Any] = FRESH, **more: Any) -> object:
    losses = {0: loss, 1: 4 * loss, 2: 16 * loss}
    logits = tensor(0, "output", "", phase="forward", shape=(8, 16, 256))
    return bad_init.examine(
        evidence(
            spike(2, "forward"), notes=[batch(integers("y", 0, 255), step=2), *more.pop("notes", [])], rows=[logits],
            scalars={"loss": losses}, optimizer=optimizer, checkpoint_step=more.pop("checkpoint_step", 0), **more,
        )
    )  # fmt: skip


def test_a_first_loss_far_above_even_odds_is_no_updates_doing() -> None:
    found = accused(first_loss(90.0))
    assert found.exhibits[0].threshold == pytest.approx(5.545, abs=1e-3)


def test_it_is_deeper_than_the_updates_by_which_it_ends_in_nan_and_no_calm_runs_cause() -> None:
    def judged(second: float) -> object:
        rows = [tensor(0, "output", "", phase="forward", shape=(8, 16, 256))]
        told = evidence(nan(3), notes=[batch(integers("y", 0, 255), step=3)], rows=rows, optimizer=FRESH,
                        scalars={"loss": {0: 90.0, 1: second, 2: 3 * second, 3: math.nan}}, checkpoint_step=0)  # fmt: skip
        return bad_init.examine(told)

    assert accused(judged(400.0)).depth == 2
    assert judged(20.0) is None


@pytest.mark.parametrize(
    ("loss", "more"),
    [
        (5.7, {}),
        (11.0, {}),
        (90.0, {"checkpoint_step": 5000}),
        (90.0, {"optimizer": ADAMW}),
        (
            90.0,
            {
                "notes": [
                    (NoteKind.ASSUMPTION, {"text": "the checkpoint does not tell its step: steps are counted from 0"})
                ]
            },
        ),
    ],
    ids=["even odds", "twice that", "a resumed run", "moments are there", "the step is not known"],
)
def test_a_fit_or_a_trained_start_is_innocent(loss: float, more: dict[str, Any]) -> None:
    assert first_loss(loss, **more) is None


# --- faulty-backward ---------------------------------------------------------------------------------------------------------


def backward(node: str, fp64: str = "non-finite", **more: Any) -> object:
    made = birth(
        "aten.div.Tensor",
        phase="backward",
        node=node,
        fp64=fp64,
        outputs=[operand("output", dtype=more.pop("dtype", "float32"))],
        **more,
    )
    return faulty_backward.examine(evidence(nan(phase="backward"), notes=[made]))


def test_a_birth_under_the_users_own_function_is_named_by_its_class() -> None:
    found = accused(backward("SmoothAbsBackward", source="ops.py:31"))
    assert found.grade is Grade.SUPPORTED
    assert "SmoothAbs.backward (ops.py:31)" in found.fixes[0]


@pytest.mark.parametrize(
    "node",
    ["SqrtBackward0", "DivBackward1", "CheckpointFunctionBackward", "torch::autograd::AccumulateGrad", "CopySlices"],
)
def test_torchs_own_nodes_are_not_the_users(node: str) -> None:
    assert backward(node) is None


def test_a_kernel_that_fp64_contradicts_is_suspect_and_one_out_of_range_is_not() -> None:
    node = "ScaledDotProductFlashAttentionBackward0"
    assert accused(backward(node, "in-range")).grade is Grade.SUPPORTED
    assert accused(backward(node, "in-range", dtype="float16")).grade is Grade.CONSISTENT
    assert backward(node, "beyond-range") is None


def test_exp_that_overflows_in_the_backward_alone_is_the_functions_fault_and_a_product_may_be_the_gradients() -> None:
    exp = birth("aten.exp", phase="backward", node="SoftplusBackward", fp64="beyond-range", outputs=[operand("output")])
    found = accused(faulty_backward.examine(evidence(nan(phase="backward"), notes=[exp])))
    assert (found.grade, found.depth) == (Grade.SUPPORTED, 1)
    assert accused(backward("SoftplusBackward", "beyond-range")).grade is Grade.CONSISTENT


def checked(onset: Onset, node: str) -> object:
    function = {"function": "Norm", "module": "norm", "source": "a.py:3", "verdict": "wrong", "input": 1}
    notes = [
        birth("aten.mm", phase="backward", node=node, fp64="beyond-range", outputs=[operand("output")]),
        (NoteKind.GRADCHECK, {"step": 36, "functions": []}),
        (NoteKind.GRADCHECK, {"step": 33, "functions": [function | {"numeric": 1.0, "analytic": 12.0}]}),
    ]
    return faulty_backward.examine(evidence(onset, notes=notes))


def test_a_wrong_backward_explains_a_run_that_ran_away_and_no_nan_elsewhere_out_of_the_blue() -> None:
    away = replace(nan(phase="backward"), lead_step=33)
    found = accused(checked(away, "MmBackward0"))
    assert (found.grade, found.location.module, found.location.step) == (Grade.SUPPORTED, "norm", 33)
    assert checked(nan(phase="backward"), "MmBackward0") is None
    assert accused(checked(nan(phase="backward"), "NormBackward")).grade is Grade.PROVED


def test_the_gradient_of_a_spike_cannot_be_judged_and_its_loss_need_not_be() -> None:
    assert isinstance(faulty_backward.examine(evidence(spike(36, "backward"))), NotApplicable)
    assert faulty_backward.examine(evidence(spike(36, "forward"))) is None


# --- training-loop-bug ---------------------------------------------------------------------------------------------------------


def clipped(coefficient: float, norm: float, *, inf: int = 0, nans: int = 0, bad: int = 0, **optimizer: Any) -> object:
    rows = [
        tensor(36, "grad", "h.weight", phase="unscale", posinf=inf, nan=nans),
        tensor(36, "weight", "h.weight", nan=bad),
    ]
    scalars = {"clip_coefficient": {36: coefficient}, "grad_norm": {36: norm}}
    told = evidence(
        nan(phase="backward"), rows=rows, scalars=scalars, optimizer={**ADAMW, "clip_grad_norm": 1.0, **optimizer}
    )
    return training_loop_bug.examine(told)


def test_an_infinite_norm_that_reached_the_weights_is_the_loops_fault() -> None:
    found = accused(clipped(0.0, float("inf"), inf=1, bad=1))
    assert (found.grade, found.location.phase) == (Grade.SUPPORTED, "clip")


@pytest.mark.parametrize(
    ("coefficient", "norm", "more"),
    [
        (float("nan"), float("nan"), {"nans": 1024, "bad": 1024}),
        (0.0, float("inf"), {"inf": 1, "nans": 5, "bad": 6}),
        (0.0, float("inf"), {"inf": 1, "bad": 1, "scaler": True}),
        (0.3, 3.3, {"bad": 0}),
    ],
    ids=["NaN gradients", "NaN beside the inf", "a scaler skipped the step", "an ordinary clip"],
)
def test_a_gradient_that_no_clip_could_save_does_not_accuse_the_loop(
    coefficient: float, norm: float, more: dict[str, Any]
) -> None:
    assert clipped(coefficient, norm, **more) is None


def test_a_zero_coefficient_of_a_finite_norm_proves_that_the_norm_overflowed() -> None:
    assert accused(clipped(0.0, 9.5e4)).grade is Grade.PROVED


def test_a_loop_of_the_users_own_of_which_nothing_was_heard_cannot_be_judged() -> None:
    assert isinstance(clipped(0.3, 3.3, custom_step=True), NotApplicable)


def heard(*order: str, alike: int = 5, **more: Any) -> tuple[NoteKind, dict[str, Any]]:
    return NoteKind.LOOP, {"step": 36, "order": list(order), "alike": alike, **more}


@pytest.mark.parametrize(
    ("order", "alike", "grade"),
    [
        (("kept", "backward", "update"), 5, Grade.PROVED),
        (("kept", "backward", "update"), 1, Grade.SUPPORTED),
        (("kept", "zero_grad", "backward", "update"), 5, None),
        (("zero_grad", "backward", "clip", "update"), 5, None),
        (("kept", "backward"), 5, None),  # it adds up over calls
    ],
)
def test_gradients_that_nothing_clears_accuse_the_loop(order: tuple[str, ...], alike: int, grade: Grade | None) -> None:
    answer = training_loop_bug.CAUSE.examine(evidence(spike(36), notes=[heard(*order, alike=alike)]))
    assert (answer.grade if isinstance(answer, Suspect) else None) == grade


@pytest.mark.parametrize("onset", [spike(36), nan(36)], ids=["spike", "nan"])
def test_a_clip_that_is_given_nothing_accuses_the_loop(onset: Onset) -> None:
    order = ("zero_grad", "backward", CLIP_OF_NOTHING, "update")
    found = accused(training_loop_bug.CAUSE.examine(evidence(onset, notes=[heard(*order)])))
    assert found.grade is Grade.SUPPORTED  # that it is so is certain; that it matters is not
    for innocent in (heard(*order, alike=1), heard(*order, "backward", "clip", "update")):
        assert not isinstance(training_loop_bug.CAUSE.examine(evidence(onset, notes=[innocent])), Suspect)


@pytest.mark.parametrize(
    ("moved", "found"),
    [({36: 1.5}, True), ({35: 1.5}, True), ({36: 1e-6}, False), (steady(30, 36, 1.5), False), ({33: 1.5}, False)],
    ids=["at the lead", "just before", "rounding", "as always", "long before"],
)
def test_a_weight_that_is_written_into_after_its_update_accuses_the_loop(moved: dict[int, float], found: bool) -> None:
    rows = health("h.weight", "moved_outside", steady(30, 36, 0.0) | moved)
    rows += [tensor(s, "weight", "h.weight", rms=0.1) for s in range(30, 37)]
    answer = training_loop_bug.CAUSE.examine(evidence(spike(36), rows=rows))
    assert isinstance(answer, Suspect) == found
    if found:
        assert (accused(answer).location.parameter, accused(answer).location.step) == ("h.weight", min(moved))


def test_gradients_used_twice_are_told_with_the_first_step_that_did_so() -> None:
    loop = heard("backward", "skip", "update", reused=[["h.weight", "twice"]], reused_steps=[31, 32, 33])
    assert accused(training_loop_bug.CAUSE.examine(evidence(nan(36), notes=[loop]))).location.step == 31


@pytest.mark.parametrize(("held", "found"), [(0, True), (2, False)])
def test_an_optimizer_of_copies_is_told_by_whose_tensors_it_holds(held: int, found: bool) -> None:
    stall = Onset(kind="stall", step=30, phase="update")
    notes = [(NoteKind.STALL, {"reason": "no-motion", "step": 30})]
    rows = [tensor(30, "grad", "h.weight", phase="unscale")]
    told = evidence(stall, notes=notes, rows=rows, optimizer={**ADAMW, "parameters": 2, "held": held})
    assert isinstance(training_loop_bug.CAUSE.examine(told), Suspect) == found


def test_a_clip_before_the_unscaling_accuses_the_loop_with_what_it_left() -> None:
    stall = Onset(kind="stall", step=36, phase="clip")
    loop = heard("backward", "clip", "unscale", "update", loss_scale=32768.0, clip_coefficient=1e-5)
    notes = [(NoteKind.STALL, {"reason": "scaled-clip", "step": 36}), loop]
    answer = accused(training_loop_bug.CAUSE.examine(evidence(stall, notes=notes)))
    assert answer.grade is Grade.PROVED
    assert "32768" in answer.summary


# --- repetitions -----------------------------------------------------------------------------------------------------------------


def repeat(shown: int, runs: int, apart: float | None, healthy: float | None = None) -> tuple[NoteKind, dict[str, Any]]:
    """Repetitions whose gradients are `apart` by this share of their norm, and a healthy step's by another; None: the same."""
    body: dict[str, Any] = {
        "step": 36,
        "same_loss": apart is None,
        "same_gradients": apart is None,
        "differing": [] if apart is None else ["h.0.weight"],
        "differing_count": 0 if apart is None else 40,
        "gradients": 40,
        "reproduced": shown == runs,
        "shown": shown,
        "runs": runs,
    }
    if apart is not None:
        body["difference"] = {"kind": "many", "relative": apart}
    if healthy is not None:
        body["healthy"] = {"kind": "many", "relative": healthy}
    return NoteKind.REPEAT, body


@pytest.mark.parametrize(
    ("repetition", "hardware", "rounding"),
    [
        (repeat(2, 2, None), None, None),
        (repeat(2, 2, 1e-6), None, None),
        (repeat(0, 5, None), Grade.SUPPORTED, None),
        (repeat(0, 5, 1e-6), Grade.SUPPORTED, None),
        (repeat(0, 5, 0.02, healthy=0.01), Grade.SUPPORTED, None),
        (repeat(0, 5, 0.02, healthy=1e-6), None, Grade.SUPPORTED),
        (repeat(0, 5, 0.5), None, Grade.SUPPORTED),
        (repeat(3, 5, None), None, Grade.SUPPORTED),
    ],
    ids=[
        "fails again, the same",
        "fails again, not bit for bit",
        "gone, repetitions agree",
        "gone, repetitions agree but for rounding",
        "gone, repetitions differ as healthy ones do",
        "gone, repetitions differ more than healthy ones",
        "gone, repetitions differ",
        "comes and goes",
    ],
)
def test_repetitions_tell_a_machine_that_failed_once_from_arithmetic_that_is_never_the_same(
    repetition: tuple[NoteKind, dict[str, Any]], hardware: Grade | None, rounding: Grade | None
) -> None:
    kind = "nan" if repetition[1]["reproduced"] else "mismatch"
    told = evidence(Onset(kind=kind, step=36, phase="forward", detail="loss is NaN"), notes=[repetition])
    for cause, grade in ((hardware_fault, hardware), (nondeterminism, rounding)):
        answer = cause.examine(told)
        assert (answer.grade if isinstance(answer, Suspect) else answer) == grade


def test_losses_that_part_at_once_after_equal_bits_are_no_rounding_even_where_the_spike_comes_again() -> None:
    kind, body = repeat(2, 2, None)
    parting = {"step": 36, "low": 31.0, "high": 39.0, "same": 4}
    found = accused(nondeterminism.examine(evidence(spike(37), notes=[(kind, body | {"departs": parting})])))
    assert (found.location.step, found.exhibits[0].value, found.exhibits[0].threshold) == (36, 39.0, 31.0)
    assert hardware_fault.examine(evidence(spike(37), notes=[(kind, body | {"departs": parting})])) is None


def test_a_step_that_was_not_repeated_cannot_be_judged_until_the_exact_trial_fails_again() -> None:
    trial = (NoteKind.TRIAL, {"name": "exact", "outcome": "persists", "detail": ""})
    for cause in (hardware_fault, nondeterminism):
        assert isinstance(cause.examine(evidence(spike(36))), NotApplicable)
        assert cause.examine(evidence(spike(36), notes=[trial])) is None


# --- rank-divergence ---------------------------------------------------------------------------------------------------------------


def ranks(folder: Path, *norms: dict[int, float]) -> object:
    """Two ranks' traces with the norms of a weight by step; step 29 stands for what was loaded."""
    folder.mkdir()
    for rank, series in enumerate(norms):
        rows = [
            tensor(max(s, 30), "weight", "h.weight", rms=v, phase="load" if s == 29 else "update", rank=rank)
            for s, v in series.items()
        ]
        fields = {"rank": rank, "world_size": 2}
        written(nan(33) if rank == 0 else None, [], rows, {}, ADAMW, fields, folder)
    return rank_divergence.examine(Evidence(Trace.open(folder)))


def test_one_process_has_no_ranks_to_compare() -> None:
    answer = rank_divergence.examine(evidence(nan()))
    assert isinstance(answer, NotApplicable)
    assert answer.reason == "one process: there are no ranks to compare"


def test_a_weight_that_was_equal_and_is_not_any_more_is_proof(tmp_path: Path) -> None:
    same = steady(29, 32, 1.0)
    found = accused(ranks(tmp_path / "parted", same, {**same, 31: 1.5, 32: 1.6}))
    assert (found.grade, found.location.step, found.location.parameter) == (Grade.PROVED, 31, "h.weight")


def test_equal_ranks_and_shards_are_innocent(tmp_path: Path) -> None:
    same = steady(29, 32, 1.0)
    assert ranks(tmp_path / "equal", same, same) is None
    assert ranks(tmp_path / "shards", same, steady(29, 32, 2.0)) is None

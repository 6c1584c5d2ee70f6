"""Rates, gradients, moments and slow drifts: each fires on its own signature and is silent on its neighbours'."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch

from nanhunt.diagnosis.cause import Grade, NotApplicable, Suspect
from nanhunt.diagnosis.causes import (
    adam_v_collapse,
    attention_logit_growth,
    gradient_explosion,
    learning_rate_too_high,
    optimizer_state,
    output_logit_drift,
)
from nanhunt.diagnosis.dynamics import blamed_steps, growth, rate_jump, relative_updates
from nanhunt.diagnosis.evidence import Evidence
from nanhunt.trace.schema import NoteKind, Observation, Onset
from tests.diagnosis.builders_b import (
    ADAMW,
    SGD,
    batch,
    birth,
    evidence,
    health,
    integers,
    lineage,
    nan,
    operand,
    spike,
    steady,
    tensor,
)

LOSS = steady(30, 36, 3.1) | {37: 5.5, 38: 3.9}
NORM = steady(30, 36, 0.9) | {37: 13.7, 38: 4.7}
RATE = dict.fromkeys(range(30, 39), 1e-3)


def accused(answer: object) -> Suspect:
    assert isinstance(answer, Suspect)
    return answer


def adam(
    update: dict[int, float], stale: dict[int, float] | None = None, v: dict[int, float] | None = None
) -> list[Observation]:
    """A parameter whose updates, staleness and mean second moment run as given, and a calm one beside it."""
    calm = steady(30, 38, 0.3)
    rows = health("h.w", "update_lr", update) + health("h.b", "update_lr", calm)
    for name, series in (("h.w", stale or steady(30, 38, 1.1)), ("h.b", steady(30, 38, 1.0))):
        rows += health(name, "v_stale", series) + health(name, "rms_t", series)
    means = v or dict.fromkeys(range(30, 39), 1e-6)
    rows += [tensor(s, "exp_avg_sq", "h.w", mean=m, rms=m) for s, m in means.items()]
    return rows + [tensor(s, "weight", "h.w", rms=0.1) for s in range(30, 39)]


def moved(update: dict[int, float], weight: float = 0.1) -> list[Observation]:
    """Updates and weights of one parameter by their root mean squares."""
    rows = [tensor(s, "update", "h.w", rms=u) for s, u in update.items()]
    return rows + [tensor(s, "weight", "h.w", rms=weight) for s in update]


def run(
    onset: Onset, rows: list[Observation], optimizer: dict[str, Any] = ADAMW, **scalars: dict[int, float]
) -> Evidence:
    return evidence(
        onset, rows=rows, optimizer=optimizer, scalars={"loss": LOSS, "grad_norm": NORM, "lr": RATE} | scalars
    )


COLLAPSE = adam(steady(30, 35, 0.3, s36=66.0, s37=1.4), v=dict.fromkeys(range(30, 35), 1e-6) | {35: 1e-9, 36: 1e-8})
STALE = adam(steady(30, 35, 0.3, s36=2.4), stale=steady(30, 35, 1.0, s36=9.0))
JUMP = dict.fromkeys(range(30, 36), 1e-3) | dict.fromkeys(range(36, 46), 0.3)


# --- the shared readings ---------------------------------------------------------------------------------------------


def test_a_linear_warm_up_is_no_jump_and_a_restart_is() -> None:
    warm = {s: 1e-4 * (s - 29) for s in range(30, 40)}
    assert rate_jump(run(spike(37), [], lr=warm)) is None
    jump = rate_jump(run(spike(36), [], lr=JUMP))
    assert jump is not None
    assert (jump.step, round(jump.ratio)) == (36, 300)


def test_a_group_that_a_loop_adds_is_held_against_the_rate_of_the_first() -> None:
    scalars = {"lr": RATE, "lr.1": dict.fromkeys(range(36, 39), 0.5), "loss": LOSS}
    found = accused(learning_rate_too_high.examine(evidence(spike(36), scalars=scalars)))
    assert "new at step 36" in found.summary
    calm = {**scalars, "lr.1": dict.fromkeys(range(36, 39), 2e-3)}
    assert not isinstance(learning_rate_too_high.examine(evidence(spike(36), scalars=calm)), Suspect)


PAST_ITS_END = {s: 1e-3 * (1 - s / 34.5) for s in range(30, 41)}


def test_a_rate_that_falls_below_zero_is_proof_by_itself() -> None:
    found = accused(learning_rate_too_high.examine(run(spike(37), [], lr=PAST_ITS_END)))
    assert found.grade is Grade.PROVED
    assert (found.location.step, found.location.phase) == (35, "update")
    second = run(spike(37), [], **{"lr.1": PAST_ITS_END})
    assert accused(learning_rate_too_high.examine(second)).grade is Grade.PROVED


@pytest.mark.parametrize(
    "rates",
    [
        dict.fromkeys(range(30, 41), -1e-3),
        {s: 1e-3 if s % 2 else -1e-3 for s in range(30, 41)},
        {s: 1e-3 * (1 - s / 37.5) for s in range(30, 41)},
        dict.fromkeys(range(30, 34), 1e-3) | dict.fromkeys(range(34, 41), -1e-19),
    ],
    ids=["from the beginning", "by turns", "behind the damage", "of rounding"],
)
def test_a_rate_below_zero_that_is_meant_or_comes_too_late_is_not_blamed(rates: dict[int, float]) -> None:
    assert not isinstance(learning_rate_too_high.examine(run(spike(37), [], lr=rates)), Suspect)


def test_a_rate_of_nan_is_seen_in_every_group() -> None:
    rates = RATE | {36: math.nan, 37: math.nan, 38: math.nan}
    found = accused(learning_rate_too_high.examine(run(spike(37), [], **{"lr.1": rates})))
    assert (found.grade, found.location.step is not None) == (Grade.PROVED, True)
    assert "nan from step 36" in found.summary


def test_a_warm_up_that_begins_at_zero_is_no_jump() -> None:
    assert rate_jump(run(spike(34), [], lr={s: 1e-4 * (s - 30) for s in range(30, 40)})) is None


def test_a_jump_after_the_damage_is_not_blamed() -> None:
    assert rate_jump(run(spike(33), [], lr=JUMP)) is None


def test_an_update_is_blamed_only_for_losses_after_it() -> None:
    assert blamed_steps(run(spike(36, "update"), [])) == (36,)
    assert blamed_steps(run(spike(36, "backward"), [])) == (35, 36)
    assert blamed_steps(run(spike(36, "forward"), [])) == (35,)


def test_growth_is_the_unbroken_rise_before_the_step_and_skips_nothing_non_finite() -> None:
    rise = growth({1: 3.0, 2: 2.0, 3: 6.0, 4: 50.0, 5: math.nan}, 5)
    assert rise is not None
    assert (rise.first, rise.last, rise.factor) == (2, 4, 25.0)
    assert growth({1: 3.0, 2: 2.0}, 3) is None
    assert growth({}, 3) is None


def test_an_update_is_held_against_the_weights_that_it_was_added_to() -> None:
    rows = [
        tensor(30, "weight", "w", rms=1.0),
        tensor(31, "weight", "w", rms=100.0),
        tensor(31, "update", "w", rms=99.0),
    ]
    assert relative_updates(run(spike(31), rows)) == {31: pytest.approx(99.0)}


# --- adam-v-collapse -------------------------------------------------------------------------------------------------


def test_an_update_beyond_what_any_gradients_allow_is_proof() -> None:
    found = accused(adam_v_collapse.examine(run(spike(36), COLLAPSE)))
    assert (found.grade, found.location.parameter, found.location.step) == (Grade.PROVED, "h.w", 36)
    assert [p.trial for p in found.predictions] == ["v-floor"]
    assert any(e.value == pytest.approx(1e-3) and e.threshold == 0.999 for e in found.exhibits)


def test_an_optimizer_of_ones_own_is_held_to_the_bound_that_it_kept_before() -> None:
    own = ADAMW | {"class": "Adam8"}
    found = accused(adam_v_collapse.examine(run(spike(36), adam(steady(30, 35, 0.3, s36=66.0)), own)))
    assert (found.grade, found.location.parameter) == (Grade.SUPPORTED, "h.w")
    assert [p.trial for p in found.predictions] == ["v-floor"]


@pytest.mark.parametrize(("name", "usual", "last"), [("Lamb", 20.0, 66.0), ("RAdam", 0.3, 66.0), ("Adan", 0.3, 2.4)])
def test_a_trust_ratio_a_formula_of_another_kind_and_an_update_within_the_bound_are_innocent(
    name: str, usual: float, last: float
) -> None:
    rows = adam(steady(30, 35, usual, s36=last))
    assert not isinstance(adam_v_collapse.examine(run(spike(36), rows, ADAMW | {"class": name})), Suspect)


@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.999), (0.9, 0.95), (0.8, 0.99)])
def test_no_sequence_of_gradients_takes_torchs_adam_past_the_bound(beta1: float, beta2: float) -> None:
    optimizer = {**ADAMW, "groups": [{"betas": [beta1, beta2], "weight_decay": 0.0}]}
    limit = adam_v_collapse.update_bound(run(spike(36), [], optimizer))
    assert limit is not None
    draw, worst = random.Random(0), 0.0
    for trial in range(60):
        w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        made = torch.optim.Adam([w], lr=1.0, betas=(beta1, beta2), eps=1e-30)
        for step in range(150):
            # the extremal sequence grows by β2/β1 a step; the others are wild
            size = (beta2 / beta1) ** step if trial == 0 else math.exp(draw.gauss(0, 6))
            w.grad = torch.tensor([size], dtype=torch.float64)
            before = float(w.detach())
            made.step()
            worst = max(worst, abs(float(w.detach()) - before))
    assert 0.3 * limit < worst <= limit / 1.05


def test_a_gradient_far_above_its_second_moment_is_supported_and_no_proof() -> None:
    found = accused(adam_v_collapse.examine(run(spike(36), STALE)))
    assert found.grade is Grade.SUPPORTED


@pytest.mark.parametrize("name", ["NAdam", "RAdam", "Lamb"])
def test_other_formulas_are_never_proved(name: str) -> None:
    assert accused(adam_v_collapse.examine(run(spike(36), COLLAPSE, {**ADAMW, "class": name}))).grade is Grade.SUPPORTED


def test_a_rate_jump_leaves_updates_per_rate_as_they_were_and_v_innocent() -> None:
    assert adam_v_collapse.examine(run(spike(36), adam(steady(30, 38, 0.3)), lr=JUMP)) is None


def test_a_bad_batch_whose_gradient_follows_its_loss_leaves_v_innocent() -> None:
    """The loss is high before the update: staleness at the same step is a consequence."""
    assert adam_v_collapse.examine(run(spike(36, "forward"), STALE)) is None


def test_sign_descent_after_a_reset_is_not_beyond_one_rate() -> None:
    assert (
        adam_v_collapse.examine(run(spike(36), adam(steady(30, 35, 0.3, s36=1.0), stale=steady(30, 35, 1.0, s36=40.0))))
        is None
    )


def test_an_optimizer_without_second_moment_is_cleared_and_missing_rows_are_said() -> None:
    assert adam_v_collapse.examine(run(spike(36), [], SGD)) is None
    assert isinstance(adam_v_collapse.examine(run(spike(36), [])), NotApplicable)


def test_a_nan_without_an_unusual_update_before_it_leaves_v_innocent() -> None:
    assert adam_v_collapse.examine(run(nan(36), adam(steady(30, 35, 0.3, s36=math.nan)))) is None


# --- learning-rate-too-high --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peak", [0.3, 0.008])
def test_a_jump_of_the_rate_is_supported_and_stakes_itself_on_the_rate_before_it(peak: float) -> None:
    rates = dict.fromkeys(range(30, 36), 1e-3) | dict.fromkeys(range(36, 40), peak)
    found = accused(learning_rate_too_high.examine(run(spike(36), adam(steady(30, 38, 0.3)), lr=rates)))
    assert found.grade is Grade.SUPPORTED
    assert [p.trial for p in found.predictions] == ["lr-before"]


def test_a_jump_before_the_spike_is_not_refuted_by_a_rate_that_comes_too_late() -> None:
    rates = dict.fromkeys(range(30, 35), 1e-3) | dict.fromkeys(range(35, 40), 0.3)
    found = accused(learning_rate_too_high.examine(run(spike(36, "forward"), [], lr=rates)))
    assert [(p.trial, p.refutes) for p in found.predictions] == [("lr-before", False)]


def test_a_rate_that_is_nan_is_proof() -> None:
    found = accused(learning_rate_too_high.examine(run(nan(36, "update"), [], lr=RATE | {36: math.nan})))
    assert found.grade is Grade.PROVED


def test_a_rate_that_is_too_high_from_the_start_shows_in_the_update_over_the_weights() -> None:
    found = accused(learning_rate_too_high.examine(run(spike(36), moved(dict.fromkeys(range(30, 37), 0.03)))))
    assert found.exhibits[0].value == pytest.approx(0.3, rel=0.01)


def test_a_collapsed_second_moment_leaves_the_rate_innocent() -> None:
    updates = moved(dict.fromkeys(range(30, 36), 3e-4) | {36: 0.07})
    assert learning_rate_too_high.examine(run(spike(36), COLLAPSE + updates)) is None


def test_a_divergence_that_ends_in_nan_is_the_deeper_cause() -> None:
    losses = steady(30, 33, 3.0, s34=40.0, s35=9e9, s36=math.inf)
    found = accused(
        learning_rate_too_high.examine(run(nan(36), moved(dict.fromkeys(range(30, 36), 0.2)), SGD, loss=losses))
    )
    assert found.depth == 1


def test_a_nan_out_of_a_calm_run_leaves_even_a_high_rate_innocent() -> None:
    calm = steady(30, 35, 3.0, s36=math.nan)
    assert learning_rate_too_high.examine(run(nan(36), moved(dict.fromkeys(range(30, 36), 0.2)), loss=calm)) is None


def test_a_jump_long_before_a_nan_in_a_calm_run_is_innocent() -> None:
    rates = dict.fromkeys(range(30, 33), 1e-4) | dict.fromkeys(range(33, 37), 1e-3)
    calm = steady(30, 35, 3.0, s36=math.nan)
    assert (
        learning_rate_too_high.examine(run(nan(36), moved(dict.fromkeys(range(30, 36), 1e-3)), loss=calm, lr=rates))
        is None
    )


# --- gradient-explosion ------------------------------------------------------------------------------------------------


LEAP = steady(30, 35, 0.9, s36=240.0)


def test_a_leap_of_the_gradient_at_a_normal_loss_is_supported() -> None:
    found = accused(gradient_explosion.examine(run(spike(36, "backward"), [], SGD, grad_norm=LEAP)))
    assert found.exhibits[0].value == pytest.approx(267, rel=0.03)


@pytest.mark.parametrize(
    ("onset", "optimizer", "scalars"),
    [
        (spike(36, "backward"), {**SGD, "clip_grad_norm": 1.0}, {}),
        (spike(36, "backward"), ADAMW, {}),
        (spike(36, "forward"), SGD, {}),
        (spike(36, "backward", samples=[3]), SGD, {}),
        (spike(36, "backward"), SGD, {"loss": steady(30, 35, 3.0, s36=9.0)}),
        (spike(36, "backward"), SGD, {"lr": JUMP}),
    ],
    ids=["clipped", "second moment", "loss leads", "one sample", "loss is high as well", "rate jumped"],
)
def test_a_leap_with_another_explanation_is_left_alone(
    onset: Onset, optimizer: dict[str, Any], scalars: dict[str, Any]
) -> None:
    assert gradient_explosion.examine(run(onset, [], optimizer, **({"grad_norm": LEAP} | scalars))) is None


def zoomed(sizes: list[float]) -> list[Observation]:
    return [
        tensor(36, "op", "output", rms=v / 3, amax=v, phase="backward", pass_="zoom", seq=i + 1, op="aten.mm")
        for i, v in enumerate(sizes)
    ]


@pytest.mark.parametrize(
    ("sizes", "fires"),
    [([1e-3 * 40.0**i for i in range(25)], True), ([1e-3, 2e-3, 3e-3, 4e-3, 1e-2, 2e-2, 1e30], False)],
)
def test_growth_through_the_depth_is_told_from_one_infinite_slope(sizes: list[float], fires: bool) -> None:
    made = birth(
        "aten.mm", phase="backward", node="MmBackward0", fp64="beyond-range", seq=99, outputs=[operand("output")]
    )
    told = evidence(
        nan(phase="backward"),
        notes=[made],
        rows=zoomed(sizes),
        optimizer=SGD,
        scalars={"grad_norm": NORM, "loss": LOSS},
    )
    assert isinstance(gradient_explosion.examine(told), Suspect) is fires


def test_a_scaled_fp16_gradient_that_overflows_is_no_explosion() -> None:
    made = birth("aten.mm", phase="backward", fp64="beyond-range", seq=99, outputs=[operand("output", dtype="float16")])
    told = evidence(
        nan(phase="backward"), notes=[made], rows=zoomed([4.0**i for i in range(8)]), scalars={"grad_norm": NORM}
    )
    assert gradient_explosion.examine(told) is None


@pytest.mark.parametrize(("norm", "rate", "cause"), [(1470.0, 4e-4, True), (3.0, 4e-4, False), (20.0, 0.01, False)])
def test_the_first_replayed_update_is_a_cliff_where_it_reaches_far_beyond_the_loss(
    norm: float, rate: float, cause: bool
) -> None:
    told = evidence(spike(30), optimizer=SGD, scalars={
        "loss": {30: 1.13, 31: 4e9}, "grad_norm": {30: norm, 31: 3e11}, "lr": dict.fromkeys((30, 31), rate),
    })  # fmt: skip
    assert isinstance(gradient_explosion.examine(told), Suspect) == cause


def test_the_very_first_update_counts_against_the_rate() -> None:
    found = accused(learning_rate_too_high.examine(run(spike(30), moved({30: 0.03}), SGD)))
    assert found.exhibits[0].value == pytest.approx(0.3, rel=1e-3)


# --- optimizer-state ---------------------------------------------------------------------------------------------------


def resumed(optimizer: dict[str, Any], step: int = 32, size: float = 1.0, **more: Any) -> object:
    rows = health("h.w", "update_lr", {30: size, 31: size})
    return optimizer_state.examine(
        evidence(spike(step), rows=rows, optimizer=optimizer, scalars={"loss": LOSS, "lr": RATE}, **more)
    )


def test_missing_moments_right_after_a_resume_are_supported() -> None:
    found = accused(resumed({**ADAMW, "with_state": 0, "state_steps": []}))
    assert (found.grade, found.location.phase) == (Grade.SUPPORTED, "load")


@pytest.mark.parametrize(
    ("optimizer", "step", "checkpoint"),
    [
        (ADAMW, 32, 30),
        ({**ADAMW, "with_state": 0, "state_steps": []}, 60, 30),
        ({**ADAMW, "with_state": 0, "state_steps": []}, 32, 0),
        (SGD, 32, 30),
        ({**ADAMW, "state_steps": [27.0]}, 32, 30),
    ],
    ids=["state is there", "long after", "from scratch", "keeps none", "a few skipped steps"],
)
def test_state_that_is_as_it_should_be_is_innocent(optimizer: dict[str, Any], step: int, checkpoint: int) -> None:
    assert resumed(optimizer, step, checkpoint_step=checkpoint) is None


@pytest.mark.parametrize(
    ("stale", "found"),
    [
        ({"a": 40.0, "b": 30.0, "c": 1.1, "d": 0.05, "e": 0.02}, True),
        ({"a": 40.0, "b": 30.0, "c": 1.1, "d": 0.5, "e": 0.4}, False),
        ({"a": 40.0, "c": 1.1, "d": 0.9, "e": 0.02}, False),
        ({"a": 40.0, "b": 30.0, "c": 20.0, "d": 0.05, "e": 0.02}, False),
        ({"a": 1e8, "b": 1e7, "c": 1.1, "d": 0.05, "e": 0.02}, False),
        ({"a": math.inf, "b": math.nan, "c": 1.1, "d": 0.0, "e": 0.0}, False),
    ],
    ids=["both ways", "two grew", "one of each", "most grew", "never used before", "no numbers"],
)
def test_moments_of_other_parameters_are_too_small_here_and_too_large_there(
    stale: dict[str, float], found: bool
) -> None:
    rows = [row for name, value in stale.items() for row in health(f"{name}.w", "v_stale", {30: value})]
    told = evidence(spike(31), rows=rows, optimizer=ADAMW, scalars={"loss": LOSS, "lr": RATE})
    answer = optimizer_state.examine(told)
    assert (answer is not None) == found
    if found:
        assert (accused(answer).location.parameter, accused(answer).location.phase) == ("a.w", "load")


def test_counters_that_were_reset_are_told_from_the_checkpoints_step() -> None:
    assert accused(resumed({**ADAMW, "state_steps": [0.0]}, checkpoint_step=9000)).grade is Grade.SUPPORTED
    assert accused(resumed({**ADAMW, "state_steps": [2.0, 9000.0]}, checkpoint_step=9000)).grade is Grade.CONSISTENT


@pytest.mark.parametrize(
    ("left", "found"), [(2e-5, True), (9e-4, False), (5e-3, False)], ids=["50 times", "a warm-up's", "it falls"]
)
def test_a_rate_far_above_the_saved_one_is_a_schedule_that_starts_over(left: float, found: bool) -> None:
    group = {**ADAMW["groups"][0], "left_lr": left}
    answer = resumed({**ADAMW, "groups": [group]})
    assert (answer is not None) == found
    if found:
        assert accused(answer).grade is Grade.SUPPORTED
        assert [p.trial for p in accused(answer).predictions] == ["lr-before"]


# --- attention-logit-growth ----------------------------------------------------------------------------------------------


def scores(size: float, grown: bool, *, samples: tuple[int, ...] = (), capped: str = "") -> object:
    made = birth("aten.bmm", module="attn", fp64="beyond-range", fp64_amax=size,
                 inputs=[operand("self", "op 3"), operand("mat2", "op 4")])  # fmt: skip
    way = lineage(("aten.bmm", "attn"), ("aten._softmax", "attn"))
    rows = [tensor(30 + i, "output", "attn.q", rms=4.0 * (1.5**i if grown else 1.0), phase="forward") for i in range(6)]
    tried = [(NoteKind.TRIAL, {"name": "scores-capped", "outcome": capped, "detail": ""})] if capped else []
    return attention_logit_growth.examine(evidence(nan(samples=list(samples)), notes=[made, way, *tried], rows=rows))


def test_a_cap_that_did_not_help_is_not_advised() -> None:
    assert "cap" in accused(scores(9e4, grown=True)).fixes[0]
    assert "cap" in accused(scores(9e4, grown=True, capped="cured")).fixes[0]
    assert "cap" not in accused(scores(9e4, grown=True, capped="persists")).fixes[0]


def test_scores_that_grew_are_the_deeper_cause_of_their_overflow() -> None:
    found = accused(scores(9e4, grown=True))
    assert (found.grade, found.depth) == (Grade.SUPPORTED, 1)


def test_large_scores_without_a_history_are_only_consistent() -> None:
    assert accused(scores(9e4, grown=False)).grade is Grade.CONSISTENT


def test_large_scores_of_one_sample_without_growth_are_the_samples() -> None:
    assert scores(9e4, grown=False, samples=(2,)) is None


def test_an_overflow_that_no_softmax_follows_is_no_attention() -> None:
    made = birth("aten.mm", module="ff", fp64="beyond-range", fp64_amax=9e4,
                 inputs=[operand("self", "op 3"), operand("mat2", "op 4")])  # fmt: skip
    way = lineage(("aten.mm", "ff"), ("aten.add.Tensor", ""))
    assert attention_logit_growth.examine(evidence(nan(), notes=[made, way])) is None


# --- output-logit-drift ----------------------------------------------------------------------------------------------------


def logits(means: list[float], losses: dict[int, float] | None = None, spread: float = 2.0) -> object:
    rows = [
        tensor(30 + i, "output", "", mean=m, rms=math.hypot(m, spread), shape=(8, 16), phase="forward")
        for i, m in enumerate(means)
    ]
    told = losses or steady(30, 35, 2.0)
    return output_logit_drift.examine(
        evidence(spike(36), notes=[batch(integers("y", 0, 9))], rows=rows, scalars={"loss": told})
    )


def test_a_mean_logit_that_runs_away_at_a_flat_loss_is_a_drift() -> None:
    assert accused(logits([-20.0, -30.0, -40.0, -60.0, -80.0, -120.0])).grade is Grade.CONSISTENT


def test_an_offset_from_the_start_a_wide_spread_and_a_rising_loss_are_no_drift() -> None:
    away = [-20.0, -30.0, -40.0, -60.0, -80.0, -120.0]
    assert logits([-120.0] * 6) is None
    assert logits(away, spread=90.0) is None
    assert logits(away, losses={s: 2.0 * 1.5 ** (s - 30) for s in range(30, 36)}) is None
    assert isinstance(logits(away[:3]), NotApplicable)

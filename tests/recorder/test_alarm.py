"""Which steps are faults, and which are the ordinary life of a run."""

from __future__ import annotations

import math
import random

import pytest

from nanhunt.recorder.alarm import SKIPS, STILL, Alarm, Fault, Scalars
from nanhunt.recorder.judge import Judge


def step(
    number: int, loss: float = 1.0, norm: float | None = 0.5, *, scale: float | None = None, skipped: bool = False
) -> Scalars:
    return Scalars(
        step=number, losses=(loss,), loss=loss, grad_norm=norm, loss_scale=scale, lr=(0.1,), skipped=skipped
    )  # fmt: skip


def first_fault(steps: list[Scalars]) -> Fault | None:
    alarm = Alarm()
    return next((fault for s in steps if (fault := alarm.heard(s)) is not None), None) or alarm.ended()


@pytest.mark.parametrize(("value", "kind"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "inf")])
def test_a_loss_or_a_gradient_that_is_not_finite_is_a_fault(value: float, kind: str) -> None:
    for bad in (step(7, loss=value), step(7, norm=abs(value))):
        fault = first_fault([*map(step, range(7)), bad])
        assert fault is not None
        assert (fault.kind, fault.step) == (kind, 7)


def test_a_step_that_the_scaler_skipped_is_none() -> None:
    calibrating = [step(i, norm=math.inf, scale=65536.0 / 2**i, skipped=True) for i in range(SKIPS - 1)]
    assert first_fault([*calibrating, *(step(i, scale=512.0) for i in range(SKIPS, 30))]) is None


def test_a_scale_that_only_falls_is_one_from_its_first_skip_on() -> None:
    steps = [step(i, norm=math.inf, scale=2.0**-i * 65536, skipped=i >= 3) for i in range(3 + SKIPS)]
    steps[:3] = map(step, range(3))
    fault = first_fault(steps)
    assert fault is not None
    assert (fault.lead_step, fault.step) == (3, 2 + SKIPS)


def test_gradients_that_stay_zero_are_a_stall() -> None:
    fault = first_fault([*map(step, range(4)), *(step(i, norm=0.0) for i in range(4, 4 + STILL))])
    assert fault is not None
    assert (fault.kind, fault.lead_step) == ("stall", 4)


def test_a_loss_that_stays_up_is_a_spike_from_its_first_sign_on() -> None:
    rng = random.Random(0)
    fault = first_fault([step(i, loss=(1.0 if i < 30 else 9.0) + 0.02 * rng.random()) for i in range(50)])
    assert fault is not None
    assert fault.kind == "loss-spike"
    assert 28 <= fault.lead_step <= 30


def test_a_noisy_run_that_learns_has_no_fault() -> None:
    rng = random.Random(1)
    steps = [step(i, loss=3.0 * 0.99**i + 0.1 * rng.random(), norm=rng.lognormvariate(0.0, 0.3)) for i in range(400)]
    assert first_fault(steps) is None


def test_a_loss_of_exactly_zero_with_gradients_of_zero_has_been_learnt() -> None:
    solved = [step(i, loss=0.0, norm=0.0) for i in range(4, 4 + 2 * STILL)]
    assert first_fault([*(step(i, loss=1e-3) for i in range(4)), *solved]) is None


def test_what_is_not_finite_gets_a_bundle_of_its_own_behind_a_stall_and_what_follows_it_none() -> None:
    judge = Judge()
    told = [("stall", 8), ("stall", 9), ("nan", 13), ("nan", 14), ("loss-spike", 20), ("inf", 90)]
    written = [(k, s) for k, s in told if judge.is_written(Fault(kind=k, step=s, lead_step=s, detail=""))]  # type: ignore[arg-type]
    assert written == [("stall", 8), ("nan", 13), ("inf", 90)]

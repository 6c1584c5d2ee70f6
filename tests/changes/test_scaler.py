"""Scalers: the scale that is found is the largest that does, a fresh one has no past, and each is put back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nanhunt.changes import change_made
from nanhunt.interventions import Change, FreshScaler, HalvedScale, LossScale, ZeroedGradients
from nanhunt.rewind import rewind
from nanhunt.training.run import TrainingRun
from tests.changes.trained import trained_bench, tried, whole_state
from tests.conftest import tiny_run

BATCHES = [torch.full((2,), 4.0)] * 8


class Weight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))


def through_fp16(model: nn.Module, x: Tensor) -> Tensor:
    """A loss whose gradient passes fp16 as 4 × the loss scale, beside dropout that draws."""
    assert isinstance(model, Weight)
    draw = nn.functional.dropout(x, 0.5).sum() * 0.0
    return (model.weight.half() * x.half()).float().sum() + draw


def plain_run(scale: float = 65536.0, **settings: Any) -> TrainingRun:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
    return tiny_run(Weight(), through_fp16, BATCHES, scaler=scaler, **settings)


def looped_run(scaler: torch.amp.GradScaler) -> TrainingRun:
    def loop(model: nn.Module, batch: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        optimizer.zero_grad()
        loss = through_fp16(model, batch)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        return loss

    run = tiny_run(Weight(), through_fp16, BATCHES, train_step=loop)
    run.look_around()
    return run


def looped_at(scale: float = 65536.0) -> TrainingRun:
    return looped_run(torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3))


def finite_scale(present: float) -> float:
    """Halve as fp16 itself says."""
    with np.errstate(over="ignore"):
        while not np.isfinite(np.float16(present) * np.float16(4.0)):
            present /= 2
    return present


@pytest.mark.parametrize("make", [plain_run, looped_at])
def test_the_scale_that_is_found_is_the_largest_with_finite_gradients(make: Any) -> None:
    run = make(2.0**20)
    bench = trained_bench(run, 0, 0)
    before = whole_state(run)
    assert tried(bench, None).outcome == "persists"
    trial = tried(bench, HalvedScale())
    assert (trial.outcome, f"loss scale 1.04858e+06 → {finite_scale(2.0**20):g}," in trial.readback) == ("cured", True)
    assert whole_state(run) == before


@pytest.mark.parametrize("make", [plain_run, looped_at])
def test_the_probes_leave_the_step_to_run_from_its_own_state(make: Any) -> None:
    run = make(2.0**20)
    bench = trained_bench(run, 3, 3)
    bench.ring._kept[-1].others[0][1]["scale"] = 2.0**20  # as if the scale had grown that far
    rewind(run, bench.ring, 3)
    own = {k: v for k, v in whole_state(run).items() if "scaler" not in k}
    with change_made(bench, HalvedScale()):
        assert {k: v for k, v in whole_state(run).items() if "scaler" not in k} == own
        assert run.scalers[0].get_scale() == finite_scale(2.0**20)


def test_a_fault_that_no_scale_cures_is_told() -> None:
    run = plain_run()
    bench = trained_bench(run, 0, 0)
    run.loss = lambda m, x: through_fp16(m, x) * math.inf
    assert "the loss is not finite" in tried(bench, HalvedScale()).detail
    run.loss = lambda m, x: through_fp16(m, x) + m.get_parameter("weight").sub(1.0).abs().sqrt().sum()
    assert "not finite at a loss scale of 5.96e-08 either" in tried(bench, HalvedScale()).detail
    run = plain_run(1024.0)
    assert "finite at the loss scale as it is, 1024" in tried(trained_bench(run, 0, 0), HalvedScale()).detail


@pytest.mark.parametrize("make", [plain_run, looped_at])
def test_a_fresh_scaler_has_torchs_defaults_and_the_old_one_comes_back(make: Any) -> None:
    run = make(8.0)
    bench, scaler = trained_bench(run), run.scalers[0]
    inside = dict(vars(scaler))
    rewind(run, bench.ring, 3)
    with change_made(bench, FreshScaler()) as made:
        assert run.scalers[0].state_dict() == torch.amp.GradScaler("cpu").state_dict()
    assert made.readback == [
        "loss scale 16, 0 of 3 steps to its growth → loss scale 65536, 0 of 2000 steps to its growth"
    ]
    before = whole_state(run)
    assert tried(bench, FreshScaler()).outcome == "persists"  # at 65536 the gradient overflows
    assert (whole_state(run), run.scalers) == (before, [scaler])
    assert vars(scaler).keys() == inside.keys()
    assert all(vars(scaler)[k] is v for k, v in inside.items() if isinstance(v, Tensor))


@pytest.mark.parametrize("change", [FreshScaler(), HalvedScale(), LossScale(1.0)])
def test_a_scaler_that_is_off_is_none(change: Change) -> None:
    trial = tried(trained_bench(looped_run(torch.amp.GradScaler("cpu", enabled=False))), change)
    assert (trial.outcome, "scaler" in trial.detail.lower(), "raised" in trial.detail) == ("failed", True, False)


def test_a_scaler_that_is_new_is_no_trial() -> None:
    assert "as new already" in tried(trained_bench(looped_run(torch.amp.GradScaler("cpu")), 0, 0), FreshScaler()).detail
    run = tiny_run(Weight(), through_fp16, BATCHES)
    assert "no gradient scaler" in tried(trained_bench(run), FreshScaler()).detail


def kept_run(*, zeroing: bool) -> TrainingRun:
    """A loop that leaves its gradients after the update, where it does not zero them."""

    def loop(model: nn.Module, batch: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        loss = through_fp16(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if zeroing:
            optimizer.zero_grad()
        return loss

    return tiny_run(Weight(), through_fp16, BATCHES, train_step=loop)


def test_gradients_that_were_left_are_zero_before_the_step_and_back_after_the_trial() -> None:
    run = kept_run(zeroing=False)
    bench = trained_bench(run)
    before = whole_state(run)
    trial = tried(bench, ZeroedGradients())
    assert (trial.outcome, trial.readback) == ("cured", "gradients of 1 parameters zeroed, the largest of them 12 → 0")
    assert trial.grad_norm == pytest.approx(4.0 * math.sqrt(2.0))
    assert whole_state(run) == before


def test_a_step_without_gradients_before_it_is_told() -> None:
    assert "no parameter has a gradient" in tried(trained_bench(kept_run(zeroing=True)), ZeroedGradients()).detail
    assert (
        "no parameter has a gradient" in tried(trained_bench(kept_run(zeroing=False), 0, 0), ZeroedGradients()).detail
    )
    assert "zeroes its gradients itself" in tried(trained_bench(plain_run()), ZeroedGradients()).detail

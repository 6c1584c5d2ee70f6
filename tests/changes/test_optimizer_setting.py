"""Epsilon and beta2: set where they are, put back, and nothing else with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanhunt.changes import change_made
from nanhunt.interventions import OptimizerSetting
from nanhunt.rewind import rewind
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step
from tests.changes.trained import trained_bench, tried, whole_state
from tests.conftest import tiny_run

EPS = OptimizerSetting("eps", factor=1e4)
BETA = OptimizerSetting("beta2", value=0.95)


def fitted_run(make: Any = torch.optim.AdamW, **settings: Any) -> TrainingRun:
    torch.manual_seed(7)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    groups = [{"params": list(m.parameters())} for m in model]
    batches = [torch.randn(2, 4) for _ in range(8)]
    optimizer = make(groups, lr=1e-3, **settings)
    return tiny_run(model, lambda m, x: m(x).square().mean(), batches, optimizer=optimizer)


@pytest.mark.parametrize("change", [EPS, BETA])
def test_after_the_trial_every_setting_is_back(change: OptimizerSetting) -> None:
    run = fitted_run(amsgrad=True)
    bench = trained_bench(run)
    before = whole_state(run)
    trial = tried(bench, change)
    assert (trial.outcome, whole_state(run)) == ("cured", before)
    assert trial.readback == {
        "eps": "eps 1e-08 → 0.0001 in 2 parameter groups",
        "beta2": "beta2 0.999 → 0.95 in 2 parameter groups",
    }.get(change.setting)


def test_the_update_is_torchs_own_at_that_setting() -> None:
    run = fitted_run()
    bench = trained_bench(run)
    rewind(run, bench.ring, 3)
    with change_made(bench, EPS):
        train_step(run, 3, StepWatch())
    found = {n: p.detach().clone() for n, p in run.parameters().items()}
    rewind(run, bench.ring, 3)
    for group in run.optimizer.param_groups:
        group["eps"] = 1e-4
    train_step(run, 3, StepWatch())
    assert all(torch.equal(found[n], p) for n, p in run.parameters().items())
    assert run.optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_a_smaller_beta2_leaves_the_corrected_moment_as_it_was() -> None:
    run = fitted_run()
    bench = trained_bench(run)
    rewind(run, bench.ring, 3)
    corrected = {n: run.state_of(p)["exp_avg_sq"] / (1 - 0.999**3) for n, p in run.parameters().items()}
    with change_made(bench, BETA):
        for name, p in run.parameters().items():
            torch.testing.assert_close(
                run.state_of(p)["exp_avg_sq"] / (1 - 0.95**3), corrected[name], rtol=1e-4, atol=0
            )


@pytest.mark.parametrize("change", [EPS, BETA])
def test_an_optimizer_without_the_setting_is_told(change: OptimizerSetting) -> None:
    trial = tried(trained_bench(fitted_run(torch.optim.SGD)), change)
    assert (trial.outcome, f"has no {change.setting}" in trial.detail) == ("failed", True)


def test_a_setting_that_would_not_change_is_told() -> None:
    trial = tried(trained_bench(fitted_run(betas=(0.9, 0.9))), BETA)
    assert (trial.outcome, "beta2 is 0.9 already" in trial.detail) == ("failed", True)
    trial = tried(trained_bench(fitted_run(eps=0.0)), EPS)
    assert (trial.outcome, "eps is 0 already" in trial.detail) == ("failed", True)


def test_a_pair_of_epsilons_is_left_alone() -> None:
    assert "has no eps" in tried(trained_bench(fitted_run(torch.optim.Adafactor)), EPS).detail


def test_the_setting_is_back_where_the_step_raises() -> None:
    run = fitted_run()
    bench = trained_bench(run)
    before = whole_state(run)
    run.loss = lambda m, x: m(x[:, :2]).mean()
    assert tried(bench, BETA).outcome == "failed"
    assert whole_state(run) == before


def test_betas_as_tensors_stay_tensors() -> None:
    run = fitted_run(betas=(torch.tensor(0.9), torch.tensor(0.999)), capturable=False, foreach=False)
    bench = trained_bench(run)
    rewind(run, bench.ring, 3)
    with change_made(bench, BETA):
        second: Tensor = run.optimizer.param_groups[0]["betas"][1]
        assert float(second) == pytest.approx(0.95)

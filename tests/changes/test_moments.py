"""An optimizer without a past: the state is that of a new one, the rate rises, and all of it is put back."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanhunt.changes import change_made
from nanhunt.changes.rate import at_rate
from nanhunt.interventions import Moments
from nanhunt.rewind import rewind
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step
from tests.changes.trained import trained_bench, tried, whole_state
from tests.conftest import tiny_run

OPTIMIZERS: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.AdamW, {"amsgrad": True}),
    (torch.optim.NAdam, {}),
    (torch.optim.Rprop, {}),
    (torch.optim.ASGD, {}),
    (torch.optim.Adagrad, {"initial_accumulator_value": 0.5}),
    (torch.optim.Adafactor, {}),
    (torch.optim.SGD, {"momentum": 0.9}),
    (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
]


def fitted_run(make: Any = torch.optim.AdamW, *, scheduled: bool = False, **settings: Any) -> TrainingRun:
    torch.manual_seed(8)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    batches = [torch.randn(2, 4) for _ in range(8)]
    optimizer = make(model.parameters(), lr=1e-3, **settings)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) if scheduled else None
    return tiny_run(model, lambda m, x: m(x).square().mean(), batches, optimizer=optimizer, scheduler=scheduler)


@pytest.mark.parametrize(("make", "settings"), OPTIMIZERS, ids=lambda x: getattr(x, "__name__", ""))
def test_the_update_is_that_of_a_new_optimizer_at_the_warmed_rate(make: Any, settings: dict[str, Any]) -> None:
    run = fitted_run(make, **settings)
    bench = trained_bench(run)
    rewind(run, bench.ring, 3)
    with change_made(bench, Moments()):
        train_step(run, 3, StepWatch())
    found = {n: p.detach().clone() for n, p in run.parameters().items()}
    rewind(run, bench.ring, 3)
    run.optimizer = make(run.model.parameters(), lr=1e-3, **settings)
    with at_rate(run, 0.5):
        train_step(run, 3, StepWatch())
    assert all(torch.equal(found[n], p) for n, p in run.parameters().items())


@pytest.mark.parametrize(("make", "settings"), OPTIMIZERS, ids=lambda x: getattr(x, "__name__", ""))
def test_after_the_trial_the_run_is_as_it_was(make: Any, settings: dict[str, Any]) -> None:
    run = fitted_run(make, **settings)
    bench = trained_bench(run, 3, 5, limit=math.inf)
    before = whole_state(run)
    trial = tried(bench, Moments())
    assert (trial.outcome, whole_state(run)) == ("cured", before)
    assert "state of 4 parameters made anew" in trial.readback


def test_the_rate_rises_over_the_window_below_the_schedulers_own() -> None:
    run = fitted_run(torch.optim.SGD, scheduled=True, momentum=0.9)
    bench = trained_bench(run, 3, 5, limit=math.inf)
    before = whole_state(run)
    rates: list[float] = []
    with torch.no_grad():
        run.optimizer.register_step_pre_hook(lambda o, args, kwargs: rates.append(o.param_groups[0]["lr"]))
    trial = tried(bench, Moments())
    assert rates[-3:] == pytest.approx([1e-3 * 0.5**step * part for step, part in ((3, 0.25), (4, 0.5), (5, 0.75))])
    assert "learning rate of step 3 × 0.25, rising to 0.75" in trial.readback
    assert whole_state(run) == before


def test_a_moment_that_blows_the_weights_up_is_cured_by_it() -> None:
    run = fitted_run()
    bench = trained_bench(run)
    rewind(run, bench.ring, 3)
    bench.ring._kept.clear()
    for p in run.trainable():
        run.optimizer.state[p]["exp_avg"].fill_(math.inf)
    bench.ring.offer(run, 3)
    assert tried(bench, None).outcome == "persists"
    trial = tried(bench, Moments())
    assert trial.outcome == "cured"
    assert "largest element of a moment inf → " in trial.readback


def test_an_optimizer_without_state_is_told() -> None:
    trial = tried(trained_bench(fitted_run(torch.optim.SGD)), Moments())
    assert (trial.outcome, "keeps no state" in trial.detail) == ("failed", True)


def test_a_master_copy_of_the_weights_is_no_moment() -> None:
    class Master(torch.optim.Optimizer):
        """SGD with momentum on an fp32 copy that it makes in its first step."""

        def __init__(self, params: Any, lr: float) -> None:
            super().__init__(params, {"lr": lr})

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for p in group["params"]:
                    state = self.state[p]
                    if not state:
                        state.update(master=p.detach().clone(), momentum_buffer=torch.zeros_like(p))
                    state["momentum_buffer"].mul_(0.9).add_(p.grad)
                    state["master"].sub_(group["lr"] * state["momentum_buffer"])
                    p.copy_(state["master"])

    run = fitted_run(Master)
    bench = trained_bench(run)
    rewind(run, bench.ring, 3)
    weights = {n: p.detach().clone() for n, p in run.parameters().items()}
    with change_made(bench, Moments()):
        train_step(run, 3, StepWatch())
        moved: Tensor = torch.stack([(p.detach() - weights[n]).abs().max() for n, p in run.parameters().items()]).max()
    assert 0.0 < float(moved) < 0.01

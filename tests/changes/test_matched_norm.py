"""Updates at the norm of another trial's: the norm is met, the direction stays, nothing remains."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nanhunt.bench import Bench
from nanhunt.changes import change_made
from nanhunt.counterfactual import run_trial
from nanhunt.interventions import Intervention, MatchedNorm, SecondMomentFloor
from nanhunt.probes.probe import RowBuffer
from nanhunt.replay import WatchList
from nanhunt.rewind import rewind
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import train_step
from tests.changes.trained import trained_bench, tried, whole_state
from tests.conftest import tiny_run


def leaping_run(**settings: Any) -> TrainingRun:
    """Adam, whose second moment the small gradients of three steps made; the fourth's are a thousand times larger."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    batches = [torch.full((2, 4), 1e-3 if i < 3 else 1.0) * torch.rand(2, 4) for i in range(8)]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, eps=1e-12)
    return tiny_run(model, lambda m, x: m(x).square().mean(), batches, optimizer=optimizer, **settings)


def update_of(bench: Bench, change: MatchedNorm | None) -> dict[str, np.ndarray[Any, Any]]:
    run = bench.run
    rewind(run, bench.ring, bench.window.first)
    before = {n: p.detach().double().numpy().copy() for n, p in run.parameters().items()}
    with change_made(bench, change) as made:
        train_step(run, bench.window.first, WatchList(made.watches, RowBuffer()))
    return {n: p.detach().double().numpy() - before[n] for n, p in run.parameters().items()}


def norm(update: dict[str, np.ndarray[Any, Any]]) -> float:
    return math.sqrt(sum(float((u**2).sum()) for u in update.values()))


def test_the_update_has_the_other_trials_norm_and_its_own_direction() -> None:
    bench = trained_bench(leaping_run())
    own = update_of(bench, None)
    target = norm(own) / 3
    bench.update_norms["v-floor"] = {3: target}
    matched = update_of(bench, MatchedNorm("v-floor"))
    assert norm(matched) == pytest.approx(target, rel=1e-5)
    for name, update in matched.items():
        np.testing.assert_allclose(update, own[name] / 3, rtol=1e-4, atol=1e-7)


def test_a_trial_holds_each_step_of_the_window_to_its_own_norm() -> None:
    run = leaping_run()
    bench = trained_bench(run, 3, 6, limit=math.inf)
    floor = Intervention(name="v-floor", question="?", change=SecondMomentFloor())
    assert run_trial(bench, floor).outcome == "cured"
    assert set(bench.update_norms["v-floor"]) == {3, 4, 5, 6}
    before = whole_state(run)
    trial = tried(bench, MatchedNorm("v-floor"))
    assert f"→ {bench.update_norms['v-floor'][3]:.4g}" in trial.readback
    assert whole_state(run) == before


def test_it_is_told_where_nothing_was_shrunk() -> None:
    bench = trained_bench(leaping_run())
    assert "it has not run" in tried(bench, MatchedNorm("v-floor")).detail
    bench.update_norms["v-floor"] = {3: 1e9}
    assert "no update is longer than in v-floor" in tried(bench, MatchedNorm("v-floor")).detail
    bench.update_norms["v-floor"] = {2: 0.0}
    assert tried(bench, MatchedNorm("v-floor")).outcome == "failed"


def test_an_update_that_is_not_finite_stays_so() -> None:
    run = leaping_run()
    bench = trained_bench(run)
    rewind(run, bench.ring, 3)
    run.optimizer.param_groups[0]["lr"] = math.inf
    bench.ring._kept.clear()
    bench.ring.offer(run, 3)
    bench.update_norms["v-floor"] = {3: 1e-3}
    assert tried(bench, None).outcome == "persists"
    trial = tried(bench, MatchedNorm("v-floor"))
    assert trial.outcome == "failed"
    assert "the update is not finite" in trial.detail


def test_several_updates_of_a_users_loop_are_held_as_one() -> None:
    def loop(model: nn.Module, batch: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        for _ in range(2):
            optimizer.zero_grad()
            loss: Tensor = model(batch).square().mean()
            loss.backward()
            optimizer.step()
        return loss

    bench = trained_bench(leaping_run(train_step=loop))
    target = norm(update_of(bench, None)) / 5
    bench.update_norms["v-floor"] = {3: target}
    assert norm(update_of(bench, MatchedNorm("v-floor"))) == pytest.approx(target, rel=1e-5)

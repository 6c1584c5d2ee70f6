"""Clips by norm, by value and by unit, held against torch's own and against the paper's formula in fp64."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nanhunt.bench import Bench
from nanhunt.changes import change_made
from nanhunt.interventions import Clip
from nanhunt.probes.probe import RowBuffer
from nanhunt.replay import WatchList
from nanhunt.rewind import rewind
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step
from tests.changes.trained import trained_bench, tried, whole_state
from tests.conftest import tiny_run


class Used(StepWatch):
    """The gradients as the update uses them, by the parameter's name."""

    def __init__(self, run: TrainingRun) -> None:
        self.run = run
        self.grads: dict[str, Tensor] = {}

    def clipped(self, parameters: Any = None) -> None:
        self.grads |= {n: g.detach().clone() for n, g in self.run.gradients(parameters).items()}


def convolved_run(dtype: torch.dtype = torch.float32, **settings: Any) -> TrainingRun:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2)).to(dtype)
    batches = [100 * torch.randn(4, 2, 6, dtype=dtype) for _ in range(8)]
    optimizer = settings.pop("optimizer", None) or torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    return tiny_run(model, lambda m, x: m(x).square().mean(), batches, optimizer=optimizer, **settings)


def used_by(bench: Bench, change: Clip | None) -> dict[str, Tensor]:
    used = Used(bench.run)
    rewind(bench.run, bench.ring, bench.window.first)
    with change_made(bench, change) as made:
        train_step(bench.run, bench.window.first, WatchList([*made.watches, used], RowBuffer()))
    return used.grads


def norm(grads: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(np.square(g.double().numpy()).sum()) for g in grads.values()))


@pytest.mark.parametrize("how", ["norm", "value"])
def test_a_clip_is_torchs_own(how: Literal["norm", "value"]) -> None:
    run = convolved_run()
    bench = trained_bench(run)
    plain = used_by(bench, None)
    held = [nn.Parameter(torch.zeros_like(g)) for g in plain.values()]
    for parameter, grad in zip(held, plain.values(), strict=True):
        parameter.grad = grad.clone()
    if how == "norm":
        torch.nn.utils.clip_grad_norm_(held, 0.5)
    else:
        torch.nn.utils.clip_grad_value_(held, 0.5)
    clipped = used_by(bench, Clip(how, 0.5))
    for parameter, grad in zip(held, clipped.values(), strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-5, atol=0.0)


def test_an_adaptive_clip_is_the_papers_formula() -> None:
    run = convolved_run()
    bench = trained_bench(run)
    with torch.no_grad():
        run.parameters()["2.bias"].zero_()  # the floor decides
    bench.ring._kept.clear()
    bench.ring.offer(run, 3)
    run.batches.get(4, 0)
    plain, clipped = used_by(bench, None), used_by(bench, Clip("adaptive", 0.01))
    rewind(run, bench.ring, 3)
    for name, weight in run.parameters().items():
        w, g = weight.detach().double().numpy(), plain[name].double().numpy()
        axes = tuple(range(1, w.ndim)) if w.ndim > 1 else None
        limit = 0.01 * np.maximum(np.sqrt(np.square(w).sum(axis=axes, keepdims=True)), 1e-3)
        own = np.sqrt(np.square(g).sum(axis=axes, keepdims=True))
        expected = np.where(own > limit, g * limit / np.maximum(own, 1e-6), g)
        np.testing.assert_allclose(clipped[name].double().numpy(), expected, rtol=1e-5)
    assert norm(clipped) < norm(plain)


def test_the_norm_of_half_precision_gradients_does_not_overflow() -> None:
    run = convolved_run(torch.bfloat16)
    bench = trained_bench(run)
    assert norm(used_by(bench, Clip("norm", 0.5))) == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("how", ["norm", "value", "adaptive"])
def test_after_the_trial_the_run_is_as_it_was(how: Literal["norm", "value", "adaptive"]) -> None:
    run = convolved_run()
    bench = trained_bench(run, 3, 5, limit=math.inf)
    before = whole_state(run)
    trial = tried(bench, Clip(how, 0.01))
    assert (trial.outcome, whole_state(run)) == ("cured", before)
    assert "gradient norm of step 3: " in trial.readback


def test_gradients_below_the_limit_are_no_trial() -> None:
    bench = trained_bench(convolved_run())
    for how in ("norm", "value", "adaptive"):
        trial = tried(bench, Clip(how, 1e30))
        assert (trial.outcome, "no gradient is above the limit" in trial.detail) == ("failed", True)


def test_a_norm_that_is_not_finite_clips_nothing_and_says_so() -> None:
    run = convolved_run()
    bench = trained_bench(run, 0, 0)
    run.batches.transform = lambda step, micro, batch: batch * math.inf
    for how in ("norm", "adaptive"):
        trial = tried(bench, Clip(how, 0.5))
        assert (trial.outcome, "is not finite: it clips nothing" in trial.detail) == ("failed", True)
        run.batches.transform = lambda step, micro, batch: batch * math.inf


def test_each_optimizer_of_a_loop_is_clipped_by_its_own_norm() -> None:
    torch.manual_seed(4)
    model = nn.ModuleList([nn.Linear(3, 1), nn.Linear(3, 1)])
    both = [torch.optim.SGD(m.parameters(), lr=1e-3) for m in model]

    def loop(model: nn.Module, batch: Tensor, optimizers: Any) -> Tensor:
        for part, optimizer in zip(model, optimizers, strict=True):  # type: ignore[call-overload]
            optimizer.zero_grad()
            loss: Tensor = part(batch).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return loss

    batches = [10 * torch.randn(4, 3) for _ in range(6)]
    run = tiny_run(model, lambda m, x: x.mean(), batches, optimizer=both[0], handed=both, train_step=loop)
    grads = used_by(trained_bench(run), Clip("norm", 0.5))
    for i in range(2):
        assert norm({n: g for n, g in grads.items() if n.startswith(f"{i}.")}) == pytest.approx(0.5, rel=1e-4)


def test_gradients_that_a_fused_optimizer_unscales_itself_are_clipped_at_their_scale() -> None:
    torch.manual_seed(5)
    model, scaler = nn.Linear(3, 1), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, fused=True)

    def loop(model: nn.Module, batch: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(batch).square().mean()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        return loss

    batches = [10 * torch.randn(4, 3) for _ in range(6)]
    run = tiny_run(model, lambda m, x: x.mean(), batches, optimizer=optimizer, train_step=loop)
    bench = trained_bench(run)
    assert norm(used_by(bench, Clip("norm", 0.5))) == pytest.approx(0.5 * 1024, rel=1e-3)
    assert "→ 0.5" in tried(bench, Clip("norm", 0.5)).readback


def test_sparse_gradients_are_clipped_by_value_too() -> None:
    torch.manual_seed(6)
    model = nn.Embedding(5, 2, sparse=True)
    run = tiny_run(model, lambda m, x: m(x).square().sum(), [torch.tensor([1, 1, 2])] * 6)
    bench = trained_bench(run)
    grads = used_by(bench, Clip("value", 0.1))
    before = whole_state(run)
    assert float(grads["weight"].to_dense().abs().max()) == pytest.approx(0.1)
    trial = tried(bench, Clip("value", 0.1))
    assert trial.outcome == "cured"
    assert whole_state(run) == before

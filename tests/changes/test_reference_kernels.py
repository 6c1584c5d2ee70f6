"""Fused kernels off, and every switch back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanhunt.changes import change_made
from nanhunt.counterfactual import run_trial
from nanhunt.interventions import Intervention, ReferenceKernels
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step
from tests.changes.bench import bench_of, bits_of, same_bits
from tests.conftest import tiny_run


def switches(run: TrainingRun) -> dict[str, Any]:
    cuda = torch.backends.cuda
    return {
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
        "cudnn attention": cuda.cudnn_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "cudnn": torch.backends.cudnn.enabled,
        "tf32": torch.backends.cudnn.allow_tf32,
        "groups": [{k: g.get(k) for k in ("foreach", "fused")} for o in run.optimizers for g in o.param_groups],
        "defaults": [{k: o.defaults.get(k) for k in ("foreach", "fused")} for o in run.optimizers],
        "scaling": [getattr(o, "_step_supports_amp_scaling", None) for o in run.optimizers],
    }


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        q = self.linear(x)
        return F.scaled_dot_product_attention(q, q, q)


def run_of(optimizer: Any, **settings: Any) -> TrainingRun:
    model = Attends()
    torch.manual_seed(1)
    batches = [torch.randn(1, 2, 3, 4)] * 4
    loss = lambda m, b: m(b).square().mean()  # noqa: E731
    return tiny_run(model, loss, batches, optimizer=optimizer(model.parameters()), **settings)


@pytest.mark.parametrize("setting", [{}, {"fused": True}, {"foreach": True}])
def test_every_switch_is_off_inside_and_as_it_was_after(setting: dict[str, Any]) -> None:
    run = run_of(lambda p: torch.optim.AdamW(p, lr=0.01, **setting))
    before = switches(run)
    with change_made(bench_of(run), ReferenceKernels()) as made:
        inside = switches(run)
        train_step(run, 0, StepWatch())
    assert inside["math"]
    assert not any(inside[k] for k in ("flash", "efficient", "cudnn attention", "fast path", "cudnn"))
    assert inside["tf32"] == before["tf32"]
    assert inside["groups"] == [{"foreach": False, "fused": False}]
    assert switches(run) == before
    assert "attention by its formula, fast path off" in made.readback
    assert any(said.startswith("AdamW: foreach") for said in made.readback)


def test_attention_is_the_formula() -> None:
    run = run_of(lambda p: torch.optim.SGD(p, lr=0.01))
    names: list[str] = []
    q = torch.randn(1, 2, 3, 4)
    with (
        change_made(bench_of(run), ReferenceKernels()),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile,
    ):
        F.scaled_dot_product_attention(q, q, q)
    names = [event.key for event in profile.key_averages()]
    assert "aten::_scaled_dot_product_attention_math" in names
    assert not any("flash" in name for name in names)


def test_a_fused_optimizer_under_a_gradient_scaler_still_steps() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def step(model: nn.Module, batch: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(batch).square().mean()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        return loss

    run = run_of(lambda p: torch.optim.AdamW(p, lr=0.01, fused=True), train_step=step, scaler=scaler)
    plain = run_of(lambda p: torch.optim.AdamW(p, lr=0.01))
    with change_made(bench_of(run), ReferenceKernels()):
        train_step(run, 0, StepWatch())
    train_step(plain, 0, StepWatch())
    torch.testing.assert_close(run.parameters()["linear.weight"], plain.parameters()["linear.weight"])
    assert scaler.get_scale() == 8.0  # the step was not skipped


def test_a_trial_leaves_the_run_as_it_was() -> None:
    run = run_of(lambda p: torch.optim.AdamW(p, lr=0.01, fused=True))
    before, bits = switches(run), bits_of(run)
    trial = run_trial(bench_of(run), Intervention(name="x", question="", change=ReferenceKernels()))
    assert trial.outcome == "cured"
    assert "fused on → off" in trial.readback
    assert switches(run) == before
    assert same_bits(bits, bits_of(run))


def test_switches_come_back_after_an_exception() -> None:
    run = run_of(lambda p: torch.optim.SGD(p, lr=0.01))
    before = switches(run)
    with pytest.raises(ValueError, match="mine"), change_made(bench_of(run), ReferenceKernels()):
        raise ValueError("mine")
    assert switches(run) == before

"""One module in fp32: what it cures, what follows it, and that everything is put back."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanhunt.changes import change_made
from nanhunt.counterfactual import run_trial
from nanhunt.interventions import Intervention, ModulePrecision, Trial
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step
from tests.changes.bench import bench_of, bits_of, same_bits
from tests.conftest import tiny_run


class Squared(nn.Module):
    """Overflows fp16, and comes back inside of its range."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("factor", torch.tensor(1e-6))

    def forward(self, x: Tensor, *, times: Tensor) -> tuple[Tensor, int]:
        h = self.linear(x) * times
        return h * h * self.factor.to(h.dtype), 3  # type: ignore[operator, union-attr, return-value]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.bad, self.last = nn.Linear(4, 4), Squared(), nn.Linear(4, 1)
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.bad(self.first(x), times=torch.tensor(1000.0, dtype=x.dtype))
        self.seen.append(h.dtype)
        return self.last(h)  # type: ignore[no-any-return]


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return F.mse_loss(model(batch).squeeze(-1).float(), torch.zeros(2))


def autocast_run(**settings: Any) -> TrainingRun:
    return tiny_run(Net(), loss, [torch.full((2, 4), 2.0)] * 4, autocast="fp16", cuda_lists=True, **settings)


def half_run() -> TrainingRun:
    model = Net().half()
    optimizer = torch.optim.AdamW(model.parameters(), eps=1e-4)
    run = tiny_run(model, loss, [torch.ones(2, 4).half()] * 4, optimizer=optimizer)
    for parameter in model.parameters():  # moments of an earlier step
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return run


def tried(run: TrainingRun, module: str) -> Trial:
    before = bits_of(run)
    trial = run_trial(bench_of(run), Intervention(name="x", question="", change=ModulePrecision(module)))
    assert same_bits(before, bits_of(run))
    assert all("forward" not in m.__dict__ for m in run.model.modules())
    return trial


def test_the_module_that_overflows_is_cured_and_another_is_not() -> None:
    for make in (autocast_run, half_run):
        assert run_trial(bench_of(make()), Intervention(name="exact", question="")).outcome == "persists"
        cured, other = tried(make(), "bad"), tried(make(), "last")
        assert cured.outcome == "cured", cured
        assert other.outcome == "persists", other
        assert "inputs fp16" in cured.readback
        assert " → fp32, outputs fp32 → fp16" in cured.readback
        assert "weights fp32" in cured.readback


def test_what_follows_gets_the_dtype_that_it_always_got() -> None:
    for make in (autocast_run, half_run):
        run = make()
        with change_made(bench_of(run), ModulePrecision("bad")):
            run.model.seen.clear()  # type: ignore[operator, union-attr]
            train_step(run, 0, StepWatch())
        assert run.model.seen == [torch.float16]


def test_weights_gradients_and_moments_have_one_dtype() -> None:
    run = half_run()
    with change_made(bench_of(run), ModulePrecision("bad.linear")):
        weight = run.parameters()["bad.linear.weight"]
        train_step(run, 0, StepWatch())
        moment = run.state_of(weight)["exp_avg"]
        assert weight.grad is not None
        assert weight.dtype is weight.grad.dtype is moment.dtype is torch.float32
        assert run.parameters()["first.weight"].dtype is torch.float16


def test_a_gradient_flows_through_the_module_as_in_fp32() -> None:
    run, wide = autocast_run(), autocast_run()
    wide.autocast = None
    with change_made(bench_of(run), ModulePrecision("bad")):
        train_step(run, 0, StepWatch())
        got = run.gradients()["bad.linear.weight"]
    train_step(wide, 0, StepWatch())
    torch.testing.assert_close(got, wide.gradients()["bad.linear.weight"], rtol=1e-2, atol=1e-3)


def test_random_numbers_and_running_statistics_are_those_of_the_plain_step() -> None:
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(self.norm(x))  # type: ignore[no-any-return]

    def run() -> TrainingRun:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), Random(), nn.Linear(4, 1))
        return tiny_run(model, loss, [torch.randn(2, 4)] * 4, autocast="bf16")

    changed, plain = run(), run()
    torch.manual_seed(1)
    with change_made(bench_of(changed), ModulePrecision("1")):
        train_step(changed, 0, StepWatch())
    after = torch.rand(1)
    torch.manual_seed(1)
    train_step(plain, 0, StepWatch())
    assert torch.equal(after, torch.rand(1))
    assert int(changed.buffers()["1.norm.num_batches_tracked"]) == 1


def test_a_module_in_fp32_and_a_module_that_is_not_there_are_not_applicable() -> None:
    run = autocast_run()
    run.autocast = None
    assert "runs in fp32 already" in tried(run, "bad").detail
    missing = tried(autocast_run(), "no.such")
    assert missing.outcome == "failed"
    assert "no module 'no.such'" in missing.detail


def test_a_narrow_weight_that_two_modules_hold_is_not_applicable() -> None:
    run = half_run()
    run.model.last.weight = nn.Parameter(run.model.first.weight[:1])  # type: ignore[union-attr, operator, index]
    run.model.bad.linear.weight = run.model.first.weight  # type: ignore[union-attr]
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.1)
    assert "first's as well" in tried(run, "bad.linear").detail

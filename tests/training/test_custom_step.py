"""A user's own step is heard in its order, seen unscaled and before its clip, and can be run again from the same bits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanhunt.finiteness import Finiteness
from nanhunt.trace.schema import CLIP_OF_NOTHING
from nanhunt.training.custom_step import needs_closure
from nanhunt.training.run import TrainingRun
from nanhunt.training.state import Snapshot
from nanhunt.training.step import StepResult, StepWatch, train_step
from tests.conftest import tiny_run


def linear(value: float = 1.0) -> nn.Linear:
    layer = nn.Linear(2, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def run_of(step: Callable[..., Any], model: nn.Module | None = None, **more: Any) -> TrainingRun:
    run = tiny_run(model or linear(), lambda m, b: m(b).mean(), [torch.full((3, 2), 3.0)] * 4, train_step=step, **more)
    run.look_around()
    return run


class Story(StepWatch):
    """What it is told, and the largest gradient then."""

    def __init__(self, run: TrainingRun) -> None:
        self.run = run
        self.told: list[tuple[str, int]] = []
        self.peaks: list[float] = []

    def gradients_ready(self, parameters: Any = None) -> None:
        self.told.append(("gradients", len(parameters)))
        self.peaks.append(max(float(g.abs().max()) for g in self.run.gradients(parameters).values()))

    def clipped(self, parameters: Any = None) -> None:
        self.told.append(("clipped", len(parameters)))


def told_by(run: TrainingRun, step: int = 0) -> tuple[Story, StepResult]:
    story = Story(run)
    return story, train_step(run, step, story)


def test_gradients_are_told_before_the_clip_with_its_factor() -> None:
    def step(model: nn.Module, batch: Tensor, optimizer: Any) -> Any:
        optimizer.zero_grad()
        loss = model(batch).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        return loss

    story, result = told_by(run_of(step))
    assert story.told == [("gradients", 1), ("clipped", 1)]
    assert story.peaks == [3.0]
    assert result.grad_norm == pytest.approx(18**0.5)
    assert result.clip_coefficient == pytest.approx(0.5 / 18**0.5, rel=1e-4)
    assert result.order == ("zero_grad", "backward", "clip", "update")


@pytest.mark.skipif(not hasattr(torch.nn.utils, "clip_grads_with_norm_"), reason="torch has it from 2.6 on")
def test_a_clip_in_two_halves_is_heard_and_its_generator_left_to_it() -> None:
    def step(model: nn.Module, batch: Tensor, optimizer: Any) -> Any:
        optimizer.zero_grad()
        loss = model(batch).mean()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), 0.5, norm)  # a generator, which is read once
        optimizer.step()
        return loss

    run = run_of(step)
    _, result = told_by(run)
    assert result.clip_coefficient == pytest.approx(0.5 / 18**0.5, rel=1e-4)
    grad = next(run.model.parameters()).grad
    assert grad is not None
    assert float(grad.norm()) == pytest.approx(0.5, rel=1e-4)


def scaled_step(scaler: torch.amp.GradScaler, order: str) -> Callable[..., Any]:
    def step(model: nn.Module, batch: Tensor, optimizer: Any) -> Any:
        optimizer.zero_grad()
        loss = model(batch).mean()
        scaler.scale(loss).backward()
        for part in order.split():
            if part == "unscale":
                scaler.unscale_(optimizer)
            else:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        return loss

    return step


@pytest.mark.parametrize(("empty", "heard"), [("spent", CLIP_OF_NOTHING), ("frozen", "clip")])
def test_a_clip_that_is_given_nothing_that_is_trained_is_told_from_a_clip_by_habit(empty: str, heard: str) -> None:
    frozen = nn.Linear(2, 1)

    def step(model: nn.Module, batch: Tensor, optimizer: Any) -> Any:
        optimizer.zero_grad()
        loss = model(batch).mean()
        loss.backward()
        parameters = model.parameters() if empty == "spent" else frozen.parameters()
        if empty == "spent":
            list(parameters)  # a generator, and used up
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        return loss

    story, result = told_by(run_of(step))
    assert result.order == ("zero_grad", "backward", heard, "update")
    assert story.peaks == [3.0]


@pytest.mark.parametrize("order", ["unscale clip", ""])
def test_gradients_under_the_loops_own_scaler_are_told_without_its_scale(order: str) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    story, result = told_by(run_of(scaled_step(scaler, order)))
    assert story.peaks == [3.0]
    assert result.loss_scale == 1024.0
    assert not result.skipped
    assert result.order[2] == "unscale"


def test_a_clip_that_meets_the_loss_scale_shows_in_the_order() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    story, result = told_by(run_of(scaled_step(scaler, "clip unscale")))
    assert result.order[1:4] == ("backward", "clip", "unscale")
    assert story.peaks == [pytest.approx(1 / 1024 / 2**0.5, rel=1e-3)]  # what the clip left of it


def test_a_step_that_the_loops_own_scaler_skips_is_a_skipped_one_with_its_gradients_seen() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    run = run_of(scaled_step(scaler, ""), linear(1e10))
    finite = Finiteness(run)
    result = train_step(run, 0, finite)
    assert result.skipped
    assert result.order[-1] == "skip"
    assert finite.resolve().grads == ["weight"]


def gan() -> tuple[nn.Module, Callable[..., Any], tuple[torch.optim.Optimizer, torch.optim.Optimizer]]:
    torch.manual_seed(0)
    model = nn.ModuleDict({"generator": nn.Linear(2, 2), "critic": nn.Linear(2, 1)})
    optimizers = (
        torch.optim.Adam(model["generator"].parameters(), lr=0.1),
        torch.optim.SGD(model["critic"].parameters(), lr=0.1, momentum=0.9),
    )

    def step(model: Any, batch: Tensor, optimizers: Any) -> Any:
        generator, critic = optimizers
        critic.zero_grad()
        fake = model["generator"](torch.randn_like(batch))
        critic_loss = model["critic"](fake.detach()).mean() - model["critic"](batch).mean()
        critic_loss.backward()
        critic.step()
        generator.zero_grad()
        loss = -model["critic"](fake).mean()
        loss.backward()
        generator.step()
        return loss + critic_loss.detach()

    return model, step, optimizers


def test_each_of_two_optimizers_is_told_with_its_own_parameters() -> None:
    model, step, optimizers = gan()
    story, result = told_by(run_of(step, model, optimizer=optimizers[0], handed=optimizers))
    assert story.told == [("gradients", 2), ("clipped", 2)] * 2
    assert result.lr == (0.1, 0.1)


def test_updates_of_other_parameters_are_players_and_rounds_of_the_same_are_one() -> None:
    model, step, optimizers = gan()
    assert told_by(run_of(step, model, optimizer=optimizers[0], handed=optimizers))[1].players == 2

    def rounds(model: nn.Module, batch: Tensor, optimizer: Any) -> Any:
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(batch).mean()
            loss.backward()
            optimizer.step()
        return loss

    assert told_by(run_of(rounds))[1].players == 1


def bits(run: TrainingRun) -> dict[str, list[float]]:
    state = {f"{n}.{k}": v for n, p in run.parameters().items() for k, v in run.state_of(p).items()}
    return {n: t.detach().flatten().tolist() for n, t in (run.parameters() | state).items() if isinstance(t, Tensor)}


def test_a_loop_with_two_optimizers_repeats_bit_for_bit_from_a_snapshot() -> None:
    model, step, optimizers = gan()
    run = run_of(step, model, optimizer=optimizers[0], handed=optimizers)
    train_step(run, 0, StepWatch())
    snapshot = Snapshot.take(run, 1)
    train_step(run, 1, StepWatch())
    first = bits(run)
    snapshot.restore(run)
    assert bits(run) != first
    train_step(run, 1, StepWatch())
    assert bits(run) == first


def test_what_a_loop_keeps_to_itself_is_put_back_too() -> None:
    target, scaler = nn.Linear(2, 1), torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1)
    made: dict[str, Any] = {}

    def step(model: nn.Module, batch: Tensor, optimizer: Any) -> Any:
        if "own" not in made:  # an optimizer that the first step makes
            made["own"] = torch.optim.Adam(target.parameters(), lr=0.1)
        optimizer.zero_grad()
        made["own"].zero_grad()
        loss = (model(batch) - target(batch)).square().mean()
        scaler.scale(loss).backward()
        scaler.step(made["own"])
        scaler.step(optimizer)
        scaler.update()
        return loss

    run = run_of(step)
    train_step(run, 0, StepWatch())
    snapshot = Snapshot.take(run, 1)
    assert [type(o).__name__ for o in run.optimizers] == ["SGD", "Adam"]
    train_step(run, 1, StepWatch())
    first, scale = bits(run), scaler.get_scale()
    snapshot.restore(run)
    assert scaler.get_scale() != scale
    train_step(run, 1, StepWatch())
    assert (bits(run), scaler.get_scale()) == (first, scale)
    assert any(name.startswith("target") for name in first)


def test_an_optimizer_with_a_closure_has_its_gradients_told_once_after_it() -> None:
    def step(model: nn.Module, batch: Tensor, optimizer: Any) -> Any:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = (model(batch) - 1.0).square().mean()
            loss.backward()
            return loss

        return optimizer.step(closure)

    model = linear()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    story, result = told_by(run_of(step, model, optimizer=optimizer))
    assert story.told == [("clipped", 1), ("gradients", 1)]
    assert result.order.count("backward") == 3
    assert needs_closure(optimizer)
    assert not needs_closure(torch.optim.Adam(model.parameters()))


def test_gradients_from_before_the_step_show_in_the_order() -> None:
    def step(model: nn.Module, batch: Tensor, optimizer: Any) -> Any:
        loss = model(batch).mean()
        loss.backward()
        optimizer.step()
        return loss

    run = run_of(step)
    assert told_by(run, 0)[1].order == ("backward", "update")
    assert told_by(run, 1)[1].order == ("kept", "backward", "update")


def test_micro_batches_that_the_loop_adds_up_itself_are_told_once_with_their_sum() -> None:
    def step(model: nn.Module, batch: Tensor, optimizer: Any) -> Any:
        optimizer.zero_grad()
        for part in batch.split(1):
            (model(part).mean() / 3).backward()
        optimizer.step()
        return model(batch).mean()

    story, result = told_by(run_of(step))
    assert story.told == [("gradients", 1), ("clipped", 1)]
    assert story.peaks == [3.0]
    assert result.order == ("zero_grad", "backward", "backward", "backward", "update")


def test_a_backward_inside_of_a_backward_is_one() -> None:
    inner = linear()

    def step(model: nn.Module, batch: Tensor, optimizer: Any) -> Any:
        optimizer.zero_grad()
        loss = checkpoint(model, batch.requires_grad_(), use_reentrant=True).mean()
        loss.backward()
        optimizer.step()
        return loss

    assert told_by(run_of(step, inner))[1].order == ("zero_grad", "backward", "update")


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_torch_stays_replaced(fails: bool) -> None:
    def step(model: nn.Module, batch: Tensor, optimizer: Any) -> Any:
        if fails:
            raise ArithmeticError
        return model(batch).mean()

    before = [torch.autograd.backward, torch.optim.Optimizer.zero_grad, torch.amp.GradScaler.step]
    with contextlib.suppress(ArithmeticError):
        train_step(run_of(step), 0, StepWatch())
    assert [torch.autograd.backward, torch.optim.Optimizer.zero_grad, torch.amp.GradScaler.step] == before


class Around(torch.optim.Optimizer):
    """A class around another optimizer, as LookAhead or a pair of SGDs in one object."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        super().__init__(inner.param_groups, inner.defaults)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.inner.step()


def plain_step(model: nn.Module, batch: Tensor, optimizer: Any) -> Tensor:
    optimizer.zero_grad()
    loss: Tensor = model(batch).mean()
    loss.backward()
    optimizer.step()
    return loss


def test_an_optimizer_around_another_makes_one_update_and_uses_no_gradient_twice() -> None:
    model = linear()
    run = run_of(plain_step, model, optimizer=Around(torch.optim.SGD(model.parameters(), lr=0.1)))
    for step in range(3):
        _, result = told_by(run, step)
        assert (result.order, result.reused) == (("zero_grad", "backward", "update"), ())


def test_a_gradient_that_nobody_clears_is_told_by_its_parameter_from_the_second_step_on() -> None:
    def step(model: nn.Module, batch: Tensor, optimizer: Any) -> Any:
        loss = model(batch).mean()
        loss.backward()
        optimizer.step()
        return loss

    run = run_of(step)
    assert [told_by(run, i)[1].reused for i in range(3)] == [(), (("weight", "leftover"),), (("weight", "leftover"),)]


def test_a_step_that_is_run_again_from_a_snapshot_tells_the_same_of_its_gradients() -> None:
    def step(model: Any, batch: Tensor, optimizer: Any) -> Any:
        loss = model(batch).mean()
        loss.backward()
        model.calls += 1
        if model.calls % 3 != 1:  # the first call of three adds to what the second one uses; the third clears nothing
            optimizer.step()
        if model.calls % 3 == 2:
            optimizer.zero_grad()
        return loss

    model = linear()
    model.register_buffer("calls", torch.tensor(0))
    run = run_of(step, model)
    told_by(run, 0)
    second = Snapshot.take(run, 1)
    told = [told_by(run, i)[1].reused for i in (1, 2)]
    second.restore(run)  # the last update was the third call's, and the one before the second call made none
    assert [told_by(run, i)[1].reused for i in (1, 2)] == told == [(), ()]


def test_a_scaler_that_is_switched_off_is_heard_as_none_and_the_step_repeats() -> None:
    scaler = torch.amp.GradScaler("cpu", enabled=False)  # as a loop makes it for bf16

    def step(model: nn.Module, batch: Tensor, optimizer: Any) -> Any:
        optimizer.zero_grad()
        loss = model(batch).mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        return loss

    run = run_of(step)
    before = Snapshot.take(run, 0)
    story, result = told_by(run)
    assert (result.loss_scale, result.skipped, story.peaks) == (None, False, [3.0])
    before.restore(run)
    assert told_by(run)[1].loss == result.loss


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_that_are_cleared_before_the_update_show_in_the_order(to_none: bool) -> None:
    def step(model: nn.Module, batch: Tensor, optimizer: Any) -> Any:
        loss = model(batch).mean()
        loss.backward()
        optimizer.zero_grad(set_to_none=to_none)
        optimizer.step()
        return loss

    assert told_by(run_of(step))[1].order == ("backward", "zero_grad", "gone", "update")


def test_gradients_that_the_loop_puts_together_itself_are_not_gone() -> None:
    def step(model: nn.Module, batch: Tensor, optimizer: Any) -> Any:
        loss = model(batch).mean()
        loss.backward()
        own = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        optimizer.zero_grad()
        for p, grad in zip(model.parameters(), own, strict=True):
            p.grad = 0.5 * grad
        optimizer.step()
        return loss

    assert "gone" not in told_by(run_of(step))[1].order


def test_an_update_behind_the_one_that_used_the_gradients_has_lost_none() -> None:
    def step(model: nn.Module, batch: Tensor, optimizer: Any) -> Any:
        loss = model(batch).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        optimizer.step()
        return loss

    assert "gone" not in told_by(run_of(step))[1].order

"""One step does what torch's own loop does, in its order, and says so."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanhunt.errors import ConfigError
from nanhunt.training.clip import clip_gradients, gradient_norm
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step
from tests.conftest import tiny_run


def linear(width: int = 2) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width, 1, bias=False)


def mean_loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).mean()


class Story(StepWatch):
    """What it is told, in order, with what it sees then."""

    def __init__(self, run: TrainingRun) -> None:
        self.run = run
        self.told: list[str] = []
        self.grads: list[float] = []

    def batch_read(self, micro: int, batch: Any) -> None:
        self.told.append(f"batch {micro}")

    def loss_made(self, micro: int, loss: Tensor) -> None:
        self.told.append(f"loss {micro}")

    def backward_begins(self, micro: int) -> None:
        self.told.append(f"backward {micro}")

    def gradients_ready(self, parameters: Any = None) -> None:
        self.told.append("gradients")
        self.grads.append(self._norm())

    def clipped(self, parameters: Any = None) -> None:
        self.told.append("clipped")
        self.grads.append(self._norm())

    def updated(self) -> None:
        self.told.append("updated")

    def _norm(self) -> float:
        return math.sqrt(sum(float(p.grad.square().sum()) for p in self.run.trainable() if p.grad is not None))


def test_a_watch_is_told_each_part_of_the_step_in_order() -> None:
    run = tiny_run(linear(), mean_loss, [torch.ones(3, 2)] * 2, accumulate=2)
    story = Story(run)
    train_step(run, 0, story)
    micro = [f"{part} {i}" for i in (0, 1) for part in ("batch", "loss", "backward")]
    assert story.told == [*micro, "gradients", "clipped", "updated"]


def test_gradients_are_seen_unscaled_and_before_the_clip() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    run = tiny_run(linear(), mean_loss, [torch.full((3, 2), 3.0)], scaler=scaler, clip_grad_norm=0.5)
    story = Story(run)
    result = train_step(run, 0, story)
    expected = 3.0 * math.sqrt(2)
    assert story.grads == pytest.approx([expected, 0.5], rel=1e-4)
    assert result.grad_norm == pytest.approx(expected)
    assert result.clip_coefficient == pytest.approx(0.5 / expected, rel=1e-4)
    assert (result.loss_scale, result.skipped) == (1024.0, False)


def test_the_loss_is_the_mean_over_micro_steps_and_so_is_the_gradient() -> None:
    data = [torch.full((3, 2), 1.0), torch.full((3, 2), 3.0)]
    run, whole = tiny_run(linear(), mean_loss, data, accumulate=2), tiny_run(linear(), mean_loss, [torch.cat(data)])
    a, b = train_step(run, 0, StepWatch()), train_step(whole, 0, StepWatch())
    assert a.loss == pytest.approx(b.loss)
    assert a.grad_norm == pytest.approx(b.grad_norm)


def test_a_step_that_the_scaler_skips_says_so_and_changes_no_weight() -> None:
    model = linear()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    run = tiny_run(model, lambda m, x: m(x).mean() * 1e38, [torch.full((3, 2), 3.0)], scaler=scaler)
    before = model.weight.detach().clone()
    result = train_step(run, 0, StepWatch())
    assert result.skipped
    assert math.isinf(result.grad_norm or 0.0)
    assert torch.equal(model.weight, before)
    assert scaler.get_scale() == 2.0


def test_the_rate_that_is_told_is_the_one_of_this_step_and_the_schedule_comes_after() -> None:
    run = tiny_run(linear(), mean_loss, [torch.ones(3, 2)] * 2)
    run.scheduler = torch.optim.lr_scheduler.StepLR(run.optimizer, step_size=1, gamma=0.1)
    rates = [train_step(run, step, StepWatch()).lr[0] for step in range(2)]
    assert rates == pytest.approx([0.01, 0.001])


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64], ids=str
)
def test_the_norm_of_gradients_of_any_dtype_is_taken_in_fp32_or_wider(dtype: torch.dtype) -> None:
    grads = [torch.full((4,), 60_000, dtype=dtype), torch.zeros(0, dtype=dtype)]
    exact = math.sqrt(sum(abs(complex(x)) ** 2 for x in grads[0].tolist()))
    assert float(gradient_norm(grads, torch.device("cpu"))) == pytest.approx(exact, rel=1e-6)


def test_the_norm_of_a_sparse_gradient_adds_up_what_is_stored_twice() -> None:
    grad = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), torch.tensor([3.0, 1.0]), (4,), check_invariants=True)
    assert float(gradient_norm([grad], torch.device("cpu"))) == 4.0


def test_the_norm_of_no_gradient_is_zero() -> None:
    assert float(gradient_norm([], torch.device("cpu"))) == 0.0


@pytest.mark.parametrize("value", [1e-3, 1e3, math.inf, math.nan])
def test_clipping_by_norm_is_torchs_own(value: float) -> None:
    ours, torchs = linear(), linear()
    for model in (ours, torchs):
        model.weight.grad = torch.tensor([[value, 1.0]])
    clip_gradients(tiny_run(ours, mean_loss, [], clip_grad_norm=2.0))
    torch.nn.utils.clip_grad_norm_(torchs.parameters(), 2.0)
    assert torch.equal(ours.weight.grad.view(torch.int32), torchs.weight.grad.view(torch.int32))


@pytest.mark.parametrize("norm_type", [1.0, math.inf])
def test_clipping_by_another_norm_is_torchs_own_and_tells_the_euclidean_one(norm_type: float) -> None:
    ours, torchs = linear(), linear()
    for model in (ours, torchs):
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.full_like(parameter, 3.0 + number)
    run = tiny_run(ours, mean_loss, [], clip_grad_norm=2.0, clip_norm_type=norm_type)
    norm, coefficient = clip_gradients(run)
    seen = torch.nn.utils.clip_grad_norm_(torchs.parameters(), 2.0, norm_type)
    assert coefficient == 2.0 / (seen + 1e-6)
    assert norm != seen
    for a, b in zip(ours.parameters(), torchs.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_clipping_by_value_is_torchs_own() -> None:
    model = linear()
    model.weight.grad = torch.tensor([[math.inf, -3.0]])
    norm, coefficient = clip_gradients(tiny_run(model, mean_loss, [], clip_grad_value=1.0))
    assert (model.weight.grad.tolist(), float(norm), coefficient) == ([[1.0, -1.0]], math.inf, None)


def test_adaptive_clipping_bounds_each_row_by_its_weights_norm() -> None:
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    model.weight.grad = torch.tensor([[300.0, 400.0], [3.0, 4.0]])
    clip_gradients(tiny_run(model, mean_loss, [], agc=0.1))
    # 0.1 × 5 of the first row; of the second row 0.1 × the floor of 1e-3
    assert model.weight.grad.norm(dim=1).tolist() == pytest.approx([0.5, 1e-4])


def test_clipping_per_parameter_bounds_each_gradient_by_itself() -> None:
    model = nn.Linear(2, 2)
    model.weight.grad = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    model.bias.grad = torch.tensor([0.3, 0.4])
    norm, coefficient = clip_gradients(tiny_run(model, mean_loss, [], clip_param_norm=1.0))
    # the weight's norm of 5 goes down to 1, the bias's 0.5 is below the limit
    assert model.weight.grad.flatten().tolist() == pytest.approx([0.6, 0.0, 0.0, 0.8], rel=1e-6)
    assert model.bias.grad.tolist() == pytest.approx([0.3, 0.4])
    assert (float(norm), coefficient) == (pytest.approx(math.sqrt(25.25)), None)


def test_clipping_per_parameter_leaves_others_alone_where_one_gradient_is_infinite() -> None:
    model = nn.Linear(1, 1)
    model.weight.grad, model.bias.grad = torch.tensor([[math.inf]]), torch.tensor([2.0])
    clip_gradients(tiny_run(model, mean_loss, [], clip_param_norm=1.0))
    assert math.isnan(model.weight.grad.item())
    assert model.bias.grad.item() == pytest.approx(1.0, rel=1e-6)


def by_the_paper(weight: Tensor, grad: Tensor, factor: float) -> Tensor:
    """Eq. 3 of arXiv:2102.06171, a unit (an output row, a vector as a whole) at a time, in Python's floats."""
    if weight.dim() > 1:
        return torch.stack([by_the_paper(w.flatten(), g.flatten(), factor) for w, g in zip(weight, grad, strict=True)])
    of_weight = max(math.sqrt(sum(w * w for w in weight.tolist())), 1e-3)
    of_grad = math.sqrt(sum(g * g for g in grad.tolist()))
    return grad * (factor * of_weight / of_grad) if of_grad / of_weight > factor else grad


@pytest.mark.parametrize("layer", [nn.Linear(5, 3), nn.Conv2d(2, 3, 3), nn.LayerNorm(4), nn.Embedding(6, 3)], ids=str)
@pytest.mark.parametrize("factor", [0.01, 0.3, 100.0])
def test_adaptive_clipping_is_the_papers_for_each_kind_of_parameter(layer: nn.Module, factor: float) -> None:
    torch.manual_seed(2)
    grads = {p: torch.randn_like(p) for p in layer.parameters()}
    for parameter, grad in grads.items():
        parameter.grad = grad.clone()
    clip_gradients(tiny_run(layer, mean_loss, [], agc=factor))
    for parameter, grad in grads.items():
        expected = by_the_paper(parameter.detach(), grad, factor)
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.reshape(expected.shape), expected)


def test_a_users_own_step_leaves_no_hook_behind_even_when_it_raises() -> None:
    from torch.optim.optimizer import _global_optimizer_pre_hooks as hooks

    def step(model: nn.Module, batch: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        raise ArithmeticError

    run = tiny_run(linear(), mean_loss, [torch.ones(1, 2)], train_step=step)
    before = len(hooks)
    with pytest.raises(ArithmeticError):
        train_step(run, 0, StepWatch())
    assert len(hooks) == before


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda m, x: float(m(x).mean()), "loss: .*returned float"),
        (lambda m, x: m(x), r"loss: .*returned a tensor of shape \(3, 1\)"),
        (lambda m, x: m(x).mean().detach(), "does not depend on any trainable parameter"),
        (lambda m, x: None, "loss: .*returned NoneType"),
    ],
)
def test_a_loss_that_backward_cannot_start_from_is_refused_by_the_key(loss: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        train_step(tiny_run(linear(), loss, [torch.ones(3, 2)]), 0, StepWatch())


def test_a_loss_of_one_element_counts_as_a_scalar() -> None:
    run = tiny_run(linear(), lambda m, x: m(x).mean().reshape(1, 1), [torch.ones(3, 2)])
    assert math.isfinite(train_step(run, 0, StepWatch()).loss)

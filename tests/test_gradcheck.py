"""A user's backward against central differences of its forward: wrong, right, wrong on purpose, and not to be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanhunt.gradcheck import check_functions
from nanhunt.training.ring import SnapshotRing
from nanhunt.training.run import TrainingRun
from tests.conftest import tiny_run


class Halved(torch.autograd.Function):
    """x² with half of its slope."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad * x


class Squared(Halved):
    """The same with the whole of it."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad * 2 * x


class Rounded(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


class Reversed(torch.autograd.Function):
    """A gradient reversal."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return -grad


class OnlyFloat(Halved):
    """Wrong as well, but no fp64 goes in."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if x.dtype is torch.float64:
            raise TypeError("expected float32")
        ctx.save_for_backward(x)
        return x * x


class Kinked(torch.autograd.Function):
    """A ReLU: right, with a kink."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad * (x > 0)


class Masked(torch.autograd.Function):
    """Takes what needs no gradient, and puts out what has none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        weight = torch.arange(1.0, 4.0, dtype=x.dtype)
        count = (x * x).sum()
        ctx.mark_non_differentiable(count)
        ctx.save_for_backward(weight)
        return count, x * weight

    @staticmethod
    def backward(ctx: Any, count: Tensor, grad: Tensor) -> Tensor:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        return grad * weight


class Scaled(torch.autograd.Function):
    """Gives no gradient of a buffer, which asks for none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(scale)
        return x * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (scale,) = ctx.saved_tensors
        return grad * scale, None


class Noisy(torch.autograd.Function):
    """No function of its arguments alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * torch.rand_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


class Total(torch.autograd.Function):
    """Takes the gradient of its sum for 1, which it is where nothing scales the loss."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(2 * x)
        return (x * x).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (slope,) = ctx.saved_tensors
        return slope


class Scores(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        more = [torch.full((3,), 2.0)] if self.function is Scaled else []
        made: Tensor | tuple[Tensor, Tensor] = self.function.apply(self.layer(x), *more)  # the call
        return made if isinstance(made, Tensor) else made[1]


def run_of(function: Any) -> tuple[TrainingRun, SnapshotRing]:
    torch.manual_seed(0)
    run = tiny_run(nn.Sequential(Scores(function)), lambda m, b: m(b).mean(), [torch.randn(5, 4) for _ in range(3)])
    run.root = Path(__file__).parent
    ring = SnapshotRing(run)
    ring.offer(run, 0)
    return run, ring


@pytest.mark.parametrize(
    ("function", "verdict"),
    [
        (Halved, "wrong"), (Squared, "agrees"), (Kinked, "agrees"), (Rounded, "by design"), (Reversed, "by design"),
        (Total, "wrong"), (Masked, "agrees"), (Scaled, "agrees"), (OnlyFloat, "unknown"), (Noisy, "unknown"),
    ],
)  # fmt: skip
def test_only_a_backward_that_differences_contradict_is_wrong(function: Any, verdict: str) -> None:
    run, ring = run_of(function)
    (found,) = check_functions(run, ring, 0)
    assert (found["function"], found["verdict"], found["module"]) == (function.__name__, verdict, "0")
    line = next(i for i, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.endswith("# the call"))
    assert found["source"] == f"test_gradcheck.py:{line}"


def test_the_numbers_told_are_a_slope_and_what_the_backward_makes_of_it() -> None:
    run, ring = run_of(Halved)
    (found,) = check_functions(run, ring, 0)
    assert found["analytic"] == pytest.approx(found["numeric"] / 2, rel=1e-5)


def test_a_check_leaves_the_run_as_it_was_and_apply_too() -> None:
    run, ring = run_of(Halved)
    before = {n: t.clone() for n, t in run.model.state_dict().items()}
    apply, random = torch.autograd.Function.__dict__["apply"], torch.get_rng_state()
    check_functions(run, ring, 0)
    assert all(torch.equal(before[n], t) for n, t in run.model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert torch.autograd.Function.__dict__["apply"] is apply
    assert all(p.grad is None for p in run.model.parameters())

"""A custom function's backward by autograd: in both styles, for every caller, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanhunt.bench import NotApplicableError
from nanhunt.changes import change_made
from nanhunt.counterfactual import run_trial
from nanhunt.interventions import BackwardByAutograd, Intervention
from nanhunt.training.run import TrainingRun
from tests.changes.bench import bench_of, bits_of, same_bits
from tests.conftest import tiny_run


class WrongSquare(torch.autograd.Function):
    """x² with a slope that is infinite at 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad * 2 * x * x / x


class RightHeir(WrongSquare):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * 7


class WrongNewStyle(torch.autograd.Function):
    """Scaled by a number, with a second output that has no slope."""

    @staticmethod
    def forward(x: Tensor, y: Tensor, factor: float = 3.0) -> tuple[Tensor, Tensor]:
        return x * y * factor, (x > 0).long()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, y, factor = inputs
        ctx.save_for_backward(x, y)
        ctx.factor = factor
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return grad * torch.nan, None, None


class PastAutograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.data * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * 2


class ByNumpy(PastAutograd):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() * 2)


class InPlace(PastAutograd):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)


#: taken out of the class as the module is loaded
wrong_square = WrongSquare.apply


class Net(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.0, 1.0, 2.0]))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.weight * x)


def run_of(function: Callable[..., Tensor]) -> TrainingRun:
    return tiny_run(Net(function), lambda m, b: m(b).sum(), [torch.ones(3)] * 4)


def tried(function: Callable[..., Tensor], name: str) -> Any:
    run = run_of(function)
    before = bits_of(run)
    trial = run_trial(bench_of(run), Intervention(name="x", question="", change=BackwardByAutograd(name)))
    assert same_bits(before, bits_of(run))
    return trial


@pytest.mark.parametrize("name", ["WrongSquare", f"{__name__}.WrongSquare"])
@pytest.mark.parametrize("function", [WrongSquare.apply, lambda x: WrongSquare.apply(x), wrong_square])
def test_a_wrong_backward_is_cured_however_it_is_called(function: Callable[..., Tensor], name: str) -> None:
    exact = run_trial(bench_of(run_of(function)), Intervention(name="exact", question=""))
    assert exact.outcome == "persists"
    trial = tried(function, WrongSquare.__module__ + ".WrongSquare" if "." in name else name)
    assert trial.outcome == "cured", trial
    assert "1 call of" in trial.readback


def test_the_gradient_is_that_of_the_forward() -> None:
    x = torch.tensor([0.0, 1.0, -3.0], requires_grad=True)
    with change_made(bench_of(run_of(torch.square)), BackwardByAutograd("WrongSquare")):
        WrongSquare.apply(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 2.0, -6.0]
    x.grad = None
    WrongSquare.apply(x).sum().backward()  # the author's own again
    assert x.grad.isnan().any()


def takes_keywords(x: torch.Tensor) -> bool:
    """Whether this torch's `Function.apply` takes keyword arguments: 2.11 does not."""
    try:
        WrongNewStyle.apply(x, x, factor=5.0)
    except TypeError:
        return False
    return True


def test_a_function_with_a_setup_context_keeps_defaults_keywords_and_outputs_without_a_slope() -> None:
    x, y = (torch.tensor([1.0, -2.0], requires_grad=True) for _ in range(2))
    with change_made(bench_of(run_of(torch.square)), BackwardByAutograd("WrongNewStyle")):
        for kwargs in ({}, *([{"factor": 5.0}] if takes_keywords(x) else [])):
            x.grad = y.grad = None
            out, sign = WrongNewStyle.apply(x, y, **kwargs)
            assert not sign.requires_grad
            out.sum().backward()
            assert x.grad is not None
            assert y.grad is not None
            assert x.grad.tolist() == y.grad.tolist() == [f * kwargs.get("factor", 3.0) for f in (1.0, -2.0)]


def test_a_class_that_inherits_from_it_keeps_its_own() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    with change_made(bench_of(run_of(torch.square)), BackwardByAutograd("WrongSquare")):
        WrongSquare.apply(x)
        RightHeir.apply(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [7.0, 7.0]
    assert "forward" not in RightHeir.__dict__


def test_the_backward_may_run_twice() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    with change_made(bench_of(run_of(torch.square)), BackwardByAutograd("WrongSquare")):
        loss = WrongSquare.apply(x).sum()
        loss.backward(retain_graph=True)
        loss.backward()
    assert x.grad is not None
    assert x.grad.tolist() == [4.0, 8.0]


@pytest.mark.parametrize(
    ("function", "reason"),
    [(PastAutograd, "goes past autograd"), (ByNumpy, "cannot be differentiated"), (InPlace, "writes into its inputs")],
)
def test_a_forward_that_autograd_does_not_see_is_not_applicable(function: Any, reason: str) -> None:
    trial = tried(lambda x: function.apply(x), function.__name__)
    assert trial.outcome == "failed"
    assert reason in trial.detail


def test_a_function_that_never_runs_or_is_not_there_is_not_applicable() -> None:
    assert "never ran" in tried(torch.square, "WrongSquare").detail
    assert "no function Nowhere" in tried(torch.square, "Nowhere").detail


def test_the_class_is_as_it_was_after_an_exception() -> None:
    own = dict(WrongSquare.__dict__), dict(RightHeir.__dict__)
    change = BackwardByAutograd("WrongSquare")
    with pytest.raises(ValueError, match="mine"), change_made(bench_of(run_of(torch.square)), change):
        raise ValueError("mine")
    with pytest.raises(NotApplicableError), change_made(bench_of(run_of(torch.square)), change):
        pass
    assert (dict(WrongSquare.__dict__), dict(RightHeir.__dict__)) == own

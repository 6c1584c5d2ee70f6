"""The double where: the step keeps its values to the bit, an infinite slope is finite, and a value that is used is told.

What comes out is held against the double where as a user writes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanhunt.bench import NotApplicableError
from nanhunt.changes import change_made
from nanhunt.counterfactual import run_trial
from nanhunt.interventions import Intervention, SafeArgument, Trial
from nanhunt.training.run import TrainingRun
from nanhunt.training.step import StepWatch, train_step
from tests.changes.bench import bench_of
from tests.conftest import tiny_run

HERE = "test_safe_argument.py"


class Scaled(nn.Module):
    """A weight for each column, and what a function makes of the product."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x * self.weight)


BATCH = torch.tensor([[0.0, 1.0, 4.0], [2.0, 0.0, 1.0]])


def run_of(function: Callable[[Tensor], Tensor]) -> TrainingRun:
    return tiny_run(
        Scaled(function),
        lambda model, x: model(x).mean(),
        [BATCH.clone() for _ in range(4)],
        root=Path(__file__).parent,
    )


def line_of(function: Callable[..., Any]) -> str:
    return f"{HERE}:{function.__code__.co_firstlineno + 1}"


def rooted(x: Tensor) -> Tensor:
    r = x.sqrt()
    return torch.where(x > 0, r, 0.0)


def rooted_twice(x: Tensor) -> Tensor:
    return torch.where(x > 0, torch.where(x > 0, x, 1.0).sqrt(), 0.0)


def floored(x: Tensor) -> Tensor:
    r = x.sqrt()
    return r.clamp(min=0.25)


def divided(x: Tensor) -> Tensor:
    q = x / x.square()
    return torch.where(x > 0, q, 1.0)


def entropy(x: Tensor) -> Tensor:
    h = x * x.log()
    return torch.where(x > 0, h, 0.0)


def used(x: Tensor) -> Tensor:
    r = x.sqrt()
    return r + 0.0 * x


def broken_elsewhere(x: Tensor) -> Tensor:
    r = x.sqrt()
    return torch.where(x > 0, r, 0.0) + torch.where(x > 0, x.log(), 0.0)


def in_place(x: Tensor) -> Tensor:
    r = x.sqrt_()
    return torch.where(r > 0, r, 0.0)


def harmless(x: Tensor) -> Tensor:
    r = x.square()
    return r + 1.0


def tried(function: Callable[[Tensor], Tensor]) -> Trial:
    change = SafeArgument(line_of(function))
    return run_trial(bench_of(run_of(function)), Intervention(name="safe-argument", change=change, question=""))


@pytest.mark.parametrize("function", [rooted, floored, divided, entropy], ids=lambda f: f.__name__)
def test_a_trap_is_cured_and_the_loss_is_the_same_to_the_bit(function: Callable[[Tensor], Tensor]) -> None:
    plain = train_step(run_of(function), 0, StepWatch())
    assert not math.isfinite(plain.grad_norm or 0.0)
    trial = tried(function)
    assert (trial.outcome, trial.loss) == ("cured", plain.loss)
    assert "elements of what test_safe_argument.py:" in trial.readback


def test_the_gradient_is_that_of_the_double_where_as_it_is_written() -> None:
    run, written = run_of(rooted), run_of(rooted_twice)
    with change_made(bench_of(run), SafeArgument(line_of(rooted))):
        train_step(run, 0, StepWatch())
    train_step(written, 0, StepWatch())
    for one, other in zip(run.parameters().values(), written.parameters().values(), strict=True):
        assert torch.equal(one, other)


def test_a_value_that_is_used_is_no_trap() -> None:
    trial = tried(used)
    assert trial.outcome == "persists"
    assert "2 of the elements" in trial.detail
    assert "their values are used" in trial.detail


def test_a_step_that_another_op_breaks_as_well_says_nothing() -> None:
    trial = tried(broken_elsewhere)
    assert (trial.outcome, trial.detail.partition(":")[0]) == ("failed", "another op breaks the step as well")


def test_the_lines_above_are_made_safe_with_it() -> None:
    lines = {f"{HERE}:{broken_elsewhere.__code__.co_firstlineno + i}" for i in (1, 2)}
    first, second = sorted(lines)
    change = SafeArgument(first, above=(second,))
    trial = run_trial(bench_of(run_of(broken_elsewhere)), Intervention(name="x", change=change, question=""))
    assert trial.outcome == "cured"
    assert first in trial.readback
    assert second in trial.readback


@pytest.mark.parametrize(
    ("function", "reason"), [(in_place, "works in place"), (harmless, "makes NaN of a gradient of")]
)
def test_it_says_why_there_is_nothing_to_change(function: Callable[[Tensor], Tensor], reason: str) -> None:
    run = run_of(function)
    with pytest.raises(NotApplicableError, match=reason), change_made(bench_of(run), SafeArgument(line_of(function))):
        train_step(run, 0, StepWatch())


def test_calls_that_draw_random_numbers_draw_the_same() -> None:
    def dropped(x: Tensor) -> Tensor:
        r = nn.functional.dropout(x, 0.5).sqrt()
        return torch.where(r > 0, r, 0.0)

    losses = []
    for change in (None, SafeArgument(line_of(dropped))):
        run = run_of(dropped)
        torch.manual_seed(1)
        with change_made(bench_of(run), change):
            losses.append(train_step(run, 0, StepWatch()).loss)
    assert losses[0] == losses[1]


def test_a_table_with_sparse_gradients_on_a_line_above_is_left_as_it_is() -> None:
    table = nn.Embedding(3, 3, sparse=True)
    table.weight.data[0] = 0.0

    def looked_up(x: Tensor) -> Tensor:
        r = (table(torch.tensor([0, 1])).abs() * x).sqrt()
        return torch.where(r > 0, r, 0.0)

    change = SafeArgument(line_of(looked_up))
    trial = run_trial(bench_of(run_of(looked_up)), Intervention(name="x", change=change, question=""))
    assert trial.outcome == "cured"

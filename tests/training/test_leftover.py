"""A gradient that is used a second time is told, and every honest way of clearing or accumulating is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nanhunt.training.leftover import Leftovers


def steps(loop: Callable[[nn.Module, torch.optim.Optimizer, Callable[[], None]], None], count: int = 3) -> list[str]:
    """Run a loop, whose third argument it calls before it updates; return what is found in its last step."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stepped: frozenset[int] = frozenset()
    found: dict[str, frozenset[int]] = {}
    for _ in range(count):
        left = Leftovers(list(model.parameters()), stepped)
        loop(model, optimizer, lambda left=left: left.used(list(model.parameters())))  # type: ignore[misc]
        left.release()
        found, stepped = left.found(), frozenset(left.updated)
    return sorted(found)


def loss_of(model: nn.Module) -> Tensor:
    return model(torch.ones(4, 3)).square().sum()


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_gradients_that_are_cleared_are_no_leftovers(set_to_none: bool, first: bool) -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer, updating: Callable[[], None]) -> None:
        if first:
            optimizer.zero_grad(set_to_none=set_to_none)
        loss_of(model).backward()
        updating()
        optimizer.step()
        if not first:
            optimizer.zero_grad(set_to_none=set_to_none)

    assert steps(loop) == []


def test_gradients_that_nobody_clears_are_leftovers() -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer, updating: Callable[[], None]) -> None:
        loss_of(model).backward()
        updating()
        optimizer.step()

    assert steps(loop) == ["leftover"]
    assert steps(loop, count=1) == []


def test_two_updates_with_one_gradient_are_told() -> None:
    def loop(model: nn.Module, optimizer: torch.optim.Optimizer, updating: Callable[[], None]) -> None:
        optimizer.zero_grad()
        loss_of(model).backward()
        for _ in range(2):
            updating()
            optimizer.step()

    assert steps(loop) == ["twice"]


def test_gradients_accumulated_over_calls_are_no_leftovers() -> None:
    calls = 0

    def loop(model: nn.Module, optimizer: torch.optim.Optimizer, updating: Callable[[], None]) -> None:
        nonlocal calls
        loss_of(model).backward()
        calls += 1
        if calls % 2 == 0:
            updating()
            optimizer.step()
            optimizer.zero_grad()

    assert steps(loop, count=6) == []


@pytest.mark.parametrize("how", ["to none", "to zero", "by hand", "not at all"])
def test_what_another_loss_left_is_used_again_only_where_nothing_clears_it_before_its_own_loss(how: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    parameters = list(model.parameters())
    optimizer, stepped, found = torch.optim.SGD(parameters, lr=0.1), frozenset[int](), dict[str, frozenset[int]]()
    for _ in range(3):
        left = Leftovers(parameters, stepped)
        left.backward_begins()
        loss_of(model).backward()  # an actor's, which goes through its critic
        if how == "by hand":
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.zero_()
        elif how != "not at all":
            optimizer.zero_grad(set_to_none=how == "to none")
        left.backward_begins()
        loss_of(model).backward()
        left.used(parameters)
        optimizer.step()
        left.release()
        found, stepped = left.found(), frozenset(left.updated)
    assert sorted(found) == (["leftover"] if how == "not at all" else [])

"""What the user's code keeps besides what it hands over is found by following names, and nothing else is."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from nanhunt.training.owned import find_owned

CRITIC = nn.Linear(2, 1)
CRITIC_OPTIMIZER = torch.optim.SGD(CRITIC.parameters(), lr=0.1)
LOG_ALPHA = torch.zeros((), requires_grad=True)
UNRELATED = nn.Linear(9, 9)
STATE: dict[str, Any] = {"scaler": torch.amp.GradScaler("cpu"), "deep": {"target": nn.Linear(2, 2)}}


def uses_globals(model: nn.Module, batch: Any, optimizer: Any) -> Any:
    def inner() -> Any:
        return CRITIC(batch), LOG_ALPHA

    CRITIC_OPTIMIZER.step()
    return inner(), STATE["scaler"]


def calls_another(model: nn.Module, batch: Any, optimizer: Any) -> Any:
    return uses_globals(model, batch, optimizer)


class Loop:
    def __init__(self) -> None:
        self.average = nn.Linear(2, 2)
        self.optimizers = [torch.optim.SGD(self.average.parameters(), lr=0.1)]
        self.criterion = nn.MSELoss()

    def step(self, model: nn.Module, batch: Any, optimizer: Any) -> Any:
        return self.average(batch)


def test_globals_that_the_code_names_are_followed_through_containers_and_calls() -> None:
    for step in (uses_globals, calls_another, functools.partial(calls_another)):
        found = find_owned([step], nn.Linear(1, 1))
        assert found.optimizers == [CRITIC_OPTIMIZER]
        assert found.scalers == [STATE["scaler"]]
        assert found.modules == {"CRITIC": CRITIC, "STATE.deep.target": STATE["deep"]["target"]}
        assert found.leaves == {"LOG_ALPHA": LOG_ALPHA}


def test_what_no_name_leads_to_stays_alone() -> None:
    found = find_owned([uses_globals], nn.Linear(1, 1))
    assert not any(m is UNRELATED for m in found.modules.values())


def test_a_method_leads_to_what_its_object_holds() -> None:
    loop = Loop()
    found = find_owned([loop.step], nn.Linear(1, 1))
    assert found.modules == {"average": loop.average}
    assert found.optimizers == loop.optimizers


def test_a_closure_leads_to_its_cells() -> None:
    target = nn.Linear(2, 2)

    def step(model: nn.Module, batch: Any, optimizer: Any) -> Any:
        return target(batch)

    assert find_owned([step], nn.Linear(1, 1)).modules == {"target": target}


def test_the_model_its_parts_and_a_wrapper_around_it_are_no_second_models() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    wrapper = nn.ModuleDict({"net": model, "average": nn.Linear(2, 2)})

    def step(_: nn.Module, batch: Any, optimizer: Any) -> Any:
        return model[0](batch), wrapper(batch)

    assert set(find_owned([step, model], model).modules) == {"wrapper.average"}


def test_a_loss_function_without_anything_to_learn_is_no_module_of_its_own() -> None:
    criterion = nn.CrossEntropyLoss()

    def loss(model: nn.Module, batch: Any) -> Any:
        return criterion(model(batch), batch)

    assert not find_owned([loss], nn.Linear(1, 1)).modules


def test_a_ring_of_references_ends() -> None:
    ring: list[Any] = []
    ring.append(ring)

    def step() -> Any:
        return ring

    assert not find_owned([step], nn.Linear(1, 1)).modules

"""Moments go to the parameters that they belong to, whatever order the checkpoint has them in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nanhunt.errors import CheckpointError
from nanhunt.training.optimizer_state import load_optimizer


class Net(nn.Module):
    """Matrices and vectors in turn, no two of a shape."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 7)


def one_group(model: nn.Module, **more: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), **{"lr": 0.1, **more})


def two_groups(model: nn.Module) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}])


def trained(make: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Net()
    optimizer = make(model)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {n: optimizer.state[p]["exp_avg"].tolist() for n, p in model.named_parameters()}


@pytest.mark.parametrize("saved_by", [one_group, two_groups])
@pytest.mark.parametrize("loaded_by", [one_group, two_groups])
def test_each_moment_finds_its_parameter_across_groupings(saved_by: Any, loaded_by: Any) -> None:
    old_model, old = trained(saved_by)
    model = Net()
    optimizer, assumptions = loaded_by(model), list[str]()
    load_optimizer(optimizer, model, old.state_dict(), assumptions)
    assert moments(model, optimizer) == moments(old_model, old)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [g["weight_decay"] for g in old.param_groups]
    assert bool(assumptions) == (saved_by is not loaded_by)


def test_the_checkpoints_hyper_parameters_stand_and_unknown_ones_of_ours_are_kept() -> None:
    _, old = trained(one_group)
    saved = old.state_dict()
    saved["param_groups"][0] |= {"lr": 0.025}
    del saved["param_groups"][0]["fused"]  # an older torch had none
    model = Net()
    optimizer = one_group(model)
    load_optimizer(optimizer, model, saved, [])
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["fused"]) == (0.025, None)


def test_settings_that_the_checkpoint_overrules_are_told() -> None:
    _, old = trained(one_group)
    saved = old.state_dict()
    saved["param_groups"][0] |= {"weight_decay": 0.1, "betas": [0.9, 0.95], "lr": 0.025}
    model, told = Net(), list[str]()
    load_optimizer(one_group(model), model, saved, told)
    assert told == [
        "optimizer: the checkpoint's settings are used: betas (0.9, 0.95), where the code has (0.9, 0.999); "
        "weight_decay 0.1, where the code has 0.01"
    ]


def test_loading_leaves_the_checkpoint_as_it_was() -> None:
    _, old = trained(two_groups)
    saved = old.state_dict()
    groups = [dict(g) for g in saved["param_groups"]]
    model = Net()
    load_optimizer(one_group(model), model, saved, [])
    assert saved["param_groups"] == groups


def test_state_for_another_model_is_refused() -> None:
    _, old = trained(one_group)
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(CheckpointError, match="shapes"):
        load_optimizer(one_group(other), other, old.state_dict(), [])
    with pytest.raises(CheckpointError, match=r"groups of \[2\]"):
        load_optimizer(one_group(nn.Linear(2, 2)), nn.Linear(2, 2), old.state_dict(), [])


def test_groups_that_no_known_order_explains_are_refused_with_the_mend() -> None:
    model, old = trained(one_group)
    saved = old.state_dict()
    odd = {**saved["param_groups"][0]}
    saved["param_groups"] = [{**odd, "params": [2, 0, 1]}, {**odd, "params": [3]}]
    with pytest.raises(CheckpointError) as refused:
        load_optimizer(one_group(model), model, saved, [])
    assert "optimizer:" in str(refused.value.hint)


def test_what_is_no_optimizer_state_is_refused_by_its_keys() -> None:
    model = Net()
    with pytest.raises(CheckpointError, match="'state' and 'param_groups'"):
        load_optimizer(one_group(model), model, {"exp_avg": {}}, [])


def test_a_state_without_moments_yet_loads() -> None:
    model = Net()
    load_optimizer(one_group(model), model, one_group(Net()).state_dict(), [])
    assert not one_group(model).state


def test_what_only_a_gpu_can_step_with_is_switched_off_on_a_cpu() -> None:
    _, old = trained(one_group)
    saved = old.state_dict()
    saved["param_groups"][0]["capturable"] = True
    model = Net()
    optimizer = one_group(model)
    load_optimizer(optimizer, model, saved, [])
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert {float(state["step"]) for state in optimizer.state.values()} == {2.0}

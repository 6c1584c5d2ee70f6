"""State by name: both of torch's layouts say the same, and what cannot be placed is told or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nanhunt.errors import CheckpointError
from nanhunt.training.optimizer_names import by_name, numbered, unflattened, with_numbers
from nanhunt.training.optimizer_state import load_optimizer


def saved(*names: str, **settings: Any) -> dict[str, Any]:
    state = {name: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 2)} for name in names}
    return {"state": state, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), **settings, "params": list(names)}]}


def net() -> nn.Module:
    return nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})


def test_a_flat_state_is_cut_at_the_names_whatever_dots_follow() -> None:
    flat = {
        "state.a.weight.step": 1,
        "state.a.weight.factors.0.left": 2,
        "state.a.step": 3,
        "param_groups.a.weight.lr": 0.1,
        "param_groups.a.lr": 0.1,
    }
    assert unflattened(flat) == {
        "state": {"a.weight": {"step": 1, "factors": {"0": {"left": 2}}}, "a": {"step": 3}},
        "param_groups": [{"lr": 0.1, "params": ["a.weight", "a"]}],
    }


def test_parameters_with_other_settings_make_another_group() -> None:
    flat = {f"param_groups.{name}.lr": rate for name, rate in (("a", torch.tensor(0.1)), ("b", torch.tensor(0.2)))}
    found = unflattened(flat)
    assert found is not None
    assert [group["params"] for group in found["param_groups"]] == [["a"], ["b"]]


@pytest.mark.parametrize(
    "content", [{}, {"weight": torch.ones(1)}, {"param_groups.lr": 0.1}, {1: 2}, {"state.a.step": 1}]
)
def test_what_is_not_flat_is_none(content: dict[Any, Any]) -> None:
    assert unflattened(content) is None


def test_numbers_that_became_texts_are_numbers_again_and_names_of_digits_stay() -> None:
    assert with_numbers({"0": 1}, [{"params": [0]}]) == {0: 1}
    assert with_numbers({"0": 1}, [{"params": ["0"]}]) == {"0": 1}


@pytest.mark.parametrize("groups", [5, None, [7], [{"params": 3}], [{}], [{"params": []}], [{"params": [0]}, {}]])
def test_what_is_no_list_of_groups_tells_no_names(groups: Any) -> None:
    assert by_name({"state": {}, "param_groups": groups}) is None


def test_a_parameter_without_state_keeps_its_settings_and_is_told() -> None:
    model, assumptions = net(), list[str]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.7)
    load_optimizer(optimizer, model, saved("b.weight"), assumptions)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.7]
    assert model["a"].weight not in optimizer.state
    assert torch.equal(optimizer.state[model["b"].weight]["exp_avg"], torch.ones(2, 2))
    assert any("no state for a.weight" in text for text in assumptions)


def test_state_for_parameters_of_other_names_is_refused_with_both() -> None:
    model = net()
    with pytest.raises(
        CheckpointError, match=r"none of the checkpoint's names \(x\.weight\) .* \(a\.weight, b\.weight\)"
    ):
        numbered(saved("x.weight"), torch.optim.AdamW(model.parameters()), model, [])


def test_a_moment_of_another_shape_than_its_parameter_is_refused() -> None:
    model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False)})
    with pytest.raises(CheckpointError, match="shapes"):
        load_optimizer(torch.optim.AdamW(model.parameters()), model, saved("a.weight"), [])


def test_names_that_the_model_does_not_have_do_not_stand_in_the_way_of_numbers() -> None:
    """`param_names` beside numbers, of a model whose attribute has been renamed since."""
    model = net()
    old = torch.optim.AdamW([("x", torch.ones(2, 2)), ("y", torch.ones(2, 2))], lr=0.3)
    optimizer = torch.optim.AdamW(model.parameters())
    load_optimizer(optimizer, model, old.state_dict(), [])
    assert optimizer.param_groups[0]["lr"] == 0.3


def test_pieces_of_a_cut_group_stand_in_the_checkpoints_order_so_that_its_schedule_keeps_their_rates() -> None:
    model, rates = net(), {"b": 1e-2, "a": 1e-3}
    groups = [{"params": list(model[name].named_parameters(prefix=name)), "lr": rate} for name, rate in rates.items()]
    old = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(old, lambda step: 1.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    old.step()
    optimizer = torch.optim.AdamW(model.parameters())
    load_optimizer(optimizer, model, old.state_dict(), [])
    again = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    again.load_state_dict(schedule.state_dict())
    again.step()
    names = {id(p): name.partition(".")[0] for name, p in model.named_parameters()}
    assert {names[id(group["params"][0])]: group["lr"] for group in optimizer.param_groups} == rates

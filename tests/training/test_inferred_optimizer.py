"""The optimizer is told from its saved groups, of this version of torch and of those before weight decay was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nanhunt.errors import CheckpointError, ConfigError
from nanhunt.training.checkpoint import load_checkpoint
from nanhunt.training.inferred_optimizer import inferred_optimizer
from nanhunt.training.optimizer_state import load_optimizer

#: the keys of a group as torch 2.6 saves them, in their order
OLDER = {
    "AdamW": (
        "lr",
        "betas",
        "eps",
        "weight_decay",
        "amsgrad",
        "foreach",
        "maximize",
        "capturable",
        "differentiable",
        "fused",
    ),
    "Adam": (
        "lr",
        "betas",
        "eps",
        "weight_decay",
        "amsgrad",
        "maximize",
        "foreach",
        "capturable",
        "differentiable",
        "fused",
    ),
}


def state_of(name: str, **arguments: Any) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = getattr(torch.optim, name)(model.parameters(), **arguments)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer.state_dict()


def older(name: str, saved: dict[str, Any]) -> dict[str, Any]:
    groups = [{**{k: g[k] for k in OLDER[name]}, "params": g["params"]} for g in saved["param_groups"]]
    return {"state": saved["state"], "param_groups": groups}


def inferred(folder: Path, model: nn.Module, saved: dict[str, Any]) -> tuple[torch.optim.Optimizer, list[str]]:
    torch.save({"model": model.state_dict(), "optimizer": saved, "step": 1}, folder / "ckpt.pt")
    told: list[str] = []
    return inferred_optimizer(model, load_checkpoint(folder / "ckpt.pt", keys=None, trust_pickle=False), told), told


@pytest.mark.parametrize("name", ["AdamW", "Adam"])
def test_a_state_from_before_the_decays_kind_was_saved_updates_as_it_did(tmp_path: Path, name: str) -> None:
    model, saved = state_of(name, lr=0.1, weight_decay=0.5)
    optimizer, told = inferred(tmp_path, model, older(name, saved))
    assert type(optimizer).__name__ == name
    assert "torch before 2.7 does not save" in told[0]
    load_optimizer(optimizer, model, older(name, saved), [])
    twin, _ = state_of(name, lr=0.1, weight_decay=0.5)
    original = getattr(torch.optim, name)(twin.parameters(), lr=0.1, weight_decay=0.5)
    original.load_state_dict(saved)
    for each, of in ((optimizer, model), (original, twin)):
        of.weight.grad = torch.ones_like(of.weight)
        each.step()
    assert torch.equal(model.weight, twin.weight)


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD"])
def test_one_of_this_version_is_told_by_its_keys(tmp_path: Path, name: str) -> None:
    optimizer, told = inferred(tmp_path, *state_of(name, lr=0.1))
    assert type(optimizer).__name__ == name
    assert told == [f"optimizer: not in the config; {name} was inferred from the checkpoint"]


@pytest.mark.parametrize("name", ["NAdam", "RAdam", "Adamax", "RMSprop"])
def test_others_with_betas_are_not_taken_for_adam(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="does not show which one"):
        inferred(tmp_path, *state_of(name, lr=0.1))


@pytest.mark.parametrize(("named", "saved_by"), [("Adam", "AdamW"), ("AdamW", "Adam")])
def test_a_torch_that_has_no_such_key_refuses_the_other_ones_decay(named: str, saved_by: str) -> None:
    model, saved = state_of(saved_by, lr=0.1, weight_decay=0.5)
    optimizer = getattr(torch.optim, named)(model.parameters(), lr=0.1)
    for group in optimizer.param_groups:
        group.pop("decoupled_weight_decay", None)  # as before 2.7
    with pytest.raises(CheckpointError, match=f"weight decay is {saved_by}'s"):
        load_optimizer(optimizer, model, saved, [])

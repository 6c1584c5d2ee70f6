"""A saved state tells its class: held against the states of torch's own optimizers and schedulers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from nanhunt.draft.optimizer import optimizer_arguments, optimizer_of, scheduler_arguments, scheduler_of

CLASSES = [
    n
    for n in vars(torch.optim)
    if isinstance(getattr(torch.optim, n), type) and n not in ("Optimizer", "lr_scheduler", "SparseAdam")
]


@pytest.mark.parametrize("name", CLASSES)
def test_torchs_optimizers_are_told_by_their_groups(name):
    if name == "Adam" and "decoupled_weight_decay" not in torch.optim.Adam([nn.Parameter(torch.zeros(1))]).defaults:
        pytest.skip("before torch 2.7 nothing tells Adam from AdamW")
    made = getattr(torch.optim, name)([nn.Parameter(torch.zeros(2, 2))])
    assert optimizer_of(made.state_dict()["param_groups"]) == name


def test_another_versions_flags_do_not_hide_a_class():
    saved = torch.optim.AdamW([nn.Parameter(torch.zeros(1))]).state_dict()["param_groups"][0]
    for flag in ("decoupled_weight_decay", "fused", "differentiable"):
        saved.pop(flag, None)
    saved |= {"initial_lr": 0.1, "param_names": ["w"]}
    assert optimizer_of([saved]) == "AdamW"


def test_a_strangers_optimizer_is_not_guessed():
    assert optimizer_of([{"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0, "params": [0]}]) is None  # Lion
    assert optimizer_of([]) is None


def test_the_arguments_make_the_same_hyper_parameters_again():
    made = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3, momentum=0.9, nesterov=True, weight_decay=1e-4)
    arguments = optimizer_arguments("SGD", made.param_groups[0])
    again = torch.optim.SGD([nn.Parameter(torch.zeros(1))], **arguments)
    ours, theirs = ({k: v for k, v in o.param_groups[0].items() if k != "params"} for o in (again, made))
    assert ours == theirs
    assert "dampening" not in arguments


SCHEDULERS = {
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=9, eta_min=0.01),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=3, T_mult=2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.5, total_steps=20),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, start_factor=0.2, total_iters=7),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=9, power=2.0),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, factor=0.5, total_iters=3),
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=3, gamma=0.5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.9),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, milestones=[2, 5]),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (step + 1)),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, gamma=0.9)], milestones=[3]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o),
}


def rates(make, steps=6, state=None, groups=None):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = make(optimizer)
    if state is not None:
        scheduler.load_state_dict(state)
        for group, saved in zip(optimizer.param_groups, groups, strict=True):
            group |= {k: v for k, v in saved.items() if k != "params"}
    found = []
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found, scheduler.state_dict(), optimizer.state_dict()["param_groups"]


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.filterwarnings("ignore")
def test_torchs_schedulers_are_told_by_their_state(name):
    scheduler = SCHEDULERS[name](torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))
    assert scheduler_of(scheduler.state_dict()) == name


@pytest.mark.parametrize(
    "name", [n for n in SCHEDULERS if n not in ("MultiStepLR", "LambdaLR", "SequentialLR", "ReduceLROnPlateau")]
)
@pytest.mark.filterwarnings("ignore")
def test_a_scheduler_that_is_made_again_goes_on_with_the_same_rates(name):
    whole, _, _ = rates(SCHEDULERS[name], steps=10)
    _, state, groups = rates(SCHEDULERS[name], steps=6)
    arguments = scheduler_arguments(name, state, groups)
    assert arguments is not None
    again, _, _ = rates(lambda o: getattr(lr_scheduler, name)(o, **arguments), steps=4, state=state, groups=groups)
    assert again == whole[6:]


def test_a_scheduler_whose_function_was_not_saved_is_not_made_again():
    for name in ("LambdaLR", "SequentialLR", "ReduceLROnPlateau"):
        scheduler = SCHEDULERS[name](torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1))
        assert scheduler_arguments(name, scheduler.state_dict(), []) is None
    assert scheduler_of(None) is None
    assert scheduler_of({"mine": 1}) == ""

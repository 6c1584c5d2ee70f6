"""A Trainer's schedule is inferred from a state of its own form alone; of another one nothing is, and nothing is raised."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nanhunt.training.trainer_schedule import inferred_schedule

SAVED = {"base_lrs": [1e-3], "last_epoch": 30, "_last_lr": [7e-4], "_step_count": 31, "lr_lambdas": [None]}
LOGGED = [{"step": step, "loss": 1.0, "learning_rate": 1e-3 * (101 - step) / 100} for step in (10, 20, 30)]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, True),
        ({"lr_lambdas": [{}, {}, {}]}, False),
        ({"lr_lambdas": 5}, False),
        ({"base_lrs": [1e-3] * 2, "_last_lr": [7e-4] * 2}, False),
    ],
    ids=["sound", "more-lambdas", "no-list", "more-groups"],
)
def test_a_state_of_another_form_gives_no_schedule(change: dict[str, Any], found: bool) -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(2))], lr=1e-3)
    schedule = inferred_schedule(optimizer, SAVED | change, {"max_steps": 100, "log_history": LOGGED})
    assert (schedule is not None) is found

"""Rates that a recorder saw are the updates' own, whatever rate the snapshot in front of them holds."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from nanhunt.training.checkpoint import Checkpoint
from nanhunt.training.config import RunConfig
from nanhunt.training.scheduler import built_scheduler


def test_the_first_update_has_the_rate_that_was_recorded_and_not_the_snapshots() -> None:
    optimizer = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=1.0)
    rates = {"call": "nanhunt.training.recorded_rates:RecordedRates", "kwargs": {"rates": [[0.01], [0.02], [0.03]]}}
    config = RunConfig.model_validate({"model": "train:build", "data": "train:batches", "scheduler": rates})
    saved = Checkpoint(path=Path("ckpt.pt"), container="torch", step=4, model={}, scheduler={"position": 1})
    scheduler = built_scheduler(config, Path(), optimizer, saved, [])
    assert optimizer.param_groups[0]["lr"] == 0.02
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.03

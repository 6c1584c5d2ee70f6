"""A replayed step: whose exception it was, and what a lost device leaves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nanhunt.probes import module as module_probe
from nanhunt.probes.probe import RowBuffer
from nanhunt.replay import device_is_lost, replay_step
from nanhunt.training.batches import BatchSource
from nanhunt.training.run import TrainingRun


def run_of(model: nn.Module) -> TrainingRun:
    return TrainingRun(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        loss=lambda m, b: m(b).square().mean(),
        batches=BatchSource([torch.ones(2, 3)] * 3, first_step=0, accumulate=1, device=torch.device("cpu")),
        device=torch.device("cpu"),
    )


def test_a_model_that_raises_is_a_finding() -> None:
    class Raises(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("the user's own")

    seen = replay_step(run_of(Raises(3, 1)), 0, RowBuffer(), recorded=True)
    assert isinstance(seen.error, ValueError)
    assert seen.result is None


def test_a_probe_that_fails_is_never_taken_for_the_users_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_probe, "_gradient_hook", None)
    with pytest.raises(TypeError):
        replay_step(run_of(nn.Linear(3, 1)), 0, RowBuffer(), recorded=True)


@pytest.mark.parametrize(
    ("message", "lost"), [("CUDA error: device-side assert triggered", True), ("index out of range in self", False)]
)
def test_a_device_side_assert_loses_the_device(message: str, lost: bool) -> None:
    assert device_is_lost(RuntimeError(message)) is lost
    assert not device_is_lost(None)
